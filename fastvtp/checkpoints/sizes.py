"""The configuration of a model that a checkpoint fits."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvtp.checkpoints.native import CheckpointError, build_config
from fastvtp.checkpoints.origins import Kind, recognise
from fastvtp.checkpoints.reading import Checkpoint, read_checkpoint
from fastvtp.errors import unknown_name
from fastvtp.models.registry import ARCHITECTURES

_HEAD_WIDTH = 64  # of every released size
_BLOCK = re.compile(r"(decoder\.transformer|(?:video_)?encoder)\.blocks\.(\d+)\.")
# setting -> entry whose number of rows it is
_ROWS = {
    "vocab_size": "text_embeddings.word_embeddings.weight",
    "max_text_length": "text_embeddings.position_embeddings.weight",
    "decoder_width": "decoder.project.weight",
    "projection_dim": "contrast.text_projection.weight",
    "num_classes": "head.weight",
    "num_answers": "head.3.weight",
}


def config_of_released(
    source: str | Path | Mapping[str, Tensor] | Checkpoint,
    origin: str | None = None,
    *,
    architecture: str | None = None,
    **overrides: Any,
) -> Any:
    """The configuration of the model that `source` fits, from its config.json and the shapes of its tensors.

    source, origin: as in `fastvtp.checkpoints.released.load_released`. architecture: of the model; None: the
    checkpoint's own. overrides: fields of the config, for what shapes do not show: frames and image size (else 16 and
    224), heads (else as many as make them 64 wide, as in all released sizes). Raises UserError with one line.
    """
    checkpoint = read_checkpoint(source)
    kind = recognise(checkpoint, origin)
    if kind.architecture == "bert":
        raise CheckpointError(f"{checkpoint.name} is a BERT: it fills the captions' embeddings of a model, and is none")
    architecture = architecture or kind.architecture
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    config_class = ARCHITECTURES[architecture][0]
    known = {field.name for field in fields(config_class)}
    for name in overrides:
        if name not in known:
            raise unknown_name(f"{architecture} option", name, known)
    values = _shown_by_shapes(checkpoint, kind) | kind.settings(checkpoint)
    if architecture == "video_qa":
        values.pop("pad_text", None)  # which it does not know
    values = {name: value for name, value in values.items() if name in known} | overrides
    for heads, width in (("num_heads", "width"), ("decoder_num_heads", "decoder_width")):
        if heads in known and heads not in values and width in values:
            if values[width] % _HEAD_WIDTH:
                raise CheckpointError(
                    f"{checkpoint.name}: give {heads}, a {width} of {values[width]} is no multiple of {_HEAD_WIDTH}"
                )
            values[heads] = values[width] // _HEAD_WIDTH
    return build_config(config_class, values, Path(checkpoint.name))


def _shown_by_shapes(checkpoint: Checkpoint, kind: Kind) -> dict[str, Any]:
    """Settings by name; the number of heads is not among them."""
    shapes = {
        kind.names(name): tuple(tensor.shape)
        for name, tensor in kind.prepare(checkpoint.weights).items()
        if not kind.leaves(name)
    }
    tubelet_weight = shapes.get("video_embeddings.weight", ())
    if len(tubelet_weight) != 5 or not all(tubelet_weight):
        raise CheckpointError(f"{checkpoint.name} has no tubelet embedding [width, 3, frames, height, width]")
    width, _, *tubelet = tubelet_weight
    blocks = {found.groups() for name in shapes if (found := _BLOCK.match(name))}
    depths = [sum(stem == part for stem, _ in blocks) for part in ("encoder", "video_encoder", "decoder.transformer")]
    values: dict[str, Any] = {
        "width": width, "tubelet": tuple(tubelet), "depth": depths[0] + depths[1], "decoder_depth": depths[2],
        "qkv_bias": not blocks or any(name.endswith(".attn.q_bias") for name in shapes),
        # any start will do, the learned vectors replace it
        "layer_scale": 0.1 if any(name.endswith(".residual1.gamma") for name in shapes) else 0.0,
        "encoder_norm": "encoder.norm.weight" in shapes,
        "learnable_temperature": "contrast.log_logit_scale" in shapes,
    }  # fmt: skip
    values |= {setting: shapes[name][0] for setting, name in _ROWS.items() if shapes.get(name)}
    hidden = next((shape for name, shape in shapes.items() if name.endswith("encoder.blocks.0.mlp.fc1.weight")), None)
    if hidden:
        values["mlp_ratio"] = hidden[0] / width
        if int(width * values["mlp_ratio"]) < hidden[0]:  # rounded down
            values["mlp_ratio"] = math.nextafter(values["mlp_ratio"], math.inf)
    return values
