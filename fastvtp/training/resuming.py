"""Going on with a run: which checkpoint, and whether settings and data are still those that it began with."""

import logging
from dataclasses import fields
from pathlib import Path

from fastvtp.errors import ConfigError
from fastvtp.model_folder import RUN_CONFIG_NAME, step_folders
from fastvtp.training.config import TrainConfig, differing_settings, saved_steps
from fastvtp.training.metrics import records_in
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


def check_resumable(config: TrainConfig, *, resume: bool) -> bool:
    """Tell whether the output folder has checkpoints to go on from; False for a fresh start.

    Raises ConfigError rather than overwrite a run, or resume one under settings that would change its numbers.
    """
    run_dir = Path(config.output_dir)
    config_path, checkpoints = run_dir / RUN_CONFIG_NAME, step_folders(run_dir)
    if not config_path.exists() and not checkpoints:
        return False
    if not resume:
        raise ConfigError(f"{run_dir} already holds a run: add --resume to continue it, or choose another output_dir")
    if not checkpoints:
        if recorded := records_in(run_dir):
            logger.warning("%s has no checkpoint: starts anew, without the %d steps on record", run_dir, recorded)
        return False
    free = {entry.name for entry in fields(config.options) if entry.metadata.get("free_on_resume")}
    if changed := set(differing_settings(config, config_path)) - _FREE_ON_RESUME - {"steps"} - free:
        raise ConfigError(
            f"cannot resume {run_dir}: {', '.join(sorted(changed))} differ from {config_path}; set them back, or start "
            f"a new run from its weights: init={run_dir} and another output_dir"
        )
    return True


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
