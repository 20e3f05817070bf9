"""Which runs an ablation of SimVTP is made of: each differs from one base run in the settings that its study varies."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fastvtp.errors import unknown_name
from fastvtp.models.simvtp_config import SimVTPConfig
from fastvtp.models.videomae import VideoMAEConfig
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.recipes import get_recipe

STUDIES = ("masks", "objectives", "modalities", "data")


@dataclass(frozen=True)
class Scale:
    """How much work an ablation is: mask ratios of the grid, shares of the clips, seeds of the base run, clips."""

    text_ratios: tuple[float, ...] = (0.15, 0.5, 0.75)
    video_ratios: tuple[float, ...] = (0.5, 0.75, 0.9)
    shares: tuple[float, ...] = (0.1, 0.3)
    """Shares of the training clips; the base run has them all."""
    seeds: int = 3
    num_train: int = 3000
    num_test: int = 256
    clip_size: int = 112
    clip_frames: int = 16
    probe_clips: int = 768
    """Training clips that the probes are fitted on."""


# a second of work a run: for trying the command, not for its figures
QUICK = Scale(
    text_ratios=(0.15, 0.75), video_ratios=(0.5, 0.9), shares=(0.25,), seeds=2,
    num_train=48, num_test=16, clip_size=64, clip_frames=8, probe_clips=48,
)  # fmt: skip
_QUICK_SETTINGS = (
    "model.width=48", "model.num_heads=2", "model.depth=1", "model.decoder_width=24", "model.decoder_num_heads=2",
    "model.image_size=64", "model.num_frames=4", "steps=4", "batch_size=8", "optimizer.warmup_steps=1",
    "data.num_workers=0",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training.

    model: fields of the model that differ from the base run. shuffled: every clip has another clip's caption.
    video_only: a `VideoMAE` of the base run's sizes instead. untrained: it is scored as it was initialised.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    """Added to the base run's."""
    share: float = 1.0
    shuffled: bool = False
    video_only: bool = False
    untrained: bool = False

    def config(self, base: TrainConfig) -> TrainConfig:
        """The base run's settings with this run's; where data and results lie is the caller's affair."""
        model = replace(base.model, **self.model)
        config = replace(base, model=model, seed=base.seed + self.seed)
        if self.video_only:
            sizes = {entry.name: getattr(model, entry.name) for entry in fields(VideoMAEConfig)}
            config = replace(config, task="pretrain_videomae", model=VideoMAEConfig(**sizes))
        if self.untrained:
            # the one step that a run must have is the first of a warm-up, whose rate is 0
            config = replace(config, steps=1, optimizer=replace(config.optimizer, warmup_steps=1))
        return config


def base_config(preset: str, overrides: list[str], *, quick: bool) -> TrainConfig:
    """The demo's model and data in about a minute of two CPU cores."""
    config = get_recipe("simvtp_demo", preset)
    config = replace(
        config, steps=110, checkpoint_every=55, keep_checkpoints=1, tensorboard=False, output_dir="runs/ablation",
        optimizer=replace(config.optimizer, warmup_steps=20),
    )  # fmt: skip
    return apply_overrides(config, [*(_QUICK_SETTINGS if quick else ()), *overrides])


def base_runs(scale: Scale) -> list[Run]:
    """The base run with several seeds, whose spread is the noise of all comparisons."""
    return [Run("base" if seed == 0 else f"base, seed +{seed}", seed=seed) for seed in range(scale.seeds)]


UNTRAINED = Run("untrained", untrained=True)
# without a contrast nothing has learned which clips are alike: hard negatives would be an untrained guess
_NO_CONTRAST: dict[str, Any] = {"contrastive_weight": 0.0, "matching_negatives": "random"}
_NO_MATCHING: dict[str, Any] = {"matching_weight": 0.0}
_NO_RECONSTRUCTION = {"pixel_weight": 0.0, "word_weight": 0.0}
RECONSTRUCTION = Run("reconstruction only", {**_NO_CONTRAST, **_NO_MATCHING})
NO_CONTRAST, NO_MATCHING = Run("without VTC", _NO_CONTRAST), Run("without VTM", _NO_MATCHING)
CONTRAST_ONLY = Run("contrast only", {**_NO_RECONSTRUCTION, **_NO_MATCHING})
SHUFFLED = replace(RECONSTRUCTION, name="reconstruction, captions shuffled", shuffled=True)
VIDEO_ONLY = Run("video alone (VideoMAE)", video_only=True)


def mask_run(model: SimVTPConfig, text: float, video: float) -> Run:
    """The run of a cell of the grid; the base run where its ratios are these."""
    if (model.text_mask_ratio, model.video_mask_ratio) == (text, video):
        return Run("base")
    return Run(f"text {text:g}, video {video:g}", {"text_mask_ratio": text, "video_mask_ratio": video})


def share_run(share: float) -> Run:
    """The base run on a share of the clips."""
    return Run("base") if share == 1 else Run(f"{100 * share:g}% of the clips", share=share)


def _masks(model: SimVTPConfig, scale: Scale) -> list[Run]:
    return [mask_run(model, text, video) for text in scale.text_ratios for video in scale.video_ratios]


_RUNS: dict[str, Callable[[SimVTPConfig, Scale], list[Run]]] = {
    "masks": _masks,
    "objectives": lambda model, scale: [NO_CONTRAST, NO_MATCHING, RECONSTRUCTION, CONTRAST_ONLY],
    "modalities": lambda model, scale: [RECONSTRUCTION, SHUFFLED, VIDEO_ONLY],
    "data": lambda model, scale: [share_run(share) for share in scale.shares],
}


def plan_runs(study: str, model: SimVTPConfig, scale: Scale) -> list[Run]:
    """Every run of a study ("all": of all studies) once, what all studies share first.

    Raises UserError with the nearest known name.
    """
    if study not in (*STUDIES, "all"):
        raise unknown_name("study", study, (*STUDIES, "all"))
    studies = STUDIES if study == "all" else (study,)
    runs = [*base_runs(scale), UNTRAINED, *(run for name in studies for run in _RUNS[name](model, scale))]
    return list({run.name: run for run in runs}.values())
