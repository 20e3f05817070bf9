"""ALPRO's checkpoints, its authors' and LAVIS's: names -> fastvtp's, the sizes that shapes show, and what its models
start from."""

import re
from collections.abc import Mapping
from typing import Any

from fastvtp.checkpoints import bert, image_towers
from fastvtp.checkpoints.heads import HeadTable, by
from fastvtp.checkpoints.kinds import Kind, Shapes, Transfer, own_kinds
from fastvtp.checkpoints.names import NameMap
from fastvtp.checkpoints.sizes import rows_of

_TEXT, _PROMPTER = "text_encoder.", "prompter."
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
_IGNORES = (
    r"cls\.predictions\.decoder\.(weight|bias)$",
    r"embeddings\.position_ids$",
    r"text_encoder\.(bert\.)?pooler\.",
    r"visual_encoder\.model\.head\.",
    r"attention\.self\.key\.bias$",
    r"\.k_bias$",
)
# setting -> entry whose number of rows it is
_ROWS = {
    "vocab_size": "text_embeddings.word_embeddings.weight",
    "max_text_length": "text_embeddings.position_embeddings.weight",
    "num_frames": "video_encoder.time_positions",
    "projection_dim": "text_projection.weight",
    "num_entities": "entity_head.2.weight",
    "num_answers": "classifier.2.weight",
}
# the TimeSformer, a ViT-B, and BERT base, of which a prompter needs the lower half alone
HEADS = (
    HeadTable("num_heads", by("width", "depth"), {(768, 12): (12, "ALPRO base")}),
    HeadTable(
        "text_num_heads",
        by("width", "text_layers", "text_hidden"),
        {(768, layers, 3072): (12, "ALPRO base") for layers in (6, 12)},
    ),
)
_LAYER = re.compile(r"(layers|text_encoder\.layers|fusion_encoder\.layers)\.(\d+)\.")
_FIRST_LAYER = re.compile(r"(^|t_encoder\.)layers\.0\.mlp\.fc1")


def names(name: str) -> str:
    """Return fastvtp's name of an entry after it is prepared. The features of prompts are the student's, not the
    prompter's."""
    inner = name.removeprefix(_PROMPTER)
    ours = bert.NAMES(inner.removeprefix(_TEXT)) if inner.startswith(_TEXT) else _OWN(inner)
    return ours if inner == name or ours.endswith("_prompts") else _PROMPTER + ours


def sizes(shapes: Shapes, checkpoint: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ALPRO's models that shapes show; the number of heads is not among them, "text_layers",
    all of BERT's layers, is no setting.

    given: its "text_depth" is the number of BERT's layers that read text alone; without it they are half of them, as
    released. Raises CheckpointError without a patch embedding or a square of positions.
    """
    values = image_towers.sizes(shapes, checkpoint, given)
    layers = {found.groups() for name in shapes if (found := _LAYER.match(name))}
    whole, text, fusion = (
        sum(part == stem for stem, _ in layers) for part in ("layers", "text_encoder.layers", "fusion_encoder.layers")
    )
    depths = {"text_depth": text, "fusion_depth": fusion} if text else {}
    if whole:
        below = whole // 2 if given.get("text_depth") is None else given["text_depth"]
        depths = {"text_depth": below, "fusion_depth": whole - below}
    values |= {setting: depth for setting, depth in depths.items() if depth} | rows_of(shapes, _ROWS)
    hidden = next((shape for name, shape in shapes.items() if _FIRST_LAYER.search(name)), None)
    return values | {"text_layers": len(layers)} | ({"text_hidden": hidden[0]} if hidden else {})


KINDS = (
    *own_kinds(
        sizes,
        {
            "alpro": ("video_encoder.cls_token", "entity_head."),
            "alpro_qa": ("video_encoder.cls_token", "classifier."),
            "alpro_retrieval": ("video_encoder.cls_token", "match_head."),
            "alpro_prompter": ("video_encoder.cls_token", "text_projection."),
        },
        HEADS,
    ),
    *(
        Kind(
            origin="alpro",
            architecture=architecture,
            marks=("visual_encoder.", "text_encoder.", *marks),
            names=names,
            place=bert.place,
            ignores=_IGNORES,
            prepare=image_towers.prepare_timm,
            sizes=sizes,
            heads=HEADS,
            framing="squash",
        )
        for architecture, *marks in (
            ("alpro", "mpm_head."),
            ("alpro_qa", "classifier."),
            ("alpro_prompter", "video_prompt_feat"),
            # a prompter that was trained alone and kept no prompts has all that retrieval has
            ("alpro_retrieval",),
        )
    ),
    *bert.KINDS,
    *image_towers.VIT_KINDS,
)

_PROMPTS = ("video_prompts", "image_prompts")
_ABOVE_TOWERS = ("fusion_encoder.", "match_head.", "word_transform.")
_IN_PROMPTER = tuple(f"prompter.{part}" for part in _ABOVE_TOWERS)
_PRETRAINING = ("word_transform.", "entity_head.", "prompter.", *_PROMPTS)
_FUSED = ("video_encoder", "text_embeddings", "text_encoder", "fusion_encoder")
_IMAGE_PARTS = ("weight", "bias", "cls_token", "cls_position", "patch_positions", "blocks", "norm")
_OF_ALL = {
    "bert": bert.layers("text_encoder", "fusion_encoder"),
    "vit": Transfer(needed=tuple(f"video_encoder.{part}" for part in _IMAGE_PARTS)),
}

PROMPTER_SOURCES = {
    "alpro": Transfer((("prompter.", ("",)), ("", ())), optional=_IN_PROMPTER),
    "alpro_prompter": Transfer(optional=(*_ABOVE_TOWERS, *_PROMPTS)),
    "alpro_retrieval": Transfer(optional=_ABOVE_TOWERS),
    **_OF_ALL,
    "bert": bert.layers("text_encoder"),
}
MODEL_SOURCES = {
    "alpro": Transfer(optional=_IN_PROMPTER, fresh=("prompter", *_PROMPTS)),
    "alpro_prompter": Transfer(
        optional=(*_ABOVE_TOWERS, *_PROMPTS),
        fresh=("fusion_encoder", "match_head", "word_transform", "entity_head", "prompter", *_PROMPTS),
    ),
    "alpro_retrieval": Transfer(fresh=("word_transform", "entity_head", "prompter", *_PROMPTS)),
    **_OF_ALL,
}
RETRIEVAL_SOURCES = {
    "alpro": Transfer(optional=_PRETRAINING),
    "alpro_retrieval": Transfer(optional=("word_transform.",)),
    **_OF_ALL,
}
QA_SOURCES = {
    "alpro": Transfer(optional=_PRETRAINING, fresh=("classifier",)),
    "alpro_retrieval": Transfer(optional=("word_transform.",), fresh=("classifier",)),
    # LAVIS keeps of a model that answers only what answers
    "alpro_qa": Transfer(optional=("word_transform.",), needed=(*_FUSED, "classifier")),
    **_OF_ALL,
}
