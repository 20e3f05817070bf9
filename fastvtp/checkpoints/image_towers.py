"""Image towers, ImageNet's ViTs and CLIP's: their names and sizes -> fastvtp's, and what video encoders take from them.

A divided space-time encoder starts as such a tower: its attention within frames is the tower's, that along time a copy
of it. Blocks within frames alone are the tower's blocks: patch embedding, positions, pre-norm blocks, a last norm. Left
out there are the class token with its position, CLIP's norm before the first block, heads, projections and text
towers. CLIP's quick GELU becomes the exact one, and logits are capped from here on. Where the model's pixels are in
[0, 1], how the tower had them normalised goes into its patch embedding.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvtp.checkpoints.heads import HeadTable, by
from fastvtp.checkpoints.kinds import Kind, Shapes
from fastvtp.checkpoints.names import NameMap, join_attention, side_by_side
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.checkpoints.sizes import mlp_ratio
from fastvtp.errors import CheckpointError

# transformers' names -> timm's
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
# beside what a spatial encoder takes, by the names that `_names` gives
LEFT_OUT = tuple(f"video_encoder.{part}" for part in ("cls_token", "cls_position", "pre_norm."))
_BLOCK = re.compile(r"blocks\.\d+\.(norm[12]|attn|mlp)\.")
_IN_TIME = re.compile(r"blocks\.\d+\.temporal_")
_LAYER = re.compile(r"video_encoder\.blocks\.(\d+)\.")
_WITHIN_FRAMES = re.compile(r"^(blocks\.\d+\.)(attn|norm1)\.")
_TIME_COPIES = {"attn": "temporal_attn", "norm1": "temporal_norm"}
# (width, depth) -> heads, of timm's, transformers' and OpenCLIP's towers
RELEASED = {
    (192, 12): (3, "ViT-Ti (ImageNet, DeiT)"),
    (384, 12): (6, "ViT-S (ImageNet, DeiT, DINO)"),
    (512, 12): (8, "ViT-M (ImageNet)"),
    (768, 8): (8, "ViT-S (timm's of 2020)"),
    (768, 12): (12, "ViT-B (ImageNet, MAE, CLIP, SigLIP)"),
    (1024, 24): (16, "ViT-L (ImageNet, MAE, CLIP, SigLIP)"),
    (1152, 27): (16, "ViT-SO400M (SigLIP)"),
    (1280, 32): (16, "ViT-H (ImageNet, MAE, CLIP)"),
    (1408, 40): (16, "ViT-g (CLIP, EVA)"),
    (1664, 48): (16, "ViT-bigG (CLIP)"),
    (1792, 56): (16, "ViT-e"),
}
HEADS = (HeadTable("num_heads", by("width", "depth"), RELEASED),)


def prepare_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a TimeSformer or ViT (as timm names them) and of a BERT in the shapes that fastvtp has.

    A bias of queries, keys and values, [3D], becomes q_bias, k_bias and v_bias; a position table with the class token's
    row, [1, 1 + S, D], becomes cls_position and patch_positions. What has another shape is left for the loader to name.
    """
    prepared: dict[str, Tensor] = {}
    for name, tensor in join_attention(weights).items():
        stem, _, last = name.rpartition(".")
        if name.endswith("attn.qkv.bias") and len(tensor) % 3 == 0:
            stem = stem.removesuffix("qkv")
            prepared |= {f"{stem}{part}_bias": value for part, value in zip("qkv", tensor.chunk(3), strict=True)}
            continue
        start = f"{stem}." if stem else ""
        if last == "pos_embed" and tensor.ndim == 3:
            prepared |= {f"{start}cls_position": tensor[0, 0], f"{start}patch_positions": tensor[0, 1:]}
        elif last == "time_embed" and tensor.ndim == 3:
            prepared[f"{start}time_positions"] = tensor[0]
        elif last == "cls_token":
            prepared[name] = tensor.flatten()
        elif name.endswith("patch_embed.proj.weight") and tensor.ndim == 4:
            prepared[name] = tensor[:, :, None]
        else:
            prepared[name] = tensor
    return prepared


def prepare_vit(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a TimeSformer that starts as this ViT does: attention along time is a copy of that within
    frames, and the projection after it is zero (as ALPRO starts)."""
    joined = {_HUGGING_FACE(name): tensor for name, tensor in join_attention(weights).items()}
    prepared = prepare_timm(joined)
    for name, tensor in list(prepared.items()):
        if found := _WITHIN_FRAMES.match(name):
            copy = f"{found[1]}{_TIME_COPIES[found[2]]}{name[found.end() - 1 :]}"
            prepared[copy] = tensor
        if name.endswith(".attn.proj.weight"):
            stem = name.removesuffix("attn.proj.weight")
            prepared[f"{stem}temporal_fc.weight"] = torch.zeros_like(tensor)
            prepared[f"{stem}temporal_fc.bias"] = tensor.new_zeros(len(tensor))
    return prepared


def prepare_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of CLIP's image tower under the names and in the shapes that `prepare_timm` gives those of a
    ViT."""
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
    return prepare_timm(renamed)


def spatial_encoder(
    prepared: Mapping[str, Tensor], *, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """Return a ViT's prepared entries as those of a spatial encoder for pixels in [0, 1]; absent biases are zero.

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
        scaled = weight / weight.new_tensor(std).view(-1, 1, 1, 1)
        shift = (scaled * weight.new_tensor(mean).view(-1, 1, 1, 1)).flatten(1).sum(dim=1)
        bias = entries.get("patch_embed.proj.bias", torch.zeros_like(shift))
        entries |= {"patch_embed.proj.weight": scaled, "patch_embed.proj.bias": bias - shift}
    return entries


def sizes(shapes: Shapes, checkpoint: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a video encoder that a tower fits, whose shapes are those of "video_encoder."; the number
    of heads is not among them. Raises CheckpointError without a patch embedding or a square of positions."""
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
    depth = len({found[1] for name in shapes if (found := _LAYER.match(name))})
    found = {"width": width, "patch_size": patch, "image_size": side * patch, "depth": depth}
    return found | mlp_ratio(shapes, width)


def _names(name: str) -> str:
    """Return fastvtp's name of an entry after it is prepared."""
    return "video_encoder." + name.removeprefix("patch_embed.proj.")


def _vit_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    return _heads(checkpoint.config or {})


def _clip_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config or {}
    return _heads(config.get("vision_config", config))


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json of transformers says about fastvtp's settings."""
    return {"num_heads": config["num_attention_heads"]} if "num_attention_heads" in config else {}


VIT_KINDS = tuple(
    Kind(
        origin="vit",
        architecture="vit",
        marks=marks,
        names=_names,
        ignores=(r"^(head|classifier|pre_logits)\.", r"^(vit\.)?pooler\.", r"\.k_bias$"),
        prepare=prepare_vit,
        settings=_vit_settings,
        sizes=sizes,
        heads=HEADS,
        fills="ViT: it fills the video encoder",
    )
    for marks in (
        ("cls_token", "patch_embed."),
        ("vit.embeddings.cls_token", "vit.embeddings.patch_", "vit.embeddings.position_"),
        ("embeddings.cls_token", "embeddings.patch_", "embeddings.position_"),
    )
)
CLIP_KINDS = tuple(
    Kind(
        origin="clip",
        architecture="clip",
        marks=(f"{model}embeddings.class_embedding",),
        names=_names,
        ignores=(r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_scale$", r"embeddings\.position_ids$"),
        prepare=prepare_clip,
        settings=_clip_settings,
        sizes=sizes,
        heads=HEADS,
        fills="CLIP: it fills the blocks within frames",
    )
    for model in ("vision_model.", "")
)
