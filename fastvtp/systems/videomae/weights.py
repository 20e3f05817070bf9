"""VideoMAE's checkpoints: released names -> fastvtp's, the sizes that shapes show, and what its models start from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastvtp.checkpoints.kinds import Kind, Shapes, Transfer, own_kinds
from fastvtp.checkpoints.names import NameMap
from fastvtp.checkpoints.sizes import mlp_ratio, rows_of
from fastvtp.errors import CheckpointError
from fastvtp.systems.videomae import hf_weights

LAYER_SCALE = ((r"gamma_([12])$", r"residual\1.gamma"),)

PRETRAINING = NameMap(
    (
        (r"encoder\.patch_embed\.proj\.", "video_embeddings."),
        (r"decoder\.(blocks|norm)\.", r"decoder.transformer.\1."),
        (r"encoder_to_decoder\.", "decoder.project."),
        (r"mask_token$", "decoder.mask_token"),
    ),
    LAYER_SCALE,
)
CLASSIFIER = NameMap(
    (
        (r"patch_embed\.proj\.", "video_embeddings."),
        (r"(blocks|norm)\.", r"encoder.\1."),
        (r"fc_norm\.", "norm."),
    ),
    LAYER_SCALE,
)
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


def sizes(shapes: Shapes, checkpoint: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a model of tubelets, VideoMAE's or one that shares its encoder, that shapes show; the
    number of heads is not among them. Raises CheckpointError without a tubelet embedding."""
    tubelet_weight = shapes.get("video_embeddings.weight", ())
    if len(tubelet_weight) != 5 or not all(tubelet_weight):
        raise CheckpointError(f"{checkpoint} has no tubelet embedding [width, 3, frames, height, width]")
    width, _, *tubelet = tubelet_weight
    blocks = {found.groups() for name in shapes if (found := _BLOCK.match(name))}
    depths = [sum(stem == part for stem, _ in blocks) for part in ("encoder", "video_encoder", "decoder.transformer")]
    values: dict[str, Any] = {
        "width": width,
        "tubelet": tuple(tubelet),
        "depth": depths[0] + depths[1],
        "decoder_depth": depths[2],
        "qkv_bias": not blocks or any(name.endswith(".attn.q_bias") for name in shapes),
        # any start will do, the learned vectors replace it
        "layer_scale": 0.1 if any(name.endswith(".residual1.gamma") for name in shapes) else 0.0,
        "encoder_norm": "encoder.norm.weight" in shapes,
        "learnable_temperature": "contrast.log_logit_scale" in shapes,
    }
    return values | rows_of(shapes, _ROWS) | mlp_ratio(shapes, width)


def _refuse_first_token(names: Sequence[str]) -> str:
    if "encoder.norm.weight" in names and "norm.weight" not in names:
        return "classifies its first token (use_mean_pooling=false), fastvtp's classifier the mean of all"
    return ""


KINDS = (
    *own_kinds(
        sizes,
        {
            "videomae": ("video_embeddings.weight", "decoder.project."),
            "video_classifier": ("video_embeddings.weight",),
        },
    ),
    Kind(origin="videomae", architecture="videomae", marks=("encoder.patch_embed.",), names=PRETRAINING, sizes=sizes),
    Kind(
        origin="videomae",
        architecture="video_classifier",
        marks=("patch_embed.",),
        names=CLASSIFIER,
        sizes=sizes,
        refuses=_refuse_first_token,
    ),
    *hf_weights.kinds(sizes, _refuse_first_token),
)

_TEXT_OF_PAIRS = ("text_embeddings.", "word_head.", "match_head.", "contrast.")
MODEL_SOURCES = {"videomae": Transfer(), "simvtp": Transfer(optional=_TEXT_OF_PAIRS)}
CLASSIFIER_SOURCES = {
    "video_classifier": Transfer(),
    "videomae": Transfer(optional=("decoder.", "encoder.norm."), fresh=("norm", "head")),
    "simvtp": Transfer(optional=("decoder.", "encoder.norm.", *_TEXT_OF_PAIRS), fresh=("norm", "head")),
}
