"""What each kind of training adds to the loop: its data, its model's last settings, and the loss of a batch."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvtp.data.annotations import (
    VideoRecord,
    annotations_digest,
    load_annotations,
)
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.text import MIN_TEXT_LENGTH, Tokenizer
from fastvtp.training.config import TrainConfig

Loss = tuple[Tensor, dict[str, Tensor]]  # [] with its graph, and detached values by name, each []


class Task(ABC):
    """One kind of training.

    checkpoint: what a resumed run goes on from, or None.

    records: what the loader shows; `sample_ids` of a batch are places in it. more, images: further data sets, and
    pictures, each shown in batches of its own. reads_text: whether the model takes a tokenizer. fresh: parts of the
    model that start at random even where `init` is of its own architecture.
    """

    records: Sequence[VideoRecord]
    more: Sequence[Sequence[VideoRecord]] = ()
    images: Sequence[VideoRecord] = ()
    reads_text = True
    fresh: tuple[str, ...] = ()

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        self.config, self.checkpoint = config, checkpoint

    @property
    def texts(self) -> list[str]:
        """What a tokenizer is trained on."""
        sets = (self.records, *self.more, self.images)
        return [caption for records in sets for record in records for caption in record.captions]

    @property
    def max_text_length(self) -> int:
        """Tokens that the loader keeps of a text."""
        if not self.reads_text:
            return MIN_TEXT_LENGTH
        positions = self.config.model.max_text_length
        return min(positions, self.config.data.max_text_length or positions)

    @property
    def labels(self) -> Sequence[Any]:
        """What the data say beside the records, for the digest."""
        return ()

    def digest(self) -> str:
        """Fingerprint of all training data."""
        digest = annotations_digest(self.records)
        for records in (*self.more, self.images):
            if records:
                digest += annotations_digest(records)
        if self.labels:
            digest += hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()[:16]
        return digest

    def complete(self, tokenizer: Tokenizer | None) -> Any:
        """The model's configuration with what follows from tokenizer and labels."""
        known = {} if tokenizer is None else tokenizer.model_settings
        fields = {field.name for field in dataclasses.fields(self.config.model)}
        return dataclasses.replace(
            self.config.model, **{name: value for name, value in known.items() if name in fields}
        )

    def prepare(self, model: Any, tokenizer: Tokenizer | None) -> None:
        """Fill what is no weight of `init` and yet no random start. A resumed run has it in its checkpoint."""
        return

    def ready_loader(self, *, start_step: int, num_steps: int) -> Any:
        """A loader of batches that need no decoding, in place of the usual one; None: clips are decoded."""
        return None

    @abstractmethod
    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        """The loss of a batch and what else to log. compute: `model`, maybe compiled. Random choices follow from
        (config.seed, batch.step) or torch's generators."""

    def write_labels(self, folder: Path) -> None:
        """Write beside the model what its outputs mean."""
        return


class CaptionedTask(Task):
    """Captioned videos of one or more data sets, and pictures where `data.images` lists some, for a model that plans
    its steps."""

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        self.records = load_annotations(config.data.train)
        self.more = tuple(load_annotations(path) for path in config.data.more)
        if config.data.images is not None:
            self.images = load_annotations(config.data.images)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=self.config.seed, step=batch.step)
        output = compute(batch.video, plan)
        return output.loss, output.terms
