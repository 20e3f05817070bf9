"""Which runs an ablation of ALPRO is made of, and the prompter that all of them start from."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastvtp.ablation.studies import Run, Scale, pick_runs
from fastvtp.data.entities import write_entities
from fastvtp.data.synthetic.scene import ENTITIES
from fastvtp.models.alpro_towers import AlproConfig, AlproPrompterConfig
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loop import train
from fastvtp.training.recipes import get_recipe


@dataclass(frozen=True)
class AlproScale(Scale):
    """Smaller clips, since a step costs more than SimVTP's, and fewer to test, of which every pair is fused."""

    num_test: int = 128
    clip_size: int = 64
    clip_frames: int = 8
    probe_clips: int = 512
    prompter_steps: int = 400


# a second of work a run: for trying the command, not for its figures
QUICK = AlproScale(
    seeds=2, num_train=48, num_test=16, clip_size=64, clip_frames=8, probe_clips=48, prompter_steps=4
)  # fmt: skip
_QUICK_SETTINGS = (
    "model.width=32", "model.num_heads=2", "model.depth=1", "model.text_num_heads=2", "model.text_hidden=64",
    "model.text_depth=1", "model.fusion_depth=1", "model.projection_dim=16", "model.image_size=64",
    "model.num_frames=2", "steps=4", "batch_size=8", "data.num_workers=0",
)  # fmt: skip


def base_config(preset: str, overrides: list[str], *, quick: bool) -> TrainConfig:
    """The tiny pretraining in minutes of one CPU core."""
    config = get_recipe("alpro_pretrain_tiny", preset)
    config = replace(
        config, model=replace(config.model, image_size=64), steps=100, checkpoint_every=50, keep_checkpoints=1,
        tensorboard=False, output_dir="runs/ablation_alpro", init=None, prompter=None, entities=None,
    )  # fmt: skip
    return apply_overrides(config, [*(_QUICK_SETTINGS if quick else ()), *overrides])


_NO_ENTITIES: dict[str, Any] = {"entity_weight": 0.0}
_NO_CONTRAST: dict[str, Any] = {"contrastive_weight": 0.0}
NO_ENTITIES, NO_CONTRAST = Run("without PEM", _NO_ENTITIES), Run("without VTC", _NO_CONTRAST)
NEITHER = Run("without PEM and VTC", {**_NO_ENTITIES, **_NO_CONTRAST})


def plan_runs(study: str, model: AlproConfig, scale: AlproScale) -> list[Run]:
    """The runs of a study or of "all", see `pick_runs`."""
    return pick_runs(study, {"objectives": [NO_ENTITIES, NO_CONTRAST, NEITHER]}, scale)


def train_prompter(config: TrainConfig, scale: AlproScale, folder: Path) -> TrainConfig:
    """`config` with a prompter in `folder`, trained there once on the same clips, as start and as prompter.

    In the paper all runs start from an ImageNet ViT and a BERT; at this scale the prompter's towers stand in for them.
    """
    entities, prompter = folder / "entities.txt", folder / "run"
    sizes = {field.name: getattr(config.model, field.name) for field in fields(AlproPrompterConfig)}
    folder.mkdir(parents=True, exist_ok=True)
    write_entities(entities, ENTITIES)
    train(
        replace(
            get_recipe("alpro_prompter_tiny"), model=AlproPrompterConfig(**sizes), data=config.data,
            optimizer=config.optimizer, output_dir=str(prompter), steps=scale.prompter_steps, seed=config.seed,
            batch_size=config.batch_size, device=config.device, tensorboard=False,
        ),
        resume=True,
        progress_bar=False,
    )  # fmt: skip
    return replace(config, init=str(prompter), prompter=str(prompter), entities=str(entities))
