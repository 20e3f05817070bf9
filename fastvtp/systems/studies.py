"""The systems that `fastvtp ablate` takes apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvtp.ablation.held_out import HeldOut, chance_scores
from fastvtp.ablation.report import Report
from fastvtp.ablation.studies import Run, Scale
from fastvtp.errors import UserError, unknown_name
from fastvtp.systems.alpro import ablation as alpro_scoring
from fastvtp.systems.alpro import ablation as alpro_studies
from fastvtp.systems.alpro.ablation import AlproReport
from fastvtp.systems.simvtp import ablation as simvtp_scoring
from fastvtp.systems.simvtp import ablation as simvtp_studies
from fastvtp.systems.simvtp.ablation_report import SimVTPReport
from fastvtp.systems.videoprism import ablation as prism_scoring
from fastvtp.systems.videoprism import ablation as prism_studies
from fastvtp.systems.videoprism.ablation import PrismReport
from fastvtp.training.config import TrainConfig


def _as_it_is(config: TrainConfig, _: Any, __: Path) -> TrainConfig:
    return config


@dataclass(frozen=True)
class System:
    """What the runner needs to know of a system.

    base_config: (preset, overrides, quick=) -> settings of the base run. plan_runs: (study, model, scale) -> runs.
    scale, quick: how much work, without and with --quick. score, chance: a model's scores, and those of one that knows
    nothing. about: what to say of settings and scale. prepare: (settings, scale, folder) -> settings with what all runs
    start from, made in the folder once.
    """

    base_config: Callable[..., TrainConfig]
    plan_runs: Callable[[str, Any, Any], list[Run]]
    scale: Scale
    quick: Scale
    score: Callable[[Any, HeldOut], dict[str, float]]
    chance: Callable[[HeldOut], dict[str, float]]
    report: type[Report]
    about: Callable[[TrainConfig, Any], dict[str, Any]]
    prepare: Callable[[TrainConfig, Any, Path], TrainConfig] = _as_it_is


SYSTEMS: dict[str, System] = {
    "simvtp": System(
        simvtp_studies.base_config, simvtp_studies.plan_runs, simvtp_studies.SimVTPScale(), simvtp_studies.QUICK,
        simvtp_scoring.score, chance_scores, SimVTPReport,
        about=lambda config, _: {
            "base text mask ratio": config.model.text_mask_ratio,
            "base video mask ratio": config.model.video_mask_ratio,
            "contrastive text": config.model.contrastive_text,
        },
    ),
    "alpro": System(
        alpro_studies.base_config, alpro_studies.plan_runs, alpro_studies.AlproScale(), alpro_studies.QUICK,
        alpro_scoring.score, alpro_scoring.chance, AlproReport,
        about=lambda config, scale: {
            "steps of the prompter": scale.prompter_steps, "ignore rule": config.model.ignore_rule,
        },
        prepare=alpro_studies.train_prompter,
    ),
    "videoprism": System(
        prism_studies.base_config, prism_studies.plan_runs, prism_studies.PrismScale(), prism_studies.QUICK,
        prism_scoring.score, prism_scoring.chance, PrismReport,
        about=lambda config, scale: {
            "steps of the first stage": scale.stage1_steps, "mask ratio": config.model.mask_ratio,
        },
        prepare=prism_studies.train_stage1,
    ),
}  # fmt: skip

# settings that an ablation makes itself
_OWN = (
    "data.train=", "data.test=", "data.tokenizer=", "output_dir=", "init=", "text_init=", "prompter=", "entities=",
    "teacher=",
)  # fmt: skip


def find_system(name: str, overrides: Sequence[str]) -> System:
    """The system of that name. Raises UserError with the nearest known one, or for a setting that is the ablation's."""
    if name not in SYSTEMS:
        raise unknown_name("ablation of", name, SYSTEMS)
    if taken := [text for text in overrides if text.startswith(_OWN)]:
        raise UserError(
            f"{taken[0]}: the ablation makes its own videos, tokenizer and prompter or teacher; choose its folder by "
            "--output"
        )
    return SYSTEMS[name]
