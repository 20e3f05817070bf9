"""Which runs an ablation of VideoPrism's second stage is made of, and the first stage that all of them start from."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastvtp.ablation.studies import Run, Scale, base_runs, pick_runs
from fastvtp.models.prism_distillation import PrismStudentConfig
from fastvtp.models.video_text_prism import VideoTextPrismConfig
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loop import train
from fastvtp.training.recipes import get_recipe


@dataclass(frozen=True)
class PrismScale(Scale):
    """Small clips, of whose motion is asked."""

    num_test: int = 400
    clip_size: int = 64
    probe_clips: int = 2000
    stage1_steps: int = 1500


# a second of work a run: for trying the command, not for its figures
QUICK = PrismScale(
    seeds=2, num_train=48, num_test=16, clip_size=64, clip_frames=8, probe_clips=48, stage1_steps=4
)  # fmt: skip
_QUICK_SETTINGS = (
    "model.width=32", "model.num_heads=2", "model.depth=1", "model.temporal_depth=1", "model.mlp_hidden=64",
    "model.decoder_width=32", "model.decoder_depth=1", "model.decoder_num_heads=2", "model.decoder_hidden=64",
    "model.num_frames=4", "steps=4", "batch_size=8", "data.num_workers=0",
)  # fmt: skip
_TEXT = {"text_depth": 2, "max_text_length": 32, "few_frames": "crop", "learnable_temperature": True}
_TEXT_TOKENS = 20  # of a synthetic caption, about


def base_config(preset: str, overrides: list[str], *, quick: bool) -> TrainConfig:
    """The tiny second stage in three minutes of one CPU core."""
    config = get_recipe("videoprism_stage2_tiny", preset)
    model = replace(
        config.model, image_size=64, patch_size=16, mask_min_cells=2, decoder_width=64, decoder_num_heads=2,
        decoder_hidden=256,
    )  # fmt: skip
    config = replace(
        config, model=model, steps=400, checkpoint_every=100, keep_checkpoints=1, tensorboard=False, teacher=None,
        output_dir="runs/ablation_videoprism", optimizer=replace(config.optimizer, learning_rate=5e-4),
    )  # fmt: skip
    return apply_overrides(config, [*(_QUICK_SETTINGS if quick else ()), *overrides])


def stage1_config(config: TrainConfig, steps: int) -> TrainConfig:
    """A first stage of the sizes, clips and seed of the second stage `config`, from scratch."""
    sizes = {field.name: getattr(config.model, field.name) for field in fields(VideoTextPrismConfig)
             if field.name in {own.name for own in fields(PrismStudentConfig)}}  # fmt: skip
    return replace(
        config, task="pretrain_videoprism_contrastive", model=VideoTextPrismConfig(**{**sizes, **_TEXT}),
        optimizer=get_recipe("videoprism_stage1_tiny").optimizer, steps=steps, teacher=None,
    )  # fmt: skip


def _contrast_longer(config: TrainConfig) -> TrainConfig:
    """The first stage taken up again, for as much work as the second stage would have been."""
    steps = round(config.steps * stage2_cost(config.model) / stage1_cost(stage1_config(config, 1).model))
    return replace(stage1_config(config, steps), init=config.teacher)


def stage1_cost(model: VideoTextPrismConfig) -> float:
    """Multiplications of blocks in a step of the first stage, for one clip, those of the backward pass included."""
    text = model.text_depth * _block_cost(model.width, 4 * model.width, _TEXT_TOKENS) * _TEXT_TOKENS
    return 3 * (_encoder_cost(model, 1 - model.token_drop) + text)


def stage2_cost(model: PrismStudentConfig) -> float:
    """The same of the second stage; its teacher has no backward pass."""
    tokens, shown = model.grid[0] * model.grid[1] * model.grid[2], 1 - model.mask_ratio
    lengths = ((tokens, model.token_weight), (shown * tokens, model.global_weight))
    decoders = sum(
        length * _block_cost(model.decoder_width, model.decoder_hidden, length) for length, weight in lengths if weight
    )
    return _encoder_cost(model, 1.0) + 3 * (_encoder_cost(model, shown) + model.decoder_depth * decoders)


def _encoder_cost(model: Any, share: float) -> float:
    """Of the encoder's forward pass on this share of a clip's tokens."""
    frames, places = model.grid[0], model.grid[1] * model.grid[2]
    stages = ((model.depth, share * places), (model.temporal_depth, frames))
    of_token = sum(depth * _block_cost(model.width, model.mlp_hidden, keys) for depth, keys in stages)
    return of_token * share * frames * places


def _block_cost(width: int, hidden: int, keys: float) -> float:
    """Of a token."""
    return 4 * width**2 + 2 * width * hidden + 2 * keys * width


STAGE1 = Run("stage 1", untrained=True)
LONGER = Run("stage 1 for longer", change=_contrast_longer)
NO_SHUFFLE = Run("without shuffling", {"shuffle_tokens": False})
NO_GLOBAL = Run("without global distillation", {"global_weight": 0.0})


def plan_runs(study: str, model: PrismStudentConfig, scale: PrismScale) -> list[Run]:
    """The runs of a study or of "all": the second stage, the first alone and longer, the paper's two ablations."""
    runs = pick_runs(study, {"objectives": [STAGE1, LONGER, NO_SHUFFLE, NO_GLOBAL]}, scale)
    known = {run.name for run in (*base_runs(scale), STAGE1, LONGER, NO_SHUFFLE, NO_GLOBAL)}
    return [run for run in runs if run.name in known]  # a student that is not trained is the first stage


def train_stage1(config: TrainConfig, scale: PrismScale, folder: Path) -> TrainConfig:
    """`config` with its teacher in `folder`, trained there once on the same clips."""
    run = replace(stage1_config(config, scale.stage1_steps), output_dir=str(folder / "run"))
    train(run, resume=True, progress_bar=False)
    return replace(config, teacher=run.output_dir)
