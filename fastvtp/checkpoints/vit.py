"""Names of ImageNet's ViTs, timm's and transformers', -> those of fastvtp's TimeSformer."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastvtp.checkpoints import alpro, huggingface
from fastvtp.checkpoints.names import NameMap

# transformers' names -> timm's
_HUGGING_FACE = NameMap(
    (
        (r"(vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"(vit\.)?embeddings\.position_embeddings$", "pos_embed"),
        (r"(vit\.)?embeddings\.cls_token$", "cls_token"),
        (r"(vit\.)?encoder\.layer\.", "blocks."),
        (r"(vit\.)?layernorm\.", "norm."),
    ),
    (
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"attention\.attention\.qkv\.", "attn.qkv."),
        (r"attention\.attention\.query\.bias$", "attn.q_bias"),
        (r"attention\.attention\.key\.bias$", "attn.k_bias"),
        (r"attention\.attention\.value\.bias$", "attn.v_bias"),
        (r"attention\.output\.dense\.", "attn.proj."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"output\.dense\.", "mlp.fc2."),
    ),
)
_SPATIAL = re.compile(r"^(blocks\.\d+\.)(attn|norm1)\.")
_IN_TIME = {"attn": "temporal_attn", "norm1": "temporal_norm"}

UNUSED = (r"^(head|classifier|pre_logits)\.", r"^(vit\.)?pooler\.", r"\.k_bias$")


def names(name: str) -> str:
    """Our name of an entry after `prepare`."""
    return "video_encoder." + name.removeprefix("patch_embed.proj.")


def prepare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a TimeSformer that starts as this ViT does: attention along time is a copy of that within frames,
    and the projection after it is zero (as ALPRO starts)."""
    joined = {_HUGGING_FACE(name): tensor for name, tensor in huggingface.join_attention(weights).items()}
    prepared = alpro.prepare(joined)
    for name, tensor in list(prepared.items()):
        if found := _SPATIAL.match(name):
            copy = f"{found[1]}{_IN_TIME[found[2]]}{name[found.end() - 1 :]}"
            prepared[copy] = tensor
        if name.endswith(".attn.proj.weight"):
            stem = name.removesuffix("attn.proj.weight")
            prepared[f"{stem}temporal_fc.weight"] = torch.zeros_like(tensor)
            prepared[f"{stem}temporal_fc.bias"] = tensor.new_zeros(len(tensor))
    return prepared


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json of transformers says about fastvtp's settings."""
    return {"num_heads": config["num_attention_heads"]} if "num_attention_heads" in config else {}
