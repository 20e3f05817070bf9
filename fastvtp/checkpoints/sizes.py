"""The configuration of a model that a checkpoint fits."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvtp.architecture import check_options, find_architecture
from fastvtp.checkpoints.heads import HEADS, KnownHeads, unknown_heads
from fastvtp.checkpoints.kinds import Kind, Shapes, recognise
from fastvtp.checkpoints.reading import Checkpoint, read_checkpoint
from fastvtp.errors import CheckpointError
from fastvtp.model_folder import build_config
from fastvtp.modules.positions import keep_trained_sizes

logger = logging.getLogger(__name__)

# settings that decide which weights there are, and that no stage of training chooses anew
_SIZES = (
    "width",
    "depth",
    "num_heads",
    "tubelet",
    "patch_size",
    "mlp_ratio",
    "qkv_bias",
    "layer_scale",
    "decoder_width",
    "decoder_depth",
    "decoder_num_heads",
    "vocab_size",
    "max_text_length",
    "text_depth",
    "fusion_depth",
    "text_num_heads",
    "text_hidden",
    "projection_dim",
    "temporal_depth",
    "auxiliary_depth",
    "mlp_hidden",
    "text_norm",
    "pooler_hidden",
)


@dataclass(frozen=True)
class FoundConfig:
    """The configuration of the model that a checkpoint fits.

    Attributes:
        config: of the model.
        heads: how many heads its attention has and where that comes from, of the parts that the checkpoint has: setting
            -> number and source.
    """

    config: Any
    heads: Mapping[str, KnownHeads]


def config_of_checkpoint(
    source: str | Path | Mapping[str, Tensor] | Checkpoint,
    origin: str | None = None,
    *,
    architecture: str | None = None,
    **overrides: Any,
) -> Any:
    """Return the configuration of the model that `source` fits, from its config.json and the shapes of its tensors.

    source, origin: as in `fastvtp.checkpoints.loading.load_checkpoint`. architecture: of the model; None: the
    checkpoint's own. overrides: fields of the config, for what shapes do not show: frames and image size (else 16 and
    224, at which VideoMAE and SimVTP were released; position tables of ALPRO and VideoPrism show them), heads (else
    what config.json states, what an axis of the arrays shows or what a released size has), layers of ALPRO's BERT that
    read text alone (else half, as released). Fixed positions are interpolated from the frames and the image size of the
    checkpoint's training to other ones (`positions`). Raises UserError with one line, also where heads must be given.
    """
    checkpoint = read_checkpoint(source)
    kind = recognise(checkpoint, origin)
    return config_of_kind(checkpoint, kind, architecture=architecture, overrides=overrides).config


def config_of_kind(
    checkpoint: Checkpoint, kind: Kind, *, architecture: str | None = None, overrides: Mapping[str, Any]
) -> FoundConfig:
    """Return `config_of_checkpoint` of a checkpoint that is read and recognised, with where its heads come from."""
    check_whole(checkpoint, kind)
    target = find_architecture(architecture or kind.architecture)
    free = check_options(target.name, target.config, overrides)
    known = free | overrides.keys()
    shown, stated = kind.sizes(kind.shapes(checkpoint), checkpoint.name, overrides), kind.settings(checkpoint)
    heads = {name: found for name, found in kind.known_heads(shown, stated).items() if name in known}
    values = shown | stated
    if target.name != kind.architecture:
        for name in target.chosen_anew:
            values.pop(name, None)
    values = {name: value for name, value in values.items() if name in known}
    values = keep_trained_sizes(values, {**target.recommended, **values, **overrides}, free)
    values |= {name: found.number for name, found in heads.items()}
    heads |= {name: _given(number, heads.get(name)) for name, number in overrides.items() if name in HEADS}
    if unknown := unknown_heads(shown, heads, known):
        sizes = ", ".join(f"{name} {shown[name]}" for name in ("width", "depth", "decoder_width") if name in shown)
        raise CheckpointError(
            f"{checkpoint.name}: give {' and '.join(f'{name}=...' for name in unknown)}, which nothing in it shows: "
            f"{sizes} is no released size"
        )
    return FoundConfig(build_config(target.config, {**values, **overrides}, Path(checkpoint.name)), heads)


def _given(number: Any, known: KnownHeads | None) -> KnownHeads:
    """Return a number of heads that was given; where another is known, it says so."""
    return KnownHeads(number, f"given, {known}" if known and known.number != number else "given")


def log_heads(checkpoint: Checkpoint, kind: Kind, config: Any) -> None:
    """Log where the heads of a model come from that was filled from a checkpoint: one line, or a warning each where the
    checkpoint is of a released size with another number of them."""
    own, unknown = asdict(config), []
    try:
        shown = kind.sizes(kind.shapes(checkpoint), checkpoint.name, own)
        known, lines = kind.known_heads(shown, kind.settings(checkpoint)), []
    except CheckpointError:
        return  # of a part of a model, whose sizes cannot be told or where what it states does not matter
    for name, width in HEADS.items():
        if name not in own or shown.get(width) != own.get(width) or not (name in known or kind.has_heads(name, shown)):
            continue
        if name not in known:
            unknown.append(f"{name} {own[name]}")
        elif known[name].number == own[name]:
            lines.append(f"{name} {known[name]}")
        else:
            logger.warning(
                "%s has %s %s, and the model %s: it computes another network unless the checkpoint was trained so; "
                "set %s=%s",
                checkpoint.name, name, known[name], own[name], name, known[name].number,
            )  # fmt: skip
    if lines:
        logger.info("%s: %s", checkpoint.name, ", ".join(lines))
    if unknown:
        logger.warning(
            "%s: %s: the model's, nothing in the checkpoint shows with how many heads it was trained",
            *(checkpoint.name, ", ".join(unknown)),
        )


def check_whole(checkpoint: Checkpoint, kind: Kind) -> None:
    """Raise CheckpointError where the checkpoint fills a part of a model and is none."""
    if kind.fills:
        raise CheckpointError(f"{checkpoint.name} is a {kind.fills} of a model, and is none")


def different_sizes(checkpoint: Checkpoint, kind: Kind, config: Any) -> dict[str, Any]:
    """Return the settings of `config` for which `checkpoint` is of another size, with the values that it is of; None
    where another width has other heads, and nobody knows how many."""
    own = asdict(config)
    try:
        shown = kind.sizes(kind.shapes(checkpoint), checkpoint.name, own)
    except CheckpointError:
        return {}  # its sizes cannot be told
    known = kind.known_heads(shown, kind.settings(checkpoint))
    values: dict[str, Any] = shown | {name: found.number for name, found in known.items()}
    different = {
        name: values[name]
        for name in _SIZES
        if name in own and name in values and not _as_good(name, values[name], own[name], own["width"])
    }
    return different | {name: None for name in unknown_heads(shown, known, own) if HEADS[name] in different}


def _as_good(name: str, theirs: Any, own: Any, width: int) -> bool:
    """Tell whether a model of the setting `own` takes a checkpoint of the setting `theirs`."""
    if name == "max_text_length":
        return theirs >= own  # it is cut
    if name == "mlp_ratio":
        return int(width * theirs) == int(width * own)
    if name == "layer_scale":
        return bool(theirs) == bool(own)
    return theirs == own or (name.endswith("depth") and theirs <= 0)  # a part that the checkpoint has not


def mlp_ratio(shapes: Shapes, width: int) -> dict[str, float]:
    """Return the setting `mlp_ratio` of an encoder so wide, from the shape of its first MLP; nothing where there is
    none."""
    hidden = next((shape for name, shape in shapes.items() if name.endswith("encoder.blocks.0.mlp.fc1.weight")), None)
    if not hidden:
        return {}
    ratio = hidden[0] / width
    return {"mlp_ratio": ratio if int(width * ratio) == hidden[0] else math.nextafter(ratio, math.inf)}  # rounded down


def rows_of(shapes: Shapes, tables: Mapping[str, str]) -> dict[str, int]:
    """Return settings that are numbers of rows: setting -> name of the entry, of those that there are."""
    return {setting: shapes[name][0] for setting, name in tables.items() if shapes.get(name)}
