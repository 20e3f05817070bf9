"""Which runs an ablation of SimVTP is made of."""

from dataclasses import dataclass, fields, replace
from typing import Any

from fastvtp.ablation.studies import Run, Scale, pick_runs
from fastvtp.models.simvtp_config import SimVTPConfig
from fastvtp.models.videomae import VideoMAEConfig
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.recipes import get_recipe


@dataclass(frozen=True)
class SimVTPScale(Scale):
    """Also the mask ratios of the grid, and shares of the clips."""

    text_ratios: tuple[float, ...] = (0.15, 0.5, 0.75)
    video_ratios: tuple[float, ...] = (0.5, 0.75, 0.9)
    shares: tuple[float, ...] = (0.1, 0.3)
    """Shares of the training clips; the base run has them all."""


# a second of work a run: for trying the command, not for its figures
QUICK = SimVTPScale(
    text_ratios=(0.15, 0.75), video_ratios=(0.5, 0.9), shares=(0.25,), seeds=2,
    num_train=48, num_test=16, clip_size=64, clip_frames=8, probe_clips=48,
)  # fmt: skip
_QUICK_SETTINGS = (
    "model.width=48", "model.num_heads=2", "model.depth=1", "model.decoder_width=24", "model.decoder_num_heads=2",
    "model.image_size=64", "model.num_frames=4", "steps=4", "batch_size=8", "optimizer.warmup_steps=1",
    "data.num_workers=0",
)  # fmt: skip


def base_config(preset: str, overrides: list[str], *, quick: bool) -> TrainConfig:
    """The demo's model and data in about a minute of two CPU cores."""
    config = get_recipe("simvtp_demo", preset)
    config = replace(
        config, steps=110, checkpoint_every=55, keep_checkpoints=1, tensorboard=False,
        output_dir="runs/ablation_simvtp", optimizer=replace(config.optimizer, warmup_steps=20),
    )  # fmt: skip
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
    """A `VideoMAE` of the run's sizes instead."""
    sizes = {entry.name: getattr(config.model, entry.name) for entry in fields(VideoMAEConfig)}
    return replace(config, task="pretrain_videomae", model=VideoMAEConfig(**sizes))


VIDEO_ONLY = Run("video alone (VideoMAE)", change=_as_videomae)


def mask_run(model: SimVTPConfig, text: float, video: float) -> Run:
    """The run of a cell of the grid; the base run where its ratios are these."""
    if (model.text_mask_ratio, model.video_mask_ratio) == (text, video):
        return Run("base")
    return Run(f"text {text:g}, video {video:g}", {"text_mask_ratio": text, "video_mask_ratio": video})


def share_run(share: float) -> Run:
    """The base run on a share of the clips."""
    return Run("base") if share == 1 else Run(f"{100 * share:g}% of the clips", share=share)


def plan_runs(study: str, model: SimVTPConfig, scale: SimVTPScale) -> list[Run]:
    """The runs of a study or of "all", see `pick_runs`."""
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
