"""The tokens of a clip that VideoPrism's encoder is to read, laid out for both of its stages.

Shape legend: B = clips, K = listed tokens of a clip, N = packed tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastvtp.modules.packing import Packing, offsets
from fastvtp.modules.rows import Takers
from fastvtp.systems.videoprism.layers import TimeAxis


@dataclass(frozen=True)
class VisibleTokens:
    """The listed tokens of a batch and how they make up sequences, within frames and along time.

    index: int32 [B, K], ascending in each clip; packed rows follow it, frame after frame.
    spatial: how the packed rows divide into frames.
    temporal: how they divide into places, each with its tokens along time, once they are in the order `by_place`; a
        TimeAxis where each frame lists the same places, which needs no other order.
    by_place: int64 [N], the packed rows in the order of places; None with a TimeAxis.
    by_frame: int64 [N], which rows of that order the packed rows are, to bring them back; None with a TimeAxis.
    of_token, of_frame: which packed rows are each token of the grid, and which are in each frame; None where all tokens
        are listed in their order.
    """

    index: Tensor
    spatial: Packing
    temporal: Packing | TimeAxis
    by_place: Tensor | None = None
    by_frame: Tensor | None = None
    of_token: Takers | None = None
    of_frame: Takers | None = None


def lay_out_visible(index: Tensor, grid: tuple[int, int, int]) -> VisibleTokens:
    """Pack the listed tokens, int32 [B, K] ascending on the host, of clips with this (time, height, width) grid.

    Frames and places may list any number of tokens, none included. Raises ValueError where a clip lists none, or its
    tokens do not ascend below the number that there are.
    """
    frames, places = grid[0], grid[1] * grid[2]
    listed = index.numpy().astype(np.int64)
    if listed.size == 0 or listed.min() < 0 or listed.max() >= frames * places or (np.diff(listed, axis=1) <= 0).any():
        raise ValueError(f"index must list ascending tokens below {frames * places} in each clip, and at least one")
    batch, count = listed.shape
    clip = np.repeat(np.arange(batch), count)
    frame, place = np.divmod(listed.ravel(), places)
    of_token = Takers.of(torch.from_numpy(listed.ravel()), frames * places)
    of_frame = Takers.of(torch.from_numpy(frame), frames)
    in_frame = np.bincount(clip * frames + frame, minlength=batch * frames)
    spatial = Packing(offsets(in_frame), int(in_frame.max()))
    if count % frames == 0 and (place.reshape(batch, frames, -1) == place.reshape(batch, frames, -1)[:, :1]).all():
        return VisibleTokens(index, spatial, TimeAxis(batch, frames), of_token=of_token, of_frame=of_frame)
    by_place = np.lexsort((frame, place, clip))
    at_place = np.bincount(clip * places + place, minlength=batch * places)
    by_frame = np.empty_like(by_place)
    by_frame[by_place] = np.arange(len(by_place))
    temporal = Packing(offsets(at_place), int(at_place.max()))
    orders = torch.from_numpy(by_place), torch.from_numpy(by_frame)
    return VisibleTokens(index, spatial, temporal, *orders, of_token, of_frame)
