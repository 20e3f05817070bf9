"""Writes lines for `fastvtp_kernels/attention/choice.py` from what `python -m benchmarks.ops.attention` measured.

    python -m benchmarks.device.attention_choice results.json --architecture sm_90

A library comes before the Triton kernels if it is at least 3 % faster in every case of a situation in which both were
timed and right. Training (forward+backward) gets two lines: one of backends that repeat bit for bit, and one of all of
them, for callers who waive that.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastvtp_kernels import tuning
from fastvtp_kernels.attention.choice import DETERMINISTIC, Situation, length_bucket, width_bucket
from fastvtp_kernels.dispatch import ATTENTION_BACKENDS

from ..harness.record import SCHEMA
from ..ops.attention import ANY_ORDER, BACKEND

GAIN = 0.03
Entries = dict[Situation, tuple[str, ...]]


def _situation(row: Mapping[str, Any], architecture: str, repeats: bool) -> Situation:
    shape = row["shape"]
    return Situation(
        tuning.known_architecture(architecture),
        tuning.precision(getattr(torch, row["dtype"])),
        width_bucket(shape["width"]),
        length_bucket(shape["longest"]),
        softcap=bool(shape.get("softcap")),
        causal=bool(shape.get("causal")),
        backward=row["direction"] == "forward+backward",
        repeats=repeats,
    )


def _backend(variant: str) -> str | None:
    name = variant.removeprefix(BACKEND).removesuffix(ANY_ORDER)
    return variant if variant == "triton" else name if name != variant and name in ATTENTION_BACKENDS else None


def _allows(repeats: bool, backend: str, variant: str) -> bool:
    """Tell whether a time counts where a backward pass must repeat, or need not."""
    return not repeats or (backend in DETERMINISTIC and not variant.endswith(ANY_ORDER))


def entries(rows: Iterable[Mapping[str, Any]], architecture: str) -> Entries:
    """Return the situations in which a library beats the Triton kernels, with the backends in the order of their speed.

    `rows` are those of a benchmark's JSON. Rows of other ops, of other variants and without a time are passed over,
    and so is a case without a time of the Triton kernels.
    """
    times: dict[Situation, dict[tuple[str, str], dict[str, float]]] = {}
    for row in rows:
        backend = _backend(row["variant"])
        if row["op"] != "varlen_attention" or backend is None or row["median_s"] is None:
            continue
        backward = row["direction"] == "forward+backward"
        for repeats in (True, False) if backward else (True,):
            if backward and not _allows(repeats, backend, row["variant"]):
                continue
            cases = times.setdefault(_situation(row, architecture, repeats), {})
            case = cases.setdefault((row["case"], row["dtype"]), {})
            # Of a library that was timed both ways, the faster one: it repeats for nothing.
            case[backend] = min(row["median_s"], case.get(backend, float("inf")))
    found = {}
    for situation, by_case in times.items():
        cases = [case for case in by_case.values() if "triton" in case]
        # The worst of a library's times relative to the Triton kernels'.
        ratios = {
            name: max(case[name] / case["triton"] for case in cases)
            for name in ATTENTION_BACKENDS
            if cases and all(name in case for case in cases)
        }
        faster = sorted((name for name, ratio in ratios.items() if ratio <= 1 - GAIN), key=ratios.__getitem__)
        if faster:
            found[situation] = (*faster, "triton")
    return dict(sorted(found.items()))


def lines(found: Entries) -> str:
    """Write the table as Python."""
    body = "".join(f"    {situation!r}: {backends!r},\n" for situation, backends in found.items())
    return "MEASURED: dict[Situation, tuple[str, ...]] = {" + (f"\n{body}" if body else "") + "}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a file of results and print the table that follows from it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device.attention_choice", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "results", type=Path, help="read this JSON, written by python -m benchmarks.ops.attention --json"
    )
    parser.add_argument(
        "--architecture", required=True, metavar="sm_90", help="name the architecture of the device that was measured"
    )
    given = parser.parse_args(arguments)
    content = json.loads(given.results.read_text())
    if content.get("schema") != SCHEMA:
        parser.error(f"{given.results}: schema is {content.get('schema')}, expected {SCHEMA}")
    if content["environment"]["device_type"] != "cuda":
        parser.error(f"{given.results} was measured on {content['environment']['device']}, which is no CUDA device")
    print(lines(entries(content["rows"], given.architecture)))


if __name__ == "__main__":
    main()
