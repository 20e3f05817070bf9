"""Tables of positions: sines and cosines, and tables at another size.

Sines and cosines over the flat token index mean one grid: at another one, token 200 lies elsewhere. A grid is the
numbers of tokens of a clip along (time, height, width).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastvtp.modules.checks import check_choice
from fastvtp.modules.precision import wide

POSITIONS = ("interpolate", "rebuild")
Grid = tuple[int, int, int]
_NATIVE = {"trained_frames": "num_frames", "trained_image_size": "image_size"}


def sinusoid_positions(num_positions: int, width: int) -> Tensor:
    """Return fixed positions of VideoPrism's text tower: float32 [num_positions, width], sines in the first half of a
    row, cosines in the second.

    angle(p, i) = p * 10000^(-i / (n - 1)) for i < n = width // 2: the last timescale is 10000 itself. An odd width ends
    in a zero.
    """
    count = width // 2
    rate = torch.exp(-torch.arange(count, dtype=torch.float64) * math.log(10000) / max(count - 1, 1))
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * rate
    return nn.functional.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width % 2)).float()


def resize_positions(table: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Resize a table of positions over a grid to another grid: [before[0] * before[1], D] -> [after[0] * after[1], D].

    It is interpolated bilinearly, antialiased where it shrinks (as `jax.image.resize` does), in float32
    or, of a float64 table, in float64.
    """
    if before == after:
        return table
    grid = wide(table.T.reshape(1, -1, *before))
    resized = interpolate(grid, size=after, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].flatten(1).T.to(table.dtype)


def sincos_positions(num_positions: int, width: int) -> Tensor:
    """Return fixed positions over the flat token index: float32 [num_positions, width].

    angle(p, j) = p / 10000^(2*floor(j/2)/width); sine on even columns, cosine on odd ones (VideoMAE, SimVTP). Computed
    in float64: at p = 1567 the float32 angle is already off by 1e-4.
    """
    exponent = 2 * (torch.arange(width, dtype=torch.float64) // 2) / width
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] / 10000.0**exponent
    table = torch.empty_like(angle)
    table[:, 0::2], table[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return table.float()


def grid_positions(grid: Grid, width: int, table_grid: Grid | None = None) -> Tensor:
    """Return `sincos_positions` of `table_grid` for the tokens of another `grid`: float32 [tokens of grid, width].
    table_grid: None is the grid itself.

    The table is interpolated: linearly between its slots of time, then bicubically over the frame, both with tokens as
    areas (`align_corners=False`) and without antialiasing. Where a clip is enlarged, an encoder of random weights makes
    tokens more alike so than with bilinear, since rows keep 98 % of their length at twice the size, and not 93 %; where
    a clip shrinks both are as good, and antialiasing only shortens rows. A clip with but one slot of time gets the mean
    of the two in the middle.
    """
    table_grid = table_grid or grid
    table = sincos_positions(math.prod(table_grid), width)
    if table_grid == grid:
        return table
    x_THWD = table.view(*table_grid, width)
    if table_grid[0] != grid[0]:
        along_time = x_THWD.flatten(1).T[None]
        along_time = interpolate(along_time, size=grid[0], mode="linear", align_corners=False)
        x_THWD = along_time[0].T.reshape(grid[0], *table_grid[1:], width)
    if table_grid[1:] != grid[1:]:
        x_TDHW = interpolate(x_THWD.permute(0, 3, 1, 2), size=grid[1:], mode="bicubic", align_corners=False)
        x_THWD = x_TDHW.permute(0, 2, 3, 1)
    return x_THWD.reshape(-1, width)


@dataclass(frozen=True, kw_only=True)
class GridPositionsConfig:
    """Settings of fixed positions over a clip's grid. The configuration around them has `num_frames`, `image_size`,
    `tubelet` and `grid`."""

    positions: str = "rebuild"
    """Positions of clips of another size than the weights were trained at: "interpolate" the table of their training,
    so that tokens keep their neighbours, or "rebuild" the table over the flat index of the new grid, as the releases
    do, by which rows wrap elsewhere. At the size of the training both are the same, bit for bit."""
    trained_frames: int | None = None
    """Frames of the clips whose positions the weights know; None: `num_frames`. Model folders keep it."""
    trained_image_size: int | None = None
    """Pixels of a side of the frames whose positions the weights know; None: `image_size`."""

    def check_positions(self) -> None:
        """Check these fields; raises ValueError with one line for the first that cannot be."""
        own: Any = self
        check_choice(self, "positions", POSITIONS)
        for name, tiles in (("trained_frames", own.tubelet[:1]), ("trained_image_size", own.tubelet[1:])):
            size: int | None = getattr(self, name)
            for tile in tiles:
                if size is not None and (size < 1 or size % tile):
                    raise ValueError(f"{name} {size} is not a multiple of the tubelet's {tile}")

    @property
    def trained_grid(self) -> Grid:
        """The grid of the clips that the weights were trained on."""
        own: Any = self
        pt, ph, pw = own.tubelet
        frames, size = self.trained_frames or own.num_frames, self.trained_image_size or own.image_size
        return frames // pt, size // ph, size // pw

    @property
    def table_grid(self) -> Grid:
        """The grid whose table the model's positions are made of."""
        own: Any = self
        return self.trained_grid if self.positions == "interpolate" else own.grid


def describe_positions(config: Any) -> str | None:
    """Say in words how fixed positions come to another grid than that of the training; None where they do not."""
    own: Any = config
    if not isinstance(config, GridPositionsConfig) or config.trained_grid == own.grid:
        return None
    grids = [" x ".join(map(str, grid)) for grid in (own.grid, config.trained_grid)]
    if config.positions == "interpolate":
        return f"positions of {grids[0]} tokens: interpolated from those of the training, {grids[1]} (linear, bicubic)"
    return (
        f"positions of {grids[0]} tokens: rebuilt, and not those of the training, {grids[1]} (positions=rebuild; "
        "interpolate keeps tokens near their neighbours)"
    )


def trained_sizes(stated: Mapping[str, Any]) -> dict[str, int]:
    """Return `trained_frames` and `trained_image_size` of a checkpoint, from settings that it states or is known by: as
    they say themselves, or else its frames and image size. What nothing says is left out."""
    found = {name: stated.get(name) or stated.get(own) for name, own in _NATIVE.items()}
    return {name: size for name, size in found.items() if size is not None}


def keep_trained_sizes(stated: Mapping[str, Any], values: Mapping[str, Any], among: Collection[str]) -> dict[str, Any]:
    """Return the settings `values` of weights that were `stated` to be of other frames or another image size, with
    `trained_frames` and `trained_image_size` as those where they say nothing themselves and are `among` what may be
    filled."""
    kept = {
        name: stated[own]
        for name, own in _NATIVE.items()
        if name in among and values.get(name) is None and own in stated and stated[own] != values.get(own)
    }
    return {**values, **kept}


class OnGrid(nn.Module):
    """A module with fixed positions for the tokens of a clip, `positions` [tokens, width], which are no part of its
    state.

    grid: of the clip. table_grid: whose positions they are made of, see `grid_positions`; None: the clip's.
    """

    positions: Tensor

    def __init__(self, width: int, grid: Grid, table_grid: Grid | None = None):
        super().__init__()
        self.grid, self.table_grid = grid, table_grid or grid
        self.register_buffer("positions", torch.empty(math.prod(grid), width), persistent=False)

    def fill_positions(self, table_grid: Grid | None = None) -> None:
        """Compute the positions, of another `table_grid` from here on where it is given."""
        self.table_grid = table_grid or self.table_grid
        self.positions.copy_(grid_positions(self.grid, self.positions.shape[1], self.table_grid))


def take_trained_sizes(model: Any, sizes: Mapping[str, int]) -> None:
    """Let a model's fixed positions be those of weights that were trained at `sizes`, from `trained_sizes`.

    Where its configuration says another size itself, that stays.
    """
    said = {name: getattr(model.config, name) for name in _NATIVE}
    model.config = replace(model.config, **{name: said[name] or sizes.get(name) for name in _NATIVE})
    for module in model.modules():
        if isinstance(module, OnGrid):
            module.fill_positions(model.config.table_grid)
