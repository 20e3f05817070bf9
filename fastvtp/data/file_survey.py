"""The files of a data set looked at: which are there, which hold the same bytes, and what is in them."""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from tqdm import tqdm

from fastvtp.data.locations import is_remote
from fastvtp.data.sampling import FrameSampling
from fastvtp.data.storage.finding import UnreadableError, find_file, size_of
from fastvtp.data.storage.settings import storage_settings
from fastvtp.data.timespans import Span
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.data.workers.child_processes import cores
from fastvtp.data.workers.helper_process import Helper
from fastvtp.errors import UserError

_T = TypeVar("_T")

CLIP = FrameSampling("strided", 16, 4)
"""The clip whose decoding is timed: the middle 16 frames, 4 apart."""
_END_BYTES = 1 << 16
_MOST_WORKERS = 8


@dataclass(frozen=True)
class FileProbe:
    """What is in a file.

    Attributes:
        reason: why it cannot be decoded; None: it can, as far as the clip in its middle tells. Only then are the others
            set.
        bytes: its size; None where it has none, as a folder of frames.
        seconds, frames: its length.
        fps: mean rate, to a hundredth.
        size: "WxH" of the upright, displayed picture.
        shape: width over height of that, to a hundredth.
        codec: with the pixel format, "h264 yuv420p".
        rotation: degrees that bring it upright.
        mirrored: whether it is mirrored after that.
        stretch: how much wider than high its pixels are shown.
        interlaced: whether its frames are two fields.
        variable: whether its frames stand at uneven distances in time.
        gop: mean number of frames from one that decoding can start from to the next.
        decode_ms: milliseconds of one thread to open it and to decode the frames of `CLIP`, not scaled.
        empty_spans: those of its spans in the list that hold no frame, each with the reason.
        late_ends: those that hold some, and end after it, by which a run has them end; each with by how much.
    """

    reason: str | None = None
    bytes: int | None = None
    seconds: float = 0.0
    frames: int = 0
    fps: float = 0.0
    size: str = ""
    shape: float = 0.0
    codec: str = ""
    rotation: int = 0
    mirrored: bool = False
    stretch: float = 1.0
    interlaced: bool = False
    variable: bool = False
    gop: float = 0.0
    decode_ms: float = 0.0
    empty_spans: tuple[str, ...] = ()
    late_ends: tuple[str, ...] = ()


def sizes_of(videos: Sequence[str], *, progress: bool = False) -> tuple[dict[str, int], dict[str, str]]:
    """Return the bytes of each local file among these locations, and why others cannot be read; URLs and folders of
    frames are in neither."""
    sizes, missing = {}, {}
    for video in tqdm(videos, desc="files", unit="file", disable=not progress or not videos):
        if is_remote(video) or os.path.isdir(video):
            continue
        try:
            sizes[video] = size_of(video)
        except UnreadableError as error:
            missing[video] = error.reason
    return sizes, missing


def fingerprints(sizes: Mapping[str, int], *, progress: bool = False) -> dict[str, str]:
    """Return a fingerprint of each file that is as large as another one, equal where both ends are: SHA-256 of size,
    first and last 64 KiB."""
    by_size = defaultdict(list)
    for video, size in sizes.items():
        by_size[size].append(video)
    doubtful = [video for group in by_size.values() if len(group) > 1 for video in group]
    found = {}
    for video in tqdm(doubtful, desc="equal sizes", unit="file", disable=not progress or not doubtful):
        digest = hashlib.sha256(str(sizes[video]).encode())
        try:
            with find_file(video).open() as file:
                digest.update(file.read(_END_BYTES))
                file.seek(max(0, sizes[video] - _END_BYTES))
                digest.update(file.read(_END_BYTES))
        except (OSError, UnreadableError):
            continue  # it is named where it is probed
        found[video] = digest.hexdigest()
    return found


def evenly_spread(values: Sequence[_T], number: int) -> list[_T]:
    """Return so many of some values, evenly spread over them, or all of fewer."""
    number = min(number, len(values))
    return [values[place * len(values) // number] for place in range(number)]


def probe_files(
    videos: Mapping[str, Iterable[Span | None]],
    *,
    seconds: float = 60.0,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, FileProbe]:
    """Open each of some videos and decode a clip in its middle, in processes that a file may hang or end.

    Args:
        videos: with the spans of each in the list, which are checked, too.
        seconds: that a file may take. One that takes longer twice in a row counts as undecodable, and so does one at
            which the process ends twice.
        workers: processes; None: one for each core, up to 8.
        progress: show a bar.
    """
    if not videos:
        return {}
    storage_settings()  # raises for what is wrong with all files behind URLs
    helpers = [Helper(seconds) for _ in range(min(workers or min(cores(), _MOST_WORKERS), len(videos)))]
    idle = SimpleQueue[Helper]()
    for helper in helpers:
        idle.put(helper)

    def probed(video: str) -> FileProbe:
        helper = idle.get()
        try:
            return helper.call(probe_file, video, tuple(videos[video]))
        except (UserError, OSError) as error:
            return FileProbe(str(error))
        finally:
            idle.put(helper)

    found = {}
    bar = tqdm(desc="probing", unit="file", disable=not progress, total=len(videos))
    with bar, ThreadPoolExecutor(len(helpers)) as threads:
        try:
            jobs = {threads.submit(probed, video): video for video in videos}
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
                bar.update()
        finally:
            for helper in helpers:
                helper.stop()
            threads.shutdown(cancel_futures=True)
            for helper in helpers:
                helper.close()
    return {video: found[video] for video in videos}


def probe_file(location: str, spans: Iterable[Span | None] = ()) -> FileProbe:
    """Open a video, say what is in it, and decode a clip in its middle."""
    began = time.thread_time()
    try:
        with Video(location) as video:
            video.read(CLIP.indices(video.num_frames, None))
            took = time.thread_time() - began
            info, times, keyframes = video.info(), video.frame_times(), len(video.keyframes)
            duration = video.duration
            told = [_about_span(span, video) for span in spans if span is not None]
        size = None if is_remote(location) or os.path.isdir(location) else size_of(location)
    except (UnreadableError, VideoDecodeError) as error:
        return FileProbe(error.reason)
    return FileProbe(
        bytes=size,
        seconds=round(duration, 3),
        frames=info.frames,
        fps=round(info.frames / duration if duration else info.fps, 2),
        size=f"{info.width}x{info.height}",
        shape=round(info.width / info.height, 2),
        codec=f"{info.codec} {info.pix_fmt}",
        rotation=info.rotation,
        mirrored=info.mirrored,
        stretch=info.stretch,
        interlaced=info.interlaced,
        variable=times.rate is None,
        gop=info.frames / max(1, keyframes),
        decode_ms=1000 * took,
        empty_spans=tuple(empty for empty, _ in told if empty),
        late_ends=tuple(late for _, late in told if late),
    )


def _about_span(span: Span, video: Video) -> tuple[str, str]:
    """Return what is wrong with a span that holds no frame of its video, and with one that ends after it; else ""."""
    if not span.frames_of(video):
        length = span.begins_after(video)
        return (f"{span.said} holds none" if length is None else f"{span.said} begins after its {length}"), ""
    # as the loader of a run counts: by milliseconds
    beyond = round(span.seconds_beyond(video), 3)
    return "", f"{span.said}, by {beyond:g} s" if beyond else ""
