"""What ablations are made of: a study of a system, and its runs, each of which differs from one base run in a few
settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fastvtp.ablation.held_out import HeldOut, chance_scores
from fastvtp.errors import UserError, unknown_name
from fastvtp.training.config import TrainConfig, tasks


@dataclass(frozen=True)
class Scale:
    """How much work an ablation is: seeds of the base run, and synthetic clips."""

    seeds: int = 3
    num_train: int = 3000
    num_test: int = 256
    clip_size: int = 112
    clip_frames: int = 16
    probe_clips: int = 768
    """Training clips that the probes are fitted on."""


@dataclass(frozen=True)
class Run:
    """One training.

    model: fields of the model that differ from the base run. shuffled: every clip has another clip's caption. change:
    what else becomes of the settings. untrained: it is scored as it starts.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    """What is added to the base run's seed."""
    share: float = 1.0
    shuffled: bool = False
    change: Callable[[TrainConfig], TrainConfig] | None = None
    untrained: bool = False

    def config(self, base: TrainConfig) -> TrainConfig:
        """Return the base run's settings with this run's; where data and results lie is the caller's affair."""
        config = replace(base, model=replace(base.model, **self.model), seed=base.seed + self.seed)
        if self.change is not None:
            config = self.change(config)
        if self.untrained:
            # the one step that a run must have is the first of a warm-up, whose rate is 0
            rates = replace(config.optimizer, warmup_steps=1, warmup_share=None, final_learning_rate=0.0)
            config = replace(config, steps=1, optimizer=replace(rates, schedule="cosine"))
        return config


UNTRAINED = Run("untrained", untrained=True)


def base_runs(scale: Scale) -> list[Run]:
    """Return the base run with several seeds, whose spread is the noise of all comparisons."""
    return [Run("base" if seed == 0 else f"base, seed +{seed}", seed=seed) for seed in range(scale.seeds)]


def pick_runs(study: str, studies: Mapping[str, Sequence[Run]], scale: Scale) -> list[Run]:
    """Pick every run of a study ("all": of all studies) once, what all studies share first.

    Raises UserError with the nearest known name.
    """
    if study not in (*studies, "all"):
        raise unknown_name("study", study, (*studies, "all"))
    chosen = studies if study == "all" else (study,)
    runs = [*base_runs(scale), UNTRAINED, *(run for name in chosen for run in studies[name])]
    return list({run.name: run for run in runs}.values())


def _as_it_is(config: TrainConfig, _: Any, __: Path) -> TrainConfig:
    return config


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the runner needs to know of a system to take it apart.

    Attributes:
        base_config: (preset, overrides, quick=) -> settings of the base run.
        plan_runs: (study, model configuration, scale) -> runs.
        scale: how much work the ablation is.
        quick: the same with --quick.
        score: (model, held-out clips) -> its scores by name.
        chance: held-out clips -> the scores of a model that knows nothing.
        report: a `fastvtp.ablation.report.Report` of this system.
        about: (settings, scale) -> what to say of them in the report.
        prepare: (settings, scale, folder) -> settings with what all runs start from, made in the folder once.
    """

    base_config: Callable[..., TrainConfig]
    plan_runs: Callable[[str, Any, Any], list[Run]]
    scale: Scale
    quick: Scale
    score: Callable[[Any, HeldOut], dict[str, float]]
    chance: Callable[[HeldOut], dict[str, float]] = chance_scores
    report: type[Any]
    about: Callable[[TrainConfig, Any], dict[str, Any]]
    prepare: Callable[[TrainConfig, Any, Path], TrainConfig] = _as_it_is


_OWN = ("data.train", "data.test", "data.tokenizer", "output_dir", "init", "text_init")


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise UserError for a setting that an ablation makes itself: its data, and what its runs start from."""
    start = {entry.name for task in tasks().values() for entry in fields(task.options) if "path" in entry.metadata}
    for override in overrides:
        if override.partition("=")[0] in (*_OWN, *start):
            raise UserError(
                f"{override}: the ablation makes its own videos, tokenizer and prompter or teacher; choose its folder "
                "by --output"
            )
