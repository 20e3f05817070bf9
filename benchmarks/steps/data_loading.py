"""Measures how many clips a second the loader makes: decoded, cropped, resized uint8 clips on the device.

dali                 frames decoded by DALI, on CUDA with NVDEC (needs libnvcuvid)
pyav, N workers      frames decoded by PyAV in N worker processes

The clips are synthetic ones of 256 pixels, generated first, with captions that the loader turns into tokens; a batch is
a step of 16 frames of 224 pixels.
Loaders prefetch, so they are timed one after the other, not in turns: the time between batches once warm, with nothing
else to do, which is the best that a training step can ask for. The slowest, a single worker, comes last and is given
fewer seconds than it may want.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.workers.child_processes import cores

from ..harness.command import command_line, given_options
from ..harness.record import NOT_REACHED, Row, markdown_table, write_json
from ..harness.running import measured_environment, options_timer

WARM_UP, BATCHES, SMOKE_BATCHES, LEAST_BATCHES = 3, 20, 3, 3
# How long a loader is timed, once LEAST_BATCHES are there.
SECONDS = 8.0

# What makes a loader of endless training batches, or the reason why there is none.
Loaders = dict[str, Callable[[], Any] | str]


def worker_counts(smoke: bool) -> list[int]:
    """Return how many worker processes to try, the number of most worth first."""
    return [0] if smoke else sorted({1, cores()}, reverse=True)


def loaders(folder: Path, device: torch.device, smoke: bool) -> Loaders:
    """Return the loaders by name, DALI's first; the clips are generated in the folder."""
    counts = [f"pyav, {count} workers" for count in worker_counts(smoke)]
    try:
        make = _loader_maker(folder, device, smoke)
    except ImportError as error:
        return dict.fromkeys(["dali", *counts], f"missing: {error}")
    except Exception as failure:
        return dict.fromkeys(["dali", *counts], f"failed: {_first_line(failure)}, before any loader")
    found: Loaders = {"dali": _why_no_dali(device) or partial(make, "dali", 1)}
    for name, count in zip(counts, worker_counts(smoke), strict=True):
        found[name] = partial(make, "pyav", count)
    return found


def _why_no_dali(device: torch.device) -> str:
    try:
        import nvidia.dali  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"missing: {error}"
    from fastvtp.data.pipeline import has_nvdec

    if device.type == "cpu":
        return "missing: DALI's wheels decode H.264 on a GPU alone"
    return "" if has_nvdec() else "missing: the driver has no libnvcuvid"


def _loader_maker(folder: Path, device: torch.device, smoke: bool) -> Callable[[str, int], Any]:
    """Generate the clips, and return what makes a loader of them from a decoder and a number of workers."""
    from fastvtp.data.annotations import load_annotations
    from fastvtp.data.loader import Decoding, VideoTextLoader
    from fastvtp.data.reading import ClipReading, ClipShape
    from fastvtp.data.stream import Batches
    from fastvtp.data.synthetic import SyntheticConfig, generate_dataset
    from fastvtp.data.wordpiece import CaptionTokenizer

    size, clips, pixels = (64, 6, 32) if smoke else (256, 256, 224)
    config = SyntheticConfig(num_train=clips, num_test=2, num_frames=16, height=size, width=size)
    generate_dataset(folder, config, workers=1 if smoke else cores(), progress=False)
    records = load_annotations(folder / "train.jsonl")
    tokenizer = CaptionTokenizer.train([caption for record in records for caption in record.captions], 300)

    def make(decoder: str, workers: int) -> VideoTextLoader:
        return VideoTextLoader(
            records,
            tokenizer,
            shape=ClipShape(num_frames=4 if smoke else 16, image_size=pixels),
            reading=ClipReading(crop_scale=(0.5, 1.0)),
            batches=Batches(batch_size=batch_size(device, smoke), train=True),
            decoding=Decoding(decoder=decoder, num_workers=workers, device=device),
            max_text_length=32,
        )

    return make


def _first_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"


def batch_size(device: torch.device, smoke: bool) -> int:
    """Return how many clips a batch has."""
    return 2 if smoke else 64 if device.type == "cuda" else 8


def seconds_per_batch(loader: Any, device: torch.device, batches: int, seconds: float = SECONDS) -> list[float]:
    """Return the times between up to `batches` batches once warm; after `seconds` in all, LEAST_BATCHES are enough."""
    times: list[float] = []
    with loader:
        iterator = iter(loader)
        begin = time.perf_counter()
        for number in range(WARM_UP + batches):
            start = time.perf_counter()
            batch = next(iterator)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= WARM_UP:
                times.append(time.perf_counter() - start)
            del batch
            if len(times) >= LEAST_BATCHES and time.perf_counter() - begin > seconds:
                break
    return times


def measured(folder: Path, device: torch.device, smoke: bool) -> Iterator[list[Row]]:
    """Yield all rows, again after each loader."""
    found = loaders(folder, device, smoke)
    shape = {"batch": batch_size(device, smoke), "frames": 4 if smoke else 16}
    rows = {
        name: Row("data_loading", "synthetic clips", name, shape, "uint8", "forward", 0, 0, 0.0, "", note=NOT_REACHED)
        for name in found
    }
    for name, make in found.items():
        _measure(rows[name], make, device, smoke)
        yield list(rows.values())


def _measure(row: Row, make: Callable[[], Any] | str, device: torch.device, smoke: bool) -> None:
    if isinstance(make, str):
        row.note = make
        return
    try:
        times = seconds_per_batch(make(), device, SMOKE_BATCHES if smoke else BATCHES)
    except Exception as failure:
        # One decoder's failure must not take the others down.
        row.note = f"failed: {_first_line(failure)}"
        return
    row.median_s, row.wall_s, row.calls = statistics.median(times), statistics.fmean(times), len(times)
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    row.p20_s, row.p80_s = deciles[1], deciles[7]
    row.note = f"{row.shape['batch'] / row.wall_s:.0f} clips/s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the loaders one after the other, and save the rows after each."""
    parser = command_line(__doc__)
    given: argparse.Namespace = parser.parse_args(arguments)
    options = given_options(given)
    about, _ = measured_environment(options, options_timer(options))
    rows: list[Row] = []
    if given.json:
        write_json(given.json, rows, about)
    with tempfile.TemporaryDirectory() as folder:
        for rows in measured(Path(folder), given.device, given.smoke):
            if given.json:
                write_json(given.json, rows, about)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
