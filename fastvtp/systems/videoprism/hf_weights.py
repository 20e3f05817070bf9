"""Names of transformers' VideoPrism checkpoints -> fastvtp's.

Its towers compute what the released ones do but for two things, which loading sets right or keeps: the table of text
positions is wrong there (timescales end below 10000) and is left, ours being computed; the classifier's pooler is as
wide as the MLPs, the released one as the tokens, and `pooler_hidden` of our classifier follows.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastvtp.checkpoints.heads import HeadTable
from fastvtp.checkpoints.kinds import Kind, Shapes
from fastvtp.checkpoints.names import NameMap, side_by_side
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.errors import CheckpointError

UNUSED = (r"(^|\.)embeddings\.position_(embedding|ids)$",)
NOTE = (
    "transformers' table of text positions is not the released one (its timescales end below 10000): the released is "
    "used, so that text embeddings are the released model's and not transformers'"
)
CLASSIFIER_NOTE = (
    "transformers' classifier pools with a hidden layer as wide as its MLPs, unlike the released one: kept"
)

_BLOCK = (
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"attention\.qkv\.", "attn.qkv."),
    (r"attention\.o_proj\.", "attn.proj."),
)
_VISION = (
    ("spatial_embeddings\\.patch_embeddings\\.projection\\.", ""),
    ("spatial_embeddings\\.position_embeddings$", "spatial_positions"),
    ("temporal_embeddings\\.position_embeddings$", "temporal_positions"),
    ("spatial_layers\\.", "spatial.blocks."),
    ("temporal_layers\\.", "temporal.blocks."),
    ("layernorm1\\.", "spatial.norm."),
    ("layernorm2\\.", "temporal.norm."),
)
_HEAD = (
    (r"head\.pooling_attention_query$", "pooler.queries"),
    (r"head\.per_dim_scale$", "pooler.per_dim_scale"),
    (r"head\.q_proj\.", "pooler.query."),
    (r"head\.k_proj\.", "pooler.key."),
    (r"head\.v_proj\.", "pooler.value."),
    (r"head\.o_proj\.", "pooler.proj."),
    (r"head_layernorm\.", "pooler.norm."),
    (r"classifier\.", "head."),
)
_TEXT = (
    (r"embeddings\.cls_emb$", "text_encoder.cls_token"),
    (r"embeddings\.token_embedding\.", "text_encoder.token_embeddings."),
    (r"layers\.", "text_encoder.transformer.blocks."),
    (r"layernorm\.", "text_encoder.transformer.norm."),
)


def _under(prefix: str, ours: str, rules: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((prefix + theirs, ours + name) for theirs, name in rules)


VISION = NameMap(_VISION, _BLOCK)
CLASSIFIER = NameMap((*_under(r"vision_model\.", "encoder.", _VISION), *_HEAD), _BLOCK)
TEXT = NameMap(_TEXT, _BLOCK)
# the video tower alone, or within the model of both
VIDEO_TEXT = NameMap(
    (
        *_under(r"(?:video_model\.)?vision_model\.", "video_encoder.", _VISION),
        (r"(?:video_model\.)?auxiliary_layers\.", "auxiliary.blocks."),
        *_under(r"(?:video_model\.)?", "", _HEAD),
        *_under(r"text_model\.", "", _TEXT),
    ),
    _BLOCK,
)


def prepare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `weights` with gamma where LayerNorms hold gamma - 1, queries, keys and values of each block as one, and
    without axes of length one. A block that lacks one of the three is left as it is, for the loader to name."""
    prepared = dict(weights)
    for name, tensor in weights.items():
        stem, _, last = name.rpartition(".")
        if last == "weight" and "layernorm" in stem.rpartition(".")[2]:
            prepared[name] = 1 + tensor
        elif last == "cls_emb":
            prepared[name] = tensor.flatten()
        elif last in ("position_embeddings", "pooling_attention_query") and tensor.ndim == 3 and len(tensor) == 1:
            prepared[name] = tensor[0]
        elif name.endswith("attention.q_proj.weight"):
            stem = name.removesuffix("q_proj.weight")
            for kind in ("weight", "bias"):
                parts = [f"{stem}{part}_proj.{kind}" for part in "qkv"]
                if all(part in weights for part in parts):
                    prepared[f"{stem}qkv.{kind}"] = side_by_side(weights, parts)
                    for part in parts:
                        del prepared[part]
    return prepared


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a config.json of transformers says about fastvtp's settings.

    Raises CheckpointError for what fastvtp's model does not have: other activations, eps, towers of unlike heads.
    """
    config, name = checkpoint.config or {}, checkpoint.name
    vision, text = config.get("vision_config", config), config.get("text_config", {})
    if config.get("model_type") == "videoprism_text_model":
        vision, text = {}, config
    for part, key, expected in (
        (vision, "hidden_act", ("gelu", "gelu_python")),
        (text, "hidden_act", ("relu",)),
        (vision, "layer_norm_eps", (1e-6,)),
        (text, "layer_norm_eps", (1e-6,)),
        (vision, "apply_l2norm", (True,)),
        (text, "apply_l2norm", (True,)),
        (vision, "qkv_bias", (True,)),
        (text, "qkv_bias", (True,)),
    ):
        if part.get(key, expected[0]) not in expected:
            raise CheckpointError(f"{name} has {key} {part[key]}, fastvtp's VideoPrism {expected[0]}")
    found: dict[str, Any] = {}
    for ours, theirs in (("num_heads", "num_attention_heads"), ("softcap", "attn_logit_softcapping")):
        stated = {part[theirs] for part in (vision, text) if theirs in part}
        if len(stated) > 1:
            raise CheckpointError(f"{name} has towers of unlike {theirs}, {sorted(stated)}, fastvtp's are alike")
        if stated:
            found[ours] = stated.pop()
    if "max_position_embeddings" in text:
        found["max_text_length"] = text["max_position_embeddings"]
    return found


def kinds(
    sizes: Callable[[Shapes, str, Mapping[str, Any]], dict[str, Any]], heads: tuple[HeadTable, ...], text_tower: str
) -> tuple[Kind, ...]:
    """Return the checkpoints of transformers: both towers, the classifier, the video tower with its pooler, the
    encoder, the text tower. sizes, heads: as of `Kind`, VideoPrism's own; text_tower: what the last one fills."""
    return tuple(
        Kind(
            origin="hf_videoprism",
            architecture=architecture,
            marks=tuple(marks),
            names=names,
            ignores=UNUSED,
            prepare=prepare,
            settings=settings,
            sizes=sizes,
            heads=heads,
            fills=text_tower if architecture == "prism_text" else "",
            note=note,
        )
        for architecture, names, note, *marks in (
            ("video_text_prism", VIDEO_TEXT, NOTE, "video_model.", "text_model."),
            ("prism_classifier", CLASSIFIER, CLASSIFIER_NOTE, "vision_model.spatial_", "classifier."),
            ("video_text_prism", VIDEO_TEXT, "", "vision_model.spatial_", "head."),
            ("videoprism", VISION, "", "spatial_embeddings."),
            ("prism_text", TEXT, NOTE, "embeddings.cls_emb", "embeddings.token_embedding."),
        )
    )
