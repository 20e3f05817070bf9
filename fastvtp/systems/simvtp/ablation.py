"""Which runs an ablation of SimVTP is made of."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastvtp.ablation.held_out import (
    MASK_SEED,
    HeldOut,
    probe_scores,
    retrieval_scores,
)
from fastvtp.ablation.studies import (
    Run,
    Scale,
    pick_runs,
)
from fastvtp.data.loader import VideoTextBatch
from fastvtp.evaluation.inference import inference
from fastvtp.evaluation.retrieval import encode_retrieval, retrieval_metrics
from fastvtp.modules.packing import Packing
from fastvtp.modules.pixels import IMAGENET_MEAN, IMAGENET_STD
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.systems.simvtp.plan import CaptionTokens, SimVTPPlan, StepMasks, lay_out
from fastvtp.systems.simvtp.recipes import simvtp_demo
from fastvtp.systems.videomae.model import VideoMAE, VideoMAEConfig
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp_kernels import masked_pixel_loss, text_mask
from fastvtp_kernels.packing import locate_rows


@dataclass(frozen=True)
class SimVTPScale(Scale):
    """Also the mask ratios of the grid, and shares of the clips."""

    text_ratios: tuple[float, ...] = (0.15, 0.5, 0.75)
    video_ratios: tuple[float, ...] = (0.5, 0.75, 0.9)
    shares: tuple[float, ...] = (0.1, 0.3)
    """Shares of the training clips; the base run has them all."""


# a second of work a run: for trying the command, not for its figures
QUICK = SimVTPScale(
    text_ratios=(0.15, 0.75),
    video_ratios=(0.5, 0.9),
    shares=(0.25,),
    seeds=2,
    num_train=48,
    num_test=16,
    clip_size=64,
    clip_frames=8,
    probe_clips=48,
)
_QUICK_SETTINGS = (
    "model.width=48",
    "model.num_heads=2",
    "model.depth=1",
    "model.decoder_width=24",
    "model.decoder_num_heads=2",
    "model.image_size=64",
    "model.num_frames=4",
    "steps=4",
    "batch_size=8",
    "optimizer.warmup_steps=1",
    "data.num_workers=0",
)


def base_config(preset: str, overrides: list[str], *, quick: bool) -> TrainConfig:
    """Return the demo's model and data, for about a minute of two CPU cores."""
    config = simvtp_demo(preset)
    config = replace(
        config,
        steps=110,
        checkpoint_every=55,
        keep_checkpoints=1,
        tensorboard=False,
        output_dir="runs/ablation_simvtp",
        optimizer=replace(config.optimizer, warmup_steps=20),
    )
    return apply_overrides(config, [*(_QUICK_SETTINGS if quick else ()), *overrides])


# without a contrast nothing has learned which clips are alike: hard negatives would be an untrained guess
_NO_CONTRAST: dict[str, Any] = {"contrastive_weight": 0.0, "matching_negatives": "random"}
_NO_MATCHING: dict[str, Any] = {"matching_weight": 0.0}
_NO_RECONSTRUCTION = {"pixel_weight": 0.0, "word_weight": 0.0}
RECONSTRUCTION = Run("reconstruction only", {**_NO_CONTRAST, **_NO_MATCHING})
NO_CONTRAST, NO_MATCHING = Run("without VTC", _NO_CONTRAST), Run("without VTM", _NO_MATCHING)
CONTRAST_ONLY = Run("contrast only", {**_NO_RECONSTRUCTION, **_NO_MATCHING})
SHUFFLED = replace(RECONSTRUCTION, name="reconstruction, captions shuffled", shuffled=True)


def _as_videomae(config: TrainConfig) -> TrainConfig:
    """Return a `VideoMAE` of the run's sizes instead."""
    sizes = {entry.name: getattr(config.model, entry.name) for entry in fields(VideoMAEConfig)}
    return replace(config, task="pretrain_videomae", model=VideoMAEConfig(**sizes))


VIDEO_ONLY = Run("video alone (VideoMAE)", change=_as_videomae)


def mask_run(model: SimVTPConfig, text: float, video: float) -> Run:
    """Return the run of a cell of the grid; the base run where its ratios are these."""
    if (model.text_mask_ratio, model.video_mask_ratio) == (text, video):
        return Run("base")
    return Run(f"text {text:g}, video {video:g}", {"text_mask_ratio": text, "video_mask_ratio": video})


def share_run(share: float) -> Run:
    """Return the base run on a share of the clips."""
    return Run("base") if share == 1 else Run(f"{100 * share:g}% of the clips", share=share)


def plan_runs(study: str, model: SimVTPConfig, scale: SimVTPScale) -> list[Run]:
    """Return the runs of a study or of "all", see `pick_runs`."""
    return pick_runs(
        study,
        {
            "masks": [mask_run(model, text, video) for text in scale.text_ratios for video in scale.video_ratios],
            "objectives": [NO_CONTRAST, NO_MATCHING, RECONSTRUCTION, CONTRAST_ONLY],
            "modalities": [RECONSTRUCTION, SHUFFLED, VIDEO_ONLY],
            "data": [share_run(share) for share in scale.shares],
        },
        scale,
    )


def score(model: Any, held_out: HeldOut) -> dict[str, float]:
    """Compute all scores of a `SimVTP` or `VideoMAE` by name, in percent where they are shares.

    probe/<attribute> and their mean, transfer: linear read-out from the mean encoded token of whole clips.
    t2v/R1 ... v2t/R5 and their mean over both directions, retrieval/R1: zero-shot; only of a model with a contrast.
    pixel_loss/<input>, word_loss/<input>, word_accuracy/<input>: see `reconstruction_scores`.
    """
    with inference(model):
        scores = probe_scores(lambda video: encode_clips(model, video.to(model.device)), held_out)
        if isinstance(model, SimVTP) and model.config.contrastive_weight:
            similarity = encode_retrieval(
                model, held_out.test.batches, device=model.device, progress=False
            ).similarity()
            scores |= retrieval_scores(retrieval_metrics(similarity))
        return scores | reconstruction_scores(model, held_out)


def reconstruction_scores(model: Any, held_out: HeldOut) -> dict[str, float]:
    """Return losses of hidden pixels and hidden words, and the share of words found, with the masks of `held_out`.

    <name>/given: the joint sequence, as in training. <name>/withheld: the sequence of the modality alone, which a model
    trained on pairs never had to fill in. <name>/foreign: the joint sequence with another clip's caption or clip, the
    masks of the reconstructed side unchanged. Of a `VideoMAE` only pixel_loss/withheld; nothing for a loss of weight 0.
    """
    sums, counts = defaultdict[str, float](float), defaultdict[str, int](int)

    def add(kind: str, values: dict[str, Tensor], count: int) -> None:
        for name, value in values.items():
            sums[f"{name}/{kind}"] += value.item() * count
            counts[f"{name}/{kind}"] += count

    for batch, video, plan, foreign in _masked(model, held_out):
        clips, words = len(batch.captions), len(plan.word_labels)
        add("withheld", {"pixel_loss": _pixels_alone(model, video, plan)}, clips)
        if not isinstance(model, SimVTP):
            continue
        add("withheld", _words_alone(model, batch, plan), words)
        for kind, seen, layout in (("given", video, plan), ("foreign", video.roll(1, 0), foreign)):
            terms = model(seen, layout).terms
            add(kind, {"pixel_loss": terms["loss/pixel"]}, clips)
            add(kind, {"word_loss": terms["loss/word"], "word_accuracy": 100 * terms["word_accuracy"]}, words)
    weights = {"pixel": 1.0, "word": 1.0}
    if isinstance(model, SimVTP):
        weights = {"pixel": model.config.pixel_weight, "word": model.config.word_weight}
    return {name: sums[name] / counts[name] for name in sums if weights[name.partition("_")[0]]}


def encode_clips(model: Any, video: Tensor, index: Tensor | None = None) -> Tensor:
    """Compute the encoded tokens of the listed tubelets alone (None: of all), by the encoder of a `SimVTP` or
    `VideoMAE`.

    uint8 [B, T, H, W, 3], int32 [B, K] -> [B, K, D].
    """
    x_ND, packing = model.video_embeddings.embed_clips(video, index)
    return model.encoder(x_ND, packing).view(len(video), packing.max_seqlen, model.config.width)


def _masked(
    model: SimVTP | VideoMAE, held_out: HeldOut
) -> Iterator[tuple[VideoTextBatch, Tensor, SimVTPPlan, SimVTPPlan]]:
    """Return each test batch, its clips on the device, its plan, and the plan for its clips moved on by one place."""
    masks = held_out.masks
    # a VideoMAE takes its masks from the same plan as the others
    config = model.config if isinstance(model, SimVTP) else masks
    for batch in held_out.test.batches:
        draw = {"seed": MASK_SEED, "step": 0, "sample_ids": batch.sample_ids}
        hidden = text_mask(
            batch.input_ids, batch.cu_seqlens, masks.text_mask_ratio, special_ids=masks.special_token_ids, **draw
        )
        visible, predicted = masks.draw_masks(batch.sample_ids, seed=MASK_SEED, step=0)
        plans = [
            lay_out(
                config,
                StepMasks(visible.roll(shift, 0), predicted.roll(shift, 0), hidden),
                CaptionTokens(batch.input_ids, np.asarray(batch.text_lengths, dtype=np.int64)),
                mismatch=np.roll(np.arange(len(batch.captions)), 1),
                sample_ids=batch.sample_ids,
            ).to(model.device)
            for shift in (0, 1)
        ]
        yield batch, batch.video.to(model.device), plans[0], plans[1]


def _pixels_alone(model: Any, video: Tensor, plan: SimVTPPlan) -> Tensor:
    """[] pixel loss where the encoder sees visible tubelets and no caption."""
    prediction = model.decoder(encode_clips(model, video, plan.visible), plan.visible, plan.predicted)
    return masked_pixel_loss(
        prediction,
        video,
        plan.predicted,
        tubelet=model.config.tubelet,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        normalize=model.config.target_normalization,
    )


def _words_alone(model: SimVTP, batch: VideoTextBatch, plan: SimVTPPlan) -> dict[str, Tensor]:
    """[] word loss and accuracy where the encoder sees the masked caption and no clip."""
    # the plan's pool begins with the visible tubelets, its texts with the masked captions
    hidden = plan.sources.rows[plan.word_rows] - plan.visible.numel()
    offsets, count = batch.cu_seqlens.to(model.device), len(batch.input_ids)
    _, positions = locate_rows(offsets, count)
    x_ND = model.text_embeddings(plan.text_ids[:count], positions)
    logits = model.word_head(model.encoder(x_ND, Packing(offsets, batch.max_text_length))[hidden])
    found = (logits.argmax(-1) == plan.word_labels).float().mean()
    return {"word_loss": cross_entropy(logits, plan.word_labels), "word_accuracy": 100 * found}
