"""BERT in Hugging Face checkpoints: its names and sizes -> fastvtp's, and what models take from it."""

import re
from collections.abc import Mapping
from typing import Any

from fastvtp.checkpoints.heads import HeadTable, by
from fastvtp.checkpoints.kinds import Kind, Shapes, Transfer
from fastvtp.checkpoints.names import NameMap, join_attention
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.checkpoints.sizes import rows_of
from fastvtp.errors import CheckpointError

# layers are counted through here, see `split_layers`; the first BERT checkpoints call a
# LayerNorm's weight and bias as TensorFlow does
NAMES = NameMap(
    (
        (r"(bert\.)?embeddings\.LayerNorm\.(gamma|weight)$", "text_embeddings.norm.weight"),
        (r"(bert\.)?embeddings\.LayerNorm\.(beta|bias)$", "text_embeddings.norm.bias"),
        (r"(bert\.)?embeddings\.", "text_embeddings."),
        (r"(bert\.)?encoder\.layer\.", "layers."),
        (r"cls\.predictions\.transform\.LayerNorm\.(gamma|weight)$", "word_transform.norm.weight"),
        (r"cls\.predictions\.transform\.LayerNorm\.(beta|bias)$", "word_transform.norm.bias"),
        (r"cls\.predictions\.transform\.", "word_transform."),
        (r"cls\.predictions\.bias$", "word_transform.bias"),
    ),
    (
        (r"attention\.self\.qkv\.", "attn.qkv."),
        (r"attention\.self\.query\.bias$", "attn.q_bias"),
        (r"attention\.self\.value\.bias$", "attn.v_bias"),
        (r"attention\.output\.dense\.", "attn.proj."),
        (r"attention\.output\.LayerNorm\.(gamma|weight)$", "norm1.weight"),
        (r"attention\.output\.LayerNorm\.(beta|bias)$", "norm1.bias"),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"output\.dense\.", "mlp.fc2."),
        (r"output\.LayerNorm\.(gamma|weight)$", "norm2.weight"),
        (r"output\.LayerNorm\.(beta|bias)$", "norm2.bias"),
    ),
)


_LAYER = re.compile(r"^((?:prompter\.)?)layers\.(\d+)\.")
_ROWS = {
    "vocab_size": "text_embeddings.word_embeddings.weight",
    "max_text_length": "text_embeddings.position_embeddings.weight",
}
_FIRST_HIDDEN = "layers.0.mlp.fc1.weight"
# (width, layers, width of the MLPs) -> heads
_RELEASED = {
    (312, 4, 1200): (12, "TinyBERT"),
    **{(384, layers, 1536): (12, "MiniLM") for layers in (3, 6, 12)},
    **{
        (64 * heads, layers, 256 * heads): (heads, f"BERT of {layers} layers, {64 * heads} wide")
        for heads in (2, 4, 8, 12)
        for layers in (2, 4, 6, 8, 10)
    },
    **{(64 * heads, 12, 256 * heads): (heads, f"BERT of 12 layers, {64 * heads} wide") for heads in (2, 4, 8)},
    (768, 12, 3072): (12, "BERT base"),
    (1024, 24, 4096): (16, "BERT large"),
}
HEADS = (HeadTable("text_num_heads", by("width", "text_layers", "text_hidden"), _RELEASED),)
"""Heads of released BERTs; "text_layers" is the number of all layers, which no setting is."""


def split_layers(name: str, text_depth: int) -> str:
    """Tell where an entry of a BERT belongs in a model whose first `text_depth` layers read text alone and whose others
    fuse it with video; other names are left."""
    if (found := _LAYER.match(name)) is None:
        return name
    prefix, number = found[1], int(found[2])
    place = f"text_encoder.layers.{number}" if number < text_depth else f"fusion_encoder.layers.{number - text_depth}"
    return f"{prefix}{place}.{name[found.end() :]}"


def place(name: str, config: Any) -> str:
    """Return `split_layers` for a model of this configuration; one without `text_depth` takes no layers."""
    text_depth = vars(config).get("text_depth")
    return name if text_depth is None else split_layers(name, text_depth)


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a config.json of transformers says about fastvtp's settings.

    Raises CheckpointError for another activation or another kind of positions.
    """
    config = checkpoint.config or {}
    for key, expected in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if (stated := config.get(key, expected)) != expected:
            raise CheckpointError(f"{checkpoint.name} has {key} {stated}, fastvtp's BERT {expected}")
    return {"text_num_heads": config["num_attention_heads"]} if "num_attention_heads" in config else {}


def sizes(shapes: Shapes, _: str, __: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a model that a BERT fits: entries, positions and width of the text embeddings, and where
    there are layers their number and the width of their MLPs."""
    words = shapes.get(_ROWS["vocab_size"], ())
    layers = {found[2] for name in shapes if (found := _LAYER.match(name))}
    return (
        rows_of(shapes, _ROWS | {"text_hidden": _FIRST_HIDDEN})
        | ({"width": words[1]} if len(words) == 2 else {})
        | ({"text_layers": len(layers)} if layers else {})
    )


KINDS = tuple(
    Kind(
        origin="bert",
        architecture="bert",
        marks=(f"{model}embeddings.word_embeddings.",),
        names=NAMES,
        place=place,
        prepare=join_attention,
        settings=settings,
        sizes=sizes,
        heads=HEADS,
        fills="BERT: it fills the captions' embeddings",
    )
    for model in ("bert.", "")
)
_ANYTHING = ("",)
EMBEDDINGS = Transfer(needed=("text_embeddings",), optional=_ANYTHING, states=False)
"""What a model that reads text by layers of its own takes from a BERT: the input embeddings."""


def layers(*towers: str) -> Transfer:
    """Return what a model takes from a BERT whose layers are its own `towers`."""
    return Transfer(needed=("text_embeddings", *towers), optional=_ANYTHING)
