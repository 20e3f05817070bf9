"""The launches that the compile report compiles: each kernel, dtype and option at the shapes of VideoMAE-B's training.

Tensors are on the meta device: shapes, dtypes and alignment decide what Triton compiles, values do not exist.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention import kernels as attention
from .attention.reference import Options
from .masking import kernels as masking
from .pixel_loss import kernels as pixel_loss
from .token_assembly import kernels as token_assembly
from .tubelets import kernels as tubelets

BATCH, GRID, TUBELET, WIDTH, DECODER_WIDTH = 64, (8, 14, 14), (2, 16, 16), 768, 384
TOKENS, VISIBLE, MASKED, VALUES = 1568, 160, 1408, 1536
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Case(NamedTuple):
    """What is launched, in words, and the call that launches it."""

    name: str
    run: Callable[[], Any]


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _index(count: int) -> Tensor:
    return _empty(BATCH, count, dtype=torch.int32)


def _video() -> Tensor:
    frames, height, width = (cells * side for cells, side in zip(GRID, TUBELET, strict=True))
    return _empty(BATCH, frames, height, width, 3, dtype=torch.uint8)


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
    for normalize in ("patch_channel", None):
        yield Case(
            f"masked_pixel_loss {normalize or 'plain'} {label}",
            lambda normalize=normalize: pixel_loss.masked_pixel_loss(
                _empty(BATCH, MASKED, VALUES, dtype=dtype), _video(), _index(MASKED), TUBELET, normalize, 1e-6, True
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


HEADS = 12
PLAIN = Options(0.125)
CAPPED = Options(0.125, softcap=50.0, causal=True)
EVERY = Options(0.125, softcap=50.0, causal=True, dropout_p=0.1)
# (head width, rows of a sequence, options): each regime plain and with what costs most registers. A length of None is a
# grid of 16 frames, attended along time.
ATTENTION = {
    torch.bfloat16: [
        (64, None, PLAIN), (64, 16, PLAIN), (64, 16, EVERY), (64, 168, PLAIN), (64, 168, CAPPED), (64, 256, PLAIN),
        (64, 256, CAPPED), (64, 1568, PLAIN), (64, 1568, EVERY), (128, 16, PLAIN), (128, 16, EVERY), (128, 128, PLAIN),
        (128, 128, CAPPED), (128, 1568, PLAIN), (128, 1568, EVERY), (256, 16, EVERY), (256, 1568, EVERY),
    ],
    torch.float32: [
        *((width, length, EVERY) for width in (64, 128, 256) for length in (16, 1568)),
        (64, 1568, PLAIN), (128, 1568, PLAIN),
    ],
}  # fmt: skip


def _attend(length: int | None, width: int, dtype: torch.dtype, options: Options) -> None:
    if length is None:
        tensors = [_empty(BATCH, 16, 256, HEADS, width, dtype=dtype) for _ in range(5)]
        problem = attention.axial_problem(tensors[0], options)
    else:
        qkv = _empty(BATCH * length, 3, HEADS, width, dtype=dtype)
        tensors = [*qkv.unbind(1), *(_empty(BATCH * length, HEADS, width, dtype=dtype) for _ in range(2))]
        offsets = _empty(BATCH + 1, dtype=torch.int32)
        problem = attention.packed_problem(tensors[0], tensors[1], offsets, length, offsets, length, options)
    query, key, value, output, grad = tensors
    lse = attention.forward(query, key, value, problem)[1]
    gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
    attention.backward(grad, query, key, value, output, lse, problem, gradients)


def _attention_cases() -> Iterator[Case]:
    words = {PLAIN: "", CAPPED: " softcap causal", EVERY: " softcap causal dropout"}
    for dtype, entries in ATTENTION.items():
        for width, length, options in entries:
            shape = f"{'time of a grid' if length is None else length} x {width}"
            yield Case(
                f"attention {shape}{words[options]} {'bf16' if dtype == torch.bfloat16 else 'fp32'}",
                lambda length=length, width=width, dtype=dtype, options=options: _attend(length, width, dtype, options),
            )


def cases() -> Iterator[Case]:
    """Every case, once per dtype that changes the code; "tf32": float32 under set_float32_matmul_precision("high")."""
    ids = _empty(BATCH, dtype=torch.int64)
    yield Case("tube_mask", lambda: masking.tube_mask(ids, GRID[0], GRID[1] * GRID[2], 176, 0, 0))
    for label, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        yield from _tubelet_cases(label, dtype)
        yield from _memory_bound_cases(label, dtype)
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
