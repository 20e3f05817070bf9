"""The training loop of all tasks, to be read from top to bottom."""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from fastvtp.architecture import build_model
from fastvtp.data.annotations import VideoRecord
from fastvtp.data.loader import Decoding, VideoTextLoader
from fastvtp.data.mixing import BatchSource, MixedLoader
from fastvtp.data.reading import ClipShape
from fastvtp.data.source import Batches
from fastvtp.data.text import Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.files import publish_folder
from fastvtp.model_folder import (
    RUN_CONFIG_NAME,
    TOKENIZER_NAME,
    clear_partial_folders,
    list_checkpoints,
    saved_model_config,
    write_reading,
)
from fastvtp.modules.bounds import clamp_parameters
from fastvtp.settings import choose_device
from fastvtp.training.config import (
    TrainConfig,
    differing_settings,
    save_config,
    saved_steps,
)
from fastvtp.training.initialization import load_initial_weights, prepare_tokenizer
from fastvtp.training.metrics import MetricsWriter, last_record
from fastvtp.training.optimizer import (
    build_optimizer,
    learning_rate_at,
    set_learning_rate,
)
from fastvtp.training.state import (
    Progress,
    read_state,
    restore_checkpoint,
    save_checkpoint,
    write_inference_folder,
)
from fastvtp.training.task import Task, build_task

logger = logging.getLogger(__name__)

# what may differ when a run is resumed: nothing here changes a number that the run computes
_FREE_ON_RESUME = {
    "output_dir",
    "data.num_workers",
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "log_every",
    "data.test",
    "data.test_views",
    "data.test_sampling",
    "data.test_top_k",
}


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


def training_loader(
    config: TrainConfig, task: Task, tokenizer: Tokenizer | None, device: torch.device, progress: Progress
) -> VideoTextLoader | MixedLoader:
    """Return the loader of the batches still to be seen; a step takes `config.accumulate` of them."""
    data = config.data
    start_step, num_steps = progress.step * config.accumulate, (config.steps - progress.step) * config.accumulate
    if (ready := task.ready_loader(start_step=start_step, num_steps=num_steps)) is not None:
        return ready
    clips = ClipShape(config.model.num_frames, config.model.image_size)
    decoding = Decoding(decoder=data.decoder, num_workers=data.num_workers, device=device, known_bad=progress.bad_files)

    def source(records: Sequence[VideoRecord], share: float, kind: str = "video", repeat: int = 1) -> BatchSource:
        pictures = kind == "image"

        def loader(start_step: int, num_steps: int) -> VideoTextLoader:
            return VideoTextLoader(
                records,
                tokenizer,
                shape=replace(clips, num_frames=1) if pictures else clips,
                # one frame needs no choice of frames, and no video decoder of a GPU reads pictures
                reading=replace(data.reading, sampling="uniform", frame_stride=1) if pictures else data.reading,
                decoding=replace(decoding, decoder="pyav") if pictures else decoding,
                batches=Batches(
                    batch_size=config.batch_size,
                    train=True,
                    seed=config.seed,
                    start_step=start_step,
                    num_steps=num_steps,
                ),
                max_text_length=task.max_text_length,
            )

        return BatchSource(loader, share, kind, repeat)

    sets = (task.records, *task.more)
    shares = data.shares or [len(records) for records in sets]
    of_videos = (1 - data.image_share if task.images else 1) / sum(shares)
    sources = [source(records, share * of_videos) for records, share in zip(sets, shares, strict=True)]
    if task.images:
        repeat = config.model.num_frames if data.image_frames == "repeat" else 1
        sources.append(source(task.images, data.image_share, "image", repeat))
    if len(sources) == 1:
        return sources[0].loader(start_step, num_steps)
    return MixedLoader(sources, start_step=start_step, num_steps=num_steps, run=config.accumulate)


def find_checkpoint(config: TrainConfig, *, resume: bool) -> Path | None:
    """Find the checkpoint in the output folder to resume from, or None for a fresh start.

    Raises ConfigError rather than overwrite a run, or resume one under settings that would change its numbers.
    """
    run_dir = Path(config.output_dir)
    config_path, checkpoints = run_dir / RUN_CONFIG_NAME, list_checkpoints(run_dir)
    if not config_path.exists() and not checkpoints:
        return None
    if not resume:
        raise ConfigError(f"{run_dir} already holds a run: add --resume to continue it, or choose another output_dir")
    if not checkpoints:
        return None
    free = {entry.name for entry in fields(config.options) if entry.metadata.get("free_on_resume")}
    if changed := set(differing_settings(config, config_path)) - _FREE_ON_RESUME - {"steps"} - free:
        raise ConfigError(
            f"cannot resume {run_dir}: {', '.join(sorted(changed))} differ from {config_path}; set them back, or start "
            f"a new run from its weights: init={run_dir} and another output_dir"
        )
    return checkpoints[-1]


def resume_progress(
    checkpoint: Path | None,
    model: Any,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
    fresh: Progress,
    run_dir: Path,
    steps: int,
) -> Progress:
    """Return the progress of `checkpoint`, restored into model, optimizer and average, or `fresh`. steps: of the run.

    Raises ConfigError where the annotations or the kind of device are not those that the run began with, or more steps
    are done than the run has.
    """
    if checkpoint is None:
        return fresh
    state = read_state(checkpoint)
    progress = state["progress"]
    for name, setting in (("annotations", "the content of data.train"), ("device", "the device")):
        before, now = getattr(progress, name), getattr(fresh, name)
        if before != now:
            raise ConfigError(f"cannot resume {run_dir}: {setting} changed from {before} to {now} since the run began")
    if steps < progress.step:
        raise ConfigError(f"cannot resume {run_dir}: steps={steps}, of which {progress.step} are done already")
    restore_checkpoint(checkpoint, state, model, optimizer, averaged)
    logger.info("resuming %s after step %d", run_dir, progress.step)
    if (before := saved_steps(run_dir / RUN_CONFIG_NAME)) != steps:
        logger.warning(
            "%s: steps is %d where it was %d: from step %d on the learning rate is that of a run of %d steps, and the "
            "result is not that of such a run",
            run_dir, steps, before, progress.step, steps,
        )  # fmt: skip
    return progress


def train(config: TrainConfig, *, resume: bool = False, progress_bar: bool = True) -> TrainResult:
    """Train as `config` says; everything lands in `config.output_dir`.

    resume: continue from the newest checkpoint there (or start, if there is none yet); the result is bit-identical to
    an uninterrupted run on the same machine. `steps` may be another than the run began with: the schedule is then that
    of the new number from there on, which is logged. Raises ConfigError, or FloatingPointError for a loss that is not
    finite.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("this version trains on one process; WORLD_SIZE is set: start it without torchrun")
    run_dir, device = Path(config.output_dir), choose_device(config.device)
    checkpoint = find_checkpoint(config, resume=resume)
    task = build_task(config, checkpoint)
    tokenizer = prepare_tokenizer(config, task, checkpoint)

    model_config = task.complete(tokenizer)
    if checkpoint is not None:
        model_config = saved_model_config(checkpoint, type(model_config))
    torch.manual_seed(config.seed)
    model = build_model(model_config, device).train()
    if checkpoint is None:
        load_initial_weights(model, config, task)
        task.prepare(model, tokenizer)
    optimizer = build_optimizer(model, config.optimizer)
    averaged = None
    if config.ema_decay is not None:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    fresh = Progress(annotations=task.digest(), device=device.type)
    progress = resume_progress(checkpoint, model, optimizer, averaged, fresh, run_dir, config.steps)
    clamp_parameters(model)
    compute = torch.compile(model) if config.compile else model
    loader = training_loader(config, task, tokenizer, device, progress)

    def write_files_beside(folder: Path) -> None:
        task.write_labels(folder)
        write_reading(folder, config.data.framing)
        if tokenizer is not None:
            tokenizer.save(folder / TOKENIZER_NAME)

    if config.accumulate > 1 and task.contrasts:
        logger.warning(
            "accumulate=%d: a step is of %d clips, but contrast and matching compare a clip with the others of its "
            "batch of %d alone; for more of them set batch_size",
            config.accumulate, config.accumulate * config.batch_size, config.batch_size,
        )  # fmt: skip
    # only now, with everything valid, the folder becomes this run's
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, run_dir / RUN_CONFIG_NAME)
    clear_partial_folders(run_dir)
    seconds_before = progress.train_seconds
    with (
        MetricsWriter(run_dir, resume_step=progress.step, tensorboard=config.tensorboard) as writer,
        loader,
        tqdm(
            total=config.steps,
            initial=progress.step,
            unit="step",
            desc=config.command,
            disable=not progress_bar,
            smoothing=0.05,
            dynamic_ncols=True,
        ) as bar,
    ):
        started = interval_start = time.perf_counter()
        interval_wait = interval_steps = 0
        totals: dict[str, Tensor] = {}
        for batch in loader if progress.step < config.steps else ():
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss, terms = task.loss(compute, model, batch)
            (loss / config.accumulate).backward()
            seen = {"loss": loss.detach(), **terms}
            totals = {name: totals[name] + value for name, value in seen.items()} if totals else seen
            if (batch.step + 1) % config.accumulate:
                continue

            rate = learning_rate_at(progress.step, config.steps, config.optimizer)
            set_learning_rate(optimizer, rate)
            # an infinite bound leaves the gradients alone and still gives their norm
            bound = float("inf") if config.optimizer.clip_norm is None else config.optimizer.clip_norm
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
            optimizer.step()
            clamp_parameters(model)
            optimizer.zero_grad(set_to_none=True)
            if averaged is not None:
                averaged.update_parameters(model)
            progress.step += 1
            interval_steps += 1

            logging_due = progress.step % config.log_every == 0 or progress.step == config.steps
            saving_due = progress.step % config.checkpoint_every == 0 or progress.step == config.steps
            if logging_due or saving_due:
                metrics = fetch(totals, config.accumulate, grad_norm)
                if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
                    raise FloatingPointError(
                        f"loss is {metrics['loss']} and grad_norm {metrics['grad_norm']} "
                        f"at step {progress.step} of {run_dir}"
                    )
            totals = {}
            if logging_due:
                now = time.perf_counter()
                elapsed, waited = now - interval_start, loader.wait_seconds - interval_wait
                speed = {
                    "clips_per_second": interval_steps * config.accumulate * config.batch_size / elapsed,
                    "data_wait_percent": 100 * waited / elapsed,
                }
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
                progress.bad_files = loader.bad_files
                writer.sync()
                save_checkpoint(
                    run_dir,
                    model,
                    optimizer,
                    averaged,
                    progress,
                    write_files_beside,
                    keep=config.keep_checkpoints,
                )

    model_dir, final = run_dir / "model", model if averaged is None else averaged.module
    publish_folder(model_dir, lambda folder: write_inference_folder(folder, final, write_files_beside))
    return TrainResult(
        final.eval(),
        tokenizer,
        model_dir,
        progress.step,
        progress.train_seconds,
        progress.bad_files,
        last_record(run_dir),
    )


def fetch(totals: dict[str, Tensor], batches: int, grad_norm: Tensor) -> dict[str, float]:
    """Fetch means over the batches of a step, and the norm, from the device in one transfer."""
    *sums, norm = torch.stack([*totals.values(), grad_norm]).float().tolist()
    return {**{name: value / batches for name, value in zip(totals, sums, strict=True)}, "grad_norm": norm}
