"""VideoPrism: encoder, video-text model, text tower, classifier, their gradients, and single operations.

Shape legend: B = clips, T = frames, S = patches of a frame, L = padded text tokens, D = width.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from fastvtp.checkpoints.kinds import recognise
from fastvtp.checkpoints.loading import absent_parts, load_checkpoint
from fastvtp.checkpoints.reading import read_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.errors import UserError
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videoprism.encoder import PrismClassifier, VideoPrismEncoder
from fastvtp.systems.videoprism.layers import unit_length
from fastvtp.systems.videoprism.video_text import VideoTextPrism, VideoTextPrismConfig
from fastvtp_kernels import tubelet_embed
from tests.parity.compare import Row
from tests.parity.systems import prism_gradients, prism_ops
from tests.parity.systems.common import captured, named_blocks
from tests.parity.systems.prism_folder import (
    TOKENS,
    UNIT_LENGTH,
    Part,
    read_parts,
    rows_of,
)
from tests.parity.systems.prism_text import Texts

INPUTS = ("inputs", "frame_paddings", "text_token_ids", "text_paddings")
_PROBABILITIES = "prob_over_texts_temp"
_LIMITS = {"_unnormalized": TOKENS, "_embeddings": UNIT_LENGTH}
# config.json -> our setting
_STATED = {
    "patch_size": "patch_size", "model_dim": "width", "num_spatial_layers": "depth",
    "num_temporal_layers": "temporal_depth", "num_heads": "num_heads", "mlp_dim": "mlp_hidden",
    "num_auxiliary_layers": "auxiliary_depth", "vocabulary_size": "vocab_size", "num_unimodal_layers": "text_depth",
    "norm_policy": "text_norm", "num_classes": "num_classes",
}  # fmt: skip


def rows(path: Path) -> list[Row]:
    """A row for each array of a folder that is not an input."""
    found = []
    for part in read_parts(path):
        if part.ops:
            found += prism_ops.rows(part)
            continue
        model = build(part)
        expected = {name: array for name, array in part.outputs.items() if name.rpartition("/")[2] not in INPUTS}
        found += rows_of(part.path.name, outputs(model, part), expected, _LIMITS)
        if part.gradients:
            found += prism_gradients.rows(model, part, partial(of_case, part))
    return found


def build(part: Part) -> nn.Module:
    """The model of a part, through the public loader; its sizes are read off the weights."""
    checkpoint = read_checkpoint(part.weights)
    stated = part.config.get("encoder_params", {}) | part.config
    if not stated.get("enable_causal_atten", True):
        raise UserError(f"{part.path / 'config.json'}: enable_causal_atten is false, the model's text tower is causal")
    own = {"softcap": stated.get("atten_logit_cap", 50.0)}
    if (ids := part.outputs.get("text_token_ids")) is not None:
        own["max_text_length"] = ids.shape[1]
    text_alone = recognise(checkpoint).architecture == "prism_text"
    try:
        config = (
            VideoTextPrismConfig(**_text_sizes(part), **own) if text_alone else config_of_checkpoint(checkpoint, **own)
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{part.path}: {error}") from None
    for theirs, ours in () if text_alone else _STATED.items():
        if theirs in stated and hasattr(config, ours) and stated[theirs] != getattr(config, ours):
            raise UserError(f"{part.path / 'config.json'}: {theirs} is {stated[theirs]}, the weights have "
                            f"{getattr(config, ours)}")  # fmt: skip
    model = build_model(config).eval()
    load_checkpoint(model, checkpoint, fresh=absent_parts(model, checkpoint))
    return model


def _text_sizes(part: Part) -> dict[str, object]:
    """A model of both whose video tower is as good as none."""
    return {
        "width": part.setting("model_dim"), "num_heads": part.setting("num_heads"),
        "vocab_size": part.setting("vocabulary_size"), "text_depth": part.setting("num_unimodal_layers"),
        "text_norm": part.setting("norm_policy"),
        "num_frames": 1, "image_size": 1, "patch_size": 1, "depth": 0, "temporal_depth": 0, "auxiliary_depth": 0,
    }  # fmt: skip


@torch.no_grad()
def outputs(model: nn.Module, part: Part) -> dict[str, Tensor]:
    """What `model` gives in every case, by name."""
    found: dict[str, Tensor] = {}
    clips, texts = part.cases("inputs", "frame_paddings"), part.cases("text_token_ids")
    for case in dict.fromkeys([*clips, *texts]):
        video = part.given(case, "inputs") if case in clips else None
        found |= {case + name: array for name, array in of_case(part, model, case, video).items()}
    return found


def of_case(part: Part, model: nn.Module, case: str, video: Tensor | None) -> dict[str, Tensor]:
    """What `model` gives for the clips and texts of a case, where it has them or shares them with others."""
    found: dict[str, Tensor] = {}
    if video is not None:
        found |= of_video(model, video, part.outputs.get(f"{case}frame_paddings"))
    if isinstance(model, VideoTextPrism) and part.cases("text_token_ids"):
        found |= of_text(model, Texts(part, case))
        if video is not None:
            found |= similarities(found, [name.removeprefix(case) for name in part.outputs if name.startswith(case)])
    return found


def of_text(model: VideoTextPrism, texts: Texts) -> dict[str, Tensor]:
    return {
        "text_positional_embedding": model.text_encoder.positions[None, : texts.ids.shape[1]],
        "text_features": texts.features(model.text_encoder),
        "text_embeddings_unnormalized": model.embed_text(*texts.packed),
        "text_embeddings": model.encode_text(*texts.packed),
    }


def of_video(model: nn.Module, video: Tensor, paddings: Tensor | None) -> dict[str, Tensor]:
    if isinstance(model, VideoTextPrism):
        return video_tower(model, video, paddings)
    if isinstance(model, PrismClassifier):
        found, tokens = encoded(model.encoder, video, paddings, "encoder/")
        return {**found, "global_embeddings": model.pooler(tokens)[:, 0], "logits": model(video, paddings)}
    assert isinstance(model, VideoPrismEncoder)
    return encoded(model, video, paddings, "")[0]


def video_tower(model: VideoTextPrism, video: Tensor, paddings: Tensor | None) -> dict[str, Tensor]:
    found, _ = encoded(model.video_encoder, video, paddings, "vision_encoder/")
    blocks = named_blocks("stage/auxiliary_encoder/transformers_stack/x_layers_{}", model.auxiliary.blocks)
    with captured(blocks, {}) as seen:
        tokens = model.video_tokens(video, paddings)
    frames = tokens.view(len(video) * video.shape[1], -1, tokens.shape[-1])
    pooled = model.pooler(frames).view(*video.shape[:2], -1)
    return {
        **found,
        **{name: value.view_as(tokens) for name, value in seen.items()},
        "auxiliary_features": tokens,
        "video_embeddings_unnormalized": model.pool_video(video, paddings),
        "video_embeddings": model.encode_video(video, paddings),
        "frame_embeddings_unnormalized": pooled,
        "frame_embeddings": model.encode_frames(video) if paddings is None else unit_length(pooled),
    }


def encoded(
    encoder: VideoPrismEncoder, video: Tensor, paddings: Tensor | None, place: str
) -> tuple[dict[str, Tensor], Tensor]:
    """The encoder's arrays, those within it under `stage/` and, in another model, its `place`; and its tokens."""
    batch, frames = video.shape[:2]
    spatial, temporal = (
        "spatial_encoder/transformers_stack/x_layers_{}",
        "temporal_encoder/transformers_stack/x_layers_{}",
    )
    within = {"spatial_ln": encoder.spatial.norm, **named_blocks(spatial, encoder.spatial.blocks)}
    along = {"temporal_ln": encoder.temporal.norm, **named_blocks(temporal, encoder.temporal.blocks)}
    with captured({**within, **along}, {}) as seen:
        tokens = encoder(video, paddings)

    def by_place(value: Tensor) -> Tensor:  # rows of padded clips lie so already
        if paddings is None:
            value = value.view(batch, frames, -1, value.shape[-1]).transpose(1, 2)
        return value.reshape(-1, frames, value.shape[-1])

    stages = {
        "patch_projection": patch_embeddings(encoder, video),
        "spatial_pos_emb": encoder.spatial_positions[None],
        "temporal_pos_emb": encoder.temporal_positions[None],
        **{name: seen[name].view(batch * frames, -1, tokens.shape[-1]) for name in within},
        **{name: by_place(seen[name]) for name in along},
    }
    return {
        "spatial_features": seen["spatial_ln"].view_as(tokens),
        "spatiotemporal_features" if place else "embeddings": tokens,
        **{f"stage/{name}": value for name, value in stages.items()},
        **{f"stage/{place}{name}": value for name, value in stages.items()},
    }, tokens


def patch_embeddings(encoder: VideoPrismEncoder, video: Tensor) -> Tensor:
    """All patches without their positions, which the encoder never holds: [B*T, S, D]."""
    grid, patch = encoder.config.grid_of(video), encoder.config.patch_size
    index = torch.arange(grid[0] * grid[1] * grid[2], dtype=torch.int32).expand(len(video), -1)
    embedded = tubelet_embed(
        video, index, encoder.weight, encoder.bias, tubelet=(1, patch, patch), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    return embedded.view(len(video) * grid[0], -1, embedded.shape[-1])


def similarities(found: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Of clips with texts, and their softmax over the texts at the temperatures that `names` state."""
    similarity = found["video_embeddings"] @ found["text_embeddings"].T
    stated = {name: name.removeprefix(_PROBABILITIES) for name in names if name.startswith(_PROBABILITIES)}
    scaled = {name: softmax(similarity / float(value), dim=1) for name, value in stated.items()}
    return {"similarity": similarity, **scaled}
