"""The loader of a run: its data sets, of videos and of pictures, in one stream of micro-batches."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fastvtp import processes
from fastvtp.data.loader import Decoding, VideoTextLoader
from fastvtp.data.mixing import BatchSource, MixedLoader
from fastvtp.data.reading import ClipShape
from fastvtp.data.records import VideoRecord
from fastvtp.data.stream import Batches
from fastvtp.data.text import Tokenizer
from fastvtp.training.config import TrainConfig
from fastvtp.training.state import Progress
from fastvtp.training.task import Task


def training_loader(
    config: TrainConfig, task: Task, tokenizer: Tokenizer | None, device: torch.device, progress: Progress, each: int
) -> VideoTextLoader | MixedLoader:
    """Return the loader of the micro-batches that this process has still to see; a step takes `each` of them."""
    data = config.data
    batches = Batches(
        batch_size=config.clips_at_a_time,
        train=True,
        seed=config.seed,
        start_step=progress.step * each,
        num_steps=(config.steps - progress.step) * each,
        rank=processes.rank(),
        world_size=processes.size(),
    )
    if (ready := task.ready_loader(batches)) is not None:
        return ready
    clips = ClipShape(config.model.num_frames, config.model.image_size)
    decoding = Decoding(
        decoder=data.decoder,
        decoder_threads=data.decoder_threads,
        num_workers=data.num_workers,
        file_seconds=data.file_seconds,
        device=device,
        known_bad=progress.bad_files,
    )

    def source(records: Sequence[VideoRecord], share: float, kind: str = "video", repeat: int = 1) -> BatchSource:
        pictures = kind == "image"

        def loader(start_step: int, num_steps: int) -> VideoTextLoader:
            return VideoTextLoader(
                records,
                tokenizer,
                shape=replace(clips, num_frames=1) if pictures else clips,
                # one frame needs no choice of frames, and no video decoder of a GPU reads pictures
                reading=replace(data.reading, sampling="uniform", frame_stride=1, fps=None)
                if pictures
                else data.reading,
                decoding=replace(decoding, decoder="pyav") if pictures else decoding,
                batches=replace(batches, start_step=start_step, num_steps=num_steps),
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
        return sources[0].loader(batches.start_step, (config.steps - progress.step) * each)
    return MixedLoader(sources, batches, run=each)
