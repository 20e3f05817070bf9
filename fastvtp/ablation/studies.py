"""What ablations of all systems are made of: runs, each of which differs from one base run in a few settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastvtp.errors import unknown_name
from fastvtp.training.config import TrainConfig


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
    """Added to the base run's."""
    share: float = 1.0
    shuffled: bool = False
    change: Callable[[TrainConfig], TrainConfig] | None = None
    untrained: bool = False

    def config(self, base: TrainConfig) -> TrainConfig:
        """The base run's settings with this run's; where data and results lie is the caller's affair."""
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
    """The base run with several seeds, whose spread is the noise of all comparisons."""
    return [Run("base" if seed == 0 else f"base, seed +{seed}", seed=seed) for seed in range(scale.seeds)]


def pick_runs(study: str, studies: Mapping[str, Sequence[Run]], scale: Scale) -> list[Run]:
    """Every run of a study ("all": of all studies) once, what all studies share first.

    Raises UserError with the nearest known name.
    """
    if study not in (*studies, "all"):
        raise unknown_name("study", study, (*studies, "all"))
    chosen = studies if study == "all" else (study,)
    runs = [*base_runs(scale), UNTRAINED, *(run for name in chosen for run in studies[name])]
    return list({run.name: run for run in runs}.values())
