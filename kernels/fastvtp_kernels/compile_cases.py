"""The launches that the compile report compiles: each kernel, dtype and option at the shapes of VideoMAE-B's training.

Tensors are on the meta device: shapes, dtypes and alignment decide what Triton compiles, values do not exist.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention import kernels as attention
from .attention.call import Call, Options
from .attention.problem import of_packed
from .contrastive import kernels as contrastive
from .contrastive import split, tiles
from .contrastive.targets import LogSums, Shifts, Targets
from .masking import kernels as masking
from .pixel_loss import kernels as pixel_loss
from .segments import kernels as segments
from .token_assembly import kernels as token_assembly
from .tubelets import kernels as tubelets

BATCH, GRID, TUBELET, WIDTH, DECODER_WIDTH = 64, (8, 14, 14), (2, 16, 16), 768, 384
TOKENS, VISIBLE, MASKED, VALUES = 1568, 160, 1408, 1536
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Case(NamedTuple):
    """What is launched, in words, and the call that launches it."""

    name: str
    run: Callable[[], Any]
    everywhere: bool = True
    """False: compiled for the report's first architectures alone, because other launches of the same tiles are not."""


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _index(count: int) -> Tensor:
    return _empty(BATCH, count, dtype=torch.int32)


def _video(dtype: torch.dtype = torch.uint8) -> Tensor:
    frames, height, width = (cells * side for cells, side in zip(GRID, TUBELET, strict=True))
    return _empty(BATCH, frames, height, width, 3, dtype=dtype)


def _tubelet_cases(label: str, dtype: torch.dtype) -> Iterator[Case]:
    weight, bias = _empty(WIDTH, 3, *TUBELET, dtype=dtype), _empty(WIDTH, dtype=dtype)
    position = _empty(TOKENS, WIDTH, dtype=dtype)
    frames, index, grad = _video(), _index(VISIBLE), _empty(BATCH, VISIBLE, WIDTH, dtype=dtype)
    yield Case(
        f"tubelet_embed {label}",
        lambda: tubelets.tubelet_embed(frames, index, weight, bias, position, TUBELET, *IMAGENET, dtype),
    )
    yield Case(
        f"tubelet_embed backward {label}",
        lambda: tubelets.tubelet_embed_backward(grad, frames, index, weight, TUBELET, *IMAGENET, position),
    )


def _memory_bound_cases(label: str, dtype: torch.dtype) -> Iterator[Case]:
    yield Case(
        f"gather_tubelets {label}",
        lambda: tubelets.gather_tubelets(_video(), _index(VISIBLE), TUBELET, *IMAGENET, dtype),
    )
    for video, normalize in ((_video(), "patch_channel"), (_video(), None), (_video(torch.float32), "patch_channel")):
        of = " of floats" if video.is_floating_point() else ""
        yield Case(
            f"masked_pixel_loss {normalize or 'plain'}{of} {label}",
            lambda video=video, normalize=normalize: pixel_loss.masked_pixel_loss(
                _empty(BATCH, MASKED, VALUES, dtype=dtype), video, _index(MASKED), TUBELET, normalize, 1e-6, True
            ),
        )
    yield Case(
        f"masked_pixel_loss scaling {label}",
        lambda: pixel_loss.scale_in_place(_empty(BATCH, MASKED, VALUES, dtype=dtype), _empty()),
    )
    token, position = _empty(DECODER_WIDTH, dtype=dtype), _empty(TOKENS, DECODER_WIDTH, dtype=dtype)
    rows, grad = _empty(BATCH, VISIBLE, DECODER_WIDTH, dtype=dtype), _empty(BATCH, TOKENS, DECODER_WIDTH, dtype=dtype)
    visible, masked = _index(VISIBLE), _index(MASKED)
    for order, permutation in (("", None), (" permuted", _empty(BATCH, TOKENS, dtype=torch.int64))):
        yield Case(
            f"assemble_tokens{order} {label}",
            lambda permutation=permutation: token_assembly.assemble_tokens(
                rows, token, position, visible, masked, permutation
            ),
        )
        yield Case(
            f"assemble_tokens backward{order} {label}",
            lambda permutation=permutation: token_assembly.assemble_tokens_backward(
                grad, token, position, visible, masked, permutation, False
            ),
        )


def _sum_cases(label: str, dtype: torch.dtype) -> Iterator[Case]:
    pool, rows, sequences = BATCH * (VISIBLE + 64), 4 * BATCH * (VISIBLE + 32), 4 * BATCH
    x, places = _empty(rows, WIDTH, dtype=dtype), _empty(rows, dtype=torch.int64)
    starts, offsets = _empty(pool + 1, dtype=torch.int32), _empty(sequences + 1, dtype=torch.int32)
    yield Case(f"sum_rows {label}", lambda: segments.sum_rows(x, places, places, starts, -1))
    yield Case(f"sum_sequences {label}", lambda: segments.sum_sequences(x, offsets))
    values = _empty(sequences, WIDTH)
    yield Case(f"sum_sequences backward {label}", lambda: segments.spread_sequences(values, offsets, rows, dtype))


PAIRS, FEATURES = 32768, 512
HEADS = 12
PLAIN = Options(0.125)
CAUSAL, SOFTCAP = Options(0.125, causal=True), Options(0.125, softcap=50.0)
CAPPED = Options(0.125, softcap=50.0, causal=True)
EVERY = Options(0.125, softcap=50.0, causal=True, dropout_p=0.1)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Attend(NamedTuple):
    """Self-attention in sequences of `length` rows, or of so many queries on `length_k` keys, or along such an axis."""

    width: int
    length: int
    options: Options = PLAIN
    dtype: torch.dtype = BF16
    length_k: int | None = None
    axial: bool = False
    heads: int = HEADS
    key_lengths: bool = False
    """Some rows of each sequence ask and do not answer."""

    def __str__(self) -> str:
        shape = f"{self.length} x {self.width}"
        if self.length_k is not None:
            shape = f"{self.length} on {self.length_k} x {self.width}"
        elif self.axial:
            shape = f"axis of {shape}"
        elif self.heads != HEADS:
            shape = f"{self.length} x {self.heads} x {self.width}"
        words = [name for name in ("softcap", "causal", "dropout_p") if getattr(self.options, name)]
        words += ["key lengths"] * self.key_lengths
        return " ".join((shape, *words, str(self.dtype).removeprefix("torch."))).replace("dropout_p", "dropout")


# Every line of the table: each regime plain and with what costs most registers; and the decoder of SimVTP-B.
ATTENTION = [
    Attend(64, 1600, heads=6), Attend(64, 16, axial=True),
    Attend(64, 16), Attend(64, 16, EVERY), Attend(64, 168), Attend(64, 168, CAPPED),
    Attend(64, 256), Attend(64, 256, CAPPED), Attend(64, 1568), Attend(64, 1568, CAPPED), Attend(64, 1568, EVERY),
    Attend(128, 16), Attend(128, 16, EVERY), Attend(128, 128), Attend(128, 128, CAPPED), Attend(128, 1568),
    Attend(128, 1568, CAPPED), Attend(128, 1568, EVERY), Attend(88, 128),
    Attend(256, 16, EVERY), Attend(256, 1568), Attend(256, 1568, CAPPED), Attend(256, 1568, EVERY),
    *(Attend(width, length, EVERY, FP32) for width in (64, 128, 256) for length in (16, 1568)),
    Attend(64, 1568, dtype=FP32), Attend(128, 1568, dtype=FP32),
]  # fmt: skip
# The same tiles under other options, dtypes, widths and forms: VideoPrism's softcap alone and its causal text, a pooler
# with one query, the widths of InternVideo and of small models, all numbers of tiles that stay on chip, padding.
ATTENTION_VARIED = [
    Attend(64, 168, CAUSAL), Attend(64, 168, SOFTCAP), Attend(64, 1568, CAUSAL), Attend(64, 1568, SOFTCAP),
    Attend(64, 168, axial=True), Attend(64, 512, axial=True), Attend(64, 168, dtype=FP16), Attend(64, 1568, dtype=FP16),
    Attend(64, 1, length_k=168), Attend(64, 64), Attend(64, 100), Attend(64, 320), Attend(64, 320, SOFTCAP),
    Attend(16, 168), Attend(32, 168), Attend(80, 168), Attend(96, 168), Attend(64, 16, key_lengths=True),
    Attend(64, 192, key_lengths=True), Attend(64, 1568, key_lengths=True),
]  # fmt: skip


def _attend(case: Attend, backward: bool) -> None:
    if case.axial:
        tensors = [_empty(BATCH, case.length, 256, case.heads, case.width, dtype=case.dtype) for _ in range(5)]
        problem = attention.axial_problem(tensors[0], case.options)
    else:
        rows, offsets = BATCH * case.length, _empty(BATCH + 1, dtype=torch.int32)
        longest_k = case.length if case.length_k is None else case.length_k
        # As a linear layer makes them: views of one packed tensor.
        query = _empty(rows, 1 if case.length_k else 3, case.heads, case.width, dtype=case.dtype)[:, 0]
        _, key, value = _empty(BATCH * longest_k, 3, case.heads, case.width, dtype=case.dtype).unbind(1)
        tensors = [query, key, value, *(torch.empty_like(query.contiguous()) for _ in range(2))]
        order, key_lengths = _empty(BATCH, dtype=torch.int32), None
        if case.key_lengths:
            key_lengths = _empty(BATCH, dtype=torch.int32)
        call = Call(offsets, case.length, offsets, longest_k, case.options, order=order, key_lengths=key_lengths)
        problem = of_packed(query, key, call)
    query, key, value, output, grad = tensors
    if not backward:
        attention.forward(query, key, value, problem)
        return
    lse = _empty(problem.heads, problem.rows)
    gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
    attention.backward(grad, query, key, value, output, lse, problem, gradients)


def _attention_cases() -> Iterator[Case]:
    yield Case("attention order", lambda: attention.attention_order(_empty(BATCH + 1, dtype=torch.int32)))
    for entries, everywhere in ((ATTENTION, True), (ATTENTION_VARIED, False)):
        for entry in entries:
            yield Case(f"attention {entry}", lambda entry=entry: _attend(entry, False), everywhere)
            yield Case(f"attention {entry} backward", lambda entry=entry: _attend(entry, True), everywhere)


def _contrastive_cases(label: str, dtype: torch.dtype) -> Iterator[Case]:
    scale, ids, weights = _empty(), _empty(PAIRS, dtype=torch.int64), _empty(PAIRS)
    a, b = (_empty(PAIRS, FEATURES, dtype=dtype) for _ in range(2))
    shifts, log_sums = Shifts(weights, weights), LogSums(weights, weights, weights)
    yield Case(f"contrastive_loss own pairs {label}", lambda: tiles.shift(a, b, scale))
    for kind, targets in (("", Targets()), (" ids", Targets(0, 0.9, 0.1, ids, ids, weights))):
        yield Case(
            f"contrastive_loss{kind} {label}",
            lambda targets=targets: tiles.statistics(a, b, scale, targets, shifts),
        )
        yield Case(
            f"contrastive_loss gradient{kind} {label}",
            lambda targets=targets: tiles.logit_gradient(a, b, scale, log_sums, targets, shifts),
        )
        yield Case(
            f"hard_negatives{kind} {label}",
            lambda targets=targets: contrastive.hard_negatives(a, b, scale, (0, 0), None, targets.row_ids, False, ""),
        )
    for kind, with_gradient in ((" loss alone", False), ("", True)):
        yield Case(
            f"sigmoid_loss{kind} {label}",
            lambda with_gradient=with_gradient: tiles.sigmoid(a, b, scale, scale, 0, with_gradient),
        )
    if dtype == torch.float32:
        yield Case(
            "contrastive_loss gradient bf16x3",
            lambda: split.logit_gradient(a, b, scale, log_sums, Targets(), shifts),
            everywhere=False,
        )
        yield Case("sigmoid_loss bf16x3", lambda: split.sigmoid(a, b, scale, scale, 0, True), everywhere=False)


def cases() -> Iterator[Case]:
    """Return every case, once per dtype that changes the code; "tf32": float32 under
    set_float32_matmul_precision("high")."""
    ids = _empty(BATCH, dtype=torch.int64)
    yield Case("tube_mask", lambda: masking.tube_mask(ids, GRID[0], GRID[1] * GRID[2], 176, (0, 0), None))
    for label, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        yield from _tubelet_cases(label, dtype)
        yield from _memory_bound_cases(label, dtype)
        yield from _sum_cases(label, dtype)
        yield from _contrastive_cases(label, dtype)
    for case in _tubelet_cases("tf32", torch.float32):
        yield Case(case.name, lambda case=case: _with_tf32(case.run))
    yield from _attention_cases()


def _with_tf32(run: Callable[[], Any]) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        run()
    finally:
        torch.set_float32_matmul_precision(before)
