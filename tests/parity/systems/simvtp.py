"""SimVTP: one pretraining step with the released objectives, and the fine-tuned dual encoder."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.errors import UserError
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.systems.simvtp.plan import CaptionTokens, SimVTPPlan, StepMasks, lay_out
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
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
    retrieval_scores,
    video_sizes,
)

EXCUSED = {"retrieval_sims": "no model made it: the retrieval metrics, which are compared, are computed from it"}

FINE_TUNING = "finetune_"
TOWERS = ("video_encoder.", "text_encoder.")


def compute(folder: ParityFolder) -> dict[str, Tensor]:
    """All arrays of the folder's outputs that fastvtp has a counterpart of, by name."""
    arrays = learning_rates(folder)
    for name in folder.outputs_of("retrieval_sims")[:1]:  # config.json has the metrics of one
        arrays |= retrieval_scores(folder.outputs[name], folder.config.get("retrieval_metrics", {}))
    for case in folder.cases():
        of_case = _pretraining(folder, case)
        if any(name.startswith(case + FINE_TUNING) for name in folder.outputs):
            of_case |= _fine_tuned(folder, case)
        arrays |= {case + name: array for name, array in of_case.items()}
    return arrays


def _text_sizes(folder: ParityFolder) -> dict[str, Any]:
    folder.check_fixed(bert_embedding_ln_eps=1e-12)
    return {
        "vocab_size": folder.setting("vocab"), "max_text_length": folder.setting("maxpos"),
        "pad_token_id": folder.setting("special_ids")["PAD"], "pad_text": True,
        "temperature": folder.config.get("vtc_temperature", 0.05),
    }  # fmt: skip


def _pretraining(folder: ParityFolder, case: str) -> dict[str, Tensor]:
    load = partial(load_checkpoint, origin="simvtp")
    special = folder.setting("special_ids")
    values = {
        **video_sizes(folder), **decoder_sizes(folder), **_text_sizes(folder),
        "mask_token_id": special["MASK"], "special_token_ids": tuple(special.values()),
    }  # fmt: skip
    model = built(folder, SimVTPConfig, values)
    load(model, folder.weights)
    pixels, visible, masked = read_clip(folder, case)
    plan = _plan(model, folder, case, visible, masked)
    decoder = model.decoder
    packed = {"encoded": model.encoder, **named_blocks("block{}", model.encoder.blocks)}
    padded = {
        "encoder_to_decoder_out": decoder.project,
        **named_blocks("decoder_block{}_out", decoder.transformer.blocks),
    }
    with captured({**packed, **padded}, {"decoder_in": decoder.transformer, "embedded": model.encoder}) as seen:
        output = model(pixels, plan)
    output.loss.backward()

    passes = {name: _passes(seen.pop(name), plan, len(pixels)) for name in ("embedded", *packed)}
    joint, video_only, text_only, mismatched = passes["encoded"]
    text_length = text_only.shape[1]
    return {
        **{name: value.reshape(len(pixels), -1, value.shape[-1]) for name, value in seen.items()},
        **{f"joint_{name}_out": parts[0] for name, parts in passes.items() if name.startswith("block")},
        "text_embeddings": passes["embedded"][2],
        "joint_encoder_out": joint,
        "video_only_encoder_out": video_only,
        "text_only_encoder_out": text_only,
        "vtm_encoder_out": torch.cat([joint, mismatched]),
        "encoder_patch_embed": patch_embeddings(model.video_embeddings, pixels),
        "encoder_pos_embed": model.video_embeddings.positions[None],
        "decoder_pos_embed": decoder.positions[None],
        "decoder_pred": output.pixel_prediction,
        "target_norm": pixel_target(pixels, masked, model.config),
        "mlm_logits": model.word_head(joint[:, -text_length:]),
        "video_feature": output.video_features,
        "text_feature": output.text_features,
        "sim_matrix": normalize(output.text_features, dim=-1) @ normalize(output.video_features, dim=-1).T,
        "vtm_logits": output.match_logits,
        "vtm_labels": output.match_labels,
        "loss": output.loss,
        "loss_video": output.terms["loss/pixel"],
        "loss_text": output.terms["loss/word"],
        "loss_vtc": output.terms["loss/contrastive"],
        "loss_vtm": output.terms["loss/matching"],
        **{f"grad.{name}": value for name, value in gradients(model, folder.weights, load).items()},
    }


def _plan(model: SimVTP, folder: ParityFolder, case: str, visible: Tensor, masked: Tensor) -> SimVTPPlan:
    """The released step's masks and negatives as a plan of ours."""
    ids, lengths, real = _captions(folder, case)
    hidden = (folder.input(f"{case}mlm_labels") != -100)[real]
    words = folder.input(f"{case}input_ids")
    if not torch.equal(words[real], ids.masked_fill(hidden, model.config.mask_token_id)):
        raise UserError(f"{case}input_ids are not input_ids_unmasked with [MASK] where mlm_labels has a word")
    return lay_out(
        model.config,
        StepMasks(visible, masked, hidden),
        CaptionTokens(ids, lengths, padded_length=words.shape[1]),
        mismatch=folder.input(f"{case}vtm_neg_idx").numpy(),
        sample_ids=torch.arange(len(words)),
    )


def _captions(folder: ParityFolder, case: str) -> tuple[Tensor, np.ndarray, Tensor]:
    """Packed clean tokens int64 [Nt], lengths int64 [B], and where they stood: bool [B, L]."""
    ids, real = folder.input(f"{case}input_ids_unmasked"), folder.input(f"{case}attention_mask").bool()
    lengths = real.sum(dim=1)
    if not torch.equal(real, torch.arange(real.shape[1]) < lengths[:, None]):
        raise UserError(f"{case}attention_mask must have the tokens of each caption before its padding")
    return ids[real], lengths.numpy(), real


def _passes(rows: Tensor, plan: SimVTPPlan, batch_size: int) -> list[Tensor]:
    """Packed rows [N, D] as the released passes joint, video-only, text-only and mismatched, each [B, tokens, D]."""
    sequences = rows.split(plan.packing.cu_seqlens.diff().tolist())
    return [torch.stack(sequences[i : i + batch_size]) for i in range(0, len(sequences), batch_size)]


def _fine_tuned(folder: ParityFolder, case: str) -> dict[str, Tensor]:
    model = built(folder, DualEncoderConfig, {**video_sizes(folder), **_text_sizes(folder)})
    load = partial(load_checkpoint, origin="simvtp")
    weights = {**_towers(folder.weights), **(_fresh(model) if folder.fine_tuned is None else folder.fine_tuned)}
    load(model, weights)
    pixels, _, _ = read_clip(folder, case)
    ids, lengths, real = _captions(folder, case)
    cu_seqlens = torch.from_numpy(np.append(0, lengths.cumsum()).astype(np.int32))
    output = model(pixels, ids, cu_seqlens, real.shape[1])
    output.loss.backward()
    return {
        "finetune_text_embedding": output.text,
        "finetune_video_embedding": output.video,
        "finetune_sim_text_video": normalize(output.text, dim=-1) @ normalize(output.video, dim=-1).T,
        "finetune_loss": output.loss,
        **{f"grad.finetune.{name}": value for name, value in gradients(model, weights, load).items()},
    }


def _fresh(model: nn.Module) -> dict[str, Tensor]:
    """What the released dual encoder does not take from pretraining, as it is initialised."""
    norm = nn.LayerNorm(model.config.width)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return {f"{tower}fc_norm.{name}": value for tower in TOWERS for name, value in norm.state_dict().items()}


def _towers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released dual encoder's weights before fine-tuning: in both towers a copy of what was pretrained."""
    shared = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    shared = {name: value for name, value in shared.items() if not name.startswith("norm.")}
    shared |= {name: value for name, value in weights.items() if name.startswith("text_embeddings.")}
    return {tower + name: value for tower in TOWERS for name, value in shared.items()}
