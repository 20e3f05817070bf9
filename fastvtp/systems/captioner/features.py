"""The frozen features that a captioner reads: those of its backbone, or of files from `fastvtp.frozen.features`."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.records import VideoRecord
from fastvtp.data.stream import Batches, SampleStream
from fastvtp.errors import UserError
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.features import model_digest
from fastvtp.frozen.towers import video_tower
from fastvtp.model_folder import load_pretrained
from fastvtp.systems.captioner.model import VideoCaptioner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Clip:
    """A record with features: its place among the records, and in the feature set."""

    record: int
    feature: int


class CachedClips:
    """The records whose videos, or spans of videos, have features in a folder; the others are left out, with one log
    line.

    Attributes:
        width: D of the features.
        digest: fingerprint of what the features are of.

    Raises UserError where no record has features, or the folder holds none.
    """

    def __init__(self, folder: str, records: Sequence[VideoRecord]):
        self.folder, self.records = folder, records
        self._features = FeatureSet(folder)
        self.width: int = self._features.description["width"]
        self.digest = self._features.digest
        places = {record.clip: place for place, record in enumerate(self._features.records)}
        found = enumerate(places.get(record.clip) for record in records)
        self._clips = [_Clip(index, place) for index, place in found if place is not None]
        if not self._clips:
            raise UserError(f"{folder}: none of the {len(records)} videos of data.train has features there")
        if missing := len(records) - len(self._clips):
            logger.warning("%s: %d of %d clips have no features there: left out", folder, missing, len(records))

    def __len__(self) -> int:
        return len(self._clips)

    def check_backbone(self, folder: str) -> None:
        """Raise UserError where the features are not those of the model in `folder`."""
        found, expected = self._features.description["model_digest"], model_digest(load_pretrained(folder))
        if found != expected:
            raise UserError(f"{self.folder} holds features of another model than model.backbone={folder}")

    def check_framing(self, framing: str) -> None:
        """Raise UserError where the features are of frames that came to the model's size by another framing."""
        if (found := self._features.framing) != framing:
            raise UserError(
                f"{self.folder} holds features of framing {found!r}, expected {framing!r}: set data.framing={found}"
            )

    def draw(self, stream: SampleStream, number: int) -> tuple[Tensor, int, str]:
        """Sample `number` of a training stream: the last layer's tokens of a view [L, D], the place of its record, and
        one of its captions."""
        index, rng = stream.draw(number, attempt=0)
        clip = self._clips[index]
        captions = self.records[clip.record].captions
        view = int(rng.integers(self._features.num_views))
        return self._features.view(clip.feature, view)[-1], clip.record, captions[int(rng.integers(len(captions)))]


class FeatureLoader:
    """Batches of features in place of clips: shuffled epochs without end, a function of (seed, step) alone.

    Stands where a `VideoTextLoader` stands in training; `video` of a batch is [B, L, D], and its captions have no
    token ids.
    """

    def __init__(self, clips: CachedClips, batches: Batches):
        if batches.num_steps is None:
            raise UserError("num_steps is none: a loader of features makes a number of batches")
        self._clips = clips
        self._stream = SampleStream(len(clips), batches)
        self._steps = range(batches.start_step, batches.start_step + batches.num_steps)
        self.wait_seconds = 0.0
        self.bad_files: dict[str, str] = {}

    def __enter__(self) -> "FeatureLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def __iter__(self) -> Iterator[VideoTextBatch]:
        size = self._stream.batches.batch_size
        for step in self._steps:
            started = time.perf_counter()
            drawn = [self._clips.draw(self._stream, self._stream.number(step, place)) for place in range(size)]
            features, indices, captions = zip(*drawn, strict=True)
            batch = VideoTextBatch(
                torch.stack(features),
                torch.empty(0, dtype=torch.int64),
                torch.zeros(size + 1, dtype=torch.int32),
                (0,) * size,
                0,
                torch.tensor(indices),
                list(captions),
                self._stream.batch_number(step),
            )
            self.wait_seconds += time.perf_counter() - started
            yield batch


def attach_backbone(model: VideoCaptioner) -> VideoCaptioner:
    """Hand a captioner the video tower of the model folder that `config.backbone` names, unless it has one; returns the
    captioner.

    Raises UserError where the folder is not named, or its model has no tower.
    """
    if model.has_backbone:
        return model
    if model.config.backbone is None:
        raise UserError("backbone is none: expected a model folder, a function given to `attach`, or features")
    return model.attach(backbone=load_backbone(model.config.backbone, model.device))


def load_backbone(folder: str | Path, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Load the video tower of a frozen model as a function: uint8 [B, T, H, W, 3] -> [B, N, D].

    folder: a fastvtp model folder. Raises UserError for a model without a tower.
    """
    tower = video_tower(load_pretrained(folder, device=device).requires_grad_(False))
    return lambda video: tower.encode_layers(video)[:, -1]
