"""Random masks that depend on nothing but (seed, step, sample id)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import philox
from ..dispatch import implementation, register
from ..registration import define_op, launcher
from ..validation import INDEX_DTYPES, check_cu_seqlens, check_devices, check_seed, check_shape
from . import reference

_tube_mask = define_op(
    "tube_mask(Tensor sample_ids, int slots, int cells, int hidden_cells, SymInt[] draw, Tensor? on_device)"
    " -> (Tensor, Tensor)",
    launch=launcher(__name__, "tube_mask"),
    reference=reference.tube_mask,
    fake=lambda ids, slots, cells, hidden, *_: (
        ids.new_empty(ids.shape[0], slots * (cells - hidden), dtype=torch.int32),
        ids.new_empty(ids.shape[0], slots * hidden, dtype=torch.int32),
    ),
)
register("tube_mask", reference=reference.tube_mask, triton=_tube_mask)
register("text_mask", reference=reference.text_mask)


class TubeMask(NamedTuple):
    """Token indices of the visible and the masked tokens, int32 [B, Kv] and [B, Km], ascending."""

    visible: Tensor
    masked: Tensor


def tube_mask(
    batch_size: int,
    grid: tuple[int, int, int],
    mask_ratio: float,
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> TubeMask:
    """Draw tube masks as in VideoMAE (Tong et al. 2022): one spatial mask per clip, the same in every time slot.

    A mask is a function of (seed, step, sample id) alone: bit-identical on every device, in any batch, on any rank.

    Args:
        batch_size: number of clips B.
        grid: tubelet grid (t, h, w); token index = (t * h + y) * w + x.
        mask_ratio: int(mask_ratio * h * w) of the h * w cells are hidden; 0 <= mask_ratio < 1.
        seed: 0 <= seed < 2^64, or one int64 in a tensor on the device, which captured graphs read anew.
        step: training step, 0 <= step < 2^32, or a tensor like seed; a new step gives new masks.
        sample_ids: int [B], the identity of each clip, in [0, 2^63); default arange(B).
        device: where the result lives; default: the device of `sample_ids`, else the CPU.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        TubeMask(visible int32 [B, t * (h * w - hidden)], masked int32 [B, t * hidden]).

    Raises:
        ValueError: a size, the ratio, the seed or the step is out of range, or `sample_ids` is not [B].
        TypeError: `sample_ids` is neither int32 nor int64.
    """
    check_grid("tube_mask", batch_size, grid, mask_ratio)
    sample_ids = resolve_sample_ids("tube_mask", sample_ids, batch_size, device)
    seed, step = check_seed("tube_mask", seed, step, device=sample_ids.device)
    hidden_cells = int(mask_ratio * (grid[1] * grid[2]))
    run = implementation("tube_mask", backend, sample_ids.device)
    draw = philox.for_kernels(seed, step, sample_ids.device)
    return TubeMask(*run(sample_ids, grid[0], grid[1] * grid[2], hidden_cells, *draw))


def text_mask(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    mask_ratio: float,
    *,
    special_ids: Sequence[int],
    seed: int | Tensor,
    step: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mask packed tokens independently: each non-special token with probability `mask_ratio`.

    The decision depends on (seed, step, sample id, position in the caption) alone, not on the batch around it.

    Args:
        input_ids: token ids int [N] of S packed captions.
        cu_seqlens: int32 [S+1], offsets of the captions.
        mask_ratio: probability in [0, 1].
        special_ids: ids that are never masked ([CLS], [SEP], [PAD], ...).
        seed: 0 <= seed < 2^64, or one int64 in a tensor on the device, which captured graphs read anew.
        step: training step, 0 <= step < 2^32, or a tensor like seed.
        sample_ids: int [S], the identity of each caption's sample; default arange(S).
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        bool [N], True where masked; rows from cu_seqlens[-1] on are False.

    Raises:
        ValueError: a shape, the ratio, the seed, the step or (on the CPU) an offset is out of range.
        TypeError: an integer argument has another dtype.
    """
    check_shape("text_mask", "input_ids", input_ids, "N")
    check_cu_seqlens("text_mask", "cu_seqlens", cu_seqlens, input_ids.shape[0])
    check_devices("text_mask", input_ids=input_ids, cu_seqlens=cu_seqlens)
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"text_mask: mask_ratio is {mask_ratio}, expected 0 <= mask_ratio <= 1")
    seed, step = check_seed("text_mask", seed, step, device=input_ids.device)
    sample_ids = resolve_sample_ids("text_mask", sample_ids, cu_seqlens.shape[0] - 1, input_ids.device)
    run = implementation("text_mask", backend, input_ids.device)
    return run(input_ids, cu_seqlens, mask_ratio, tuple(special_ids), seed, step, sample_ids)


def check_grid(op: str, batch_size: int, grid: tuple[int, int, int], mask_ratio: float) -> None:
    """Raise ValueError for a size or a ratio out of range."""
    if batch_size < 0 or len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"{op}: batch_size {batch_size}, grid {tuple(grid)}: expected B >= 0, three sizes >= 1")
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"{op}: mask_ratio is {mask_ratio}, expected 0 <= mask_ratio < 1")


def resolve_sample_ids(
    op: str, sample_ids: Tensor | Sequence[int] | None, count: int, device: torch.device | str | None
) -> Tensor:
    """Return the identities of `count` samples, int64 [count] on the device; None: 0, 1, 2, ...

    Raises:
        ValueError: their number is another.
        TypeError: they are neither int32 nor int64.
    """
    if sample_ids is None:
        return torch.arange(count, device=device)
    if not isinstance(sample_ids, Tensor):
        sample_ids = torch.tensor(sample_ids, dtype=torch.int64, device=device)
    check_shape(op, "sample_ids", sample_ids, count)
    if sample_ids.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: sample_ids is {sample_ids.dtype}, expected int32 or int64")
    return sample_ids.to(device=device, dtype=torch.int64)
