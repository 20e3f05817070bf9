"""Going on with a run: which checkpoint, and whether settings and data are still those that it began with."""

import difflib
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastvtp.errors import ConfigError, counted, few
from fastvtp.model_folder import RUN_CONFIG_NAME, step_folders
from fastvtp.training.config import TrainConfig, differing_settings, saved_steps
from fastvtp.training.metrics import records_in
from fastvtp.training.published import shown
from fastvtp.training.state import TrainingState, read_progress, restore

logger = logging.getLogger(__name__)

# what may differ when a run is resumed: nothing here changes a number that the run computes
_FREE_ON_RESUME = {
    "output_dir",
    "data.num_workers",
    "data.decoder_threads",
    "data.cache_dir",
    "data.cache_gb",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "tensorboard",
    "log_every",
    "recompute",
    "parallel.strategy",
    "parallel.shard_size",
    "parallel.timeout",
    "parallel.stop_exit_code",
    "data.test",
    "data.test_views",
    "data.test_sampling",
    "data.test_top_k",
    "data.test_format",
    "data.test_split",
    "data.test_videos",
    "data.videos",  # a folder that moved; the records are compared for themselves
}
_MOST_NAMED = 8  # settings in a refusal


def check_resumable(config: TrainConfig, *, resume: bool) -> bool:
    """Tell whether the output folder has checkpoints to go on from; False for a fresh start.

    A run without any checkpoint starts anew, which is said. Raises ConfigError rather than overwrite a run, or resume
    one, with checkpoints or without, under settings that would change its numbers.
    """
    run_dir = Path(config.output_dir)
    config_path, checkpoints = run_dir / RUN_CONFIG_NAME, step_folders(run_dir)
    if not config_path.exists() and not checkpoints:
        return False
    if not resume:
        raise ConfigError(f"{run_dir} already holds a run: add --resume to continue it, or choose another output_dir")
    free = {entry.name for entry in fields(config.options) if entry.metadata.get("free_on_resume")}
    kept = _FREE_ON_RESUME | {"steps"} | free
    changed = {name: values for name, values in differing_settings(config, config_path).items() if name not in kept}
    if changed:
        anew = f"start a new run from its weights: init={run_dir} and another output_dir"
        raise ConfigError(
            f"cannot resume {run_dir}, whose settings are in {config_path}: {_in_words(changed)}; set them back, or "
            f"{anew if checkpoints else 'choose another output_dir: it has no checkpoint to start from'}"
        )
    if not checkpoints:  # under the same settings: what is on record will be written again
        recorded = records_in(run_dir)
        without = f", without the {counted(recorded, 'step')} on record" if recorded else ""
        logger.warning("%s has no checkpoint: starts anew%s", run_dir, without)
        return False
    return True


def say_where_none(run_dir: Path) -> None:
    """Log where there is no run to go on with, and name the folder beside it that may have been meant.

    It is no error: what is restarted on machines that come and go asks to resume the first time, too.
    """
    if (run_dir / RUN_CONFIG_NAME).exists() or step_folders(run_dir):
        return
    try:
        beside = [folder.name for folder in run_dir.absolute().parent.iterdir() if folder.name != run_dir.name]
    except OSError:
        beside = []
    near = difflib.get_close_matches(run_dir.name, beside, n=3)
    runs = [run_dir.with_name(name) for name in near if step_folders(run_dir.with_name(name))]
    if runs:
        logger.warning("no run in %s: starting anew; %s holds one, is output_dir=%s meant?", run_dir, runs[0], runs[0])
    else:
        logger.info("no run in %s: starting anew", run_dir)


def _in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return what settings were and are, those of the first names alone where they are many."""
    said = [f"{name}: was {shown(before)}, is {shown(now)}" for name, (before, now) in sorted(changed.items())]
    return few(said, _MOST_NAMED, "; ")


def restore_progress(checkpoint: Path | None, state: TrainingState, run_dir: Path, steps: int) -> None:
    """Restore `checkpoint` into a fresh `state`. steps: of the run. All processes must call this.

    Raises ConfigError where the annotations or the kind of device are not those that the run began with, or more steps
    are done than the run has.
    """
    if checkpoint is None:
        return
    progress = read_progress(checkpoint)
    for name, setting in (("annotations", "the content of data.train"), ("device", "the device")):
        before, now = getattr(progress, name), getattr(state.progress, name)
        if before != now:
            raise ConfigError(f"cannot resume {run_dir}: {setting} changed from {before} to {now} since the run began")
    if steps < progress.step:
        raise ConfigError(f"cannot resume {run_dir}: steps={steps}, of which {progress.step} are done already")
    restore(checkpoint, state)
    logger.info("resuming %s after step %d", run_dir, progress.step)
    if (before := saved_steps(run_dir / RUN_CONFIG_NAME)) != steps:
        logger.warning(
            "%s: steps is %d where it was %d: from step %d on the learning rate is that of a run of %d steps, and the "
            "result is not that of such a run",
            run_dir, steps, before, progress.step, steps,
        )  # fmt: skip
