"""The configuration of a model that a checkpoint fits."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvtp.checkpoints.kinds import Kind, recognise
from fastvtp.checkpoints.reading import Checkpoint, read_checkpoint
from fastvtp.errors import CheckpointError, unknown_name
from fastvtp.model_folder import build_config
from fastvtp.systems.catalogue import ARCHITECTURES
from fastvtp.systems.videoprism.weights import shown_by_prism

_PARTS = {
    "bert": "BERT: it fills the captions' embeddings", "vit": "ViT: it fills the video encoder",
    "clip": "CLIP: it fills VideoPrism's blocks within frames", "prism_text": "text tower: it fills VideoPrism's",
}  # fmt: skip
_PRISMS = ("videoprism", "video_text_prism", "prism_classifier", "prism_teacher", "prism_student")
# settings of an earlier stage that a later one has its own of
_OF_THE_STAGE = {
    "video_qa": ("pad_text",),
    "alpro": ("word_weight", "entity_weight"),
    "alpro_retrieval": ("word_weight", "entity_weight"),
}
_HEAD_WIDTH = 64  # of every released size
_HEADS = (("num_heads", "width"), ("text_num_heads", "width"), ("decoder_num_heads", "decoder_width"))
# settings that decide which weights there are, and that no stage chooses anew
_SIZES = (
    "width", "depth", "num_heads", "tubelet", "patch_size", "mlp_ratio", "qkv_bias", "layer_scale", "decoder_width",
    "decoder_depth", "decoder_num_heads", "vocab_size", "max_text_length", "text_depth", "fusion_depth",
    "text_num_heads", "text_hidden", "projection_dim", "temporal_depth", "auxiliary_depth", "mlp_hidden", "text_norm",
    "pooler_hidden",
)  # fmt: skip
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
_ALPRO_ROWS = {
    "vocab_size": "text_embeddings.word_embeddings.weight",
    "max_text_length": "text_embeddings.position_embeddings.weight",
    "num_frames": "video_encoder.time_positions",
    "projection_dim": "text_projection.weight",
    "num_entities": "entity_head.2.weight",
    "num_answers": "classifier.2.weight",
}
_LAYER = re.compile(r"(video_encoder\.blocks|layers|text_encoder\.layers|fusion_encoder\.layers)\.(\d+)\.")


def config_of_released(
    source: str | Path | Mapping[str, Tensor] | Checkpoint,
    origin: str | None = None,
    *,
    architecture: str | None = None,
    **overrides: Any,
) -> Any:
    """The configuration of the model that `source` fits, from its config.json and the shapes of its tensors.

    source, origin: as in `fastvtp.checkpoints.loading.load_released`. architecture: of the model; None: the
    checkpoint's own. overrides: fields of the config, for what shapes do not show: frames and image size (else 16 and
    224; position tables of ALPRO and VideoPrism show them), heads (VideoPrism's released arrays show them; else as
    many as make them 64 wide, as in all released sizes), layers of ALPRO's BERT that read text alone (else half, as
    released). Raises UserError with one line.
    """
    checkpoint = read_checkpoint(source)
    kind = recognise(checkpoint, origin)
    if kind.architecture in _PARTS:
        raise CheckpointError(f"{checkpoint.name} is a {_PARTS[kind.architecture]} of a model, and is none")
    architecture = architecture or kind.architecture
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    config_class = ARCHITECTURES[architecture][0]
    known = {field.name for field in fields(config_class)}
    for name in overrides:
        if name not in known:
            raise unknown_name(f"{architecture} option", name, known)
    shapes = _shapes(checkpoint, kind)
    if kind.architecture in _PRISMS:
        values = shown_by_prism(shapes, checkpoint.name)
    elif architecture.startswith("alpro"):
        values = _shown_by_alpro(shapes, checkpoint.name, overrides.get("text_depth"))
    else:
        values = _shown_by_shapes(shapes, checkpoint.name)
    values |= kind.settings(checkpoint)
    if architecture != kind.architecture:
        for name in _OF_THE_STAGE.get(architecture, ()):
            values.pop(name, None)
    values = {name: value for name, value in values.items() if name in known} | overrides
    for heads, width in _HEADS:
        if heads in known and heads not in values and width in values:
            if values[width] % _HEAD_WIDTH:
                raise CheckpointError(
                    f"{checkpoint.name}: give {heads}, a {width} of {values[width]} is no multiple of {_HEAD_WIDTH}"
                )
            values[heads] = values[width] // _HEAD_WIDTH
    return build_config(config_class, values, Path(checkpoint.name))


def different_sizes(checkpoint: Checkpoint, kind: Kind, config: Any) -> dict[str, Any]:
    """The settings of `config` for which `checkpoint` is of another size, with the values that it is of; where its
    width is another, also as many heads as make them 64 wide."""
    shapes, own = _shapes(checkpoint, kind), asdict(config)
    try:
        if kind.architecture == "bert":
            values = _shown_by_bert(shapes)
        elif kind.architecture in _PRISMS:
            values = shown_by_prism(shapes, checkpoint.name)
        elif "patch_size" in own:
            values = _shown_by_alpro(shapes, checkpoint.name, own.get("text_depth"))
        else:
            values = _shown_by_shapes(shapes, checkpoint.name)
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
    """Whether a model of the setting `own` takes a checkpoint of the setting `theirs`."""
    if name == "max_text_length":
        return theirs >= own  # it is cut
    if name == "mlp_ratio":
        return int(width * theirs) == int(width * own)
    if name == "layer_scale":
        return bool(theirs) == bool(own)
    return theirs == own or (name.endswith("depth") and theirs <= 0)  # a part that the checkpoint has not


def _shapes(checkpoint: Checkpoint, kind: Kind) -> dict[str, tuple[int, ...]]:
    """Shapes by our names."""
    return {
        kind.names(name): tuple(tensor.shape)
        for name, tensor in kind.prepare(checkpoint.weights).items()
        if kind.architecture == "bert" or not kind.leaves(name)  # of a BERT anything may be left
    }


def _shown_by_bert(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Settings that both kinds of models share, by name."""
    words = shapes.get(_ROWS["vocab_size"], ())
    rows = {name: shapes[_ROWS[name]][0] for name in ("vocab_size", "max_text_length") if shapes.get(_ROWS[name])}
    return rows | ({"width": words[1]} if len(words) == 2 else {})


def _shown_by_shapes(shapes: Mapping[str, tuple[int, ...]], checkpoint: str) -> dict[str, Any]:
    """Settings of VideoMAE's and SimVTP's models by name; the number of heads is not among them."""
    tubelet_weight = shapes.get("video_embeddings.weight", ())
    if len(tubelet_weight) != 5 or not all(tubelet_weight):
        raise CheckpointError(f"{checkpoint} has no tubelet embedding [width, 3, frames, height, width]")
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
    return values | _mlp_ratio(shapes, width)


def _shown_by_alpro(shapes: Mapping[str, tuple[int, ...]], checkpoint: str, text_depth: int | None) -> dict[str, Any]:
    """Settings of ALPRO's models by name; the number of heads is not among them. text_depth: layers of BERT that read
    text alone; None: half of them, as released."""
    patch_weight, (patches, *_) = (
        shapes.get("video_encoder.weight", ()),
        shapes.get("video_encoder.patch_positions", (0,)),
    )
    side = math.isqrt(patches)
    if len(patch_weight) != 5 or not patches or side**2 != patches:
        raise CheckpointError(
            f"{checkpoint} has no patch embedding [width, 3, height, width] with a square of positions"
        )
    width, patch = patch_weight[0], patch_weight[-1]
    layers = {found.groups() for name in shapes if (found := _LAYER.match(name))}
    blocks, whole, text, fusion = (
        sum(part == stem for stem, _ in layers)
        for part in ("video_encoder.blocks", "layers", "text_encoder.layers", "fusion_encoder.layers")
    )
    depths = {"text_depth": text, "fusion_depth": fusion} if text else {}
    if whole:
        below = whole // 2 if text_depth is None else text_depth
        depths = {"text_depth": below, "fusion_depth": whole - below}
    values: dict[str, Any] = {
        "width": width, "patch_size": patch, "image_size": side * patch, "depth": blocks,
        **{setting: depth for setting, depth in depths.items() if depth},
    }  # fmt: skip
    values |= {setting: shapes[name][0] for setting, name in _ALPRO_ROWS.items() if shapes.get(name)}
    hidden = next(
        (shape for name, shape in shapes.items() if re.search(r"(^|t_encoder\.)layers\.0\.mlp\.fc1", name)), None
    )
    return values | ({"text_hidden": hidden[0]} if hidden else {}) | _mlp_ratio(shapes, width)


def _mlp_ratio(shapes: Mapping[str, tuple[int, ...]], width: int) -> dict[str, float]:
    hidden = next((shape for name, shape in shapes.items() if name.endswith("encoder.blocks.0.mlp.fc1.weight")), None)
    if not hidden:
        return {}
    ratio = hidden[0] / width
    return {"mlp_ratio": ratio if int(width * ratio) == hidden[0] else math.nextafter(ratio, math.inf)}  # rounded down
