"""Learned position tables of other weights in a model's sizes."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastvtp.errors import CheckpointError, unknown_name
from fastvtp.modules.positions import resize_positions

logger = logging.getLogger(__name__)

POSITION_RESIZES = ("bicubic", "official")
_TEXTS, _PATCHES, _FRAMES = "text_embeddings.position_embeddings.weight", ".patch_positions", ".time_positions"
_PLACES, _TIMES = "spatial_positions", "temporal_positions"


def resize_tables(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], position_resize: str, source: str | Path
) -> dict[str, Tensor]:
    """Return `weights`, those of `source`, as `resize_table` makes them for a model's `own` tensors; what is done is
    named in warnings. Raises UserError for another `position_resize` than one of `POSITION_RESIZES`."""
    if position_resize not in POSITION_RESIZES:
        raise unknown_name("position_resize", position_resize, POSITION_RESIZES)
    fitted = dict(weights)
    for name in own.keys() & weights.keys():
        fitted[name], change = resize_table(name, weights[name], own[name], position_resize)
        if change is not None:
            logger.warning("%s: %s", source, change)
    return fitted


def resize_table(name: str, tensor: Tensor, own: Tensor, position_resize: str) -> tuple[Tensor, str | None]:
    """Return `tensor` in the form of `own`, the model's `name`, where only its form or a table's length differs, or as
    it is; and what was done, in words. Captions' tables are cut and never stretched; those of patches and frames are
    resized, VideoPrism's as its encoder resizes them on the fly.
    """
    if name == "decoder.mask_token" and tensor.numel() == own.numel():
        return tensor.reshape(own.shape), None
    if tensor.ndim != 2 or tensor.shape[1:] != own.shape[1:] or len(tensor) == len(own):
        return tensor, None
    change = f"{len(tensor)} rows to {len(own)}"
    if name.endswith(_TEXTS) and len(tensor) > len(own):
        return tensor[: len(own)], f"{name}: the first {len(own)} of {len(tensor)} rows"
    if name.endswith(_FRAMES):
        return _nearest(tensor, len(own)), f"{name}: {change}, nearest"
    if name.endswith(_PATCHES) and position_resize == "official":
        return _nearest(tensor, len(own)), f"{name}: {change}, nearest in the flattened index"
    if name.endswith(_PATCHES):
        return _bicubic(name, tensor, len(own)), f"{name}: {change}, bicubic"
    if name.endswith(_TIMES):
        resized = resize_positions(tensor, (1, len(tensor)), (1, len(own)))
        return resized, f"{name}: {change}, antialiased linear"
    if name.endswith(_PLACES):
        before, after = _sides(name, len(tensor), len(own))
        return resize_positions(tensor, (before, before), (after, after)), f"{name}: {change}, antialiased bilinear"
    return tensor, None


def _nearest(table: Tensor, rows: int) -> Tensor:
    """[S, D] -> [rows, D], row i being row floor(i * S / rows), as the released loaders resize."""
    return interpolate(table.T[None].float(), size=rows, mode="nearest")[0].T.to(table.dtype)


def _bicubic(name: str, table: Tensor, rows: int) -> Tensor:
    """[S, D] -> [rows, D], both of a square grid."""
    before, after = _sides(name, len(table), rows)
    grid = table.T.reshape(1, -1, before, before).float()
    resized = interpolate(grid, size=(after, after), mode="bicubic", align_corners=False, antialias=False)
    return torch.flatten(resized[0], 1).T.to(table.dtype)


def _sides(name: str, before: int, after: int) -> tuple[int, int]:
    """Return the sides of the square grids of so many rows."""
    sides = math.isqrt(before), math.isqrt(after)
    if (sides[0] ** 2, sides[1] ** 2) != (before, after):
        raise CheckpointError(f"{name}: {before} or {after} rows are no square grid, which resizing takes")
    return sides
