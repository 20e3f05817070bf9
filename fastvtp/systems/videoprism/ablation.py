"""Which runs an ablation of VideoPrism's second stage is made of, and the first stage that all of them start from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastvtp.ablation.held_out import (
    HeldOut,
    chance_scores,
    probe_scores,
)
from fastvtp.ablation.plot import Bars, HeatMap
from fastvtp.ablation.report import Claim, Report, Section
from fastvtp.ablation.studies import Run, Scale, Study, base_runs, pick_runs
from fastvtp.data.synthetic.scene import MOTIONS
from fastvtp.evaluation.inference import inference
from fastvtp.frozen.probes import ProbeConfig, build_probe
from fastvtp.frozen.towers import video_tower
from fastvtp.frozen.training_heads import HeadTraining, train_head
from fastvtp.systems.videoprism.distillation import PrismStudentConfig
from fastvtp.systems.videoprism.recipes import videoprism_stage1_tiny, videoprism_stage2_tiny
from fastvtp.systems.videoprism.tasks import ContrastOptions, DistillationOptions
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loop import train


@dataclass(frozen=True)
class PrismScale(Scale):
    """Small clips, of whose motion is asked."""

    num_test: int = 400
    clip_size: int = 64
    probe_clips: int = 2000
    stage1_steps: int = 1500


# a second of work a run: for trying the command, not for its figures
QUICK = PrismScale(seeds=2, num_train=48, num_test=16, clip_size=64, clip_frames=8, probe_clips=48, stage1_steps=4)
_QUICK_SETTINGS = (
    "model.width=32",
    "model.num_heads=2",
    "model.depth=1",
    "model.temporal_depth=1",
    "model.mlp_hidden=64",
    "model.decoder_width=32",
    "model.decoder_depth=1",
    "model.decoder_num_heads=2",
    "model.decoder_hidden=64",
    "model.num_frames=4",
    "steps=4",
    "batch_size=8",
    "data.num_workers=0",
)
_TEXT = {"text_depth": 2, "max_text_length": 32, "few_frames": "crop", "learnable_temperature": True}
_TEXT_TOKENS = 20  # of a synthetic caption, about


def base_config(preset: str, overrides: list[str], *, quick: bool) -> TrainConfig:
    """Return the tiny second stage, for three minutes of one CPU core."""
    config = videoprism_stage2_tiny(preset)
    model = replace(
        config.model,
        image_size=64,
        patch_size=16,
        mask_min_cells=2,
        decoder_width=64,
        decoder_num_heads=2,
        decoder_hidden=256,
    )
    config = replace(
        config,
        model=model,
        steps=400,
        checkpoint_every=100,
        keep_checkpoints=1,
        tensorboard=False,
        options=DistillationOptions(),
        output_dir="runs/ablation_videoprism",
        optimizer=replace(config.optimizer, learning_rate=5e-4),
    )
    return apply_overrides(config, [*(_QUICK_SETTINGS if quick else ()), *overrides])


def stage1_config(config: TrainConfig, steps: int) -> TrainConfig:
    """Return a first stage of the sizes, clips and seed of the second stage `config`, from scratch."""
    sizes = {
        field.name: getattr(config.model, field.name)
        for field in fields(VideoTextPrismConfig)
        if field.name in {own.name for own in fields(PrismStudentConfig)}
    }
    return replace(
        config,
        task="pretrain_videoprism_contrastive",
        model=VideoTextPrismConfig(**{**sizes, **_TEXT}),
        optimizer=videoprism_stage1_tiny().optimizer,
        steps=steps,
        options=ContrastOptions(),
    )


def _contrast_longer(config: TrainConfig) -> TrainConfig:
    """Return the first stage taken up again, for as much work as the second stage would have been."""
    steps = round(config.steps * stage2_cost(config.model) / stage1_cost(stage1_config(config, 1).model))
    return replace(stage1_config(config, steps), init=config.options.teacher)


def stage1_cost(model: VideoTextPrismConfig) -> float:
    """Return multiplications of blocks in a step of the first stage, for one clip, those of the backward pass
    included."""
    text = model.text_depth * _block_cost(model.width, 4 * model.width, _TEXT_TOKENS) * _TEXT_TOKENS
    return 3 * (_encoder_cost(model, 1 - model.token_drop) + text)


def stage2_cost(model: PrismStudentConfig) -> float:
    """Return the cost of the second stage, as `stage1_cost` that of the first; its teacher has no backward pass."""
    tokens, shown = model.grid[0] * model.grid[1] * model.grid[2], 1 - model.mask_ratio
    lengths = ((tokens, model.token_weight), (shown * tokens, model.global_weight))
    decoders = sum(
        length * _block_cost(model.decoder_width, model.decoder_hidden, length) for length, weight in lengths if weight
    )
    return _encoder_cost(model, 1.0) + 3 * (_encoder_cost(model, shown) + model.decoder_depth * decoders)


def _encoder_cost(model: Any, share: float) -> float:
    """Return the cost of the encoder's forward pass on this share of a clip's tokens."""
    frames, places = model.grid[0], model.grid[1] * model.grid[2]
    stages = ((model.depth, share * places), (model.temporal_depth, frames))
    of_token = sum(depth * _block_cost(model.width, model.mlp_hidden, keys) for depth, keys in stages)
    return of_token * share * frames * places


def _block_cost(width: int, hidden: int, keys: float) -> float:
    """Return a block's cost of a token."""
    return 4 * width**2 + 2 * width * hidden + 2 * keys * width


STAGE1 = Run("stage 1", untrained=True)
LONGER = Run("stage 1 for longer", change=_contrast_longer)
NO_SHUFFLE = Run("without shuffling", {"shuffle_tokens": False})
NO_GLOBAL = Run("without global distillation", {"global_weight": 0.0})


def plan_runs(study: str, model: PrismStudentConfig, scale: PrismScale) -> list[Run]:
    """Return the runs of a study or of "all": the second stage, the first alone and longer, the paper's two
    ablations."""
    runs = pick_runs(study, {"objectives": [STAGE1, LONGER, NO_SHUFFLE, NO_GLOBAL]}, scale)
    known = {run.name for run in (*base_runs(scale), STAGE1, LONGER, NO_SHUFFLE, NO_GLOBAL)}
    return [run for run in runs if run.name in known]  # a student that is not trained is the first stage


def train_stage1(config: TrainConfig, scale: PrismScale, folder: Path) -> TrainConfig:
    """Return `config` with its teacher in `folder`, trained there once on the same clips."""
    run = replace(stage1_config(config, scale.stage1_steps), output_dir=str(folder / "run"))
    train(run, resume=True, progress_bar=False)
    return replace(config, options=DistillationOptions(teacher=run.output_dir))


SEEDS = 3


_STEPS, _BATCH, _HEADS, _HEAD_DIM, _DROPOUT = 300, 64, 4, 32, 0.1


def score(model: Any, held_out: HeldOut) -> dict[str, float]:
    """Compute all scores by name, in percent.

    motion: which of MOTIONS the object makes that acts first, by attentive probes on all tokens, the mean over `SEEDS`
    of them; motion/seeds: their standard deviation. direction: the same of the clips with one object; order: of those
    with two, where it says which of two motions came first. probe/<attribute> and their mean, transfer: a linear
    read-out of the mean token.
    """
    tower = video_tower(model)
    with inference(model):
        looks = probe_scores(lambda video: tower.encode_layers(video.to(model.device))[:, -1], held_out)
        features = [
            torch.cat([tower.encode_layers(batch.video.to(model.device)).float().cpu() for batch in clips.batches])
            for clips in (held_out.probe_train, held_out.test)
        ]
    train, test = (tokens.clone() for tokens in features)  # those made in inference mode cannot be learned from
    labels, targets = first_motion(held_out.probe_train.scenes), first_motion(held_out.test.scenes)
    single = torch.tensor([len(scene["objects"]) == 1 for scene in held_out.test.scenes])
    right = [_probe(train, labels, test, seed=seed) == targets for seed in range(SEEDS)]
    of_seeds = [100 * hits.double().mean().item() for hits in right]
    parts = {
        name: 100 * fmean(hits[kind].double().mean().item() for hits in right)
        for name, kind in (("direction", single), ("order", ~single))
    }
    return {"motion": fmean(of_seeds), "motion/seeds": pstdev(of_seeds), **parts, **looks}


def chance(held_out: HeldOut) -> dict[str, float]:
    """Return what `score` gives for features that know nothing: the most frequent motion of the training clips."""
    frequent = first_motion(held_out.probe_train.scenes).mode().values
    hits = (first_motion(held_out.test.scenes) == frequent).double()
    looks = {name: value for name, value in chance_scores(held_out).items() if name.startswith(("probe/", "transfer"))}
    return {"motion": 100 * hits.mean().item(), **looks}


def first_motion(scenes: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return what the object that acts first does: int64 [N], a place in MOTIONS."""
    return torch.tensor([MOTIONS.index(scene["objects"][0]["motion"]) for scene in scenes])


def _probe(train: Tensor, labels: Tensor, test: Tensor, *, seed: int) -> Tensor:
    """Return what an attentive probe, fitted on tokens [N, 1, L, D] and labels, says of other tokens: int64 [M]."""
    torch.manual_seed(seed)
    probe = build_probe(
        ProbeConfig(
            width=train.shape[-1], num_outputs=len(MOTIONS), num_heads=_HEADS, head_dim=_HEAD_DIM, dropout=_DROPOUT
        )
    )
    draw = torch.Generator().manual_seed(seed)
    batches = (torch.randint(len(train), (_BATCH,), generator=draw) for _ in range(_STEPS))
    train_head(
        probe,
        batches,
        lambda rows: cross_entropy(probe(train[rows]), labels[rows], label_smoothing=0.1),
        HeadTraining(steps=_STEPS, batch_size=_BATCH, learning_rate=1e-3),
        device="cpu",
        progress=False,
    )
    with torch.inference_mode():
        return torch.cat([probe(part).argmax(dim=1) for part in test.split(256)])


_MOTION = ("motion", "motion/seeds", "direction", "order")


_LOOKS = ("transfer", "probe/shape", "probe/colour", "probe/texture", "probe/background colour", "probe/motion")


_ABOUT_SCORES = f"""\
All runs of the second stage have the same steps, batch size and seed (the repetitions of the base run: the next \
seeds) and the same teacher, *stage 1*, a contrast of the same clips with their captions; they begin as that teacher. \
*stage 1 for longer* goes on with the contrast, its rates warmed up anew, for as many steps as cost what the second \
stage costs, counted in multiplications of the blocks. All are scored on the same {{num_test}} clips that none trained \
on.

- **motion**: percent of the clips of which an attentive probe on the frozen tokens, fitted on {{probe_clips}} \
training clips, says what the object that acts first does (left, right, up, down, grows, shrinks, appears, vanishes, \
clockwise, anticlockwise); the mean of {SEEDS} probes, **motion/seeds** their standard deviation. Frames in any order \
tell half of it at best. **direction**: the clips with one object; **order**: those with two, of which one acts after \
the other.
- **transfer**: percent of the attributes of a clip (shape, colour, texture, size, motion; the background's colour, \
pattern and behaviour) that ridge regression reads from the mean token; the mean over the eight. **probe/...**: some.
- **±**: standard deviation of the base run over its {{seeds}} seeds. It stands for the noise of every run; it does \
not know the noise of having only {{num_test}} test clips.
"""


class PrismReport(Report):
    """The second stage, without shuffling, without global distillation; the first stage, and that for longer."""

    system, shown, about_scores = "VideoPrism", ("motion", "transfer"), _ABOUT_SCORES

    def claims(self) -> list[Claim]:
        def against(run: str, score: str = "motion"):
            return self.compare.part(f"the second stage against {run} ({score})", score, {"base": 1, run: -1})

        return [
            Claim(
                "The second stage adds motion to the features of the first.",
                "A probe of motion finds more after the second stage than before it, and than after as much more work "
                "in the first stage.",
                [against(STAGE1.name), against(LONGER.name)],
            ),
            Claim(
                "Shuffling the decoder's tokens helps.",
                "Motion, and what a linear read-out knows, are higher with shuffling than without.",
                [against(NO_SHUFFLE.name), against(NO_SHUFFLE.name, "transfer")],
            ),
            Claim(
                "Global distillation keeps what the first stage knew.",
                "What a linear read-out knows is higher with global distillation than without.",
                [against(NO_GLOBAL.name, "transfer")],
            ),
        ]

    def sections(self) -> list[Section]:
        return [("Motion", self.table(self._runs(), _MOTION)), ("Looks", self.table(self._runs(), _LOOKS))]

    def panels(self) -> list[HeatMap | Bars]:
        return [
            *self.bars("motion, attentive probe (%)", self._runs(), "motion"),
            *self.bars("direction, one object (%)", self._runs(), "direction"),
            *self.bars("order of two events (%)", self._runs(), "order"),
            *self.bars("all attributes, linear read-out (%)", self._runs(), "transfer"),
        ]

    def _runs(self) -> list[str]:
        return self.with_bounds([run.name for run in (STAGE1, LONGER, NO_GLOBAL, NO_SHUFFLE)])


STUDY = Study(
    base_config=base_config,
    plan_runs=plan_runs,
    scale=PrismScale(),
    quick=QUICK,
    score=score,
    chance=chance,
    report=PrismReport,
    about=lambda config, scale: {"steps of the first stage": scale.stage1_steps, "mask ratio": config.model.mask_ratio},
    prepare=train_stage1,
)
