"""How clips are read from videos: which frames, which part of the picture, and what training changes about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastvtp.data.sampling import (
    CROP_RATIO,
    SAMPLING_KINDS,
    ClipAugmentation,
    CropSampling,
    FrameSampling,
    check_framing,
    check_spacing,
)
from fastvtp.errors import UserError
from fastvtp.settings import check_types, from_json, renamed_from

DEFAULT_FRAMING = "crop"
ASPECTS, DAMAGED = ("display", "coded"), ("refuse", "keep")


@dataclass(frozen=True, kw_only=True)
class ClipReading:
    """How clips are read from videos, in training or for scores.

    It checks itself, and raises UserError for a value out of range. How many frames of which size a clip has is not
    part of it: that is the model's, see `ClipShape`.
    """

    sampling: str = "uniform"
    """Frames: "strided" segment, "uniform", "random_sorted", "head_tail", "starts" or "whole_steps"; see
    `FrameSampling`."""
    frame_stride: int = 1
    """Distance of the frames of a "strided" segment."""
    fps: float | None = None
    """Frames a second: those of a "strided" segment lie 1 / fps seconds apart, whatever the rate of the video, and the
    other kinds of sampling go by time too; a whole number is not needed. None: by frames. It takes the place of
    `frame_stride`. See `FrameSampling.indices_in_time`."""
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Smallest and largest area of a training crop, as a share of the largest window of a shape within `crop_ratio`
    that fits into the frame; with framing "squash", of the whole frame."""
    crop_ratio: tuple[float, float] = CROP_RATIO
    """Narrowest and widest shape, width / height, of a training crop, where that of the model's input counts as 1."""
    framing: str | None = field(default=None, metadata=renamed_from("fit"))
    """"crop": training windows are resized to the model's shape, scores are of the largest centred window of that
    shape; "squash": frames are squashed to that shape before all that, as in ALPRO's release; None: as the model was
    trained, or "crop" where nothing says. See `CropSampling`."""
    flip: bool = True
    """Mirror half of the training clips, except where a caption, question, answer or class names a direction."""
    aspect: str = "display"
    """"display": pictures in the proportions that they are meant for, where pixels are not square (old TV, some
    phones); "coded": pixels as they are stored."""
    damaged: str = "refuse"
    """"refuse": a clip with a damaged frame is replaced (in evaluation left out) and named; "keep": it is shown as any
    player would show it."""
    augmentation: ClipAugmentation = field(default_factory=ClipAugmentation)
    """What else changes training clips, after they have been cropped, resized and mirrored."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.sampling not in SAMPLING_KINDS:
            raise UserError(f"sampling must be one of {', '.join(SAMPLING_KINDS)}, got {self.sampling!r}")
        if self.frame_stride < 1:
            raise UserError(f"frame_stride must be positive, got {self.frame_stride}")
        check_spacing(self.fps, self.frame_stride, stride_name="frame_stride")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"crop_scale must be two shares, 0 < low <= high <= 1, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf:
            raise UserError(f"crop_ratio must be two shapes, 0 < narrowest <= widest, got {self.crop_ratio}")
        if self.framing is not None:
            check_framing(self.framing)
        for name, known in (("aspect", ASPECTS), ("damaged", DAMAGED)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} must be {' or '.join(map(repr, known))}, got {getattr(self, name)!r}")

    def framed(self, default: str | None) -> ClipReading:
        """Return the same reading with the framing `default`, or else "crop", where it says none itself."""
        return replace(self, framing=self.framing or default or DEFAULT_FRAMING)

    def frames(self, num_frames: int) -> FrameSampling:
        """Return the choice of the frames of a clip of `num_frames`."""
        return FrameSampling(self.sampling, num_frames, self.frame_stride, self.fps)

    def window(self, height: int, width: int) -> CropSampling:
        """Return the choice of the part of the picture that comes to `height` x `width` pixels."""
        framing, aspect = self.framing or DEFAULT_FRAMING, width / height
        return CropSampling(aspect, self.crop_scale, self.crop_ratio, self.flip, framing)

    def record(self) -> dict[str, Any]:
        """Return what a description on disk says of it: all that shows in evaluation, where nothing is drawn."""
        return {name: getattr(self, name) for name in ("sampling", "frame_stride", "fps", "framing", "aspect")}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> ClipReading:
        """Make the reading that a description on disk records, as `record` wrote it or as earlier versions did, which
        called the framing "fit". What it does not say is as in `ClipReading()`. Raises UserError for a value out of
        range."""
        return from_json(cls, {name: record[name] for name in (*cls().record(), "fit") if name in record})


def one_spacing(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values for settings of a reading, by name behind `prefix`, in which a spacing of frames that is given
    takes the place of the other that the reading had: an "fps" that of "frame_stride", or the other way round."""
    fps, stride = f"{prefix}fps", f"{prefix}frame_stride"
    if values.get(fps) is not None:
        return {stride: 1, **values}
    return {fps: None, **values} if values.get(stride, 1) != 1 else dict(values)


@dataclass(frozen=True)
class ClipShape:
    """The shape of the clips that a model reads.

    Attributes:
        num_frames: T.
        image_size: height and width in pixels, or one number for both; None keeps whole pictures, unmirrored and at the
            size of the video, which must be the same within a batch.

    Raises:
        UserError: a size that is not positive.
    """

    num_frames: int
    image_size: int | tuple[int, int] | None = 224

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_frames < 1:
            raise UserError(f"num_frames must be positive, got {self.num_frames}")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"image_size must be positive, got {self.image_size}")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels, or None for whole pictures."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
