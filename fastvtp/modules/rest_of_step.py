"""What the loss of a micro-batch needs of the other micro-batches of its step.

The batch of an optimizer step is of M micro-batches, which one device computes one after the other, several processes
side by side, or both. Most losses are means over clips: the step's is the mean of its micro-batches'. Others are not,
and a model is therefore handed a `RestOfStep` with each micro-batch. It knows the rest; the model knows neither of how
many micro-batches a step is, nor of processes.

- Means over a varying number of items (masked words, wrong pairs that exist) go through `RestOfStep.means`.
- Losses that compare clips with each other go through `RestOfStep.contrast`.
- Wrong pairs, where clips of the whole batch make them, are `RestOfStep.wrong`.

`fastvtp.training.gradients` makes them. Whoever has a training loop of his own and one micro-batch a process hands
`AcrossProcesses(group)` to the model; on one process nothing at all.

Shape legend: B = clips of a micro-batch, M = micro-batches of a step, D = width of the features that are compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastvtp.modules.losses import video_text_contrast
from fastvtp.modules.packing import Packing

_ROUNDING = 0.05  # of the largest feature: bfloat16 stays far below, and another dropout comes out far above


@dataclass(frozen=True)
class Compared:
    """What a contrast compares: text, video [B, D], of which rows i belong together; the inverse temperature
    logit_scale []; `directions` and `precision` as in `video_text_contrast`."""

    text: Tensor
    video: Tensor
    logit_scale: Tensor
    directions: str = "mean"
    precision: str = "auto"


@dataclass(frozen=True)
class Wanted:
    """What is asked of a micro-batch before the losses of its step are computed: the features that it compares, and
    what others need to make wrong pairs with its clips."""

    compared: bool
    pairs: bool


@dataclass(frozen=True)
class Collected:
    """What a micro-batch tells of itself beforehand.

    counts: by the name of a mean, the items that it is over, host integers or tensors [].
    compared: its features, where they are asked for.
    of_clips: what a wrong pair needs of a clip beside its pixels, by name, [B, ...] each.
    kept: anything that the loss of this micro-batch takes back, such as its plan; it stays on this process.
    """

    counts: Mapping[str, int | Tensor] = field(default_factory=dict)
    compared: Compared | None = None
    of_clips: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Any = None


@dataclass(frozen=True)
class WrongPairs:
    """A wrong clip for each text of a micro-batch, and a wrong text for each clip where a model asks for them.

    clips: uint8 [B, T, H, W, 3]. of_clips: as in `Collected`, [B, ...] each. has_clip: bool [B], False where the whole
        batch has none; some clip stands in.
    input_ids, text_positions: int64 [N], the tokens of the wrong texts one after the other, and their places in their
        texts. text_packing: how they divide into B texts. has_text: bool [B]. All four None where no texts are asked
        for.
    """

    clips: Tensor
    of_clips: Mapping[str, Tensor]
    has_clip: Tensor
    input_ids: Tensor | None = None
    text_positions: Tensor | None = None
    text_packing: Packing | None = None
    has_text: Tensor | None = None


class RestOfStep:
    """The rest of a step of one micro-batch, or of one whose losses are means of micro-batches by definition: nothing.

    Attributes:
        wrong: pairs that the whole batch makes; None: the micro-batch makes its own.
        kept: what the micro-batch handed over, see `Collected.kept`; None: it was not asked before.
    """

    wrong: WrongPairs | None = None
    kept: Any = None

    def means(self, name: str, count: int | Tensor, *means: Tensor) -> tuple[Tensor, ...]:
        """Weigh means over `count` items, [] each, so that their average over the micro-batches of the step is the mean
        over the items of all: each is multiplied by its share of all items and by M. A micro-batch without items
        contributes 0.

        name: of the mean, as in `Collected.counts`. count: a host integer, or a tensor [] on the device of the means.
        """
        return means

    def contrast(self, compared: Compared, sample_ids: Tensor | None = None) -> Tensor:
        """Compute the InfoNCE of these features, a loss []: of the whole batch where its scope says so. Averaged over
        the micro-batches its gradients are those of the whole.

        sample_ids: int64 [B]; rows with equal ids are the same clip and no negatives of each other.
        """
        return _contrast(compared, sample_ids)


ALONE = RestOfStep()


def _contrast(compared: Compared, sample_ids: Tensor | None, group: dist.ProcessGroup | None = None) -> Tensor:
    return video_text_contrast(
        compared.text,
        compared.video,
        compared.logit_scale,
        sample_ids=sample_ids,
        directions=compared.directions,
        precision=compared.precision,
        group=group,
    )


class AcrossProcesses(RestOfStep):
    """The rest of a step of one micro-batch a process: they talk while each computes. All must compute the same losses
    in the same order; none waits for its device.

    group: of the processes. contrast: compare with the clips of all, or with those of the process alone.
    """

    def __init__(self, group: dist.ProcessGroup, *, contrast: bool = True):
        self.group, self._all_clips = group, contrast

    def means(self, name: str, count: int | Tensor, *means: Tensor) -> tuple[Tensor, ...]:
        own = count if isinstance(count, Tensor) else torch.full((), count, device=means[0].device)
        total = own.clone()
        dist.all_reduce(total, group=self.group)
        return weighed(means, own, total, self.group.size())

    def contrast(self, compared: Compared, sample_ids: Tensor | None = None) -> Tensor:
        return _contrast(compared, sample_ids, self.group if self._all_clips else None)


@dataclass(frozen=True)
class ContrastOfAll:
    """The contrast of a whole batch, computed beforehand: its value [], and M times its gradients by the features of
    one micro-batch, [B, D], and once its gradient by the inverse temperature, [] or None."""

    loss: Tensor
    of_text: Tensor
    of_video: Tensor
    of_scale: Tensor | None


@dataclass(frozen=True)
class Precomputed(RestOfStep):
    """The rest of a step whose micro-batches were asked beforehand (GradCache, arXiv:2101.06983).

    shares: by the name of a mean, (items of this micro-batch, items of all), int64 [] each. micro_batches: M.
    contrast_of_all: None: a micro-batch compares its own clips alone. beforehand: the features that it was computed of,
    to be compared with those that the losses come from, at the price of waiting for the device; None: they are trusted.
    """

    shares: Mapping[str, tuple[Tensor, Tensor]]
    micro_batches: int
    contrast_of_all: ContrastOfAll | None = None
    wrong: WrongPairs | None = None
    kept: Any = None
    beforehand: Compared | None = None

    def means(self, name: str, count: int | Tensor, *means: Tensor) -> tuple[Tensor, ...]:
        return weighed(means, *self.shares[name], self.micro_batches)

    def contrast(self, compared: Compared, sample_ids: Tensor | None = None) -> Tensor:
        if self.beforehand is not None:
            _check_alike(self.beforehand, compared)
        known = self.contrast_of_all
        if known is None:
            return _contrast(compared, sample_ids)
        # the features are those that the gradients were computed by: their product has the gradients of the loss
        slope = (compared.text * known.of_text).sum() + (compared.video * known.of_video).sum()
        if known.of_scale is not None:
            slope = slope + compared.logit_scale * known.of_scale
        return known.loss + (slope - slope.detach())


def _check_alike(first: Compared, second: Compared) -> None:
    """Raise RuntimeError where features differ by more than rounding between the two times that they are computed."""
    pairs = ((first.text, second.text), (first.video, second.video))
    apart = max(float(((x - y).abs().max() / x.abs().max()).detach()) for x, y in pairs)
    if not apart <= _ROUNDING:
        raise RuntimeError(
            f"the features of a micro-batch differ by {apart:.2g} of the largest between the two times that a step "
            "computes them: `collect` must compute what `loss` does, and draw random numbers in the same order"
        )


def weighed(means: tuple[Tensor, ...], own: Tensor, total: Tensor, micro_batches: int) -> tuple[Tensor, ...]:
    """Multiply means over `own` of `total` items by M times their share; a mean over no items, which may be nan,
    becomes 0."""

    def weight(dtype: torch.dtype) -> Tensor:
        return own.to(dtype) * micro_batches / total.clamp(min=1)

    return tuple(torch.where(own > 0, mean, 0.0) * weight(mean.dtype) for mean in means)
