"""Prints a table of agreement: how far our attention and every other one at hand are from the truth, case by case.

    python -m benchmarks.device.agreement [--smoke] [--json agreement.json]

A cell is the worst error of the output and of the gradients of query, key and value, as a share of what is allowed:

    max|found - exact| <= 2 max|plain - exact| + 2 eps max(1, max|exact|)

where both are `plain`, softmax(q k^T) v of one sequence after the other in plain PyTorch: `exact` in float64, and once
in the dtype of the case, which rounds logits and weights too; eps is that dtype's. 1 and less agrees. (The tests hold
our kernels to more: to plain PyTorch that computes in float32.) A column that cannot do a case says no, and why below
the table. Dropout has rows of its own: the share of weights that are kept, in standard deviations from what was asked
for, of which 5 are allowed; and whatever attention here does not offer must be refused by name. On a GPU the columns
are our kernels, our plain PyTorch, each library that can be imported, through the backend of its name, and SDPA held to
one kernel at a time; on the CPU ours are the kernels under Triton's interpreter, in the small cases of a smoke run.
"""

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastvtp_kernels import varlen_attention
from fastvtp_kernels.dispatch import ATTENTION_BACKENDS, BackendUnavailableError, backends
from fastvtp_kernels.testing import tiny

from ..harness.environment import environment
from ..harness.record import write_json_rows
from ..peers.attention import OPERATORS
from ..peers.flex import flex_attention_of
from ..peers.pinned import pinned

Attention = Callable[["Case", Tensor, Tensor, Tensor], Tensor]
OP = "varlen_attention"
HEADS = 3
MOST_DEVIATIONS = 5.0
# Lengths of queries and, where they differ, of keys: one row, both sides of every tile's edge, nothing, all mixed.
LENGTHS: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "1 row each": ((1, 1, 1, 1), None),
    "about 32": ((31, 32, 33, 1), None),
    "about 64": ((63, 64, 65), None),
    "about 128": ((127, 128, 129), None),
    "about 512": ((511, 513, 512), None),
    "mixed, some empty": ((0, 108, 256, 0, 1, 203), None),
    "799 to 2048": ((1024, 799, 2048), None),
    "more keys": ((113, 1, 128, 64), (203, 217, 384, 65)),
    "fewer keys": ((108, 239, 65), (64, 113, 1)),
    "empty sides": ((64, 0, 33, 0), (0, 64, 33, 0)),
}
SMALL: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "1 row each": ((1, 1), None),
    "mixed, some empty": ((0, 5, 17, 1), None),
    "more keys": ((3, 1), (9, 18)),
    "fewer keys": ((9, 4), (2, 0)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "softcap 15": {"softcap": 15.0},
    "causal, softcap 50": {"causal": True, "softcap": 50.0},
}
# The usual ones, multiples of eight, odd ones, and one that kernels refuse.
WIDTHS = (32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256, 264)
SMALL_WIDTHS = (16, 21)
DROPPED = (0.1, 0.5)


@dataclass(frozen=True)
class Case:
    """A case is a call of varlen_attention: lengths, heads' width, dtype and options."""

    name: str
    lengths: tuple[int, ...]
    lengths_k: tuple[int, ...] | None
    width: int
    dtype: torch.dtype
    device: torch.device
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """Return the name with width and dtype."""
        return f"{self.name}, {self.width} wide, {str(self.dtype).removeprefix('torch.')}"

    def offsets(self) -> tuple[Tensor, Tensor]:
        """Return the offsets of queries and of keys, the same tensor in self-attention."""
        first = self._offsets(self.lengths)
        return first, first if self.lengths_k is None else self._offsets(self.lengths_k)

    def _offsets(self, lengths: tuple[int, ...]) -> Tensor:
        return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=self.device)

    def rows(self) -> list[Tensor]:
        """Return query, key and value, the same ones in every run, made for the dtype."""
        generator = torch.Generator().manual_seed(1 + sum(self.lengths) + self.width)
        counts = sum(self.lengths), *[sum(self.lengths_k or self.lengths)] * 2
        made = [torch.randn(count, HEADS, self.width, generator=generator) for count in counts]
        return [x.to(self.device, self.dtype) for x in made]

    def call(self, backend: str, query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        """Run varlen_attention by a backend."""
        offsets, offsets_k = self.offsets()
        keys: dict[str, Any] = {}
        if self.lengths_k is not None:
            keys = {"cu_seqlens_k": offsets_k, "max_seqlen_k": max(self.lengths_k)}
        options = {**dict(self.options), **keys, **more}
        return varlen_attention(query, key, value, offsets, max(self.lengths), backend=backend, **options)


def cases(device: torch.device, smoke: bool) -> list[Case]:
    """Return the cases, those of most worth first: every length by the usual width, then widths, then dtypes."""
    half, single = torch.bfloat16, torch.float32
    lengths, widths = (SMALL, SMALL_WIDTHS) if smoke else (LENGTHS, WIDTHS)
    width = widths[0] if smoke else 64
    found = [
        Case(f"{name}, {options}", *lengths[name], width, half, device, tuple(OPTIONS[options].items()))
        for name in lengths
        for options in OPTIONS
    ]
    mixed = lengths["mixed, some empty"]
    found += [
        Case(f"mixed, {options}", *mixed, other, half, device, tuple(OPTIONS[options].items()))
        for other in widths
        if other != width
        for options in ("plain", "causal")
    ]
    others = [replace(case, dtype=dtype) for dtype in (torch.float16, single) for case in found[: 2 * len(OPTIONS)]]
    return (found[:: len(OPTIONS) + 1] + others[:1]) if smoke else found + others


def _exactly(kernel: SDPBackend, case: Case, *rows: Tensor) -> Tensor:
    def run(*rows: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return case.call("sdpa", *rows)

    return pinned(f"sdpa {kernel.name.lower()}", OPERATORS[kernel], run)(*rows)


def _flex(case: Case, *rows: Tensor) -> Tensor:
    counts = rows[0].shape[0], rows[1].shape[0]
    return flex_attention_of(case.offsets(), counts, **dict(case.options))(*rows)


def _ours(backend: str, case: Case, *rows: Tensor) -> Tensor:
    return case.call(backend, *rows)


def columns(device: torch.device) -> dict[str, Attention]:
    """Return the attentions that can be had here, ours first."""
    available = {found.backend: found.available for found in backends(OP, device)}
    names = [name for name in ("triton", "reference", *ATTENTION_BACKENDS) if available[name]]
    found: dict[str, Attention] = {name: partial(_ours, name) for name in names}
    kernels = [kernel for kernel in OPERATORS if device.type == "cuda" or kernel == SDPBackend.MATH]
    found |= {f"sdpa {kernel.name.lower().removesuffix('_attention')}": partial(_exactly, kernel) for kernel in kernels}
    return {**found, "flex": _flex}


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def results(run: Callable[..., Tensor], rows: Sequence[Tensor], backward: bool) -> list[Tensor]:
    """Return the output and, where asked for, the gradients for one incoming gradient, the same one for every run."""
    leaves = [x.detach().requires_grad_(backward) for x in rows]
    output = run(*leaves)
    if not backward:
        return [output]
    with _seeded():
        incoming = torch.randn(output.shape, dtype=torch.float32).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, incoming)]


def share(found: Tensor, ordinary: Tensor, exact: Tensor) -> float:
    """Return the error as a share of what is allowed; infinite where a value is not finite or the shape is wrong."""
    if found.shape != exact.shape or found.dtype != ordinary.dtype:
        return float("inf")
    if not exact.numel():
        return 0.0
    error, own = ((x.double() - exact).abs().nan_to_num(nan=float("inf")).max().item() for x in (found, ordinary))
    # Inputs are of the size of 1, and so is what cancels where a gradient is zero.
    return error / (2 * own + tiny(found.dtype, max(1.0, exact.abs().max().item())))


def plain(case: Case, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute the case in the dtype of the tensors, one sequence [H, L, Dh] after the other."""
    options, parts = dict(case.options), []
    softcap = options.get("softcap", 0.0)
    sides = (query, case.lengths), *((x, case.lengths_k or case.lengths) for x in (key, value))
    for q, k, v in zip(*(x.transpose(0, 1).split(lengths, dim=1) for x, lengths in sides), strict=True):
        logits = q @ k.mT * case.width**-0.5
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        if options.get("causal"):
            # The last query sees the last key.
            seen = seen.tril(k.shape[1] - q.shape[1])
        output = logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(dim=-1) @ v
        parts.append(output.masked_fill(~seen.any(dim=-1, keepdim=True), 0))
    return torch.cat(parts, dim=1).transpose(0, 1)


class Truth:
    """The truth of a case: `plain` in float64, and in the dtype of the case."""

    def __init__(self, case: Case):
        self._case, self._rows = case, case.rows()
        self._known: dict[bool, list[list[Tensor]]] = {}

    def share(self, attention: Attention) -> float:
        """Return the worst share of an attention's results.

        FlexAttention has no backward pass on the CPU, and is asked for none there.
        """
        backward = not (attention is _flex and self._case.device.type == "cpu")
        if backward not in self._known:
            run = partial(plain, self._case)
            rows = self._rows, [x.double() for x in self._rows]
            self._known[backward] = [results(run, x, backward) for x in rows]
        found = results(partial(attention, self._case), self._rows, backward)
        return max(share(*each) for each in zip(found, *self._known[backward], strict=True))


def kept(attention_backend: str, probability: float, device: torch.device, length: int) -> float:
    """Return how many standard deviations the share of kept weights lies from 1 - probability.

    All weights are alike, and values are the unit vectors: each output value is one weight.
    """
    case = Case("dropout", (length, length), None, length, torch.float32, device)
    query = torch.zeros(2 * length, HEADS, length, device=device)
    value = torch.eye(length, device=device).repeat(2, 1)[:, None].expand(-1, HEADS, -1).contiguous()
    output = case.call(attention_backend, query, query, value, dropout_p=probability, seed=7)
    count = output.numel()
    deviation = (probability * (1 - probability) / count) ** 0.5
    return abs((output != 0).double().mean().item() - (1 - probability)) / deviation


# What FlashAttention offers and this op does not: the call, and what the refusal has to name.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "grouped heads": ({"heads_k": 1}, "key has shape"),
    "a window": ({"window_size": (8, 0)}, "window_size"),
}


def refusal(what: str, device: torch.device) -> str:
    """Return "" if varlen_attention refuses by name what it does not offer, or what happened in place of it."""
    options, named = dict(REFUSED[what][0]), REFUSED[what][1]
    heads_k = options.pop("heads_k", HEADS)
    query, key = (torch.zeros(4, heads, 16, device=device) for heads in (HEADS, heads_k))
    offsets = torch.tensor([0, 4], dtype=torch.int32, device=device)
    try:
        varlen_attention(query, key, key, offsets, 4, **options)
    except (ValueError, TypeError) as error:
        return "" if named in str(error) else f"refused without its name: {error}"
    return "not refused"


Cell = float | str


def _cell(run: Callable[[], float]) -> Cell:
    """Return what is found, or one line that says why it cannot be."""
    try:
        return run()
    except Exception as error:
        words = str(error).strip().partition("\n")[0]
        expected = isinstance(error, BackendUnavailableError | NotImplementedError)
        return words if expected else f"{type(error).__name__}: {words}"


def rows_of(device: torch.device, smoke: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each case and the rest, until the time is over: its name, its limit, and its cells by column."""
    deadline, found = time.monotonic() + seconds, columns(device)
    ours = [name for name in ("triton", "reference") if name in found]
    for what in REFUSED:
        yield {"case": f"refuses {what}", "limit": 0.0, "cells": {ours[0]: refusal(what, device) or 0.0}}
    for probability in DROPPED:
        length = 16 if smoke else 128
        cells = {name: _cell(partial(kept, name, probability, device, length)) for name in ours}
        yield {"case": f"dropout {probability}, deviations", "limit": MOST_DEVIATIONS, "cells": cells}
    for case in cases(device, smoke):
        if time.monotonic() > deadline:
            print("the time is over; cases are left out", file=sys.stderr)
            return
        truth = Truth(case)
        yield {
            "case": case.label,
            "limit": 1.0,
            "cells": {name: _cell(partial(truth.share, attention)) for name, attention in found.items()},
        }


def faults(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what our own columns break, a line each; that another one does is only shown."""
    found = []
    for row in rows:
        for name in ("triton", "reference"):
            cell = row["cells"].get(name)
            wide = isinstance(cell, str) and "wide" in cell
            if (isinstance(cell, str) and not wide) or (isinstance(cell, float) and not cell <= row["limit"]):
                found.append(f"{row['case']}: {name}: {cell}")
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as Markdown, and below them the reasons of those who say no, with letters."""
    names = list(dict.fromkeys(name for row in rows for name in row["cells"]))
    reasons: dict[str, str] = {}

    def shown(cell: Cell | None, limit: float) -> str:
        if cell is None:
            return ""
        if isinstance(cell, str):
            return f"no ({reasons.setdefault(cell, str(len(reasons) + 1))})"
        return f"{cell:.2f}" if cell <= limit else f"**{cell:.2f}**"

    lines = [["case", *names], ["---"] * (len(names) + 1)]
    lines += [[row["case"], *(shown(row["cells"].get(name), row["limit"]) for name in names)] for row in rows]
    written = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([*written, "", *(f"{number}. {reason}" for reason, number in reasons.items())])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write it where --json says, and return 1 if our own attention breaks the law."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file, as they come")
    parser.add_argument("--smoke", action="store_true", help="use few and tiny cases")
    parser.add_argument("--seconds", type=float, default=600.0, help="start no case after so long; default: 600")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about, rows = {**environment(device), "smoke": given.smoke}, []
    for row in rows_of(device, given.smoke, given.seconds):
        rows.append(row)
        if given.json:
            # JSON knows no infinity.
            write_json_rows(given.json, [_finite(one) for one in rows], about)
    print(table(rows))
    found = faults(rows)
    print(*(["", "broken:", *found] if found else []), sep="\n")
    return int(bool(found))


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    cells = {name: "not finite" if cell == float("inf") else cell for name, cell in row["cells"].items()}
    return {"case": row["case"], "limit": row["limit"], **cells}


if __name__ == "__main__":
    sys.exit(main())
