"""Image towers, ImageNet's ViTs and CLIP's, as the start of VideoPrism's blocks within frames.

They have what those blocks have: patch embedding, positions, pre-norm blocks, a last norm. Left out are the class token
with its position, CLIP's norm before the first block, heads, projections and text towers. CLIP's quick GELU becomes the
exact one, and logits are capped from here on. Pixels are in [0, 1] now: how the tower had them normalised goes into its
patch embedding.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastvtp.checkpoints import alpro
from fastvtp.checkpoints.names import NameMap, side_by_side
from fastvtp.checkpoints.native import CheckpointError

# transformers' names -> timm's, as `fastvtp.checkpoints.vit` has them
_CLIP = NameMap(
    (
        (r"(?:vision_model\.)?embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"(?:vision_model\.)?embeddings\.class_embedding$", "cls_token"),
        (r"(?:vision_model\.)?embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"(?:vision_model\.)?encoder\.layers\.", "blocks."),
        (r"(?:vision_model\.)?pre_layrnorm\.", "pre_norm."),
        (r"(?:vision_model\.)?post_layernorm\.", "norm."),
    ),
    (
        (r"layer_norm(1|2)\.", r"norm\1."),
        (r"self_attn\.out_proj\.", "attn.proj."),
        (r"self_attn\.(q|k|v)_proj\.bias$", r"attn.\1_bias"),
        (r"self_attn\.(q|k|v)_proj\.weight$", r"attn.\1.weight"),
    ),
)
CLIP_UNUSED = (r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_scale$", r"embeddings\.position_ids$")
# beside what a spatial encoder takes, as `fastvtp.checkpoints.vit.names` calls it
LEFT_OUT = tuple(f"video_encoder.{part}" for part in ("cls_token", "cls_position", "pre_norm."))
_BLOCK = re.compile(r"blocks\.\d+\.(norm[12]|attn|mlp)\.")
_IN_TIME = re.compile(r"blocks\.\d+\.temporal_")


def prepare_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of CLIP's image tower as `fastvtp.checkpoints.vit.prepare` names and shapes those of a ViT."""
    renamed = {_CLIP(name): tensor for name, tensor in weights.items()}
    if (table := renamed.get("pos_embed")) is not None:
        renamed["pos_embed"] = table[None]
    for name in [name for name in renamed if name.endswith("attn.q.weight")]:
        stem = name.removesuffix("q.weight")
        if missing := [part for part in "kv" if f"{stem}{part}.weight" not in renamed]:
            raise CheckpointError(f"{stem}{missing[0]}.weight is missing")
        parts = [f"{stem}{part}.weight" for part in "qkv"]
        renamed[f"{stem}qkv.weight"] = side_by_side(renamed, parts)
        for part in parts:
            del renamed[part]
    return alpro.prepare(renamed)


def spatial_encoder(
    prepared: Mapping[str, Tensor], *, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """A ViT's prepared entries as those of a spatial encoder for pixels in [0, 1]; absent biases are zero.

    mean, std: three values each, by which the tower had its pixels normalised.
    """
    entries: dict[str, Tensor] = {}
    for name, tensor in prepared.items():
        if _IN_TIME.match(name):
            continue  # made from those within frames
        if _BLOCK.match(name) or name.startswith("norm."):
            entries[f"spatial.{name}"] = tensor
        else:
            entries["spatial_positions" if name == "patch_positions" else name] = tensor
    for name in [name for name in entries if name.endswith("attn.qkv.weight")]:
        stem, zeros = name.removesuffix("qkv.weight"), entries[name].new_zeros(len(entries[name]) // 3)
        biases = {f"{stem}{part}_bias": entries.pop(f"{stem}{part}_bias", zeros) for part in "qkv"}
        entries[f"{stem}qkv.bias"] = side_by_side(biases, list(biases))
    weight = entries.get("patch_embed.proj.weight")
    if weight is not None and weight.ndim == 5 and weight.shape[1] == len(std):
        scaled = weight / torch.tensor(std, dtype=weight.dtype).view(-1, 1, 1, 1)
        shift = (scaled * torch.tensor(mean, dtype=weight.dtype).view(-1, 1, 1, 1)).flatten(1).sum(dim=1)
        bias = entries.get("patch_embed.proj.bias", torch.zeros_like(shift))
        entries |= {"patch_embed.proj.weight": scaled, "patch_embed.proj.bias": bias - shift}
    return entries
