"""The pretraining loop, to be read from top to bottom."""

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.loader import VideoTextLoader
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.models.simvtp import SimVTP, SimVTPOutput
from fastvtp.training.config import ConfigError, TrainConfig, differing_settings, save_config
from fastvtp.training.metrics import MetricsWriter, last_record
from fastvtp.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from fastvtp.training.state import (
    Progress,
    list_checkpoints,
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
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: torch {torch.__version__} sees no CUDA device; use device=cpu")
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


def with_tokenizer(config: TrainConfig, tokenizer: CaptionTokenizer) -> TrainConfig:
    """The config with the tokenizer's vocabulary size and special ids in the model's."""
    model = dataclasses.replace(
        config.model,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        mask_token_id=tokenizer.mask_id,
        special_token_ids=tuple(sorted(tokenizer.special_ids)),
    )
    return dataclasses.replace(config, model=model)


def training_loader(
    config: TrainConfig, records: list[VideoRecord], tokenizer: CaptionTokenizer, device: torch.device, start_step: int
) -> VideoTextLoader:
    data = config.data
    return VideoTextLoader(
        records, tokenizer,
        batch_size=config.batch_size, num_frames=config.model.num_frames, image_size=config.model.image_size,
        sampling=data.sampling, frame_stride=data.frame_stride, max_text_length=data.max_text_length,
        crop_scale=data.crop_scale, flip=data.flip, seed=config.seed, train=True,
        start_step=start_step, num_steps=config.steps - start_step,
        num_workers=data.num_workers, decoder=data.decoder, device=device,
    )  # fmt: skip


def prepare_run(config: TrainConfig, *, resume: bool) -> Path | None:
    """Claim the output folder; returns the checkpoint to resume from, or None for a fresh start.

    Raises ConfigError rather than overwrite a run, or resume one under settings that would change its numbers.
    """
    run_dir = Path(config.output_dir)
    config_path = run_dir / CONFIG_NAME
    if config_path.exists():
        if not resume:
            raise ConfigError(
                f"{run_dir} already holds a run: add --resume to continue it, or choose another output_dir"
            )
        if changed := set(differing_settings(config, config_path)) - _FREE_ON_RESUME:
            raise ConfigError(f"cannot resume {run_dir}: {', '.join(sorted(changed))} differ from {config_path}")
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, config_path)
    checkpoints = list_checkpoints(run_dir)
    return checkpoints[-1] if checkpoints else None


def train(config: TrainConfig, *, resume: bool = False, progress_bar: bool = True) -> TrainResult:
    """Pretrain as `config` says; everything lands in `config.output_dir`.

    resume: continue from the newest checkpoint there (or start, if there is none yet); the result is bit-identical to
    an uninterrupted run on the same machine. Raises ConfigError, or FloatingPointError for a loss that is not finite.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("this version trains on one process; WORLD_SIZE is set: start it without torchrun")
    run_dir, device = Path(config.output_dir), choose_device(config.device)
    checkpoint = prepare_run(config, resume=resume)
    records = load_annotations(config.data.train)
    tokenizer = prepare_tokenizer(config, records, checkpoint)
    config = with_tokenizer(config, tokenizer)

    torch.manual_seed(config.seed)
    model = SimVTP(config.model).to(device)
    model.init_weights()
    optimizer = build_optimizer(model, config.optimizer)
    progress = Progress() if checkpoint is None else restore_checkpoint(checkpoint, model, optimizer)
    if checkpoint is not None:
        logger.info("resuming %s after step %d", run_dir, progress.step)
    model.train()
    compute = torch.compile(model) if config.compile else model

    previous_bad = dict(progress.bad_files)
    seconds_before = progress.train_seconds
    with (
        MetricsWriter(run_dir, resume_step=progress.step, tensorboard=config.tensorboard) as writer,
        training_loader(config, records, tokenizer, device, progress.step) as loader,
        tqdm(total=config.steps, initial=progress.step, unit="step", desc="pretrain", disable=not progress_bar,
             smoothing=0.05, dynamic_ncols=True) as bar,
    ):  # fmt: skip
        started = interval_start = time.perf_counter()
        interval_wait = interval_steps = 0
        for batch in loader:
            rate = learning_rate_at(progress.step, config.steps, config.optimizer)
            set_learning_rate(optimizer, rate)
            plan = model.plan(
                batch.input_ids, batch.text_lengths, batch.sample_ids, seed=config.seed, step=progress.step
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                output: SimVTPOutput = compute(batch.video.to(device, non_blocking=True), plan)
            output.loss.backward()
            # an infinite bound leaves the gradients alone and still gives their norm
            bound = config.optimizer.clip_norm or float("inf")
            gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            interval_steps += 1

            if progress.step % config.log_every == 0 or progress.step == config.steps:
                metrics = read_metrics(output, gradient_norm, rate)
                if not torch.isfinite(output.loss):
                    raise FloatingPointError(f"loss is {metrics['loss']} at step {progress.step} of {run_dir}")
                now = time.perf_counter()
                elapsed, waited = now - interval_start, loader.wait_seconds - interval_wait
                speed = {
                    "clips_per_second": interval_steps * config.batch_size / elapsed,
                    "data_wait_percent": 100 * waited / elapsed,
                }
                writer.write(progress.step, metrics, speed)
                bar.set_postfix_str(
                    f"loss {metrics['loss']:.3f}, {speed['clips_per_second']:.0f} clips/s, "
                    f"data wait {speed['data_wait_percent']:.0f}%",
                    refresh=False,
                )
                interval_start, interval_wait, interval_steps = now, loader.wait_seconds, 0
            bar.update()
            if progress.step % config.checkpoint_every == 0 or progress.step == config.steps:
                progress.train_seconds = seconds_before + time.perf_counter() - started
                progress.bad_files = previous_bad | loader.bad_files
                save_checkpoint(run_dir, model, tokenizer, optimizer, progress, keep=config.keep_checkpoints)

    model_dir = run_dir / "model"
    write_inference_folder(model_dir, model, tokenizer)
    return TrainResult(
        model.eval(),
        tokenizer,
        model_dir,
        progress.step,
        progress.train_seconds,
        progress.bad_files,
        last_record(run_dir),
    )


def read_metrics(output: SimVTPOutput, gradient_norm: Tensor, rate: float) -> dict[str, float]:
    """The numbers of a logged step, fetched from the device in one transfer."""
    names = ["loss", *(f"loss/{k}" if "accuracy" not in k else k for k in output.terms), "grad_norm"]
    values = torch.stack([output.loss.detach(), *output.terms.values(), gradient_norm]).float().tolist()
    return {**dict(zip(names, values, strict=True)), "learning_rate": rate}
