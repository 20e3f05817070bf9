"""VideoPrism's checkpoints: released names and layouts (flat arrays of Flax) -> fastvtp's, the sizes that shapes show,
and what its models start from.

Layers of a stack are stacked along axis 0; LayerNorm stores gamma - 1; a linear layer's kernel is [in, out]; queries,
keys and values are [D, H, K] each, and so is the projection behind them, its OUTPUT axis first.
"""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastvtp.checkpoints import image_towers
from fastvtp.checkpoints.heads import HeadTable, by
from fastvtp.checkpoints.kinds import Kind, Shapes, Transfer, own_kinds
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.checkpoints.sizes import rows_of
from fastvtp.errors import CheckpointError
from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD
from fastvtp.systems.videoprism import hf_weights

_STACKS = (
    (r"spatial_encoder/transformers_stack", "spatial"),
    (r"temporal_encoder/transformers_stack", "temporal"),
    (r"auxiliary_encoder/transformers_stack", "auxiliary"),
    (r"text_encoder/unimodal_transformer", "text_encoder.transformer"),
)
_LEAVES = {
    "patch_projection/linear/kernel": "weight",
    "patch_projection/linear/bias": "bias",
    "spatial_pos_emb/emb_var": "spatial_positions",
    "temporal_pos_emb/emb_var": "temporal_positions",
    "spatial_ln/scale": "spatial.norm.weight",
    "spatial_ln/bias": "spatial.norm.bias",
    "temporal_ln/scale": "temporal.norm.weight",
    "temporal_ln/bias": "temporal.norm.bias",
    "text_encoder/cls_emb": "text_encoder.cls_token",
    "text_encoder/token_emb/emb_var": "text_encoder.token_embeddings.weight",
    "text_encoder/unimodal_ln/scale": "text_encoder.transformer.norm.weight",
    "text_encoder/unimodal_ln/bias": "text_encoder.transformer.norm.bias",
    "projection/linear/kernel": "head.weight",
    "projection/linear/bias": "head.bias",
}
_POOLER = {
    "pooling_attention_query": "queries",
    "pooling_attention_layer_norm/scale": "norm.weight",
    "pooling_attention_layer_norm/bias": "norm.bias",
    "pooling_attention/per_dim_scale/per_dim_scale": "per_dim_scale",
    **{f"pooling_attention/{part}/w": f"{part}.weight" for part in ("query", "key", "value")},
    **{f"pooling_attention/{part}/b": f"{part}.bias" for part in ("query", "key", "value")},
    "pooling_attention/post/w": "proj.weight",
    "pooling_attention/post/b": "proj.bias",
}
_BLOCK = {
    "layer_norm": "norm1",
    "pre_layer_norm": "norm1",
    "post_layer_norm": "branch_norm1",
    "ff_layer/layer_norm": "norm2",
    "ff_layer/pre_layer_norm": "norm2",
    "ff_layer/post_layer_norm": "branch_norm2",
    "ff_layer/ffn_layer1/linear": "mlp.fc1",
    "ff_layer/ffn_layer2/linear": "mlp.fc2",
    "self_attention/post": "attn.proj",
}
# ends of names -> axes of one layer's array, the longer ends first
_AXES = {
    "post/b": 1,
    "b": 2,
    "w": 3,
    "kernel": 2,
    "bias": 1,
    "scale": 1,
    "per_dim_scale": 1,
    "emb_var": 2,
    "cls_emb": 3,
    "pooling_attention_query": 2,
}
_PARTS = {"scale": "weight", "kernel": "weight", "w": "weight", "bias": "bias", "b": "bias"}
_PREFIXES = {"vision_encoder/": "video_encoder.", "encoder/": "encoder."}
_POOLERS = ("contrastive_vision_pooler/", "atten_pooler/")
_LAYERS = re.compile(r"(?P<stack>.+)/x_layers/(?P<rest>.+)")
_SINGLE = re.compile(r"(.+/x_layers)_(\d+)/(.+)")
_JOINED = re.compile(r"self_attention/(query|key|value)/(w|b)$")
_DEPTHS = {"depth": "spatial", "temporal_depth": "temporal"}  # within the encoder
_ROWS = {
    "vocab_size": "text_encoder.token_embeddings.weight",
    "projection_dim": "contrast.text_projection.weight",
    "num_classes": "head.weight",
}
_NORM_BEHIND = "text_encoder.transformer.blocks.0.branch_norm1.weight"
PATCH_CHANNELS = 3
# the released arrays show them; where queries, keys and values are one matrix, nothing does
HEADS = (
    HeadTable(
        "num_heads",
        by("width", "depth"),
        {
            (768, 12): (12, "VideoPrism base"),
            (1024, 24): (16, "VideoPrism large"),
            (1408, 40): (16, "VideoPrism giant"),
        },
    ),
)


def prepare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the arrays as fastvtp names and lays them out; what has another name keeps it, for the loader to name.

    Every step is differentiable, so that a gradient can be brought back into the released layout.
    """
    prepared: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for original, tensor in _stacked(weights).items():
        _check_axes(original, tensor)
        name = original.removeprefix("params/")
        prefix, place = _prefix(name)
        if (pooler := next((start for start in _POOLERS if place.startswith(start)), None)) is not None:
            known = _POOLER.get(place.removeprefix(pooler))
            prepared[f"pooler.{known}" if known else original] = _fitted(place, tensor)
        elif place in _LEAVES:
            prepared[prefix + _LEAVES[place]] = _fitted(place, tensor)
        elif (found := _LAYERS.fullmatch(place)) and (stack := dict(_STACKS).get(found["stack"])):
            rest = found["rest"]
            if part := _JOINED.fullmatch(rest):
                kind = "weight" if part[2] == "w" else "bias"
                joined.setdefault(f"{prefix}{stack}", {})[f"{part[1]}.{kind}"] = tensor
                continue
            module, _, leaf = rest.rpartition("/")
            if module not in _BLOCK or leaf not in _PARTS:
                prepared[original] = tensor
                continue
            for number, layer in enumerate(tensor.unbind()):
                prepared[f"{prefix}{stack}.blocks.{number}.{_BLOCK[module]}.{_PARTS[leaf]}"] = _fitted(rest, layer)
        else:
            prepared[original] = tensor
    for stem, parts in joined.items():
        prepared |= _join(stem, parts)
    return prepared


def _stacked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join layers that have arrays of their own, "x_layers_0/…", along axis 0 of one, as the others' are."""
    stacked: dict[str, Tensor] = {}
    layers: dict[str, dict[int, Tensor]] = {}
    for name, tensor in weights.items():
        if found := _SINGLE.fullmatch(name):
            layers.setdefault(f"{found[1]}/{found[3]}", {})[int(found[2])] = tensor
        else:
            stacked[name] = tensor
    for name, by_number in layers.items():
        if sorted(by_number) != list(range(len(by_number))):
            raise CheckpointError(f"{name} has layers {sorted(by_number)}, expected 0 to {len(by_number) - 1}")
        if len(shapes := {tuple(tensor.shape) for tensor in by_number.values()}) > 1:
            raise CheckpointError(f"{name} differs from layer to layer: {sorted(map(list, shapes))}")
        stacked[name] = torch.stack([by_number[number] for number in range(len(by_number))])
    return stacked


def _check_axes(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError where an array has not as many axes as its last names tell."""
    leaf = next((leaf for leaf in _AXES if name.endswith(f"/{leaf}")), None)
    if leaf is not None and tensor.ndim != (expected := _AXES[leaf] + bool(_LAYERS.fullmatch(name))):
        raise CheckpointError(f"{name} is {list(tensor.shape)}, expected {expected} axes")


def _prefix(name: str) -> tuple[str, str]:
    """Return our name of the model's part that holds an array, and the array's name in it."""
    for released, ours in _PREFIXES.items():
        if name.startswith(released):
            return ours, name.removeprefix(released)
    return "", name


def _fitted(place: str, tensor: Tensor) -> Tensor:
    """Return one array in our layout."""
    leaf = place.rpartition("/")[2]
    if place == "patch_projection/linear/kernel":
        side = round((tensor.shape[0] / PATCH_CHANNELS) ** 0.5)
        if side * side * PATCH_CHANNELS != tensor.shape[0]:
            raise CheckpointError(f"{place} is {list(tensor.shape)}, expected {PATCH_CHANNELS} values a pixel, squared")
        return tensor.view(side, side, PATCH_CHANNELS, -1).permute(3, 2, 0, 1)[:, :, None]
    if leaf == "scale":
        return 1 + tensor
    if leaf == "kernel":
        return tensor.T
    if leaf == "w":  # of a pooler's query, key, value: [in, H, K]; behind any attention: [out, H, K]
        flat = tensor.flatten(1)
        return flat if "/post/" in f"/{place}" else flat.T
    return tensor.flatten() if leaf in ("b", "cls_emb") else tensor


def _join(stem: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join queries, keys and values of a stack of layers, side by side for each."""
    if missing := [
        f"{part}.{kind}"
        for part in ("query", "key", "value")
        for kind in ("weight", "bias")
        if f"{part}.{kind}" not in parts
    ]:
        raise CheckpointError(f"{stem} lacks {', '.join(missing)}")
    for kind in ("weight", "bias"):
        shapes = [list(parts[f"{part}.{kind}"].shape) for part in ("query", "key", "value")]
        if shapes.count(shapes[0]) < 3 or len(parts["query.bias"]) != len(parts["query.weight"]):
            raise CheckpointError(f"{stem} has queries, keys and values with {kind} {shapes}, expected as many of each")
    joined: dict[str, Tensor] = {}
    for number in range(len(parts["query.weight"])):
        weight = [parts[f"{part}.weight"][number].flatten(1).T for part in ("query", "key", "value")]
        bias = [parts[f"{part}.bias"][number].flatten() for part in ("query", "key", "value")]
        joined[f"{stem}.blocks.{number}.attn.qkv.weight"] = torch.cat(weight)
        joined[f"{stem}.blocks.{number}.attn.qkv.bias"] = torch.cat(bias)
    return joined


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the number of heads, which is an axis of the released queries. Raises CheckpointError where towers
    differ."""
    queries = (tensor for name, tensor in checkpoint.weights.items() if name.endswith("/query/w") and tensor.ndim > 2)
    heads = {tensor.shape[-2] for tensor in queries}
    if len(heads) > 1:
        raise CheckpointError(f"attention has {sorted(heads)} heads, fastvtp's VideoPrism as many everywhere")
    return {"num_heads": heads.pop()} if heads else {}


def sizes(shapes: Shapes, checkpoint: str, _: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of VideoPrism's models that shapes show; the number of heads is not among them.

    Raises CheckpointError without a patch embedding or a square of positions.
    """
    stem = next((s for s in ("video_encoder.", "encoder.", "") if f"{s}spatial_positions" in shapes), "")
    weight, places, times = (
        shapes.get(f"{stem}{name}", ()) for name in ("weight", "spatial_positions", "temporal_positions")
    )
    side = math.isqrt(places[0]) if len(places) == 2 else 0
    if len(weight) != 5 or len(times) != 2 or not side or side**2 != places[0]:
        raise CheckpointError(
            f"{checkpoint} has no patch embedding [width, 3, 1, height, width] with a square of positions and times"
        )
    width, patch = weight[0], weight[-1]
    values: dict[str, Any] = {
        "width": width,
        "patch_size": patch,
        "image_size": side * patch,
        "num_frames": times[0],
        **{setting: _depth(shapes, f"{stem}{stack}") for setting, stack in _DEPTHS.items()},
        "auxiliary_depth": _depth(shapes, "auxiliary"),
        "text_norm": "primer_hybrid" if _NORM_BEHIND in shapes else "pre",
        "learnable_temperature": "contrast.log_logit_scale" in shapes,
    }
    if any(name.startswith("text_encoder.") for name in shapes):
        values["text_depth"] = _depth(shapes, "text_encoder.transformer")
    hidden = [shapes.get(f"{stem}{stack}.blocks.0.mlp.fc1.weight") for stack in _DEPTHS.values()]
    if found := next(filter(None, hidden), None):
        values["mlp_hidden"] = found[0]
    values |= rows_of(shapes, _ROWS)
    if "num_classes" in values:  # the video-text model's pooler is another
        pooled = shapes.get("pooler.query.weight", (width,))[0]
        values["pooler_hidden"] = 0 if pooled == width else pooled
    return values


def _depth(shapes: Shapes, stack: str) -> int:
    blocks = re.compile(rf"{re.escape(stack)}\.blocks\.(\d+)\.")
    return len({found[1] for name in shapes if (found := blocks.match(name))})


TEXT_TOWER = "text tower: it fills VideoPrism's"

KINDS = (
    *own_kinds(
        sizes,
        {
            "video_text_prism": ("video_encoder.spatial_positions", "text_encoder.cls_token"),
            "prism_student": ("encoder.spatial_positions", "teacher."),
            "prism_teacher": ("video_encoder.spatial_positions", "pooler."),
            "prism_classifier": ("encoder.spatial_positions", "head."),
            "videoprism": ("spatial_positions",),
        },
        HEADS,
    ),
    *(
        Kind(
            origin="videoprism",
            architecture=architecture,
            marks=tuple(f"{root}{mark}" for mark in marks),
            prepare=prepare,
            settings=settings,
            stated_by="shape of the arrays",
            sizes=sizes,
            heads=HEADS,
            fills=fills,
        )
        for root in ("params/", "")
        for architecture, fills, *marks in (
            ("video_text_prism", "", "vision_encoder/", "text_encoder/"),
            ("prism_classifier", "", "encoder/"),
            ("videoprism", "", "patch_projection/"),
            ("prism_text", TEXT_TOWER, "text_encoder/"),
        )
    ),
    *hf_weights.kinds(sizes, HEADS, TEXT_TOWER),
    *image_towers.VIT_KINDS,
    *image_towers.CLIP_KINDS,
)

_ABOVE_TOKENS = ("auxiliary", "pooler", "text_encoder", "contrast")
_OF_STUDENTS = ("local_decoder.", "global_decoder.", "teacher.")
_SPATIAL = ("weight", "bias", "spatial_positions", "spatial")
_NORMALISED = {
    "vit": ((0.5,) * 3, (0.5,) * 3),  # google's, and timm's of augreg
    "clip": (CLIP_MEAN, CLIP_STD),
}


def _from_image_towers(stem: str) -> dict[str, Transfer]:
    """Return what a model takes from image towers, its encoder's names beginning with `stem`."""
    return {
        tower: Transfer(
            (("video_encoder.", (stem,)),),
            optional=image_towers.LEFT_OUT,
            needed=tuple(f"{stem}{part}" for part in _SPATIAL),
            adapt=partial(image_towers.spatial_encoder, mean=mean, std=std),
        )
        for tower, (mean, std) in _NORMALISED.items()
    }


ENCODER_SOURCES = {
    "videoprism": Transfer(),
    "video_text_prism": Transfer((("video_encoder.", ("",)),), optional=tuple(f"{part}." for part in _ABOVE_TOKENS)),
    "prism_classifier": Transfer((("encoder.", ("",)),), optional=("pooler.", "head.")),
    "prism_student": Transfer((("encoder.", ("",)),), optional=_OF_STUDENTS),
    **_from_image_towers(""),
}
VIDEO_TEXT_SOURCES = {
    # released models have no temperature, and transformers' video tower alone no text
    "video_text_prism": Transfer(fresh=("contrast", "text_encoder")),
    "videoprism": Transfer((("", ("video_encoder.",)),), fresh=_ABOVE_TOKENS),
    # the pooler of a classifier is another
    "prism_classifier": Transfer(
        (("encoder.", ("video_encoder.",)), ("pooler.", ())), optional=("head.",), fresh=_ABOVE_TOKENS
    ),
    "prism_student": Transfer((("encoder.", ("video_encoder.",)),), optional=_OF_STUDENTS, fresh=_ABOVE_TOKENS),
    "prism_text": Transfer(needed=("text_encoder",)),
    **_from_image_towers("video_encoder."),
}
CLASSIFIER_SOURCES = {
    "prism_classifier": Transfer(),
    "videoprism": Transfer((("", ("encoder.",)),), fresh=("pooler", "head")),
    # the video-text model's pooler is four times as wide
    "video_text_prism": Transfer(
        (("video_encoder.", ("encoder.",)), ("pooler.", ())),
        optional=("auxiliary.", "text_encoder.", "contrast."),
        fresh=("pooler", "head"),
    ),
    "prism_student": Transfer(optional=_OF_STUDENTS, fresh=("pooler", "head")),
    **_from_image_towers("encoder."),
}
TEACHER_SOURCES = {
    "prism_teacher": Transfer(),
    "video_text_prism": Transfer(optional=("text_encoder.", "contrast.")),
    "prism_student": Transfer((("teacher.", ("",)), ("", ()))),
}
STUDENT_SOURCES = {"prism_student": Transfer()}
