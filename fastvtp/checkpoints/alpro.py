"""Names of ALPRO's checkpoints, its authors' and LAVIS's, -> fastvtp's."""

import re
from collections.abc import Mapping

from torch import Tensor

from fastvtp.checkpoints import bert
from fastvtp.checkpoints.huggingface import join_attention
from fastvtp.checkpoints.names import NameMap

_TEXT, _PROMPTER = "text_encoder.", "prompter."
_LAYER = re.compile(r"^((?:prompter\.)?)layers\.(\d+)\.")
_OWN = NameMap(
    (
        (r"visual_encoder\.model\.patch_embed\.proj\.", "video_encoder."),
        (r"visual_encoder\.model\.", "video_encoder."),
        (r"vision_proj\.", "video_projection."),
        (r"text_proj\.", "text_projection."),
        (r"temp$", "temperature"),
        (r"itm_head\.", "match_head."),
        (r"mpm_head\.", "entity_head."),
        (r"(video|image)_prompt_feat$", r"\1_prompts"),
    ),
    ((r"temporal_norm1\.", "temporal_norm."),),
)

# the tied word head, buffers, the unused classifier of Kinetics, and what the softmax cancels
UNUSED = (
    r"cls\.predictions\.decoder\.(weight|bias)$",
    r"embeddings\.position_ids$",
    r"text_encoder\.(bert\.)?pooler\.",
    r"visual_encoder\.model\.head\.",
    r"attention\.self\.key\.bias$",
    r"\.k_bias$",
)


def names(name: str) -> str:
    """Our name of an entry after `prepare`. The features of prompts are the student's, not the prompter's."""
    inner = name.removeprefix(_PROMPTER)
    ours = bert.NAMES(inner.removeprefix(_TEXT)) if inner.startswith(_TEXT) else _OWN(inner)
    return ours if inner == name or ours.endswith("_prompts") else _PROMPTER + ours


def split_layers(name: str, text_depth: int) -> str:
    """The first `text_depth` layers of a BERT read text alone, those above them fuse; other names are left."""
    if (found := _LAYER.match(name)) is None:
        return name
    prefix, number = found[1], int(found[2])
    place = f"text_encoder.layers.{number}" if number < text_depth else f"fusion_encoder.layers.{number - text_depth}"
    return f"{prefix}{place}.{name[found.end() :]}"


def prepare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a TimeSformer or ViT (as timm names them) and of a BERT in the shapes that fastvtp has.

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
