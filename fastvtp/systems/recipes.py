"""The recipes, tasks and studies of all registered systems, by name.

A recipe is a function that returns a complete run configuration; `fastvtp pretrain NAME key=value ...` and
`fastvtp finetune NAME key=value ...` start one. A preset is the affair of SimVTP's and ALPRO's recipes: what the others
do without it is the same for both, but for what "fastvtp" recommends of each model of a kind.
"""

import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from fastvtp.ablation.studies import Study, check_overrides
from fastvtp.architecture import PRESETS, architecture_of, find, of_all_runs, runs_of, systems
from fastvtp.errors import ConfigError, unknown_name
from fastvtp.settings import settings_with
from fastvtp.systems import catalogue  # noqa: F401  (registers the systems)
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.paths import check_paths
from fastvtp.training.published import published_of, shown, sourced_settings

logger = logging.getLogger(__name__)

_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z`])")


def recipes() -> dict[str, Callable[[str], TrainConfig]]:
    """Return all recipes by name: functions of a preset."""
    return of_all_runs("recipe", lambda runs: {recipe.__name__: recipe for recipe in runs.recipes})


DEMO_RECIPE = "simvtp_demo"
"""What `fastvtp demo` trains by."""


def get_recipe(name: str, preset: str = "fastvtp") -> TrainConfig:
    """Return the configuration of a recipe. Raises UserError with the nearest known name."""
    recipe = find("recipe", name, recipes())
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    config = recipe(preset)
    if preset == "fastvtp":
        config = replace(config, model=replace(config.model, **architecture_of(config.model).recommended))
    return config


def recipe_summaries(preset: str = "fastvtp") -> list[dict[str, Any]]:
    """Return what each recipe is in a line: "name", "command", "clips_at_a_time", "clips_a_step", "steps", "clips" and
    "what", the first sentence of its docstring."""
    return [_summary(name, get_recipe(name, preset)) for name in recipes()]


def describe_recipe(name: str, preset: str = "fastvtp") -> dict[str, Any]:
    """Return all about a recipe, as JSON holds it: what `recipe_summaries` says, and "preset", "about" (the lines of
    its docstring), "starts_from" (settings that name weights), "published" (a `Published`, or None) and "settings", a
    list of {"name", "value", "text", "source"}.

    Raises UserError with the nearest known name.
    """
    config, recipe = get_recipe(name, preset), recipes()[name]
    published = published_of(recipe)
    paths = settings_with(config, "path")
    starts_from = {setting: path for setting, (path, _) in paths.items() if path and not setting.startswith("data.")}
    return {
        **_summary(name, config),
        "preset": preset,
        "about": inspect.cleandoc(recipe.__doc__ or "").splitlines(),
        "starts_from": starts_from,
        "published": None if published is None else asdict(published),
        "settings": [
            {**asdict(row), "text": shown(row.value)}
            for row in sourced_settings(config, get_recipe(name, "official"), published, name)
        ],
    }


def _summary(name: str, config: TrainConfig) -> dict[str, Any]:
    return {
        "name": name,
        "command": config.command,
        "clips_at_a_time": config.clips_at_a_time,
        "clips_a_step": config.batch_size,
        "steps": config.steps,
        "clips": config.batch_size * config.steps,
        "what": first_sentence(inspect.cleandoc(recipes()[name].__doc__ or "")),
    }


def first_sentence(about: str) -> str:
    """Return the first sentence of a docstring on one line, with the command that ends it where it leads up to one."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in about.split("\n\n")]
    text = paragraphs[0]
    if not text.endswith(".") and len(paragraphs) > 1:
        return f"{text} `{paragraphs[1]}`"
    return _SENTENCE_END.split(text, maxsplit=1)[0]


def recipe_config(
    name: str,
    preset: str,
    overrides: list[str],
    *,
    command: str | None = None,
    resume: bool = False,
    runs_here: bool = True,
) -> TrainConfig:
    """Return a recipe with overrides applied; missing files are reported here, by their settings' names.

    command: "pretrain" or "finetune"; a recipe of the other is refused. resume: what a run starts from may be gone
    where it has a checkpoint to go on from. runs_here: False where the run may be another machine's, so that missing
    files are a warning.
    """
    recipe = get_recipe(name, preset)
    right = recipe.command
    if command not in (None, right):
        raise ConfigError(f"{name} is no recipe of `fastvtp {command}`: use `fastvtp {right} {name}`")
    config = apply_overrides(recipe, overrides)
    try:
        check_paths(config, resume=resume)
    except ConfigError as error:
        if runs_here:
            raise
        logger.warning("on this machine %s", error)
    given = {override.partition("=")[0] for override in overrides}
    if config.data.test is not None and "data.train" in given and "data.test" not in given:
        logger.warning("data.test=%s is the recipe's own: give data.test=FILE, or data.test=none", config.data.test)
    return config


def find_study(name: str, overrides: list[str]) -> Study:
    """Find what `fastvtp ablate NAME` takes apart. Raises UserError with the nearest known name, or for a setting that
    is the ablation's own."""
    studies = {name: study for name, system in systems().items() if (study := runs_of(system).study) is not None}
    study = find("ablation of", name, studies)
    check_overrides(overrides)
    return study
