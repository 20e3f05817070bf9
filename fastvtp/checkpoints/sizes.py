"""The configuration of a model that a checkpoint fits."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvtp.architecture import find_architecture
from fastvtp.checkpoints.kinds import Kind, Shapes, recognise
from fastvtp.checkpoints.reading import Checkpoint, read_checkpoint
from fastvtp.errors import CheckpointError, unknown_name
from fastvtp.model_folder import build_config

_HEAD_WIDTH = 64  # of every released size
_HEADS = (("num_heads", "width"), ("text_num_heads", "width"), ("decoder_num_heads", "decoder_width"))
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
    224; position tables of ALPRO and VideoPrism show them), heads (VideoPrism's released arrays show them; else as
    many as make them 64 wide, as in all released sizes), layers of ALPRO's BERT that read text alone (else half, as
    released). Raises UserError with one line.
    """
    checkpoint = read_checkpoint(source)
    return config_of_kind(checkpoint, recognise(checkpoint, origin), architecture=architecture, overrides=overrides)


def config_of_kind(
    checkpoint: Checkpoint, kind: Kind, *, architecture: str | None = None, overrides: Mapping[str, Any]
) -> Any:
    """Return `config_of_checkpoint` of a checkpoint that is read and recognised."""
    check_whole(checkpoint, kind)
    target = find_architecture(architecture or kind.architecture)
    known = {field.name for field in fields(target.config)}
    for name in overrides:
        if name not in known:
            raise unknown_name(f"{target.name} option", name, known)
    values = kind.sizes(kind.shapes(checkpoint), checkpoint.name, overrides) | kind.settings(checkpoint)
    if target.name != kind.architecture:
        for name in target.chosen_anew:
            values.pop(name, None)
    values = {**{name: value for name, value in values.items() if name in known}, **overrides}
    for heads, width in _HEADS:
        if heads in known and heads not in values and width in values:
            if values[width] % _HEAD_WIDTH:
                raise CheckpointError(
                    f"{checkpoint.name}: give {heads}, a {width} of {values[width]} is no multiple of {_HEAD_WIDTH}"
                )
            values[heads] = values[width] // _HEAD_WIDTH
    return build_config(target.config, values, Path(checkpoint.name))


def check_whole(checkpoint: Checkpoint, kind: Kind) -> None:
    """Raise CheckpointError where the checkpoint fills a part of a model and is none."""
    if kind.fills:
        raise CheckpointError(f"{checkpoint.name} is a {kind.fills} of a model, and is none")


def different_sizes(checkpoint: Checkpoint, kind: Kind, config: Any) -> dict[str, Any]:
    """Return the settings of `config` for which `checkpoint` is of another size, with the values that it is of; where
    its width is another, also as many heads as make them 64 wide."""
    own = asdict(config)
    try:
        values = kind.sizes(kind.shapes(checkpoint), checkpoint.name, own)
    except CheckpointError:
        return {}  # its sizes cannot be told
    stated = kind.settings(checkpoint)
    values |= {heads: stated[heads] for heads, _ in _HEADS if heads in stated}
    for heads, width in _HEADS:
        if width in values and values[width] != own.get(width) and values[width] % _HEAD_WIDTH == 0:
            values.setdefault(heads, values[width] // _HEAD_WIDTH)
    return {
        name: values[name]
        for name in _SIZES
        if name in own and name in values and not _as_good(name, values[name], own[name], own["width"])
    }


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
