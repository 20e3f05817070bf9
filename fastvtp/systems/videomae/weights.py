"""VideoMAE's checkpoints: released names -> fastvtp's, the sizes that shapes show, and what its models start from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastvtp.checkpoints.heads import HeadTable, by
from fastvtp.checkpoints.kinds import Kind, Shapes, Transfer, own_kinds
from fastvtp.checkpoints.names import NameMap
from fastvtp.checkpoints.reading import Checkpoint
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
# VideoMAE V2 on the Hugging Face Hub: a classifier without its head, inside another module
_OF_THE_HUB = "model."

# (width, depth) -> heads; VideoMAE's S to H are V2's, too
ENCODERS = {
    (384, 12): (6, "VideoMAE ViT-S"),
    (768, 12): (12, "VideoMAE ViT-B"),
    (1024, 24): (16, "VideoMAE ViT-L"),
    (1280, 32): (16, "VideoMAE ViT-H"),
    (1408, 40): (16, "VideoMAE V2 ViT-g"),
}
# (width, depth, decoder_width) -> heads of the decoder, which is of any depth
DECODERS = {
    (384, 12, 192): (3, "VideoMAE ViT-S"),
    (768, 12, 384): (6, "VideoMAE ViT-B"),
    (1024, 24, 512): (8, "VideoMAE ViT-L"),
    (1280, 32, 640): (8, "VideoMAE ViT-H"),
    (1280, 32, 512): (8, "VideoMAE V2 ViT-H"),
    (1408, 40, 512): (8, "VideoMAE V2 ViT-g"),
}
HEADS = (
    HeadTable("num_heads", by("width", "depth"), ENCODERS),
    HeadTable("decoder_num_heads", by("width", "depth", "decoder_width"), DECODERS),
)
_BLOCK = re.compile(r"(decoder\.transformer|(?:video_)?encoder)\.blocks\.(\d+)\.")
_TUBELETS = {(2, 16, 16), (2, 14, 14)}  # of released models
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
        "qkv_bias": not blocks or any(name.endswith(".attn.q_bias") for name in shapes),
        # any start will do, the learned vectors replace it
        "layer_scale": 0.1 if any(name.endswith(".residual1.gamma") for name in shapes) else 0.0,
        "learnable_temperature": "contrast.log_logit_scale" in shapes,
    }
    if "decoder.project.weight" in shapes:  # an encoder alone does not tell what stood behind it
        values |= {"decoder_depth": depths[2], "encoder_norm": "encoder.norm.weight" in shapes}
    return values | rows_of(shapes, _ROWS) | mlp_ratio(shapes, width)


def released_sizes(shapes: Shapes, checkpoint: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `sizes` of a checkpoint that is not fastvtp's; of a released width, depth and tubelet also the frames and
    the image size of its training, which neither names nor shapes tell: 16 of 224 pixels, as in all releases of
    VideoMAE, VideoMAE v2 and SimVTP. Raises CheckpointError as `sizes`."""
    values = sizes(shapes, checkpoint, given)
    if (values["width"], values["depth"]) in ENCODERS and values["tubelet"] in _TUBELETS:
        values |= {"trained_frames": 16, "trained_image_size": 224}
    return values


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the config.json of VideoMAE V2 on the Hugging Face Hub states about fastvtp's settings.

    Raises CheckpointError for attention, positions or pooling that no model here has.
    """
    stated = (checkpoint.config or {}).get("model_config")
    if not isinstance(stated, dict):
        return {}
    for name, expected, problem in (
        ("cos_attn", False, _COSINE),
        ("use_learnable_pos_emb", False, _POSITIONS),
        ("use_mean_pooling", True, _FIRST_TOKEN),
    ):
        if stated.get(name, expected) != expected:
            raise CheckpointError(f"{checkpoint.name} {problem}")
    eps = stated.get("layer_norm_eps")
    found = {
        "num_heads": stated.get("num_heads"),
        "num_frames": stated.get("num_frames", stated.get("all_frames")),
        "image_size": stated.get("img_size"),
        "norm_eps": eps,
        "head_norm_eps": eps,
    }
    return {name: value for name, value in found.items() if value is not None}


_COSINE = "has cosine attention (cos_attn, attn.scale), fastvtp's models the usual one"
_POSITIONS = "has learned positions (use_learnable_pos_emb, pos_embed), fastvtp's models fixed ones"
_FIRST_TOKEN = "classifies its first token (use_mean_pooling=false), fastvtp's classifier the mean of all"


def _refuse(names: Sequence[str]) -> str:
    """Refuse what V2's code can train and no model here computes."""
    if any(name.endswith(".attn.scale") for name in names):
        return _COSINE
    return _POSITIONS if any(name in ("pos_embed", "encoder.pos_embed") for name in names) else ""


def _refuse_classifier(names: Sequence[str]) -> str:
    # an encoder alone has no head that could read the first token
    first = "head.weight" in names and "encoder.norm.weight" in names and "norm.weight" not in names
    return _FIRST_TOKEN if first else _refuse(names)


def _released_kind(architecture: str, mark: str, **of_kind: Any) -> Kind:
    return Kind(
        origin="videomae",
        architecture=architecture,
        marks=(mark,),
        settings=settings,
        sizes=released_sizes,
        heads=HEADS,
        **of_kind,
    )


def _of_the_hub(name: str) -> str:
    return CLASSIFIER(name.removeprefix(_OF_THE_HUB))


KINDS = (
    *own_kinds(
        sizes,
        {
            "videomae": ("video_embeddings.weight", "decoder.project."),
            "video_classifier": ("video_embeddings.weight",),
        },
        HEADS,
    ),
    _released_kind("videomae", "encoder.patch_embed.", names=PRETRAINING, refuses=_refuse),
    _released_kind("video_classifier", "patch_embed.", names=CLASSIFIER, refuses=_refuse_classifier),
    _released_kind("video_classifier", f"{_OF_THE_HUB}patch_embed.", names=_of_the_hub, refuses=_refuse_classifier),
    *hf_weights.kinds(released_sizes, HEADS, _refuse_classifier),
)

_TEXT_OF_PAIRS = ("text_embeddings.", "word_head.", "match_head.", "contrast.")
# of a classifier the encoder is taken, and of an encoder without a decoder what there is
BEHIND_AN_ENCODER = ("encoder.norm", "decoder")
_HEAD = (("norm.", ()), ("head.", ()))
MODEL_SOURCES = {
    "videomae": Transfer(fresh=BEHIND_AN_ENCODER),
    "simvtp": Transfer(optional=_TEXT_OF_PAIRS),
    "video_classifier": Transfer(_HEAD, fresh=BEHIND_AN_ENCODER),
}
CLASSIFIER_SOURCES = {
    "video_classifier": Transfer(optional=("encoder.norm.",), fresh=("norm", "head")),
    "videomae": Transfer(optional=("decoder.", "encoder.norm."), fresh=("norm", "head")),
    "simvtp": Transfer(optional=("decoder.", "encoder.norm.", *_TEXT_OF_PAIRS), fresh=("norm", "head")),
}
