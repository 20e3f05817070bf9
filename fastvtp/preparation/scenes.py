"""Scenes of a video, by PySceneDetect fed with our frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvtp.data.video.decoding import Video
from fastvtp.errors import UserError
from fastvtp.preparation.encoding import fitted, shown_until
from fastvtp.preparation.settings import SceneCuts

_SIDE = 96  # pixels of the shorter side of the pictures that cuts are seen in


def scenes_of(video: Video, frames: range, cuts: SceneCuts) -> list[range]:
    """Cut frames of a video where one scene ends and another begins; a video without a cut is one scene.

    Raises:
        UserError: PySceneDetect is not installed.
        VideoDecodeError: a frame cannot be decoded.
    """
    seconds = video.seconds
    begins = [frames.start]
    for cut in _cuts(video, frames, cuts.scene_threshold):
        if seconds[cut] - seconds[begins[-1]] >= cuts.scene_seconds:
            begins.append(cut)
    while len(begins) > 1 and shown_until(video, frames) - seconds[begins[-1]] < cuts.scene_seconds:
        begins.pop()
    return [range(first, stop) for first, stop in zip(begins, [*begins[1:], frames.stop], strict=True)]


def _cuts(video: Video, frames: range, threshold: float) -> list[int]:
    """Return the frames, after the first, that differ from the one before by `threshold` or more."""
    detector, timecode = _detector(threshold)
    small = fitted(video.size, _SIDE)
    found = []
    for index, pixels in zip(frames, video.stream(frames, small), strict=True):
        if detector.process_frame(timecode(index, fps=25.0), np.ascontiguousarray(pixels[..., ::-1])):
            found.append(index)
    return found


def _detector(threshold: float) -> tuple[Any, Any]:
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector
    except ImportError:
        raise UserError("scenes need PySceneDetect: pip install 'fastvtp[scenes]'") from None
    # The shortest scene is up to us, in seconds: the detector would count it in frames.
    return ContentDetector(threshold=threshold, min_scene_len=0), FrameTimecode


def check_scenes() -> None:
    """Raise UserError where PySceneDetect is not installed."""
    _detector(1.0)
