"""VideoMAE: pretraining, its targets and gradients, and the fine-tuned classifier."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videomae.model import VideoMAEConfig, VideoMAEPlan
from tests.parity.folder import ParityFolder
from tests.parity.systems.common import (
    built,
    captured,
    decoder_sizes,
    gradients,
    learning_rates,
    named_blocks,
    patch_embeddings,
    pixel_target,
    read_clip,
    video_sizes,
)

EXCUSED: dict[str, str] = {}


def compute(folder: ParityFolder) -> dict[str, Tensor]:
    """All arrays of the folder's outputs that fastvtp has a counterpart of, by name."""
    arrays = learning_rates(folder)
    for case in folder.cases():
        of_case = _pretraining(folder, case)
        if folder.fine_tuned is not None:
            of_case |= _fine_tuned(folder, folder.fine_tuned, case)
        arrays |= {case + name: array for name, array in of_case.items()}
    return arrays


def _pretraining(folder: ParityFolder, case: str) -> dict[str, Tensor]:
    load = partial(load_checkpoint, origin="videomae")
    model = built(folder, VideoMAEConfig, {**video_sizes(folder), **decoder_sizes(folder)})
    load(model, folder.weights)
    pixels, visible, masked = read_clip(folder, case)
    decoder = model.decoder
    outputs = {
        "encoder_out": model.encoder, "encoder_to_decoder_out": decoder.project,
        **named_blocks("encoder_block{}_out", model.encoder.blocks),
        **named_blocks("decoder_block{}_out", decoder.transformer.blocks),
    }  # fmt: skip
    with captured(outputs, {"decoder_in": decoder.transformer}) as seen:
        output = model(pixels, VideoMAEPlan(visible, masked))
    output.loss.backward()

    raw = build_model(replace(model.config, normalize_target=False)).eval()
    load(raw, folder.weights)
    return {
        **{name: _per_clip(value, len(pixels)) for name, value in seen.items()},
        "encoder_patch_embed": patch_embeddings(model.video_embeddings, pixels),
        "encoder_pos_embed": model.video_embeddings.positions[None],
        "decoder_pos_embed": decoder.positions[None],
        "decoder_pred": output.pixel_prediction,
        "loss_norm_target": output.loss,
        "loss_raw_target": raw(pixels, VideoMAEPlan(visible, masked)).loss,
        "target_norm": pixel_target(pixels, masked, model.config),
        "target_raw": pixel_target(pixels, masked, raw.config),
        **{f"grad.{name}": value for name, value in gradients(model, folder.weights, load).items()},
    }


def _per_clip(rows: Tensor, batch_size: int) -> Tensor:
    """Rows of equally long sequences, [B * K, D] or [B, K, D] -> [B, K, D]."""
    return rows.reshape(batch_size, -1, rows.shape[-1])


def _fine_tuned(folder: ParityFolder, own: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    """The classifier: the encoder's weights without its last norm, and those of its own."""
    encoder = {
        name.removeprefix("encoder."): value
        for name, value in folder.weights.items()
        if name.startswith("encoder.") and not name.startswith("encoder.norm.")
    }
    sizes = video_sizes(folder) | {"num_classes": folder.setting("classes")}
    model = built(folder, VideoClassifierConfig, sizes)
    load_checkpoint(model, {**encoder, **own}, origin="videomae")
    pixels, _, _ = read_clip(folder, case)
    with torch.no_grad(), captured({}, {"finetune_features": model.head}) as seen:
        return {"finetune_logits": model(pixels), **seen}
