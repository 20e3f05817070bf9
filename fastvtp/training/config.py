"""Run configuration: plain dataclasses, and `key=value` overrides checked against them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fastvtp.architecture import find, of_all_runs
from fastvtp.data.reading import one_spacing
from fastvtp.errors import ConfigError, UserError, unknown_name
from fastvtp.files import write_atomically
from fastvtp.modules.fitting import POSITION_RESIZES
from fastvtp.settings import (
    FLAT,
    a_path,
    check_types,
    earlier_names,
    parse_value,
    rebuild,
    setting_defaults,
    setting_types,
    setting_values,
    split_pairs,
    to_json,
)
from fastvtp.training.data_config import DataConfig
from fastvtp.training.division import SCOPES, ParallelConfig, clips_at_a_time, scopes_of

# settings that follow from the tokenizer and from the labels of the training data
_FOLLOWS = {
    **dict.fromkeys(
        ("model.vocab_size", "model.pad_token_id", "model.mask_token_id", "model.special_token_ids"),
        "the tokenizer: set data.tokenizer or data.vocab_size",
    ),
    **dict.fromkeys(("model.num_answers", "model.num_classes"), "the labels of data.train"),
}


COMMANDS = ("pretrain", "finetune")
COMPILE = ("auto", "none", "blocks", "step", "graphs")
RECOMPUTE = ("none", "blocks", "selective")
# what both were when they were true or false
_EARLIER_VALUES = {
    "compile": {"true": "step", "false": "none"},
    "recompute": {"true": "blocks", "false": "none"},
}


def tasks() -> dict[str, Any]:
    """Return the tasks of all registered systems by name, subclasses of `fastvtp.training.task.Task`.

    Raises UserError for a name that two of them have, or that does not begin with a command.
    """
    found = of_all_runs("task", lambda runs: {task.name: task for task in runs.tasks})
    for name in found:
        if name.partition("_")[0] not in COMMANDS:
            raise UserError(
                f"task {name!r}: expected a name that begins with the command that runs it, such as pretrain_"
            )
    return found


def find_task(name: str) -> Any:
    """Find the task of that name. Raises UserError with the nearest known name."""
    return find("task", name, tasks())


def names_of_tasks(owns: Mapping[str, bool]) -> str:
    """Return the tasks for which `owns` holds, as an enumeration in a message."""
    return " and ".join(sorted(name for name, own in owns.items() if own))


@dataclass(frozen=True)
class NoOptions:
    """The options of a task that has none."""


_CHECKPOINT = a_path("a checkpoint file or folder")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    algorithm: str = "adamw"
    """"adamw", or "adafactor" (arXiv:1804.04235): it keeps a row and a column of each matrix's second moment, and
    bounds the root mean square of each update; `betas` and `eps` are not its."""
    scale_by_parameter: bool = True
    """adafactor: multiply the rate by the root mean square of each tensor, at least 1e-3, as the paper of Adafactor
    does. At rates that suit AdamW matrices then hardly move, and less what starts at 0. False: the rate as it is, as in
    ViTs of Google (arXiv:2106.04560)."""
    momentum: float | None = None
    """adafactor: decay of a first moment, of the updates; None: none is kept. With scaling and without momentum it is
    `torch.optim.Adafactor`, else that of the library pytorch_optimizer, the decay of whose second moment is at most
    0.999, and whose weight decay is scaled by parameter where the rate is."""
    learning_rate: float = 1.5e-4
    """Peak, for the batch size as it is (no hidden scaling)."""
    layer_decay: float = 1.0
    """Factor on the rate from each encoder block to the one below it, see `layer_scales`; 1: one rate for all."""
    final_learning_rate: float = 1e-6
    warmup_steps: int = 100
    warmup_share: float | None = None
    """Share of all steps, which then takes the place of `warmup_steps`."""
    schedule: str = "cosine"
    """After the warm-up: "cosine", or "linear" down to 0, `final_learning_rate` being its floor."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float | None = None
    """Bound on the global gradient norm; None: no clipping."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if self.algorithm not in ("adamw", "adafactor"):
            raise ValueError(f"algorithm must be 'adamw' or 'adafactor', got {self.algorithm!r}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), or none, got {self.momentum}")
        if self.schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule must be 'cosine' or 'linear', got {self.schedule!r}")
        if self.warmup_share is not None and not 0 <= self.warmup_share <= 1:
            raise ValueError(f"warmup_share must be in [0, 1], or none, got {self.warmup_share}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or none for no clipping, got {self.clip_norm}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    task: str
    """What is trained, by name: one of `tasks()`."""
    model: Any
    """The configuration of a model, of the class that belongs to the task."""
    data: DataConfig
    options: Any = field(default=None, metadata=FLAT)
    """The task's own settings, of the class that the task names; None: their defaults. They are set without a prefix:
    `teacher=PATH`."""
    init: str | None = field(default=None, metadata=_CHECKPOINT)
    """Weights to start from: a released checkpoint, a Hugging Face folder, a model folder or a run; None: at random."""
    text_init: str | None = field(default=None, metadata=_CHECKPOINT)
    """A BERT folder whose input embeddings replace those of `init`; where a model's text layers are BERT's, all of it
    does."""
    position_resize: str = "bicubic"
    """How a model's patch positions in `init` come to another image_size: "bicubic", or "official" (nearest in the
    flattened index, as ALPRO's release has it)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    output_dir: str = "runs/pretrain"
    steps: int = 1000
    batch_size: int = 64
    """Clips of a step, on all processes together."""
    micro_batch: int | None = None
    """Clips at a time, at most; it divides `batch_size`. None: all of them, which is for one process. What is random
    follows from the seed and the number of a micro-batch: losses depend on this setting, and not on the number of
    processes, which must divide the micro-batches of a step."""
    contrast_scope: str | None = None
    """Clips that a contrast compares: "global", all of the step, at the cost of computing the features twice where a
    process has several micro-batches; "micro_batch", those of one. None: global, unless `model.gather_negatives` is
    false."""
    matching_scope: str | None = None
    """Clips among which a matching loss finds its wrong pairs, likewise; clips of other processes are sent over. None:
    as `contrast_scope`."""
    recompute: str = "none"
    """What the backward pass computes again rather than keep, for less memory and the same numbers: "none"; "blocks",
    all insides of transformer blocks, whose inputs alone are kept, for about a third more time; "selective", their
    insides but for the results of matrix products and of attention, which are kept, so that what is cheap is computed
    again. true and false stand for "blocks" and "none"."""
    ema_decay: float | None = None
    """Average the weights over the steps with this decay; the average is what is evaluated and kept, by checkpoints
    too. None: no."""
    seed: int = 0
    device: str = "auto"
    """"auto": cuda where there is one, else cpu."""
    precision: str = "float32"
    """"float32" or "bfloat16" (autocast; weights and optimizer stay float32)."""
    compile: str = "auto"
    """What torch.compile makes of the model: "none"; "blocks", each transformer block by itself; "step", the whole
    forward pass, but blocks where the model is sharded or a step computes features twice; "graphs", the same and as
    CUDA graphs, for one process and one micro-batch a step; "auto", blocks on CUDA and none on a CPU. Where features
    are computed twice blocks that draw random numbers are left as they are, which is said. true and false stand for
    "step" and "none"."""
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    """The newest checkpoints that are kept."""
    keep_best: str | None = None
    """A metric, such as "loss": the checkpoint where it was best is kept besides. Best is lowest, of an accuracy
    highest."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tensorboard: bool = True
    """Write TensorBoard events where it is installed."""

    def __post_init__(self) -> None:
        for name, values in _EARLIER_VALUES.items():
            object.__setattr__(self, name, values.get(str(getattr(self, name)).lower(), getattr(self, name)))
        check_types(self)
        for name, choices in (("compile", COMPILE), ("recompute", RECOMPUTE)):
            if getattr(self, name) not in choices:
                expected = ", ".join(map(repr, choices))
                raise ConfigError(f"{name} must be one of {expected}, got {getattr(self, name)!r}")
        task = find_task(self.task)
        if type(self.model) is not task.model_config:
            raise ConfigError(
                f"task {self.task} trains a model of {task.model_config.__name__}, got {type(self.model).__name__}"
            )
        if self.options is None:
            object.__setattr__(self, "options", task.options())
        if type(self.options) is not task.options:
            raise ConfigError(f"task {self.task} takes no options of {type(self.options).__name__}")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.position_resize not in POSITION_RESIZES:
            raise ConfigError(f"position_resize must be 'bicubic' or 'official', got {self.position_resize!r}")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ConfigError(f"micro_batch must be at least 1, or none, got {self.micro_batch}")
        clips_at_a_time(self.batch_size, self.micro_batch)
        scopes = {"contrast_scope": self.contrast_scope, "matching_scope": self.matching_scope}
        for name, scope in scopes.items():
            if scope not in (None, *SCOPES):
                raise ConfigError(f"{name} must be {' or '.join(map(repr, SCOPES))}, or none, got {scope!r}")
        if self.parallel.param_dtype == "bfloat16" and self.precision != "bfloat16":
            raise ConfigError("parallel.param_dtype=bfloat16 needs precision=bfloat16")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in (0, 1), or none, got {self.ema_decay}")
        task.check(self)

    @property
    def clips_at_a_time(self) -> int:
        """Clips of a micro-batch."""
        return clips_at_a_time(self.batch_size, self.micro_batch)

    @property
    def scopes(self) -> tuple[str, str]:
        """The scopes of contrast and matching, "global" or "micro_batch" each."""
        return scopes_of(self.model, self.contrast_scope, self.matching_scope)

    @property
    def command(self) -> str:
        """The command that runs the task, one of `COMMANDS`."""
        return self.task.partition("_")[0]

    def path(self, name: str) -> str | None:
        """Return the value of `init`, `text_init`, or one of the task's own options."""
        return getattr(self if hasattr(self, name) else self.options, name)


def apply_overrides(config: TrainConfig, overrides: list[str]) -> TrainConfig:
    """Return a copy with `key=value` strings applied; keys are dotted ("data.flip=false"). "data.fps" takes the place
    of the `data.frame_stride` that `config` has, and the other way round.

    Raises UserError with the nearest right key for a wrong one, or with the expected type for a wrong value.
    """
    known, earlier, values = setting_types(config), earlier_names(config), {}
    follows = _FOLLOWS | dict(find_task(config.task).follows)
    for name, text in split_pairs(overrides):
        if name in follows:
            raise ConfigError(f"{name} follows from {follows[name]}")
        if name == "accumulate":
            raise ConfigError(
                "accumulate is gone: batch_size is of the whole step, micro_batch of what is computed at a time; where "
                f"there was batch_size=B accumulate={text}, set batch_size={text}*B micro_batch=B"
            )
        if name in earlier:
            raise ConfigError(f"{name} is now {earlier[name]}: set {earlier[name]}={text}")
        if name not in known:
            raise _unknown_setting(name, known, config.task)
        values[name] = parse_value(text, known[name], name)
    return rebuild(config, one_spacing(values, "data."))


def _unknown_setting(name: str, known: Mapping[str, Any], task: str) -> Exception:
    """Return the error for a setting that a task does not have: those that do, or the nearest right name."""
    has = {other: name in {entry.name for entry in fields(kind.options)} for other, kind in tasks().items()}
    if any(has.values()):
        return ConfigError(f"{name} is for {names_of_tasks(has)}, the task is {task}")
    return unknown_name("setting", name, known)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write `config` as JSON, in one stroke: a run killed meanwhile keeps the old file."""
    write_atomically(path, (json.dumps(to_json(config), indent=2) + "\n").encode())


def differing_settings(config: TrainConfig, path: Path) -> dict[str, tuple[Any, Any]]:
    """Return the settings whose values differ between `config` and the one saved at `path`: dotted name -> the saved
    value and that of `config`, as JSON holds them. What the saved one lacks, having been written before there was such
    a setting, was at its default; a setting without a default was None."""
    try:
        saved = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not a readable run configuration: {error}") from None

    if (accumulate := saved.get("accumulate", 1)) > 1:  # a version whose batch_size was of a micro-batch
        at_a_time, task = saved.get("batch_size", 0), find_task(config.task)
        saved |= {"batch_size": accumulate * at_a_time, "micro_batch": at_a_time, "contrast_scope": "micro_batch"}
        if not task.contrasts or set(config.scopes if task.matches else config.scopes[:1]) == {"micro_batch"}:
            # said in another way, or of no meaning: nothing is compared across micro-batches
            saved |= {"contrast_scope": config.contrast_scope, "matching_scope": config.matching_scope}
    # false was the default, as "auto" is now
    for name, values in (("compile", {True: "step", False: "auto"}), ("recompute", {True: "blocks", False: "none"})):
        if isinstance(saved.get(name), bool):
            saved[name] = values[saved[name]]
    absent = object()

    def leaf(values: Any, name: str) -> Any:
        for part in name.split("."):
            values = values.get(part, absent) if isinstance(values, dict) else absent
        return values

    current, earlier = setting_values(config), {now: before for before, now in earlier_names(config).items()}
    defaults = setting_defaults(config)

    def before(name: str) -> Any:
        names = (name, earlier[name]) if name in earlier else (name,)
        found = [value for known_as in names if (value := leaf(saved, known_as)) is not absent]
        return found[0] if found else defaults.get(name, absent)

    changed = {name: (before(name), value) for name, value in current.items() if value != before(name)}
    return {name: (None if was is absent else was, value) for name, (was, value) in changed.items()}


def saved_steps(path: Path) -> int:
    """Return the `steps` of the run configuration saved at `path`, which is readable."""
    return json.loads(path.read_text())["steps"]
