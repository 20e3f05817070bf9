"""Writing checkpoints beside training, by all processes of a run, and finding the newest whole one.

`CheckpointWriter.save` copies what is to be written and returns; `torch.distributed.checkpoint.async_save` writes the
shards on a thread of each process, which speak to each other in a group of their own. A checkpoint gets its name only
when the files of all processes are on the disk, by the first process alone; a run killed at any moment leaves whole
checkpoints and folders named partial_..., which the next run deletes.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from fastvtp.architecture import architecture_of
from fastvtp.errors import CheckpointError, UserError, unknown_name
from fastvtp.files import partial_of, remove_folder, replace_folder
from fastvtp.model_folder import STATE_NAME, list_checkpoints, step_folders, write_description
from fastvtp.processes import DEFAULT_TIMEOUT, first_decides, gather, has_group, is_first, share
from fastvtp.tensor_files import (
    MANIFEST_NAME,
    Seal,
    check_files,
    has_shards,
    quiet_about_one_process,
    read_manifest,
    write_manifest,
)
from fastvtp.training.earlier_state import damage_of_earlier
from fastvtp.training.state import VALUES_NAME, Progress, TrainingState, tensors_of, values_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Running:
    """A checkpoint that is being written."""

    final: Path
    result: Future[Any]
    progress: Progress
    best: dict[str, Any] | None
    """What becomes `progress.best` once it is written."""


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time, while training goes on. All processes of the run make one, within
    their group, and call its methods alike.

        with CheckpointWriter(run_dir, write_files_beside, keep=2, keep_best="loss") as writer:
            ...
            writer.save(state, metrics)
    """

    def __init__(
        self,
        run_dir: Path,
        write_files_beside: Callable[[Path], None],
        *,
        keep: int,
        keep_best: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ):
        """Write to `run_dir`/checkpoints.

        write_files_beside: adds to the folder it is given what evaluation needs beside a model (tokenizer, labels); it
        runs on a thread of the first process. keep: how many of the newest checkpoints stay. keep_best: the name of a
        metric, of which the lowest, or where the name contains "accuracy" the highest, marks a checkpoint that stays
        too; None: none does. timeout: seconds after which a process that waits for the others' files gives them up.
        """
        self._timeout = timedelta(seconds=timeout)
        self._run_dir, self._write_files_beside = run_dir, write_files_beside
        self._keep, self._keep_best = keep, keep_best
        self._group: Any = None
        self._running: _Running | None = None

    def __enter__(self) -> "CheckpointWriter":
        quiet_about_one_process()
        if has_group():  # messages of the writing threads must not come between those of training
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._settle()
        except Exception as failed:
            if error is None:
                raise
            logger.warning("%s", failed)  # what ends the run is the other error
        if self._group is not None and error is None:
            dist.barrier(self._group)  # a process that left while others still wrote would take their group with it
            dist.destroy_process_group(self._group)
            self._group = None

    def save(self, state: TrainingState, metrics: Mapping[str, float], *, wait: bool = False) -> None:
        """Begin the checkpoint of `state.progress.step`; what is in memory is copied before this returns. An earlier
        one that is still being written is waited for.

        metrics: of the step, the same on all processes; they are recorded. wait: return when it is written. A disk that
        takes no more is a warning, with `wait` a UserError; what was written of the checkpoint is deleted, and the ones
        before stay. Raises UserError for a `keep_best` that is not among the metrics.
        """
        from torch.distributed.checkpoint.state_dict_saver import async_save  # here, as it takes long to import

        from fastvtp.training.shard_writer import ShardWriter

        self._settle()
        progress = replace(state.progress, best=self._best(state.progress, metrics))
        final = self._folder(progress.step)
        config: Any = state.model.config
        tensors, values = tensors_of(state), values_of(state, progress, metrics)

        def write_beside(folder: Path) -> None:
            write_description(folder, config, architecture_of(config).name)
            (folder / VALUES_NAME).write_text(values)
            self._write_files_beside(folder)

        def publish(seals: Mapping[str, Seal]) -> None:
            write_manifest(partial_of(final), seals)
            replace_folder(partial_of(final), final)
            self._prune(final, progress.best)

        def failed(reason: str) -> None:
            if not wait:
                logger.warning("%s: the checkpoint could not be written, training goes on without: %s", final, reason)

        writer = ShardWriter(partial_of(final), tensors, write_beside, publish, failed)
        result: Any = async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        self._running = _Running(final, result, state.progress, progress.best)
        if wait and (failure := self._settle()) is not None:
            raise UserError(f"{final}: the checkpoint could not be written: {failure}")

    def wait(self) -> None:
        """Return when what was begun is written, or has failed, which a warning has told."""
        self._settle()

    def _settle(self) -> str | None:
        """Wait for what is being written; return why it could not be, or None. Raises RuntimeError for what is not the
        disk's fault."""
        from torch.distributed.checkpoint.api import CheckpointException

        if self._running is None:
            return None
        running, self._running = self._running, None
        try:
            failure = running.result.result().storage_data
        except CheckpointException as failed:
            number, (cause, _) = next(iter(failed.failures.items()))
            raise RuntimeError(
                f"process {number} could not write {running.final}: {type(cause).__name__}: {cause}"
            ) from cause
        if failure is None:
            running.progress.best = running.best
        return failure

    def _folder(self, step: int) -> Path:
        return self._run_dir / "checkpoints" / f"step_{step:08d}"

    def _best(self, progress: Progress, metrics: Mapping[str, float]) -> dict[str, Any] | None:
        """Return what `Progress.best` is once a checkpoint with these metrics is written."""
        name, best = self._keep_best, progress.best
        if name is None:
            return None
        if name not in metrics:
            raise unknown_name("metric", name, metrics)
        if best is not None and best["metric"] != name:
            best = None
        sign = -1 if "accuracy" in name else 1
        limit = float("inf") if best is None else sign * best["value"]
        if not sign * metrics[name] < limit:  # nor where it is NaN
            return best
        return {"metric": name, "value": metrics[name], "step": progress.step}

    def _prune(self, final: Path, best: dict[str, Any] | None) -> None:
        """Delete what need not stay. Later checkpoints than `final` are damaged, or somebody's own: they are not
        counted."""
        older = [folder for folder in list_checkpoints(self._run_dir) if folder.name <= final.name]
        stays = {*older[-self._keep :]} | ({self._folder(best["step"])} if best is not None else set())
        for folder in older:
            if folder not in stays:
                try:
                    remove_folder(folder)
                except OSError as error:
                    logger.warning("%s: could not be deleted: %s", folder, error)


def newest_whole(run_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run whose files have the bytes that were written; None: it has none at all.

    All processes must call this: each reads a part of the files. A damaged checkpoint is named in a warning, and the
    one before it is taken. Raises CheckpointError where all are damaged.
    """
    names = first_decides(lambda: [folder.name for folder in step_folders(run_dir)])
    problems: list[str] = []
    for name in reversed(names):
        folder = run_dir / "checkpoints" / name
        told = [damage for damage in gather(_damage(folder)) if damage is not None]
        if not told:
            for problem in problems if is_first() else ():
                logger.warning("%s: damaged; going on from %s", problem, folder)
            return folder
        problems.append(told[0])
    if problems:
        raise CheckpointError(f"{run_dir}: none of its {len(names)} checkpoints is whole; of the newest: {problems[0]}")
    return None


def _damage(folder: Path) -> str | None:
    """Tell what is wrong with this process's share of a checkpoint's files; None: nothing."""
    if not has_shards(folder):
        if not (folder / STATE_NAME).is_file():
            return f"{folder} has neither {MANIFEST_NAME} nor {STATE_NAME}"
        return damage_of_earlier(folder) if is_first() else None
    try:
        seals = read_manifest(folder)
        check_files(folder, seals, share(sorted(seals)))
    except CheckpointError as error:
        return str(error)
    return None
