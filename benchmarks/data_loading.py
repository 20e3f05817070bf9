"""Clips a second out of the loader: decoded, cropped, resized uint8 clips on the device, captions tokenised.

pyav, N workers      frames decoded by PyAV in N worker processes
dali                 frames decoded by DALI, on CUDA with NVDEC (needs libnvcuvid)

The clips are synthetic captioned ones of 256 pixels, generated first; a batch is a step of 16 frames of 224 pixels.
Loaders prefetch, so they are timed one after the other, not in turns: the time between batches once warm, with nothing
else to do, which is the best that a training step can ask for.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .harness import command_line, given_options, measured_environment
from .record import Row, markdown_table, write_json
from .timing import timer_for

WARM_UP, BATCHES = 3, 20


def loaders(folder: Path, device: torch.device, smoke: bool) -> Iterator[tuple[str, Any]]:
    """(name, a loader of endless training batches, or the reason why there is none)."""
    try:
        import nvidia.dali  # noqa: F401 # pyright: ignore[reportMissingImports]

        from fastvtp.data.annotations import load_annotations
        from fastvtp.data.loader import VideoTextLoader
        from fastvtp.data.pipeline import has_nvdec
        from fastvtp.data.synthetic import SyntheticConfig, generate_dataset
        from fastvtp.data.tokenization import CaptionTokenizer
    except ImportError as error:
        yield "pyav", f"missing: {error}"
        yield "dali", f"missing: {error}"
        return
    size, clips, pixels = (64, 6, 32) if smoke else (256, 256, 224)
    config = SyntheticConfig(num_train=clips, num_test=2, num_frames=16, height=size, width=size)
    generate_dataset(folder, config, workers=1 if smoke else os.cpu_count() or 1, progress=False)
    records = load_annotations(folder / "train.jsonl")
    tokenizer = CaptionTokenizer.train([caption for record in records for caption in record.captions], 300)

    def loader(decoder: str, workers: int) -> VideoTextLoader:
        return VideoTextLoader(
            records, tokenizer, batch_size=batch_size(device, smoke), num_frames=4 if smoke else 16,
            image_size=pixels, max_text_length=32, train=True, num_workers=workers, decoder=decoder, device=device,
        )  # fmt: skip

    for workers in (0,) if smoke else sorted({1, os.cpu_count() or 1}):
        yield f"pyav, {workers} workers", loader("pyav", workers)
    if device.type == "cuda" and not has_nvdec():
        yield "dali", "missing: the driver has no libnvcuvid"
    elif device.type == "cpu":
        yield "dali", "missing: DALI's wheels decode H.264 on a GPU alone"
    else:
        yield "dali", loader("dali", 1)


def batch_size(device: torch.device, smoke: bool) -> int:
    return 2 if smoke else 64 if device.type == "cuda" else 8


def seconds_per_batch(loader: Any, device: torch.device, batches: int) -> list[float]:
    """Times between batches after a warm-up."""
    times: list[float] = []
    with loader:
        iterator = iter(loader)
        for number in range(WARM_UP + batches):
            start = time.perf_counter()
            batch = next(iterator)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= WARM_UP:
                times.append(time.perf_counter() - start)
            del batch
    return times


def measured(folder: Path, device: torch.device, smoke: bool) -> Iterator[Row]:
    batch = batch_size(device, smoke)
    for name, loader in loaders(folder, device, smoke):
        row = Row(
            "data_loading", "synthetic clips", name, {"batch": batch, "frames": 4 if smoke else 16}, "uint8", "forward",
            0, 0, 0.0, "",
        )  # fmt: skip
        if isinstance(loader, str):
            row.note = loader
        else:
            try:
                times = seconds_per_batch(loader, device, 3 if smoke else BATCHES)
            except Exception as failure:
                # One decoder's failure must not take the others down.
                row.note = f"failed: {type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
            else:
                row.median_s, row.wall_s, row.calls = statistics.median(times), statistics.fmean(times), len(times)
                deciles = statistics.quantiles(times, n=10, method="inclusive")
                row.p20_s, row.p80_s = deciles[1], deciles[7]
                row.note = f"{batch / row.wall_s:.0f} clips/s"
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__)
    given: argparse.Namespace = parser.parse_args(arguments)
    about, _ = measured_environment(given_options(given), timer_for(given.device))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(Path(folder), given.device, given.smoke):
            rows.append(row)
            if given.json:
                write_json(given.json, rows, about)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
