"""Reading frozen features from disk, see `fastvtp.frozen.features`.

Shape legend: B = rows of a batch, V = views of a clip, K = layers, L = tokens, D = width, C = classes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastvtp.data.classes import TargetSet
from fastvtp.data.records import VideoRecord
from fastvtp.data.sampling import epoch_order, sample_rng
from fastvtp.data.timespans import span_of_line
from fastvtp.errors import UserError
from fastvtp.files import json_digest
from fastvtp.frozen.features import TENSOR_NAME, framing_of, read_description, shard_path

_SAME = ("model_digest", "width", "grid", "layers", "pool", "framing")


@dataclass(frozen=True)
class FeatureBatch:
    """Views of clips, under the names that evaluation knows batches of clips by.

    video: [B, K, L, D]. sample_ids: int64 [B], places in the set; equal ones are views of one clip. captions: of each.
    """

    video: Tensor
    sample_ids: Tensor
    captions: list[str]


class FeatureSet(Dataset):
    """The clips of a feature folder, read where they are needed.

    Attributes:
        description: the content of `features.json`.
        digest: its fingerprint, which the shards bear.
        records: the clips that could be decoded, in the order of the list they came from.
        labels: places in `class_names` of each.
        left_out: reason by video, or span of a video, of those that could not.

    Raises UserError for a folder that is incomplete or mixed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        self.records: list[VideoRecord] = []
        self.labels: list[tuple[int, ...]] = []
        self.left_out: dict[str, str] = {}
        self._places: list[tuple[int, int]] = []
        shards = -(-self.description["num_videos"] // self.description["shard_size"])
        self.digest = json_digest(self.description)
        names = self.class_names
        for number in range(shards):
            path = shard_path(self.folder, number, "json")
            if not path.is_file():
                raise UserError(f"{self.folder} is incomplete: no {path.name} of {shards} shards; extract it once more")
            shard = json.loads(path.read_bytes())
            if shard["description"] != self.digest:
                raise UserError(f"{path} belongs to other features than {self.folder}/features.json describes")
            for row, clip in enumerate(shard["clips"]):
                caption = ", ".join(names[label] for label in clip["labels"]) or "none"
                record = VideoRecord(clip["id"], clip["video"], (caption,))
                self.records.append(record.within(span_of_line(clip, str(path))))
                self.labels.append(tuple(clip["labels"]))
                self._places.append((number, row))
            self.left_out |= shard["left_out"]
        if not self.records:
            raise UserError(f"{self.folder} holds no clip: none could be decoded")
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        """Read all views of a clip: [V, K, L, D], in the dtype on disk."""
        number, row = self._places[index]
        return self._shard(number)[row : row + 1][0]

    def view(self, index: int, view: int) -> Tensor:
        """Read one view of a clip: [K, L, D], in the dtype on disk."""
        number, row = self._places[index]
        return self._shard(number)[row : row + 1, view : view + 1][0, 0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files stay in the process that opened them

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; () where the videos came without labels."""
        return tuple(self.description["class_names"] or ())

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along (time, height, width), after pooling."""
        time, height, width = self.description["grid"]
        return time, height, width

    @property
    def framing(self) -> str:
        """How frames came to the model's size, see `CropSampling`."""
        return framing_of(self.description)

    @property
    def num_views(self) -> int:
        return self.description["views"][0] * self.description["views"][1]

    @property
    def targets(self) -> TargetSet:
        """What the clips show. Raises UserError where the videos came without labels."""
        if not self.class_names:
            raise UserError(f"{self.folder}: its videos came without labels, expected classes")
        return TargetSet(tuple(self.records), tuple(self.labels), self.class_names, self.description["multi_label"])

    def batches(self, batch_size: int) -> Iterator[FeatureBatch]:
        """Read every view of every clip in order, `batch_size` rows at a time at most."""
        rows = [(index, view) for index in range(len(self)) for view in range(self.num_views)]
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield FeatureBatch(
                torch.stack([self.view(index, view) for index, view in part]).float(),
                torch.tensor([index for index, _ in part]),
                [self.records[index].captions[0] for index, _ in part],
            )

    def check_fits(self, description: dict[str, Any], whose: str) -> None:
        """Check that features go together: raises UserError where these are of another tower, of other layers of it, or
        of frames that came to its size in another way, than `description`."""
        own, expected = ({**each, "framing": framing_of(each)} for each in (self.description, description))
        for name in _SAME:
            if own[name] != expected[name]:
                raise UserError(
                    f"{self.folder} has {name} {own[name]!r}, {whose} {expected[name]!r}: extract both alike"
                )

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            from safetensors import safe_open

            path = shard_path(self.folder, number, "safetensors")
            try:
                self._open[number] = safe_open(path, framework="pt").get_slice(TENSOR_NAME)
            except Exception as error:  # safetensors raises its own unexported type on malformed files
                raise UserError(f"{path} is not a readable shard: {error}") from None
        return self._open[number]


class TrainingRows(Dataset):
    """The rows that training sees, in order: shuffled epochs, each time one view of a clip at random.

    Row i is a function of (seed, i) alone, whatever reads it. Items: ([K, L, D] float32, targets [C]).
    """

    def __init__(self, features: FeatureSet, targets: TargetSet, *, rows: int, seed: int):
        self.features, self.rows, self.seed = features, rows, seed
        self._indicators = targets.indicators()

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        index, rng = training_draw(number, len(self.features), self.seed)
        view = int(rng.integers(self.features.num_views))
        return self.features.view(index, view).float(), self._indicators[index]


def training_draw(number: int, count: int, seed: int) -> tuple[int, Any]:
    """Draw which of `count` clips row `number` of shuffled epochs is, and the generator of choices about it."""
    epoch, place = divmod(number, count)
    index = int(epoch_order(seed, epoch, count)[place])
    return index, sample_rng(seed, epoch, index)
