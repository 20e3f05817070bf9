"""Measures what choices of encoding make of the clips of `fastvtp prepare`: time to read them, size, fidelity.

Each video is prepared at a shorter side of 224 in every way of `CHOICES`, of H.264; or with `--codecs` by these codecs'
own settings with a keyframe every so many frames (`--gops`). Reading a clip is opening the file, decoding
16 frames and scaling a random crop of them to 224 x 224, in one thread: CPU time, the median of clips at which all
choices take turns. "uniform" takes a frame from each 16th of the video, "strided" every fourth from a random place on.
Fidelity is that of all frames to the unprepared ones scaled to the same size: PSNR of RGB, mean over the frames, and
SSIM of the luma (Wang et al. 2004, with a flat window of 7 x 7), of every tenth frame. Without videos it takes the one
of `clip_reading` of 340x256 with a keyframe every 12 frames.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .clip_files import encode

SHORT_SIDE, PIXELS, FRAMES, STRIDE = 224, 224, 16, 4
CLIPS, WARM_UP = 20, 4
SAMPLINGS = ("uniform", "strided")
_LUMA = np.array([0.299, 0.587, 0.114])
_WINDOW, _C1, _C2 = 7, (0.01 * 255) ** 2, (0.03 * 255) ** 2

# x264's own choices at the preset that is used, and those of `tune=fastdecode` with less to predict from
_USUAL = {"preset": "medium"}
_CAVLC = {**_USUAL, "coder": "vlc"}
_FAST = {**_USUAL, "tune": "fastdecode", "bf": "0", "refs": "1"}


class Choice(NamedTuple):
    """One way to encode. options: of the encoder, those of libx264; None: those of a preparation. crf: None: its."""

    gop: int
    crf: int | None = None
    options: dict[str, str] | None = None
    codec: str = "h264"


CHOICES: dict[str, Choice] = {
    "GOP 8, usual, crf 23": Choice(8, 23, _USUAL),
    "GOP 4, usual, crf 23": Choice(4, 23, _USUAL),
    "GOP 4, no CABAC, crf 23": Choice(4, 23, _CAVLC),
    "GOP 4, fast, crf 22": Choice(4, 22, _FAST),
    "GOP 3, fast, crf 22": Choice(3, 22, _FAST),
    "GOP 2, fast, crf 22": Choice(2, 22, _FAST),
    "GOP 1, fast, crf 22": Choice(1, 22, _FAST),
}


def prepared(video: Path, folder: Path, choice: Choice) -> Path:
    """Write a video as a preparation would, but for the encoder's settings."""
    from fastvtp.data.video.decoding import Video
    from fastvtp.preparation.encoding import ENCODERS, write_clip
    from fastvtp.preparation.settings import ClipEncoding

    before = ENCODERS[choice.codec]
    if choice.options is not None:
        same = {"keyint_min": "%d", "sc_threshold": "0", "x264-params": "cpu-independent=1"}
        ENCODERS[choice.codec] = before[0], {**choice.options, **same}
    try:
        path = folder / f"{video.stem}_{len(list(folder.iterdir()))}.mp4"
        encoding = ClipEncoding(short_side=SHORT_SIDE, gop=choice.gop, crf=choice.crf, codec=choice.codec)
        with Video(video) as opened:
            frames = range(opened.num_frames)
            write_clip(opened, frames, path, encoding)
    finally:
        ENCODERS[choice.codec] = before
    return path


def reading_ms(path: Path, sampling: str, number: int) -> float:
    """Read a clip; CPU milliseconds of this thread."""
    from fastvtp.data.sampling import CropSampling, FrameSampling
    from fastvtp.data.video.decoding import Video

    began = time.thread_time()
    with Video(path) as video:
        indices = FrameSampling(sampling, FRAMES, STRIDE).indices(video.num_frames, np.random.default_rng((1, number)))
        window = CropSampling(1.0, (0.5, 1.0)).window(*video.size, np.random.default_rng((2, number)))
        video.read_windows(indices, [window], (PIXELS, PIXELS))
    return 1000 * (time.thread_time() - began)


def fidelity(path: Path, source: Path) -> tuple[float, float]:
    """Compare all frames of a clip with those of its source; PSNR and SSIM."""
    from fastvtp.data.video.decoding import Video

    psnr, ssim = [], []
    with Video(path) as ours, Video(source) as theirs:
        frames = range(ours.num_frames)
        for number, got, want in zip(frames, ours.stream(frames), theirs.stream(frames, ours.size), strict=True):
            error = float(((got.astype(np.float32) - want) ** 2).mean())
            psnr.append(10 * np.log10(255**2 / max(error, 1e-3)))
            if number % 10 == 0:
                ssim.append(similarity(got @ _LUMA, want @ _LUMA))
    return float(np.mean(psnr)), float(np.mean(ssim))


def similarity(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the mean SSIM of two pictures `[H, W]` of 0 to 255."""
    mean_x, mean_y = _means(x), _means(y)
    spread = _means(x * x) - mean_x**2 + _means(y * y) - mean_y**2 + _C2
    common = 2 * (_means(x * y) - mean_x * mean_y) + _C2
    return float(((2 * mean_x * mean_y + _C1) * common / ((mean_x**2 + mean_y**2 + _C1) * spread)).mean())


def _means(x: np.ndarray) -> np.ndarray:
    sums = np.pad(x.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    n = _WINDOW
    return (sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]) / n**2


def table(video: Path, folder: Path, clips: int = CLIPS, choices: Mapping[str, Choice] = CHOICES) -> str:
    """Measure all choices on a video; a table in Markdown."""
    paths = {name: prepared(video, folder, choice) for name, choice in choices.items()}
    paths = {"unprepared": video, **paths}
    spent: dict[str, dict[str, list[float]]] = {name: {each: [] for each in SAMPLINGS} for name in paths}
    for number in range(WARM_UP + clips):
        for sampling in SAMPLINGS:
            for name, path in paths.items():
                took = reading_ms(path, sampling, number)
                if number >= WARM_UP:
                    spent[name][sampling].append(took)
    lines = [
        f"| {video.stem} | uniform, CPU-ms | strided, CPU-ms | kB | PSNR, dB | SSIM |",
        "|---|---|---|---|---|---|",
    ]
    for name, path in paths.items():
        near = "{:.2f} | {:.4f}".format(*fidelity(path, video)) if name in choices else " | "
        uniform, strided = (statistics.median(spent[name][sampling]) for sampling in SAMPLINGS)
        lines.append(f"| {name} | {uniform:.1f} | {strided:.1f} | {path.stat().st_size / 1000:.0f} | {near} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="*", help="video files of a few seconds")
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips that are timed of each video and choice")
    parser.add_argument("--codecs", nargs="+", default=(), help='compare these instead, such as "h264 hevc vp9 av1"')
    parser.add_argument("--gops", type=int, nargs="+", default=(3, 8, 12), help="at these distances of keyframes")
    given = parser.parse_args(arguments)
    of_codecs = {f"{codec}, GOP {gop}": Choice(gop, codec=codec) for codec in given.codecs for gop in given.gops}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "prepared"
        work.mkdir()
        for video in given.videos or [encode(Path(folder) / "340x256.mp4", height=256, width=340, gop=12, seconds=10)]:
            print(table(video, work, given.clips, of_codecs or CHOICES), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
