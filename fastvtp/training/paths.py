"""What a run needs on disk: every setting that names it, and which recipe makes it."""

from pathlib import Path

from fastvtp.architecture import of_all_runs
from fastvtp.data.locations import is_pattern, is_remote, refused_url
from fastvtp.errors import ConfigError
from fastvtp.model_folder import list_checkpoints
from fastvtp.settings import settings_with
from fastvtp.training.config import TrainConfig

_SCORED_ON = "data.test"  # is looked for when it is read, behind data.train: see `Task.check_test_data`


def check_paths(config: TrainConfig, *, resume: bool = False) -> None:
    """Raise ConfigError, in one line, for every setting that names something which is not there.

    resume: what a run starts from, its tokenizer included, may be gone where it has a checkpoint to go on from.
    """
    resuming = resume and bool(list_checkpoints(Path(config.output_dir)))
    missing = {}
    for setting, said in missing_paths(config).items():
        only_at_first = not setting.startswith(("data.", "model.")) or setting == "data.tokenizer"
        if setting != _SCORED_ON and not (resuming and only_at_first):
            missing[setting] = said
    folder = Path(config.output_dir)
    if refused := refused_url(config.output_dir, "output_dir="):
        missing["output_dir"] = refused
    elif folder.exists() and not folder.is_dir():
        missing["output_dir"] = f"output_dir={folder} is a file; give a folder"
    if missing:
        raise ConfigError(". ".join(missing.values()))


def missing_paths(config: TrainConfig) -> dict[str, str]:
    """Return what is wrong with each setting that names something which is not there, and how to mend it, by the
    setting."""
    missing = {}
    for setting, (value, what) in settings_with(config, "path").items():
        named = value if isinstance(value, tuple) else () if value is None else (value,)
        if absent := [_missing(setting, path, what) for path in named if not _is_there(path)]:
            missing[setting] = ". ".join(absent)
    return missing


def _is_there(path: str) -> bool:
    """Tell whether something is at a path. URLs, and patterns of several files, are left to whoever reads them."""
    return is_remote(path) or is_pattern(path) or Path(path).exists()


def missing_test_data(source: str) -> ConfigError:
    """Return the error for a `data.test` that is not there."""
    return ConfigError(_missing(_SCORED_ON, source, "a list or folder as for data.train"))


def _missing(setting: str, path: str, what: str) -> str:
    """Return what is wrong with a setting whose path does not exist, and how to mend it."""
    instead = {"data.train": "", "data.more": ", or data.more=[]"}.get(setting, f", or {setting}=none")
    cure = "data.train=FILE.jsonl or a folder" if setting == "data.train" else what
    return f"{setting}={path} does not exist; give {cure}{instead}{_maker(path)}"


def _maker(path: str) -> str:
    """Return which command makes a path that recipes name, in brackets; empty for any other path."""
    made = Path(path)
    recipes = of_all_runs("recipe", lambda runs: {recipe.__name__: recipe for recipe in runs.recipes})
    for name, recipe in recipes.items():
        config = recipe("fastvtp")
        folder = Path(config.output_dir)
        if folder not in (made, *made.parents):
            continue
        makes_its_data = folder in Path(config.data.train).parents
        command = "demo" if makes_its_data else f"{config.command} {name}"
        return f" (`fastvtp {command}` makes it)"
    return ""
