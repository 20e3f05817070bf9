"""Run configuration: plain dataclasses, and `key=value` overrides checked against them."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from fastvtp.errors import UserError, unknown_name
from fastvtp.files import write_atomically
from fastvtp.models.simvtp import SimVTPConfig

_FROM_TOKENIZER = {"model.vocab_size", "model.pad_token_id", "model.mask_token_id", "model.special_token_ids"}


class ConfigError(UserError):
    """A setting that does not exist or cannot take the value given; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str
    """A .jsonl of {"video": path, "caption": text}, or a folder of videos with captions."""
    test: str | None = None
    """The same for retrieval scores at the end; None: no evaluation."""
    tokenizer: str | None = None
    """tokenizer.json, BERT's vocab.txt, or a folder with either; None: WordPiece trained on the training captions."""
    vocab_size: int = 1000
    """Most entries of a tokenizer trained here."""
    sampling: str = "strided"
    """Training frames: "strided" segment, "uniform", or "random_sorted"."""
    frame_stride: int = 4
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Share of the frame's area that a training crop keeps."""
    flip: bool = True
    """Mirror half of the training clips, except where a caption names a direction."""
    num_workers: int = 1
    """Decoding processes; 0 decodes in the training process."""
    decoder: str = "auto"
    """"auto": NVDEC where there is one, else PyAV on the CPU; or "pyav", "dali"."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float = 1.5e-4
    """Peak, for the batch size as it is (no hidden scaling)."""
    final_learning_rate: float = 1e-6
    warmup_steps: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float | None = None
    """Bound on the global gradient norm; None: no clipping."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or none for no clipping, got {self.clip_norm}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    model: SimVTPConfig
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    output_dir: str = "runs/pretrain"
    steps: int = 1000
    batch_size: int = 64
    """Clips a step."""
    seed: int = 0
    device: str = "auto"
    """"auto": cuda where there is one, else cpu."""
    precision: str = "float32"
    """"float32" or "bfloat16" (autocast; weights and optimizer stay float32)."""
    compile: bool = False
    """torch.compile the model."""
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    tensorboard: bool = True
    """Write TensorBoard events where it is installed."""

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if self.batch_size == 1:
            raise ConfigError(
                "batch_size must be at least 2: the matching loss shows each text another clip of the batch"
            )


def _annotations(config: Any, prefix: str = "") -> dict[str, Any]:
    """Type of each leaf setting by its dotted name."""
    annotations = {}
    hints = get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        value, name = getattr(config, entry.name), prefix + entry.name
        annotations |= _annotations(value, name + ".") if dataclasses.is_dataclass(value) else {name: hints[entry.name]}
    return annotations


def setting_names(config: Any) -> list[str]:
    """Dotted names of all leaf settings."""
    return list(_annotations(config))


def parse_value(text: str, annotation: Any, name: str) -> Any:
    """`text` as a value of type `annotation`: JSON, a bare word, or comma-separated numbers. Raises ConfigError."""
    from pydantic import TypeAdapter, ValidationError

    candidates: list[Any] = [text]
    try:
        candidates.insert(0, json.loads(text))
    except json.JSONDecodeError:
        if text.lower() == "none":
            candidates.insert(0, None)
        elif text.lower() in ("true", "false"):
            candidates.insert(0, text.lower() == "true")
    if get_origin(annotation) is tuple:
        candidates.append(text.split(","))
    for candidate in candidates:
        try:
            return TypeAdapter(annotation).validate_python(candidate)
        except ValidationError:
            continue
    expected = annotation.__name__ if isinstance(annotation, type) and get_origin(annotation) is None else annotation
    raise ConfigError(f"{name} expects {expected}, got {text!r}")


def _rebuild(config: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """`config` with dotted `values`, every dataclass built once, so that the order of overrides does not matter."""
    changes = {}
    for entry in dataclasses.fields(config):
        name, current = prefix + entry.name, getattr(config, entry.name)
        if dataclasses.is_dataclass(current):
            changes[entry.name] = _rebuild(current, values, name + ".")
        elif name in values:
            changes[entry.name] = values[name]
    try:
        return dataclasses.replace(config, **changes)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def apply_overrides(config: TrainConfig, overrides: list[str]) -> TrainConfig:
    """A copy with `key=value` strings applied; keys are dotted ("data.flip=false").

    Raises UserError with the nearest right key for a wrong one, or with the expected type for a wrong value.
    """
    known, values = _annotations(config), {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"expected key=value, got {override!r}")
        if name in _FROM_TOKENIZER:
            raise ConfigError(f"{name} follows from the tokenizer: set data.tokenizer or data.vocab_size")
        if name not in known:
            raise unknown_name("setting", name, known)
        values[name] = parse_value(text, known[name], name)
    return _rebuild(config, values)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write `config` as JSON, in one stroke: a run killed meanwhile keeps the old file."""
    write_atomically(path, (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())


def differing_settings(config: TrainConfig, path: Path) -> list[str]:
    """Dotted names whose values differ between `config` and the one saved at `path`."""
    try:
        saved = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not a readable run configuration: {error}") from None

    def leaf(values: Any, name: str) -> Any:
        for part in name.split("."):
            values = values.get(part) if isinstance(values, dict) else None
        return values

    current = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists, as in the file
    return [name for name in setting_names(config) if leaf(current, name) != leaf(saved, name)]
