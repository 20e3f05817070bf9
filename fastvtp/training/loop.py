"""The pretraining loop, to be read from top to bottom."""

import dataclasses
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastvtp.data.annotations import VideoRecord, annotations_digest, load_annotations
from fastvtp.data.loader import VideoTextLoader
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.models.registry import build_model
from fastvtp.models.simvtp import SimVTP, SimVTPConfig, SimVTPOutput
from fastvtp.training.config import ConfigError, TrainConfig, differing_settings, save_config
from fastvtp.training.metrics import MetricsWriter, last_record
from fastvtp.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from fastvtp.training.state import (
    Progress,
    clear_partial_folders,
    list_checkpoints,
    publish_folder,
    restore_checkpoint,
    save_checkpoint,
    write_inference_folder,
)

logger = logging.getLogger(__name__)

CONFIG_NAME = "train_config.json"
# what may differ when a run is resumed: nothing here changes a number that the run computes
_FREE_ON_RESUME = {
    "output_dir", "data.num_workers", "checkpoint_every", "keep_checkpoints", "tensorboard", "data.test", "log_every",
}  # fmt: skip


@dataclass(frozen=True)
class TrainResult:
    model: SimVTP
    tokenizer: CaptionTokenizer
    model_dir: Path
    """Folder with the final weights, config and tokenizer."""
    steps: int
    train_seconds: float
    """Time in the loop, over all resumed parts."""
    bad_files: dict[str, str]
    """Undecodable files that were met and replaced, with the reason."""
    metrics: dict[str, float]
    """The last record of metrics.jsonl."""


def choose_device(name: str) -> torch.device:
    """ "auto" -> cuda where there is one. Raises ConfigError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name}: expected auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "no"
        raise ConfigError(f"device={name}: torch {torch.__version__} sees {found} CUDA device(s)")
    return device


def prepare_tokenizer(config: TrainConfig, records: list[VideoRecord], saved: Path | None) -> CaptionTokenizer:
    """The tokenizer of the checkpoint folder `saved`, else the configured one, else one trained on the captions."""
    if saved is not None:
        return CaptionTokenizer.load(saved)
    if config.data.tokenizer is not None:
        return CaptionTokenizer.load(config.data.tokenizer)
    captions = [caption for record in records for caption in record.captions]
    tokenizer = CaptionTokenizer.train(captions, vocab_size=config.data.vocab_size)
    logger.info("trained a tokenizer of %d entries on %d captions", tokenizer.vocab_size, len(captions))
    return tokenizer


def with_tokenizer(model: SimVTPConfig, tokenizer: CaptionTokenizer) -> SimVTPConfig:
    """The model's config with the tokenizer's vocabulary size and special ids."""
    return dataclasses.replace(
        model,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        mask_token_id=tokenizer.mask_id,
        special_token_ids=tuple(sorted(tokenizer.special_ids)),
    )


def training_loader(
    config: TrainConfig,
    records: list[VideoRecord],
    tokenizer: CaptionTokenizer,
    device: torch.device,
    progress: Progress,
) -> VideoTextLoader:
    """The loader of the steps still to be made."""
    data = config.data
    return VideoTextLoader(
        records, tokenizer,
        batch_size=config.batch_size, num_frames=config.model.num_frames, image_size=config.model.image_size,
        sampling=data.sampling, frame_stride=data.frame_stride, max_text_length=config.model.max_text_length,
        crop_scale=data.crop_scale, flip=data.flip, seed=config.seed, train=True,
        start_step=progress.step, num_steps=config.steps - progress.step, known_bad=progress.bad_files,
        num_workers=data.num_workers, decoder=data.decoder, device=device,
    )  # fmt: skip


def find_checkpoint(config: TrainConfig, *, resume: bool) -> Path | None:
    """The checkpoint in the output folder to resume from, or None for a fresh start.

    Raises ConfigError rather than overwrite a run, or resume one under settings that would change its numbers.
    """
    run_dir = Path(config.output_dir)
    config_path, checkpoints = run_dir / CONFIG_NAME, list_checkpoints(run_dir)
    if not config_path.exists() and not checkpoints:
        return None
    if not resume:
        raise ConfigError(f"{run_dir} already holds a run: add --resume to continue it, or choose another output_dir")
    if not checkpoints:
        return None
    if changed := set(differing_settings(config, config_path)) - _FREE_ON_RESUME:
        raise ConfigError(
            f"cannot resume {run_dir}: {', '.join(sorted(changed))} differ from {config_path}; "
            "set them back, choose another output_dir, or delete the folder"
        )
    return checkpoints[-1]


def resume_progress(
    checkpoint: Path | None, model: SimVTP, optimizer: torch.optim.Optimizer, fresh: Progress, run_dir: Path
) -> Progress:
    """The progress of `checkpoint`, restored into model and optimizer, or `fresh`.

    Raises ConfigError where the annotations or the kind of device are not those that the run began with.
    """
    if checkpoint is None:
        return fresh
    progress = restore_checkpoint(checkpoint, model, optimizer)
    for name, setting in (("annotations", "the content of data.train"), ("device", "the device")):
        before, now = getattr(progress, name), getattr(fresh, name)
        if before != now:
            raise ConfigError(f"cannot resume {run_dir}: {setting} changed from {before} to {now} since the run began")
    logger.info("resuming %s after step %d", run_dir, progress.step)
    return progress


def train(config: TrainConfig, *, resume: bool = False, progress_bar: bool = True) -> TrainResult:
    """Pretrain as `config` says; everything lands in `config.output_dir`.

    resume: continue from the newest checkpoint there (or start, if there is none yet); the result is bit-identical to
    an uninterrupted run on the same machine. Raises ConfigError, or FloatingPointError for a loss that is not finite.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("this version trains on one process; WORLD_SIZE is set: start it without torchrun")
    run_dir, device = Path(config.output_dir), choose_device(config.device)
    checkpoint = find_checkpoint(config, resume=resume)
    records = load_annotations(config.data.train)
    tokenizer = prepare_tokenizer(config, records, checkpoint)
    model_config = with_tokenizer(config.model, tokenizer)

    torch.manual_seed(config.seed)
    model = build_model(model_config, device).train()
    optimizer = build_optimizer(model, config.optimizer)
    fresh = Progress(annotations=annotations_digest(records), device=device.type)
    progress = resume_progress(checkpoint, model, optimizer, fresh, run_dir)
    compute = torch.compile(model) if config.compile else model
    loader = training_loader(config, records, tokenizer, device, progress)

    # only now, with everything valid, the folder becomes this run's
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, run_dir / CONFIG_NAME)
    clear_partial_folders(run_dir)
    seconds_before = progress.train_seconds
    with (
        MetricsWriter(run_dir, resume_step=progress.step, tensorboard=config.tensorboard) as writer,
        loader,
        tqdm(total=config.steps, initial=progress.step, unit="step", desc="pretrain", disable=not progress_bar,
             smoothing=0.05, dynamic_ncols=True) as bar,
    ):  # fmt: skip
        started = interval_start = time.perf_counter()
        interval_wait = interval_steps = 0
        for batch in loader if progress.step < config.steps else ():
            rate = learning_rate_at(progress.step, config.steps, config.optimizer)
            set_learning_rate(optimizer, rate)
            plan = model.plan(
                batch.input_ids, batch.text_lengths, batch.sample_ids, seed=config.seed, step=progress.step
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                output: SimVTPOutput = compute(batch.video, plan)
            output.loss.backward()
            # an infinite bound leaves the gradients alone and still gives their norm
            bound = float("inf") if config.optimizer.clip_norm is None else config.optimizer.clip_norm
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            interval_steps += 1
            numbers = {"loss": output.loss.detach(), **output.terms, "grad_norm": grad_norm}
            del output  # or its predictions would live on through the next forward pass

            logging_due = progress.step % config.log_every == 0 or progress.step == config.steps
            saving_due = progress.step % config.checkpoint_every == 0 or progress.step == config.steps
            if logging_due or saving_due:
                metrics = fetch(numbers)
                if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
                    raise FloatingPointError(
                        f"loss is {metrics['loss']} and grad_norm {metrics['grad_norm']} "
                        f"at step {progress.step} of {run_dir}"
                    )
            if logging_due:
                now = time.perf_counter()
                elapsed, waited = now - interval_start, loader.wait_seconds - interval_wait
                speed = {
                    "clips_per_second": interval_steps * config.batch_size / elapsed,
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
                save_checkpoint(run_dir, model, tokenizer, optimizer, progress, keep=config.keep_checkpoints)

    model_dir = run_dir / "model"
    publish_folder(model_dir, lambda folder: write_inference_folder(folder, model, tokenizer))
    return TrainResult(
        model.eval(),
        tokenizer,
        model_dir,
        progress.step,
        progress.train_seconds,
        progress.bad_files,
        last_record(run_dir),
    )


def fetch(numbers: dict[str, Tensor]) -> dict[str, float]:
    """Values from the device, all in one transfer."""
    return dict(zip(numbers, torch.stack(list(numbers.values())).float().tolist(), strict=True))
