"""Launches whose integers are 1, odd, and multiples of 16: Triton compiles each of these apart.

An integer of 1 becomes a constant, which has no dtype and cannot be cast in every way; a multiple of 16, zero included,
is known to be one. Neither the interpreter nor the launches of the compile report see what breaks at 1.

    python -m tests.kernels.edge_cases FILE

runs every case on the meta device as far as Triton's own representation, for sm_90, and writes what it saw to a JSON
file. A process of its own, in which TRITON_INTERPRET is not set.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fastvtp_kernels import tuning
from fastvtp_kernels.attention import kernels as attention
from fastvtp_kernels.attention.call import Call, Options
from fastvtp_kernels.attention.problem import of_packed
from fastvtp_kernels.contrastive import kernels as contrastive
from fastvtp_kernels.contrastive import split, tiles
from fastvtp_kernels.contrastive.targets import LogSums, Shifts, Targets
from fastvtp_kernels.masking import kernels as masking
from fastvtp_kernels.pixel_loss import kernels as pixel_loss
from fastvtp_kernels.segments import kernels as segments
from fastvtp_kernels.token_assembly import kernels as token_assembly
from fastvtp_kernels.tubelets import kernels as tubelets

ODD, SIXTEEN = 3, 16
SIZES = (1, ODD, SIXTEEN)
BF16 = torch.bfloat16
# Integers where floating-point numbers are expected, as users write them.
WHOLE, CAPPED, DROPPED = Options(1), Options(1, 1, True), Options(0.5, 2.0, True, 0.5)
Case = tuple[str, Callable[[], Any]]


def _empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attend(tensors: tuple[Tensor, ...], problem: attention.Problem) -> None:
    output, lse = attention.forward(*tensors, problem)
    gradients = [torch.empty_like(x.contiguous()) for x in tensors]
    attention.backward(torch.empty_like(output), *tensors, output, lse, problem, gradients)


def _packed(sequences: int, length: int, heads: int, width: int, options: Options, answering: bool = False) -> None:
    tensors = tuple(_empty(sequences * length, heads, width) for _ in range(3))
    offsets, lengths = (_empty(sequences + more, dtype=torch.int32) for more in (1, 0))
    call = Call(offsets, length, offsets, length, options, order=lengths, key_lengths=lengths if answering else None)
    _attend(tensors, of_packed(*tensors[:2], call))


def _along(outer: int, length: int, inner: int, heads: int, width: int, options: Options) -> None:
    tensors = tuple(_empty(outer, length, inner, heads, width) for _ in range(3))
    _attend(tensors, attention.axial_problem(tensors[0], options))


def _attention_cases() -> Iterator[Case]:
    yield "attention order", lambda: attention.attention_order(_empty(2, dtype=torch.int32))
    # Rows of a sequence in each regime, odd and a multiple of 16.
    for regime, lengths in {"tiny": (1, ODD, SIXTEEN), "resident": (33, 33, 48), "streaming": (601, 601, 608)}.items():
        for size, length in zip(SIZES, lengths, strict=True):
            others = [CAPPED, *([] if regime == "resident" else [DROPPED])] if size == 1 else []
            for options in (WHOLE, *others):
                name = f"attention {regime} {size} {options}"
                yield name, lambda n=size, length=length, x=options: _packed(n, length, n, n, x, n == 1)
                if not options.dropout_p:
                    yield f"{name} axial", lambda n=size, length=length, x=options: _along(n, length, n, n, n, x)


def _contrastive_cases() -> Iterator[Case]:
    number = _empty(dtype=torch.float32)
    # One tile of logits and one row, odd numbers of tiles, and multiples of 16 of everything.
    for rows, width in ((1, 1), (301, 3), (2048, 16)):
        a, vector, ids = _empty(rows, width), _empty(rows, dtype=torch.float32), _empty(rows, dtype=torch.int64)
        shifts, sums = Shifts(vector, vector), LogSums(vector, vector, vector)
        kinds = {"": Targets(0, 1, 0), " ids": Targets(1, 0.5, 0.1, ids, ids, vector)}
        for kind, targets in list(kinds.items())[: 2 if rows == 1 else 1]:
            name = f"contrastive {rows} x {width}{kind}"
            yield f"{name} statistics", lambda a=a, x=targets, s=shifts: tiles.statistics(a, a, number, x, s)
            yield (
                f"{name} gradient",
                lambda a=a, x=targets, s=shifts, sums=sums: tiles.logit_gradient(a, a, number, sums, x, s),
            )
            yield (
                f"{name} negatives",
                lambda a=a, x=targets: contrastive.hard_negatives(a, a, number, (1, 1), None, x.row_ids, False, ""),
            )
        yield f"contrastive {rows} own", lambda a=a: tiles.shift(a, a, number)
        yield f"contrastive {rows} sigmoid", lambda a=a: tiles.sigmoid(a, a, number, number, 1, True)
    yield "contrastive split", lambda: split.sigmoid(*[_empty(1, 1, dtype=torch.float32)] * 2, number, number, 0, True)
    # 16 tiles.
    four = _empty(4 * tuning.tile("contrastive_sigmoid", BF16, number.device).blocks["BLOCK_M"] - 1, 1)
    wide = _empty(4 * tuning.tile("contrastive_sigmoid", BF16, number.device).blocks["BLOCK_N"] - 1, 1)
    yield "contrastive sigmoid 16 tiles", lambda: tiles.sigmoid(four, wide, number, number, 0, True)
    for parts in SIZES:
        yield f"contrastive join {parts}", lambda n=parts: tiles.join_parts(_empty(n, n, dtype=torch.float32))


def _clip(size: int, dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """Video, listed tokens and tubelet, all of whose strides and counts are of that kind: 1, odd or a multiple of
    16."""
    side = {1: 1, ODD: 9, SIXTEEN: 256}[size]
    tubelet = (1, side // size, side // size)
    return _empty(size, size, side, side, 1, dtype=dtype), _empty(size, size, dtype=torch.int32), tubelet


def _frame_cases() -> Iterator[Case]:
    for size in SIZES:
        for dtype in (torch.uint8, torch.float32):
            video, index, tubelet = _clip(size, dtype)
            values = tubelet[0] * tubelet[1] * tubelet[2]
            constants = (tubelet, (0,), (1,))
            weight, bias, position = _empty(size, 1, *tubelet), _empty(size), _empty(size, size)
            grad, prediction = _empty(*index.shape, size), _empty(*index.shape, values)
            name = f"frames {size} {dtype}"
            yield (
                f"{name} embed",
                lambda v=video, i=index, w=weight, b=bias, p=position, c=constants: tubelets.tubelet_embed(
                    v, i, w, b, p, *c, BF16
                ),
            )
            yield (
                f"{name} embed backward",
                lambda g=grad, v=video, i=index, w=weight, p=position, c=constants: tubelets.tubelet_embed_backward(
                    g, v, i, w, *c, p
                ),
            )
            yield (
                f"{name} gather",
                lambda v=video, i=index, c=constants: tubelets.gather_tubelets(v, i, *c, torch.float32),
            )
            for normalize in (None, *(["patch_channel"] if size > 1 else [])):
                yield (
                    f"{name} pixel loss {normalize}",
                    lambda x=prediction, v=video, i=index, t=tubelet, n=normalize: pixel_loss.masked_pixel_loss(
                        x, v, i, t, n, 1, True
                    ),
                )
        yield (
            f"pixel loss scaling {size}",
            lambda n=size: pixel_loss.scale_in_place(_empty(n), _empty(dtype=torch.float32)),
        )
    # The gradient of a weight in 3 and in 16 parts.
    tokens = tuning.tile("weight_gradient", BF16, torch.device("meta")).blocks["BLOCK_M"]
    video, _, tubelet = _clip(1)
    for parts in (ODD, SIXTEEN):
        index = _empty(1, parts * tokens, dtype=torch.int32)
        yield (
            f"weight gradient in {parts} parts",
            lambda i=index: tubelets.tubelet_embed_backward(
                _empty(*i.shape, 1), video, i, _empty(1, 1, *tubelet), tubelet, (0,), (1,), None
            ),
        )


def _row_cases() -> Iterator[Case]:
    chunk = _empty(tuning.tile("sum_chunks", torch.float32, torch.device("meta")).blocks["CHUNK"], dtype=torch.int64)
    for size in SIZES:
        rows, places, values = _empty(size, size), _empty(size, dtype=torch.int64), _empty(size, size)
        starts = _empty(size + 1, dtype=torch.int32)
        yield (
            f"sum_rows {size}",
            lambda r=rows, p=places, s=starts, n=size: segments.sum_rows(r, p, p, s, n),
        )
        yield (
            f"sum_rows of a long list {size}",
            lambda r=rows, p=chunk, s=starts, n=size: segments.sum_rows(r, p, p, s, n),
        )
        yield f"sum_sequences {size}", lambda r=rows, s=starts: segments.sum_sequences(r, s)
        yield (
            f"spread_sequences {size}",
            lambda v=values, s=starts, n=size: segments.spread_sequences(v, s, n, BF16),
        )
        cells = {1: 1, ODD: 9, SIXTEEN: 32}[size]
        yield (
            f"tube_mask {size}",
            lambda n=size, cells=cells: masking.tube_mask(_empty(n, dtype=torch.int64), n, cells, n, (1, 1), None),
        )
        for masked in (0, size, 2 * SIXTEEN):
            length = size + masked
            visible, index = _empty(size, size, size), _empty(size, size, dtype=torch.int32)
            hidden = _empty(size, masked, dtype=torch.int32)
            for order in (None, _empty(size, length, dtype=torch.int64)):
                table = _empty(size), _empty(length, size), index, hidden, order
                name = f"assemble_tokens {size} and {masked}{'' if order is None else ' permuted'}"
                yield name, lambda v=visible, t=table: token_assembly.assemble_tokens(v, *t)
                yield (
                    f"{name} backward",
                    lambda t=table, length=length: token_assembly.assemble_tokens_backward(
                        _empty(len(t[2]), length, len(t[0])), *t, True
                    ),
                )


def cases() -> Iterator[Case]:
    """Return every case: what it is, and the call that launches it."""
    yield from _attention_cases()
    yield from _contrastive_cases()
    yield from _frame_cases()
    yield from _row_cases()


class _EndOfStage(Exception):  # noqa: N818
    """Carries Triton's own representation of a kernel out of the compiler."""


@contextmanager
def first_stage(seen: list[dict[str, Any]]) -> Iterator[None]:
    """Within the context kernels are compiled as far as Triton's own representation, and listed."""
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import JITFunction

    add_stages, warmup = CUDABackend.add_stages, JITFunction.warmup

    def add_one_stage(self: Any, stages: dict[str, Any], *options: Any) -> None:
        def end(module: Any, _: Any) -> None:
            raise _EndOfStage(str(module))

        add_stages(self, stages, *options)
        stages["ttgir"] = end

    def listing(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            text = warmup(self, *arguments, **options).asm["ttir"]
        except _EndOfStage as end:
            text = end.args[0]
        integers = _specialised_integers(self, arguments)
        functions = set(re.findall(r"\b(math\.\w+|tt\.atomic\w*|tt\.extern_elementwise|arith\.divf)\b", text))
        seen.append({"kernel": self.__name__, "integers": integers, "functions": sorted(functions)})
        return SimpleNamespace(asm={"ttir": text})

    with patch.object(CUDABackend, "add_stages", add_one_stage), patch.object(JITFunction, "warmup", listing):
        yield


def _specialised_integers(kernel: Any, arguments: tuple[Any, ...]) -> dict[str, int]:
    """Return the integers of a launch by name, those in tuples by "name[place]", for which Triton compiles anew."""
    found: dict[str, int] = {}
    for parameter, value in zip(kernel.params, arguments, strict=False):
        if parameter.is_constexpr or parameter.do_not_specialize:
            continue
        named = enumerate(value) if isinstance(value, tuple) else [("", value)]
        for place, entry in named:
            if isinstance(entry, int):
                found[parameter.name if place == "" else f"{parameter.name}[{place}]"] = entry
    return found


def main(file: str) -> None:
    from triton.runtime import driver

    from fastvtp_kernels.compile_report import _OfflineDriver
    from fastvtp_kernels.launching import compile_only

    offline: Any = _OfflineDriver("sm_90")
    driver.set_active(offline)
    found: dict[str, Any] = {}
    with tuning.targeting("sm_90"), compile_only():
        for name, run in cases():
            seen: list[dict[str, Any]] = []
            try:
                with first_stage(seen):
                    run()
                found[name] = {"launches": seen}
            except Exception as error:
                found[name] = {"launches": seen, "error": f"{type(error).__name__}: {error}"}
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
