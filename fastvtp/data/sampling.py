"""What is drawn for a clip: its place in the sample stream, frames, window, augmentation. Numpy only; no state.

The sample stream is endless: sample number g is record `epoch_order(seed, g // n, n)[g % n]` of the n records, and step
s on rank r of W with local batch b covers the b numbers from (s W + r) b on. Batches run across the ends of epochs,
nothing is dropped, and what a step holds depends neither on workers nor, for a fixed global batch b W, on the ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from fastvtp.data.rand_augment import RandAugment
from fastvtp.data.video.frame_times import FrameTimes
from fastvtp.errors import UserError
from fastvtp.settings import check_types

_ORDER_STREAM, _SAMPLE_STREAM, _STEP_STREAM = 0, 1, 2
SAMPLING_KINDS = ("strided", "uniform", "random_sorted", "head_tail", "starts", "whole_steps")
_DRIFT = 1e-3  # frames by which a clip at an fps may drift from one at a stride and still be it
_CROP_ATTEMPTS = 10
FRAMINGS = ("crop", "squash")
CROP_RATIO = (3 / 4, 4 / 3)
_ERASED_AREA, _ERASED_LOG_SHAPE = (0.02, 1 / 3), (math.log(0.3), math.log(3.3))


def sample_rng(seed: int, epoch: int, index: int, attempt: int = 0, repeat: int = 0) -> np.random.Generator:
    """Make the generator behind every random choice for one sample; `attempt` > 0 for its replacements, `repeat` > 0
    for what is drawn anew where the same frames are shown again."""
    again = (repeat,) if repeat else ()
    key = np.random.SeedSequence(seed, spawn_key=(_SAMPLE_STREAM, epoch, index, attempt, *again))
    return np.random.default_rng(key)


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Make the generator behind the random choices about a whole batch, those of step `step`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STEP_STREAM, step)))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """Draw the order of the records in an epoch: a read-only permutation, int64 `[num_records]`."""
    key = np.random.SeedSequence(seed, spawn_key=(_ORDER_STREAM, epoch))
    order = np.random.default_rng(key).permutation(num_records)
    order.setflags(write=False)
    return order


def sample_number(step: int, place: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> int:
    """Compute the global number of the sample at `place` in the local batch of a step."""
    return (step * world_size + rank) * batch_size + place


@dataclass(frozen=True)
class FrameSampling:
    """The choice of the frames of a video that make a clip.

    - `"strided"`: every `stride`-th frame from a random start (SimVTP and VideoMAE pretrain so). A video shorter than
      that span is covered end to end by evenly spaced frames.
    - `"uniform"`: one random frame from each of `num_frames` equal parts (TSN, arXiv 1608.00859).
    - `"random_sorted"`: random frames without repetition, in order (ALPRO's fine-tuning).
    - `"head_tail"`: the same, half of them from each half of the video (ALPRO's pretraining).
    - `"starts"`: the first frame of each of `num_frames` equal parts, nothing random (the demos of VideoPrism's
      release).
    - `"whole_steps"`: frames 0, k, 2 k, ..., nothing random, where k is the length of such a part without its fraction
      (ALPRO's evaluation). Of 59 frames 16 are then 0, 3, ..., 45; of a video shorter than `num_frames` all are the
      first.

    Without a generator (evaluation) the choice is fixed: the middle span, or but for the last two kinds the middle of
    every part. Of several segments (multi-view evaluation, arXiv 2203.12602), "strided" ones start at even distances
    from the first span to the last; in the others segment j of s takes the frame at (j + 0.5) / s of every part, with
    the last two kinds at j / s (of two segments of "starts" the starts and the middles, as VideoMAE tests on
    Something-Something V2). A video of fewer frames than `num_frames` repeats them, as evenly as it can.

    With `fps` all of this is in time instead of in frames, see `indices_in_time`: a "strided" clip shows what is on
    screen at moments 1 / fps seconds apart, the other kinds go by equal parts of the time.
    """

    kind: str = "uniform"
    num_frames: int = 16
    stride: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_spacing(self.fps, self.stride)
        if self.kind not in SAMPLING_KINDS:
            raise UserError(f"frame sampling kind: expected one of {', '.join(SAMPLING_KINDS)}, got {self.kind!r}")
        if self.num_frames < 1 or self.stride < 1:
            raise UserError(f"frame sampling: num_frames {self.num_frames} and stride {self.stride} must be positive")

    def indices(
        self, total_frames: int, rng: np.random.Generator | None, segment: int = 0, segments: int = 1
    ) -> np.ndarray:
        """Choose frame indices in a video of `total_frames` frames: int32 `[num_frames]`, ascending.

        `segment` of `segments` is the one wanted in evaluation.
        """
        if total_frames < 1:
            raise UserError(f"total_frames must be positive, got {total_frames}")
        picked = np.floor(self._places(total_frames, rng, segment, segments))
        return np.minimum(picked, total_frames - 1).astype(np.int32)

    def choose(
        self,
        shown: range,
        times: FrameTimes | None,
        rng: np.random.Generator | None,
        segment: int = 0,
        segments: int = 1,
    ) -> np.ndarray:
        """Choose among the frames `shown` of a video, by their `times`, which may be None without `fps`; returns
        indices in the video, as `indices` does."""
        if times is None:
            return shown.start + self.indices(len(shown), rng, segment, segments)
        return shown.start + self.indices_in_time(times, rng, segment, segments)

    def indices_in_time(
        self, times: FrameTimes, rng: np.random.Generator | None, segment: int = 0, segments: int = 1
    ) -> np.ndarray:
        """Choose frames by when they are shown: int32 `[num_frames]`, ascending; without `fps` as `indices` does.

        Each frame is the one on screen at a moment. "strided": the moments stand 1 / fps apart, from a random one on,
        in evaluation in the middle of the time (segments: at even distances from the beginning to where the last
        moment is that of the last frame); a video not longer than that span is covered end to end by evenly spaced
        ones. The other kinds choose as among the frames of a video of as many frames that stand at even distances. So
        frames that stand close together in time do not come up more often than others, and a video of fewer frames a
        second than `fps` repeats them. Where frames do stand at even distances, and for "strided" at the `fps`-th part
        of a whole number of them, the choice is that of `indices` with this number as the stride, draw by draw.
        """
        total = times.count
        if self.fps is None:
            return self.indices(total, rng, segment, segments)
        stride = 0.0 if times.rate is None else times.rate / self.fps
        whole = round(stride)
        evenly = self.kind != "strided" or (whole >= 1 and abs(stride - whole) * self.num_frames < _DRIFT)
        if times.rate is not None and evenly:
            return replace(self, fps=None, stride=max(whole, 1)).indices(total, rng, segment, segments)
        span = (self.num_frames - 1) / self.fps
        if self.kind == "strided" and span < times.duration:
            if rng is not None:
                start = rng.random() * (times.duration - span)
            else:
                slack = max(0.0, float(times.seconds[-1]) - span)
                start = slack / 2 if segments == 1 else segment * slack / (segments - 1)
            moments = start + np.arange(self.num_frames) / self.fps
        else:
            spread = self.kind == "strided"
            places = self._spread(total, 0.5) if spread else self._places(total, rng, segment, segments)
            moments = places * (times.duration / total)
        return np.minimum(times.on_screen(moments), total - 1).astype(np.int32)

    def _places(self, total_frames: int, rng: np.random.Generator | None, segment: int, segments: int) -> np.ndarray:
        """Choose places between 0 and `total_frames`, ascending; the whole part of each is a frame."""
        span = (self.num_frames - 1) * self.stride + 1
        if self.kind == "strided" and span <= total_frames:
            slack = total_frames - span
            if rng is not None:
                start = rng.integers(slack + 1)
            else:
                start = slack // 2 if segments == 1 else segment * slack // (segments - 1)
            picked = start + self.stride * np.arange(self.num_frames)
        elif self.kind in ("random_sorted", "head_tail") and rng is not None:
            halves = self.kind == "head_tail" and self.num_frames <= total_frames
            middle, head = (total_frames // 2, self.num_frames // 2) if halves else (0, 0)
            tail = _random_frames(middle, total_frames, self.num_frames - head, rng)
            picked = np.concatenate([_random_frames(0, middle, head, rng), tail]) if head else tail
        elif self.kind in ("starts", "whole_steps"):
            part = total_frames / self.num_frames if self.kind == "starts" else total_frames // self.num_frames
            picked = np.arange(self.num_frames) * part + segment / segments * part
        elif self.kind == "strided":
            picked = self._spread(total_frames, 0.5)
        else:
            within = (segment + 0.5) / segments if rng is None else rng.random(self.num_frames)
            picked = self._spread(total_frames, within)
        return picked

    def _spread(self, total_frames: int, within: float | np.ndarray) -> np.ndarray:
        """Return one place in each of `num_frames` equal parts, the share `within` of it after its beginning."""
        return (np.arange(self.num_frames) + within) * total_frames / self.num_frames


def _random_frames(start: int, stop: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` frames from start to stop - 1 in order, none more than once oftener than another."""
    repeats, extra = divmod(count, stop - start)
    every = np.repeat(np.arange(start, stop), repeats)
    return np.sort(np.concatenate([every, start + rng.choice(stop - start, extra, replace=False)]))


@dataclass(frozen=True)
class CropWindow:
    """The part of the picture that is kept, as fractions of its height and width, and whether it is mirrored."""

    y0: float
    x0: float
    y1: float
    x1: float
    flip: bool = False


@dataclass(frozen=True)
class CropSampling:
    """The choice of one window for all frames of a clip.

    In training the window's shape (width / height, relative to `aspect`, the shape of the output) lies within `ratio`,
    and its area is a share within `scale` of the largest window of such a shape that fits into the picture: of the
    whole of a picture of 4:3, of three quarters of one of 16:9. Areas are uniform, shapes log-uniform among those in
    which that area fits, places uniform. "Inception" cropping (arXiv 1409.4842) takes its shares of the whole picture
    and draws again while nothing fits.

    In evaluation the window is the largest centred one of the output's shape. Of several crops (multi-view evaluation)
    the first and the last touch the two ends of the side along which such a window can move, the others lie between
    them at even distances.

    With `framing` "squash" the frame counts as squashed to the output's shape before all that: evaluation shows the
    whole of it (ALPRO's release), of which there are no several crops. In training the share is of the whole squashed
    frame; shapes and areas are drawn until they fit, ten times, after which the whole frame is taken.
    """

    aspect: float = 1.0
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = CROP_RATIO
    flip: bool = True
    framing: str = "crop"

    def __post_init__(self) -> None:
        check_types(self)
        check_framing(self.framing)
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise UserError(f"crop {name}: expected 0 < low <= high, got {(low, high)}")
        if self.scale[1] > 1:
            raise UserError(f"crop scale: an area share above 1 in {self.scale}")

    def window(
        self, height: float, width: float, rng: np.random.Generator | None, crop: int = 0, crops: int = 1
    ) -> CropWindow:
        """Choose the window for a picture of `height` x `width` pixels; `crop` of `crops` is the one wanted in
        evaluation."""
        squash, flip = self.framing == "squash", False
        if rng is not None:
            flip = self.flip and bool(rng.random() < 0.5)
            size = self._squashed_size(rng) if squash else self._size(width / height / self.aspect, rng)
            if size is not None:
                y0, x0 = (float(share) for share in rng.random(2) * np.subtract(1, size))
                return CropWindow(y0, x0, y0 + size[0], x0 + size[1], flip)
        relative = 1.0 if squash else self.aspect * height / width
        crop_height, crop_width = min(1.0, 1 / relative), min(1.0, relative)
        place = 0.5 if crops == 1 else crop / (crops - 1)
        y0, x0 = place * (1 - crop_height), place * (1 - crop_width)
        return CropWindow(y0, x0, y0 + crop_height, x0 + crop_width, flip)

    def _size(self, picture: float, rng: np.random.Generator) -> tuple[float, float]:
        """Draw height and width of a window as shares of a picture whose shape is `picture`, relative to the output's.

        An area `share` of the picture fits in shapes from picture * share to picture / share; the largest that fits in
        any allowed shape is that of the shape nearest to the picture's own.
        """
        low, high = self.ratio
        share = min(1.0, picture / low, high / picture) * rng.uniform(*self.scale)
        narrowest, widest = max(low, picture * share), min(high, picture / share)
        shape = math.exp(rng.uniform(math.log(narrowest), math.log(max(narrowest, widest))))
        return min(1.0, math.sqrt(share * picture / shape)), min(1.0, math.sqrt(share * shape / picture))

    def _squashed_size(self, rng: np.random.Generator) -> tuple[float, float] | None:
        """Draw height and width of a window as shares of a squashed frame, or None where nothing fitted."""
        for _ in range(_CROP_ATTEMPTS):
            area = rng.uniform(*self.scale)
            shape = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = math.sqrt(area / shape), math.sqrt(area * shape)
            if height <= 1 and width <= 1:
                return height, width
        return None


def check_spacing(fps: float | None, stride: int = 1, *, name: str = "fps", stride_name: str = "stride") -> None:
    """Check how far frames are apart; raises UserError, by the names of the settings, for an `fps` that is no rate or
    stands beside a `stride`."""
    if fps is not None and not 0 < fps < math.inf:
        raise UserError(f"{name} must be positive, or none, got {fps}")
    if fps is not None and stride != 1:
        raise UserError(f"{name} {fps:g} and {stride_name} {stride} both say how far frames are apart: give one")


def check_views(views: tuple[int, int], *, name: str = "views") -> None:
    """Check segments and crops; raises UserError, by the name of the setting, for less than one of them."""
    if min(views) < 1:
        raise UserError(f"{name}: expected positive (segments, crops), got {views}")


def check_framing(framing: str, crops: int = 1) -> None:
    """Check a framing; raises UserError for one that `CropSampling` does not know, or that has no several `crops`."""
    if framing not in FRAMINGS:
        raise UserError(f"framing must be {' or '.join(map(repr, FRAMINGS))}, got {framing!r}")
    if framing == "squash" and crops > 1:
        raise UserError(
            f"framing 'squash' shows whole frames: expected one crop, got {crops}; give one, or framing 'crop'"
        )


@dataclass(frozen=True)
class ClipAugmentation:
    """What else changes a training clip, the same way in all its frames, after it has been cropped and mirrored.

    - `rand_augment`: a policy of RandAugment (arXiv 1909.13719), spelled as in timm: "rand-m7-n4-mstd0.5-inc1" draws 4
      of 15 operations, each of which acts half of the time, at magnitude 7 of 10 with a spread of 0.5. See
      `RandAugment.parse`. None: no such operations.
    - `erasing`: how often a box turns mid-grey (random erasing, arXiv 1708.04896): 2 % to 33 % of the area, its height
      over its width log-uniform within 0.3 to 3.3, as in timm.

    Operations see the window at the size of the output, those of timm and VideoMAE the whole frame. Those of "rand" do
    not mirror. Some change colours: mind questions about them.

    Raises:
        UserError: a setting out of range.
    """

    rand_augment: str | None = None
    erasing: float = 0.0

    def __post_init__(self) -> None:
        _ = self.policy  # raises for one that cannot be read
        check_types(self)
        if not 0 <= self.erasing <= 1:
            raise UserError(f"erasing: expected a share from 0 to 1, got {self.erasing}")

    @cached_property
    def policy(self) -> RandAugment | None:
        """The policy that `rand_augment` spells, or None."""
        return None if self.rand_augment is None else RandAugment.parse(self.rand_augment)

    def draw(self, aspect: float, rng: np.random.Generator, *, may_mirror: bool = True) -> tuple[np.ndarray, ...]:
        """Make the random choices for a clip of pictures of shape `aspect` (width / height), which no operation mirrors
        unless it `may_mirror`.

        Returns:
            With `rand_augment`, the two arrays of `RandAugment.draw`: operations int32 and their arguments float32.
            With `erasing`, float32 `[2]` each: top left corner and size of the box (y, x), as fractions of the picture;
            a size of zero leaves the clip alone.
        """
        arrays = [] if self.policy is None else list(self.policy.draw(rng, may_mirror=may_mirror))
        if self.erasing > 0:
            arrays += [np.array(pair, np.float32) for pair in self._box(aspect, rng)]
        return tuple(arrays)

    def _box(self, aspect: float, rng: np.random.Generator) -> tuple[tuple[float, float], tuple[float, float]]:
        if rng.random() < self.erasing:
            for _ in range(_CROP_ATTEMPTS):
                area, shape = rng.uniform(*_ERASED_AREA), math.exp(rng.uniform(*_ERASED_LOG_SHAPE))
                height, width = math.sqrt(area * shape * aspect), math.sqrt(area / shape / aspect)
                if height < 1 and width < 1:
                    return (rng.random() * (1 - height), rng.random() * (1 - width)), (height, width)
        return (0.0, 0.0), (0.0, 0.0)
