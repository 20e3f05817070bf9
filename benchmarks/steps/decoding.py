"""Measures decoders on one device, codec by codec: clips a second, the share of NVDEC, colours, and a step's wait.

speed of each codec  clips of 16 frames of a 10 s video of 340 x 256 pixels, a keyframe every 12 frames, to 224 pixels,
                     by data.decoder=auto (NVDEC on a GPU that has it) and by PyAV in as many workers as processors;
                     `calls` are batches; the note says what share of its time NVDEC was at work, by nvidia-smi
colours              of flat patches in each matrix and range: `error` is the most levels (of 255) off PyAV's, "decoder"
                     for what DALI's decoder makes of the file, "loader" for what comes out of the loader
data wait            the share of its time that a SimVTP-B training step waits for H.264 clips

Everything that fails gets a row that says so.
"""

import argparse
import logging
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastvtp.data.workers.child_processes import cores

from ..harness.case import Options
from ..harness.command import command_line, given_options
from ..harness.record import Row, markdown_table, write_json
from ..harness.running import failed, measured_environment, options_timer
from .data_loading import batch_size, seconds_per_batch
from .train_step import step_case

CODECS = ("h264", "hevc", "vp9", "mjpeg")
SPACES = {"BT.601": 6, "BT.709": 1, "BT.2020": 9}
FILES, FRAMES, SMOKE_FRAMES = 64, 250, 8
BATCHES, SMOKE_BATCHES, SECONDS = 20, 3, 3.0
LOOK_EVERY = 0.2  # seconds between two questions to nvidia-smi


def _row(case: str, variant: str, options: Options) -> Row:
    shape = {"batch": batch_size(options.device, options.smoke), "frames": 4 if options.smoke else 16}
    return Row("decoding", case, variant, shape, "uint8", "forward", 0, 0, 0.0, "")


def _write_files(folder: Path, codec: str, smoke: bool) -> list[Path]:
    """Write a moving picture once, and copies of it, as data sets have one file a clip."""
    import av

    from fastvtp.data.dali_trial import patches_clip
    from fastvtp.data.video.colours import Colours

    frames, (height, width) = (SMOKE_FRAMES, (64, 96)) if smoke else (FRAMES, (256, 340))
    generator = np.random.default_rng(0)
    blur = np.repeat(np.repeat(generator.integers(40, 200, (height // 4 + 64, width // 4 + 64)), 4, 0), 4, 1)
    pictures = []
    for number in range(frames):
        luma = blur[number % 64 : number % 64 + height, number % 48 : number % 48 + width].astype(np.uint8)
        grey = np.full((height // 2, width), 128, np.uint8)
        name = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        pictures.append(av.VideoFrame.from_ndarray(np.concatenate([luma, grey]), format=name))
    content = patches_clip(codec, Colours(6, codec == "mjpeg"), pictures=pictures)
    files = [folder / f"{codec}_{number:03}" for number in range(4 if smoke else FILES)]
    for file in files:
        file.write_bytes(content)
    return files


def _loader(files: Sequence[Path], decoder: str, options: Options, workers: int, batch: int | None = None) -> Any:
    from fastvtp.data.annotations import VideoRecord
    from fastvtp.data.loader import Decoding, VideoTextLoader
    from fastvtp.data.reading import ClipReading, ClipShape
    from fastvtp.data.stream import Batches

    return VideoTextLoader(
        [VideoRecord(file.name, str(file), ("a clip",)) for file in files],
        None,
        shape=ClipShape(num_frames=4 if options.smoke else 16, image_size=32 if options.smoke else 224),
        reading=ClipReading(crop_scale=(0.5, 1.0)),
        batches=Batches(batch_size=batch or batch_size(options.device, options.smoke), train=True),
        decoding=Decoding(decoder=decoder, num_workers=workers, device=options.device),
    )


class _Taken(logging.Handler):
    """Keeps what loaders say of files that PyAV takes over."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _said() -> Iterator[list[str]]:
    handler = _Taken()
    logging.getLogger("fastvtp").addHandler(handler)
    try:
        yield handler.messages
    finally:
        logging.getLogger("fastvtp").removeHandler(handler)


@contextmanager
def _nvdec_share(device: torch.device) -> Iterator[list[float]]:
    """Collect how busy NVDEC is, in percent, several times a second; nothing where nvidia-smi cannot tell."""
    shares: list[float] = []
    done = threading.Event()

    def look() -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.decoder", "--format=csv,noheader,nounits"]
        while not done.wait(LOOK_EVERY):
            found = subprocess.run([*command, f"--id={device.index or 0}"], capture_output=True, text=True, check=False)
            try:
                shares.append(float(found.stdout))
            except ValueError:
                return

    looks = device.type == "cuda" and shutil.which("nvidia-smi") is not None
    thread = threading.Thread(target=look, daemon=True)
    if looks:
        thread.start()
    try:
        yield shares
    finally:
        done.set()
        if looks:
            thread.join()


def _speed(row: Row, files: Sequence[Path], decoder: str, options: Options) -> None:
    workers = 0 if options.smoke else cores()
    with _said() as said, _nvdec_share(options.device) as shares:
        loader = _loader(files, decoder, options, workers)
        times = seconds_per_batch(loader, options.device, SMOKE_BATCHES if options.smoke else BATCHES, SECONDS)
    row.median_s, row.wall_s, row.calls = statistics.median(times), statistics.fmean(times), len(times)
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    row.p20_s, row.p80_s = deciles[1], deciles[7]
    busy = f"NVDEC at work {statistics.fmean(shares):.0f} % of the time" if shares else ""
    row.note = "; ".join(filter(None, [f"{row.shape['batch'] / row.wall_s:.0f} clips/s", busy, *said]))


def _colours(codec: str, space: int, full: bool, folder: Path, options: Options) -> Iterator[Row]:
    """Yield how far off PyAV's colours those of DALI's decoder are, and those of the loader."""
    from fastvtp.data.dali_trial import decode_alone, patches_clip, patches_of
    from fastvtp.data.video.colours import Colours
    from fastvtp.data.video.decoding import decode_frames

    colours = Colours(space, full)
    path = folder / f"{codec}_colours"
    path.write_bytes(patches_clip(codec, colours))
    expected = patches_of(decode_frames(path, [0])[0])
    device = options.device.index or 0 if options.device.type == "cuda" else None

    def by_decoder() -> np.ndarray:
        return decode_alone(np.fromfile(path, np.uint8), np.zeros(1, np.int32), device)[0]

    def by_loader() -> np.ndarray:
        from fastvtp.data.annotations import VideoRecord
        from fastvtp.data.loader import Decoding, VideoTextLoader
        from fastvtp.data.reading import ClipShape
        from fastvtp.data.stream import Batches

        with VideoTextLoader(
            [VideoRecord("patches", str(path), ("patches",))],
            None,
            shape=ClipShape(num_frames=1, image_size=None),
            batches=Batches(batch_size=1, train=False),
            decoding=Decoding(decoder="dali", num_workers=0, device=options.device),
        ) as loader:
            return next(iter(loader)).video[0, 0].cpu().numpy()

    for variant, make in (("decoder", by_decoder), ("loader", by_loader)):
        row = _row(f"{codec}, {colours}", variant, options)

        def compare(row: Row = row, make: Callable[[], np.ndarray] = make) -> None:
            with _said() as said:
                row.error = float(np.abs(patches_of(make()) - expected).max())
            row.note = "; ".join([f"{row.error:.1f} levels off PyAV's at most", *said])

        _kept(row, compare)
        yield row


def _data_wait(row: Row, files: Sequence[Path], options: Options) -> None:
    case = step_case("simvtp_base", options)
    step = case.variants[next(name for name in case.variants if name.startswith("fastvtp"))]
    assert callable(step)
    workers, batch = 0 if options.smoke else cores(), case.shape["batch"]
    with _loader(files, "auto", options, workers, batch) as loader:
        batches = iter(loader)
        for _ in range(2):
            next(batches)
            step()
        waited, started, count = loader.wait_seconds, time.perf_counter(), 0
        while count < 3 or time.perf_counter() - started < (0 if options.smoke else SECONDS):
            next(batches)
            step()
            if options.device.type == "cuda":
                torch.cuda.synchronize(options.device)
            count += 1
        row.wall_s = (time.perf_counter() - started) / count
        share = (loader.wait_seconds - waited) / (count * row.wall_s)
    row.shape, row.calls, row.median_s = {"batch": batch}, count, row.wall_s
    row.note = f"{100 * share:.1f} % of the time is spent waiting for data"


def _kept(row: Row, measure: Callable[[], None]) -> None:
    """Measure a row; one that fails takes no other down."""
    try:
        measure()
    except Exception as failure:
        row.note = failed(failure)


def measured(folder: Path, options: Options) -> Iterator[Row]:
    """Yield the rows, one after the other."""
    files: dict[str, list[Path]] = {}
    for codec in CODECS:
        for decoder in ("auto", "pyav"):
            row = _row(codec, decoder, options)

            def speed(row: Row = row, codec: str = codec, decoder: str = decoder) -> None:
                files[codec] = files.get(codec) or _write_files(folder, codec, options.smoke)
                _speed(row, files[codec], decoder, options)

            _kept(row, speed)
            yield row
    for codec in ("vp9", "mjpeg") if options.device.type == "cpu" else CODECS:
        for space in SPACES.values():
            for full in (False, True):
                if codec != "mjpeg" or (space, full) == (SPACES["BT.601"], True):
                    yield from _colours(codec, space, full, folder, options)
    row = _row("data wait", "SimVTP-B step, h264", options)
    _kept(row, partial(_data_wait, row, files.get("h264", ()), options))
    yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure row by row, and save the rows after each."""
    given: argparse.Namespace = command_line(__doc__).parse_args(arguments)
    options = given_options(given)
    about, _ = measured_environment(options, options_timer(options))
    rows: list[Row] = []
    if given.json:
        write_json(given.json, rows, about)
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(Path(folder), options):
            rows.append(row)
            if given.json:
                write_json(given.json, rows, about)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
