"""The training loop of all tasks, on any number of processes, to be read from top to bottom."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastvtp import processes
from fastvtp.architecture import build_model
from fastvtp.data.text import Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.evaluation.dealing import joined
from fastvtp.model_folder import (
    RUN_CONFIG_NAME,
    TOKENIZER_NAME,
    clear_partial_folders,
    load_pretrained,
    saved_model_config,
    write_reading,
)
from fastvtp.modules.bounds import clamp_parameters
from fastvtp.settings import choose_device
from fastvtp.training.average import WeightAverage
from fastvtp.training.checkpoints import CheckpointWriter, newest_whole
from fastvtp.training.config import TrainConfig, save_config
from fastvtp.training.division import SHARDED, micro_batches_each
from fastvtp.training.exchange import means_of_processes
from fastvtp.training.export import export_model
from fastvtp.training.gradients import Gradients, computes_twice
from fastvtp.training.initialization import load_initial_weights, prepare_tokenizer
from fastvtp.training.loading import training_loader
from fastvtp.training.metrics import MetricsWriter, last_record
from fastvtp.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from fastvtp.training.parallel import Parallel, choose_strategy
from fastvtp.training.resuming import check_resumable, restore_progress
from fastvtp.training.state import Progress, TrainingState
from fastvtp.training.stopping import Seen, StopSignals, check_finite
from fastvtp.training.task import Task, build_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    model: Any
    """The final weights; their average over the steps where `ema_decay` asks for it."""
    tokenizer: Tokenizer | None
    """None where the model reads no text."""
    model_dir: Path
    """Folder with these weights, config, tokenizer and labels."""
    steps: int
    train_seconds: float
    """Time in the loop, over all resumed parts."""
    bad_files: dict[str, str]
    """Undecodable files that were met and replaced, with the reason."""
    metrics: dict[str, float]
    """The last record of metrics.jsonl."""
    stopped_by: str | None = None
    """The signal that ended the run after `steps` steps, with a checkpoint to go on from; None: it is done."""


@dataclass
class _Begun:
    """What a run begins with, the same on every process."""

    task: Task
    tokenizer: Tokenizer | None
    model: Any
    checkpoint: Path | None
    each: int


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress_bar: bool = True,
    check: Callable[[Task], None] | None = None,
    heed_interrupts: bool = False,
) -> TrainResult:
    """Train as `config` says; everything lands in `config.output_dir`.

    Started by torchrun, or within a torch.distributed group that there is already, it trains on all processes together,
    each of which must call it; process 0 writes and draws. The numbers are those of one process, beyond rounding.

    resume: continue from the newest checkpoint there (or start, if there is none yet); the result is bit-identical to
    an uninterrupted run on the same machine, and equal but for rounding on another number of processes. `steps` may be
    another than the run began with: the schedule is then that of the new number from there on, which is logged. check:
    raises what speaks against the run once its data are read and before anything is written, such as
    `Task.check_test_data`. heed_interrupts: end after the step, with a checkpoint, at the first Ctrl-C as at the
    signals of a scheduler, and at once at the second; else KeyboardInterrupt is raised at the first. Raises
    ConfigError, or FloatingPointError for a loss that is not finite.
    """
    with run_group(config) as device, StopSignals(interrupts=heed_interrupts) as signals:
        begun = _begin(config, device, resume=resume, check=check)
        return _train(config, begun, device, signals, progress_bar=progress_bar and processes.is_first())


@contextlib.contextmanager
def run_group(config: TrainConfig) -> Iterator[torch.device]:
    """Make the group of a run's processes, unless there is one already; gives the device of this process."""
    config.data.use_storage()
    device = processes.own_device(choose_device(config.device))
    sharded = config.parallel.strategy in SHARDED
    with processes.process_group(device, config.parallel.timeout, alone=sharded):
        yield device


def _begin(config: TrainConfig, device: torch.device, *, resume: bool, check: Callable[[Task], None] | None) -> _Begun:
    """Check settings, read the data, and build the model; nothing is written yet."""

    each = micro_batches_each(config.batch_size, config.micro_batch, processes.size())

    def read() -> Task:
        task = build_task(config, checkpoint)
        if check is not None:
            check(task)
        return task

    def build() -> Any:
        model_config = task.complete(tokenizer)
        if checkpoint is not None:
            model_config = saved_model_config(checkpoint, type(model_config))
        torch.manual_seed(config.seed)
        model = build_model(model_config, device).train()
        if checkpoint is None:
            load_initial_weights(model, config, task)
            task.prepare(model, tokenizer)
        choose_strategy(config, model, device)
        return model

    resumed = processes.first_decides(lambda: check_resumable(config, resume=resume))
    checkpoint = newest_whole(Path(config.output_dir)) if resumed else None
    task = processes.all_or_none(read)
    tokenizer = processes.first_decides(lambda: prepare_tokenizer(config, task, checkpoint))  # one, if it is trained
    return _Begun(task, tokenizer, processes.all_or_none(build), checkpoint, each)


def _agree(fresh: Progress) -> None:
    """Raise ConfigError on all processes where they do not see the same data or kind of device."""
    for name, setting in (("annotations", "data.train"), ("device", "device")):
        found = processes.gather(getattr(fresh, name))
        if len(set(found)) > 1:
            first, other = found[0], next(number for number, value in enumerate(found) if value != found[0])
            raise ConfigError(
                f"processes 0 and {other} differ in {setting}: {first} and {found[other]}; all need the same files"
            )


def _train(
    config: TrainConfig, begun: _Begun, device: torch.device, signals: StopSignals, *, progress_bar: bool
) -> TrainResult:
    run_dir, task, tokenizer, each = Path(config.output_dir), begun.task, begun.tokenizer, begun.each
    progress = Progress(annotations=task.digest(), device=device.type)
    _agree(progress)
    twice = computes_twice(config, task, each)
    parallel = Parallel(begun.model, config, device, leaves_out=task.leaves_out, twice=twice)
    model = parallel.model
    optimizer = build_optimizer(model, config.optimizer)
    average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
    state = TrainingState(model, optimizer, average, progress)
    restore_progress(begun.checkpoint, state, run_dir, config.steps)
    clamp_parameters(model)
    gradients = Gradients(config, task, parallel, each, device)
    loader = training_loader(config, task, tokenizer, device, progress, each)

    def write_files_beside(folder: Path) -> None:
        task.write_labels(folder)
        write_reading(folder, config.data.framing, config.data.reading.fps)
        if tokenizer is not None:
            tokenizer.save(folder / TOKENIZER_NAME)

    # only now, with everything valid, the folder becomes this run's
    if processes.is_first():
        _tell_narrow_scopes(config, task)
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, run_dir / RUN_CONFIG_NAME)
        clear_partial_folders(run_dir)
    signals.heed_interrupts()
    seconds_before, stopped_by = progress.train_seconds, signals.asked()
    with contextlib.ExitStack() as stack:
        writer: Any = None
        if processes.is_first():
            writer = stack.enter_context(
                MetricsWriter(run_dir, resume_step=progress.step, tensorboard=config.tensorboard)
            )
        stack.enter_context(loader)
        checkpoints = stack.enter_context(
            CheckpointWriter(
                run_dir,
                write_files_beside,
                keep=config.keep_checkpoints,
                keep_best=config.keep_best,
                timeout=config.parallel.timeout,
            )
        )
        bar = stack.enter_context(_bar(config, progress.step, disable=not progress_bar))
        left = (config.steps - progress.step) * each
        batches: Iterator[Any] = gradients.planned(iter(loader), left) if left else iter(())
        started = interval_start = time.perf_counter()
        interval_wait = interval_steps = 0
        seen: list[Seen] = []
        while progress.step < config.steps and stopped_by is None:
            sums = gradients.of_step(batches, progress.step)
            seen += [Seen(progress.step + 1, batch, loss) for batch, loss in sums.seen]
            rate = learning_rate_at(progress.step, config.steps, config.optimizer)
            set_learning_rate(optimizer, rate)
            # an infinite bound leaves the gradients alone and still gives their norm
            bound = float("inf") if config.optimizer.clip_norm is None else config.optimizer.clip_norm
            grad_norm = parallel.clip_gradients(bound)
            optimizer.step()
            clamp_parameters(model)
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update()
            progress.step += 1
            interval_steps += 1

            stopped_by = signals.asked()
            last = progress.step == config.steps or stopped_by is not None
            logging_due = progress.step % config.log_every == 0 or progress.step == config.steps
            saving_due = progress.step % config.checkpoint_every == 0 or last
            if logging_due or saving_due:
                means = (
                    means_of_processes([value.float() for value in (*sums.totals.values(), grad_norm * each)]) / each
                )
                metrics = dict(zip([*sums.totals, "grad_norm"], means.tolist(), strict=True))
                check_finite(seen, progress.step, metrics["grad_norm"], run_dir)
                seen = []
            if logging_due:
                now = time.perf_counter()
                elapsed, waited = now - interval_start, loader.wait_seconds - interval_wait
                speed = {
                    "clips_per_second": interval_steps * config.batch_size / elapsed,
                    "data_wait_percent": 100 * waited / elapsed,
                }
                if writer is not None:
                    writer.write(progress.step, {**metrics, "learning_rate": rate}, speed)
                bar.set_postfix_str(
                    f"loss {metrics['loss']:.3f}, {speed['clips_per_second']:.0f} clips/s, "
                    f"data wait {speed['data_wait_percent']:.0f}%",
                    refresh=False,
                )
                interval_start, interval_wait, interval_steps = now, loader.wait_seconds, 0
            bar.update()
            if saving_due:
                progress.train_seconds = seconds_before + time.perf_counter() - started
                progress.bad_files = dict(sorted(joined(loader.bad_files).items()))
                if writer is not None:
                    writer.sync()
                checkpoints.save(state, metrics, wait=stopped_by is not None)

    model_dir, done = run_dir / "model", progress.step == config.steps
    if done:
        export_model(model_dir, state, write_files_beside)
    stopped_by = signals.asked() or stopped_by  # while the last checkpoint and the model were written
    if stopped_by is not None and processes.is_first():
        logger.warning("%s: stopped by %s after step %d", run_dir, stopped_by, progress.step)
    return TrainResult(
        _whole_model(parallel, state, model_dir, device, done=done),
        tokenizer,
        model_dir,
        progress.step,
        progress.train_seconds,
        progress.bad_files,
        processes.first_decides(lambda: last_record(run_dir)),
        stopped_by,
    )


def _whole_model(parallel: Parallel, state: TrainingState, model_dir: Path, device: torch.device, *, done: bool) -> Any:
    """Return the final model, whole on every process and ready for evaluation; of a run that stopped early, the model
    as it is."""
    if parallel.strategy in SHARDED and done:
        return load_pretrained(model_dir, device=device)
    if state.average is not None:
        state.average.copy_to_model()
    return parallel.model.eval()


def _tell_narrow_scopes(config: TrainConfig, task: Task) -> None:
    """Warn where clips of a step are compared with those of their micro-batch alone."""
    has = {"contrast": task.contrasts, "matching": task.matches}
    scopes = dict(zip(has, config.scopes, strict=True))
    narrow = [name for name, scope in scopes.items() if has[name] and scope == "micro_batch"]
    if narrow and config.clips_at_a_time < config.batch_size:
        logger.warning(
            "%s_scope=micro_batch: a step is of %d clips, but %s a clip with the others of its micro-batch of %d alone",
            narrow[0],
            config.batch_size,
            "contrast and matching compare" if len(narrow) > 1 else f"{narrow[0]} compares",
            config.clips_at_a_time,
        )


def _bar(config: TrainConfig, initial: int, *, disable: bool) -> tqdm:
    return tqdm(
        total=config.steps,
        initial=initial,
        unit="step",
        desc=config.command,
        disable=disable,
        smoothing=0.05,
        dynamic_ncols=True,
    )
