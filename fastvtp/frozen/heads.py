"""Heads on frozen features that say when something happens, and what is done inside given boxes.

Shape legend: B = clips, T = time slots, L = tokens of a clip, D = width, C = classes, n = boxes of all clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_max_pool2d,
    avg_pool2d,
    binary_cross_entropy_with_logits,
    gelu,
    grid_sample,
    softplus,
)

from fastvtp.modules.checks import check_positive, check_share
from fastvtp.modules.layers import CrossBlock, init_linear_xavier
from fastvtp.modules.packing import Packing, offsets

_ROI_CELLS, _POINTS = 7, 2  # cells along a side of a box, and points along a side of a cell


@dataclass(frozen=True, kw_only=True)
class SegmentHeadConfig:
    """The sizes of a `SegmentHead`. Raises ValueError for one out of range."""

    width: int
    num_classes: int
    hidden: int = 256
    depth: int = 2
    """Convolutions along time."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, "width", "num_classes", "hidden")
        check_share(self, "dropout")
        if self.depth < 0:
            raise ValueError(f"depth must not be negative, got {self.depth}")


class SlotPredictions(NamedTuple):
    """logits: [B, T, C], of each class at each slot. segments: [B, T, 2], start and end as shares of the clip."""

    logits: Tensor
    segments: Tensor


class SegmentHead(nn.Module):
    """For each time slot its classes, and the segment around it by the distances to start and end: the anchor-free head
    of one scale that ActionFormer (arXiv:2202.07925) has on every level of its pyramid.

    VideoPrism's paper puts G-TAD on the features instead, a model of its own.
    """

    def __init__(self, config: SegmentHeadConfig):
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.input = nn.Linear(config.width, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.hidden, config.hidden, 3, padding=1) for _ in range(config.depth)
        )
        self.classes = nn.Linear(config.hidden, config.num_classes)
        self.distances = nn.Linear(config.hidden, 2)

    def init_weights(self) -> None:
        """Draw Xavier-uniform matrices; at first every class has probability 0.01 (focal loss, arXiv:1708.02002)."""
        self.apply(init_linear_xavier)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                module.reset_parameters()
        nn.init.constant_(self.classes.bias, -4.6)

    def forward(self, features_BTD: Tensor) -> SlotPredictions:
        """Predict from features of time slots that cover the clip evenly, [B, T, D]."""
        x_BTH = gelu(self.input(self.norm(features_BTD)))
        for convolution in self.convolutions:
            x_BTH = x_BTH + self.dropout(gelu(convolution(x_BTH.mT).mT))
        slots = features_BTD.shape[1]
        centres = slot_centres(slots, features_BTD.device)
        before, after = (softplus(self.distances(x_BTH)) / slots).unbind(-1)
        return SlotPredictions(self.classes(x_BTH), torch.stack([centres - before, centres + after], dim=-1))


def slot_centres(slots: int, device: torch.device | None = None) -> Tensor:
    """Compute the middle of each time slot as a share of the clip: [T]."""
    return (torch.arange(slots, device=device) + 0.5) / slots


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig:
    """The sizes of a `BoxHead`; the defaults are VideoPrism's (arXiv:2402.13217, appendix E)."""

    width: int
    num_classes: int
    grid: tuple[int, int, int]
    """Tokens along (time, height, width)."""
    num_heads: int = 12
    head_dim: int = 64
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_positive(self, "width", "num_classes", "num_heads", "head_dim")
        check_share(self, "dropout")
        if len(self.grid) != 3 or min(self.grid) < 1:
            raise ValueError(f"grid must be three positive sizes (time, height, width), got {self.grid}")


class BoxHead(nn.Module):
    """What is done in a box: RoI-align on the features' mean over time, their maximum over 7 x 7 cells as a query, one
    cross-attention block over all tokens of the clip, dropout, linear layer (Video Action Transformer,
    arXiv:1812.02707, as VideoGLUE has it, without its learned relative positions)."""

    def __init__(self, config: BoxHeadConfig):
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.block = CrossBlock(config.width, config.num_heads, hidden=config.num_heads * config.head_dim)
        self.last_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, config.num_classes)

    def init_weights(self) -> None:
        """Draw Xavier-uniform matrices and zero biases; uses torch's global generator."""
        self.apply(init_linear_xavier)

    def forward(self, features_BLD: Tensor, boxes: Tensor, counts: Sequence[int]) -> Tensor:
        """Compute logits of tokens [B, L, D] and boxes [n, 4] (left, top, right, bottom as shares of the picture),
        `counts` of them for each clip in turn -> logits [n, C]. Raises ValueError where these do not fit."""
        clips, length, width = features_BLD.shape
        time, height, columns = self.config.grid
        if length != time * height * columns or sum(counts) != len(boxes) or len(counts) != clips:
            raise ValueError(
                f"expected [B, {time * height * columns}, {width}] tokens and {sum(counts)} boxes of B clips, got "
                f"{list(features_BLD.shape)} and {list(boxes.shape)} of {len(counts)}"
            )
        maps = features_BLD.unflatten(1, (time, height, columns)).mean(1).permute(0, 3, 1, 2)
        per_clip = torch.tensor(counts, device=boxes.device)
        clip_of_box = torch.arange(clips, device=boxes.device).repeat_interleave(per_clip, output_size=len(boxes))
        query_nD = adaptive_max_pool2d(roi_align(maps, boxes, clip_of_box), 1).flatten(1)
        queries = Packing(offsets(np.asarray(counts)).to(boxes.device), max(counts))
        memory = Packing.uniform(clips, length, features_BLD.device)
        x_nD = self.block(query_nD, self.norm(features_BLD).flatten(0, 1), queries, memory)
        return self.head(self.dropout(self.last_norm(x_nD)))


def roi_align(maps: Tensor, boxes: Tensor, map_of_box: Tensor) -> Tensor:
    """Sample features inside boxes on a grid of 7 x 7 cells, each the mean of 2 x 2 bilinear samples (RoIAlign,
    arXiv:1703.06870, half-pixel aligned).

    maps: [B, D, h, w]. boxes: [n, 4], left, top, right, bottom as shares of the picture. map_of_box: int64 [n].
    Returns [n, D, 7, 7]. Made of `grid_sample`, which is differentiable on any device; torchvision would be a
    dependency for this op alone.
    """
    count = _ROI_CELLS * _POINTS
    steps = (torch.arange(count, device=boxes.device, dtype=maps.dtype) + 0.5) / count
    left, top, right, bottom = boxes.to(maps.dtype).unbind(1)
    x = left[:, None] + (right - left)[:, None] * steps
    y = top[:, None] + (bottom - top)[:, None] * steps
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1) * 2 - 1
    samples = grid_sample(maps[map_of_box], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return avg_pool2d(samples, _POINTS)


_ALPHA, _GAMMA = 0.25, 2.0  # RetinaNet's


def slot_targets(centres: Tensor, segments: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Work out what each slot of a clip should say.

    centres: [T]. segments: [n, 2]. labels: bool [n, C]. A slot belongs to the shortest segment around its centre, and a
    segment between two centres has the nearest one.

    Returns classes, float [T, C], all zero outside segments, and the segment of each slot, [T, 2], zero there.
    """
    classes, places = centres.new_zeros(len(centres), labels.shape[1]), centres.new_zeros(len(centres), 2)
    if len(segments) == 0:
        return classes, places
    inside = (centres[:, None] >= segments[:, 0]) & (centres[:, None] <= segments[:, 1])
    nearest = (centres[:, None] - segments.mean(1)).abs().argmin(0)
    inside[nearest, torch.arange(len(segments), device=segments.device)] = True
    lengths = (segments[:, 1] - segments[:, 0]).expand_as(inside).masked_fill(~inside, torch.inf)
    shortest, positive = lengths.argmin(1), inside.any(1)
    classes[positive], places[positive] = labels[shortest[positive]].to(classes), segments[shortest[positive]]
    return classes, places


def segment_loss(logits: Tensor, segments: Tensor, classes: Tensor, places: Tensor) -> Tensor:
    """Compute the focal loss of the classes (arXiv:1708.02002) plus one minus the distance IoU of the segments
    (arXiv:1911.08287), both over the number of slots inside segments, at least 1: [].

    logits, classes: [..., C]. segments, places: [..., 2], the predicted and the true one; see `slot_targets`.
    """
    logits, segments = logits.float(), segments.float()
    positive = classes.any(-1)
    count = positive.sum().clamp(min=1)
    right = torch.where(classes > 0, logits.sigmoid(), 1 - logits.sigmoid())
    weight = torch.where(classes > 0, _ALPHA, 1 - _ALPHA) * (1 - right) ** _GAMMA
    focal = (weight * binary_cross_entropy_with_logits(logits, classes, reduction="none")).sum()
    found, true = segments[positive], places[positive]
    overlap = (torch.minimum(found[:, 1], true[:, 1]) - torch.maximum(found[:, 0], true[:, 0])).clamp(min=0)
    union = (found[:, 1] - found[:, 0]) + (true[:, 1] - true[:, 0]) - overlap
    hull = torch.maximum(found[:, 1], true[:, 1]) - torch.minimum(found[:, 0], true[:, 0])
    shift = ((found.mean(1) - true.mean(1)) / hull.clamp(min=1e-6)) ** 2
    return (focal + (1 - overlap / union.clamp(min=1e-6) + shift).sum()) / count
