"""What each kind of training adds to the loop: its data, its model's last settings, and the loss of a batch."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from fastvtp.architecture import architecture_of
from fastvtp.data.annotations import VideoRecord, annotations_digest, load_annotations
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.stream import Batches
from fastvtp.data.text import MIN_TEXT_LENGTH, Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.training.config import NoOptions, TrainConfig, find_task, names_of_tasks, tasks
from fastvtp.training.paths import missing_test_data

Loss = tuple[Tensor, dict[str, Tensor]]
"""A loss [] with its graph, and detached values to log by name, each []."""

# settings of `DataConfig` that a task must know to follow, and those that mean nothing without them
_DATA_SETTINGS = ("images", "class_names", "features", "more")


class Task(ABC):
    """One kind of training.

    A system lists its tasks in `Runs.tasks`. What is said of a class of tasks stands in these:

    Attributes:
        name: as in `TrainConfig.task`, "pretrain_..." or "finetune_...", after the command that runs it.
        model_config: the class of the configuration of the model that is trained.
        options: a dataclass of the settings that are this task's alone; its fields have defaults.
        contrasts: whether the clips of a batch are each other's negatives, so that it takes two.
        matches: whether its loss tells right pairs of texts and clips from wrong ones; its model then has `draw_wrong`.
        data_settings: which of "images", "class_names", "features" and "more" of `DataConfig` it follows.
        follows: settings that nobody gives, since they follow from something else: dotted name -> from what.
        plans: whether `plan` may be asked ahead of the step, in another thread.
        reads_text: whether the model takes a tokenizer.
        fresh: parts of the model that start at random even where `init` is of its own architecture.

    and what is said of a run in these:

    Attributes:
        config: its settings.
        checkpoint: what a resumed run goes on from, or None.
        records: what the loader shows; `sample_ids` of a batch are places in it.
        more: further data sets, each shown in batches of its own.
        images: pictures, shown in batches of their own.
    """

    name: ClassVar[str]
    model_config: ClassVar[type]
    options: ClassVar[type] = NoOptions
    contrasts: ClassVar[bool] = False
    matches: ClassVar[bool] = False
    data_settings: ClassVar[Sequence[str]] = ()
    follows: ClassVar[Mapping[str, str]] = {}
    plans: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True
    fresh: ClassVar[tuple[str, ...]] = ()

    records: Sequence[VideoRecord]
    more: Sequence[Sequence[VideoRecord]] = ()
    images: Sequence[VideoRecord] = ()

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        self.config, self.checkpoint = config, checkpoint

    # --- Before the run

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Raise ConfigError for settings that are none of this task's."""
        alone = "batch_size" if config.batch_size == 1 else "micro_batch"
        narrow = config.batch_size == 1 or "micro_batch" in (config.scopes if cls.matches else config.scopes[:1])
        if config.clips_at_a_time == 1 and cls.contrasts and narrow:
            raise ConfigError(f"{alone} must be at least 2: each text is told apart from another clip of the batch")
        for name in _DATA_SETTINGS:
            if getattr(config.data, name) not in (None, ()) and name not in cls.data_settings:
                follow = {task: name in kind.data_settings for task, kind in tasks().items()}
                raise ConfigError(f"data.{name} is for {names_of_tasks(follow)}, the task is {cls.name}")

    @classmethod
    def check_test_settings(cls, config: TrainConfig) -> None:
        """Raise ConfigError where `data.test` is given and its scores cannot be had, before any list is read."""
        if (source := config.data.test_list) is None:
            return
        scored_by, views = architecture_of(config.model).scored_by, config.data.test_views
        if scored_by is None:
            raise ConfigError(f"data.test={source}: {cls.name} has no scores; leave it out")
        if scored_by == "matching" and views != (1, 1):
            raise ConfigError(f"data.test_views={views}: the matching head reads one view of a clip")

    # --- What the run begins with

    def check_test_data(self) -> None:
        """Raise what is wrong with the list at `data.test`, where it is given, before the training and not after it."""
        if (source := self.config.data.test_list) is None:
            return
        try:
            self.read_test_data(source)
        except FileNotFoundError:
            if Path(source).exists():
                raise
            raise missing_test_data(str(source)) from None

    def read_test_data(self, source: VideoList) -> None:
        """Read `source`, which is `data.test_list`, as the scores will; raise what is wrong with it."""
        load_annotations(source)

    @property
    def texts(self) -> list[str]:
        """What a tokenizer is trained on."""
        sets = (self.records, *self.more, self.images)
        return [caption for records in sets for record in records for caption in record.captions]

    @property
    def max_text_length(self) -> int:
        """The number of tokens that the loader keeps of a text."""
        if not self.reads_text:
            return MIN_TEXT_LENGTH
        positions = self.config.model.max_text_length
        return min(positions, self.config.data.max_text_length or positions)

    @property
    def leaves_out(self) -> bool:
        """Whether some steps leave parameters that are trained without a gradient: those that pictures do not need, or
        the head of a loss of weight 0. Processes must know it beforehand."""
        return bool(self.images)

    @property
    def labels(self) -> Sequence[Any]:
        """What the data say beside the records, for the digest."""
        return ()

    def digest(self) -> str:
        """Return a fingerprint of all training data."""
        digest = annotations_digest(self.records)
        for records in (*self.more, self.images):
            if records:
                digest += annotations_digest(records)
        if self.labels:
            digest += hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()[:16]
        return digest

    def tokenizer_sources(self) -> dict[str, str]:
        """Return the weights whose tokenizer the run may take over, in this order: setting -> its value."""
        settings = {name: getattr(self.config, name) for name in ("text_init", "init")}
        return {name: source for name, source in settings.items() if source is not None}

    def complete(self, tokenizer: Tokenizer | None) -> Any:
        """Return the model's configuration with what follows from tokenizer and labels."""
        model = self.config.model
        return model if tokenizer is None else dataclasses.replace(model, **tokenizer.settings_of(model))

    def initial_weights(self, model: Any) -> Iterator[tuple[str | None, str | None, Any]]:
        """Return the checkpoints that a fresh model starts from, in this order: (source or None, origin or None, the
        part of the model that it fills). origin: as in `load_checkpoint`."""
        yield self.config.init, None, model
        yield self.config.text_init, "bert", model

    def prepare(self, model: Any, tokenizer: Tokenizer | None) -> None:
        """Fill what is no weight of `init` and yet no random start. A resumed run has it in its checkpoint."""
        return

    # --- In the run

    def ready_loader(self, batches: Batches) -> Any:
        """Return a loader of these batches that decodes nothing, in place of the usual one; None: clips are decoded."""
        return None

    def plan(self, model: Any, batch: VideoTextBatch, *, own_pairs: bool = True, device: str | None = None) -> Any:
        """Return the plan of a micro-batch, made of its captions and numbers and the model's configuration alone.

        own_pairs: False leaves the wrong pairs to the whole batch, where a plan would make them. device: where its
        tensors are; None: the model's.
        """
        return None

    def planned(self, model: Any, batch: VideoTextBatch, *, own_pairs: bool = True) -> Any:
        """Return the plan of a micro-batch on the model's device: the one that was made ahead, or else a new one."""
        if batch.plan is None:
            return self.plan(model, batch, own_pairs=own_pairs)
        return on_device(batch.plan, model.device)

    def collect(self, model: Any, batch: VideoTextBatch, wanted: Wanted) -> Collected | None:
        """Tell beforehand what the losses of the other micro-batches of the step need of this one, without gradients;
        None: nothing, as every loss is a mean over clips. The random choices are those of `loss`."""
        return None

    @abstractmethod
    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        """Compute the loss of a micro-batch and what else to log. compute: `model`, maybe wrapped and compiled. rest:
        what the model needs of the other micro-batches. Random choices follow from (config.seed, batch.step) or torch's
        generators, which are seeded by them."""

    def write_labels(self, folder: Path) -> None:
        """Write beside the model what its outputs mean."""
        return


class CaptionedTask(Task):
    """Captioned videos of one or more data sets, and pictures where `data.images` lists some, for a model that plans
    its steps."""

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        self.records = load_annotations(config.data.train_list)
        self.more = tuple(load_annotations(listed) for listed in config.data.more_lists)
        if (images := config.data.images_list) is not None:
            self.images = load_annotations(images)
            if spans := [record for record in self.images if record.span is not None]:
                raise ConfigError(f"data.images={config.data.images}: expected pictures, got a span: {spans[0].source}")

    def whole(self, model: Any, batch: VideoTextBatch) -> tuple[Any, ...]:
        """Return what a model that plans no step takes: clips and their packed captions, on its device."""
        on_device = batch.to(model.device, non_blocking=True)
        return on_device.video, on_device.input_ids, on_device.cu_seqlens, batch.max_text_length

    def plan(self, model: Any, batch: VideoTextBatch, *, own_pairs: bool = True, device: str | None = None) -> Any:
        draw = {"seed": self.config.seed, "step": batch.step}
        return model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, **draw, device=device)

    def collect(self, model: Any, batch: VideoTextBatch, wanted: Wanted) -> Collected | None:
        return model.collect(batch.video, self.planned(model, batch, own_pairs=not wanted.pairs), wanted)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        plan = self.planned(model, batch) if rest.kept is None else rest.kept
        output = compute(batch.video, plan, rest=rest)
        return output.loss, output.terms


def build_task(config: TrainConfig, checkpoint: Path | None = None) -> Task:
    """Build the task that `config` names, with its training data read. checkpoint: what a resumed run goes on from.

    Raises what reading the data raises.
    """
    return find_task(config.task)(config, checkpoint)
