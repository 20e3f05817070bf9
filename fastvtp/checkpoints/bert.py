"""Names of BERT in Hugging Face checkpoints -> fastvtp's."""

import re
from collections.abc import Mapping
from typing import Any

from fastvtp.checkpoints.names import NameMap
from fastvtp.errors import CheckpointError

# layers are counted through here, see `fastvtp.checkpoints.bert.split_layers`; the first BERT checkpoints call a
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


def settings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a config.json of transformers says about fastvtp's settings. name: how messages call the checkpoint.

    Raises CheckpointError for another activation or another kind of positions.
    """
    for key, expected in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if (stated := config.get(key, expected)) != expected:
            raise CheckpointError(f"{name} has {key} {stated}, fastvtp's BERT {expected}")
    return {"text_num_heads": config["num_attention_heads"]} if "num_attention_heads" in config else {}


_LAYER = re.compile(r"^((?:prompter\.)?)layers\.(\d+)\.")


def split_layers(name: str, text_depth: int) -> str:
    """The first `text_depth` layers of a BERT read text alone, those above them fuse; other names are left."""
    if (found := _LAYER.match(name)) is None:
        return name
    prefix, number = found[1], int(found[2])
    place = f"text_encoder.layers.{number}" if number < text_depth else f"fusion_encoder.layers.{number - text_depth}"
    return f"{prefix}{place}.{name[found.end() :]}"
