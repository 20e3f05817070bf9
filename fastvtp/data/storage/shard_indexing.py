"""Making the side indexes of many tars at once."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from logging.handlers import QueueHandler, QueueListener
from typing import Any

from fastvtp.data.locations import SEPARATOR, is_remote, member_of, suffix_of
from fastvtp.data.storage.finding import find_file
from fastvtp.data.storage.settings import storage_settings
from fastvtp.data.storage.stored_file import UnreadableError
from fastvtp.data.storage.tar_index import TarListing, VideoFacts, ensure_index, index_tar, tar_listing
from fastvtp.data.storage.tar_samples import sample_key
from fastvtp.data.video_files import VIDEO_SUFFIXES
from fastvtp.data.workers.child_processes import pass_on

logger = logging.getLogger(__name__)

_TARS_AT_ONCE = 8
_HEADER_TELLS = frozenset({".mp4", ".mov", ".m4v"})


@dataclass(frozen=True)
class IndexedTar:
    """What came of a tar.

    Attributes:
        archive: the tar.
        reason: why it has no index; "" where it has one.
        place: where that lies; None where none could be written.
        files, samples, videos: number of its files, of its samples, and of those with a video.
        codecs: number of videos by codec, of those that were looked at.
    """

    archive: str
    reason: str = ""
    place: str | None = None
    files: int = 0
    samples: int = 0
    videos: int = 0
    codecs: Mapping[str, int] = field(default_factory=dict)


def index_tars(
    archives: Sequence[str], *, workers: int = 1, again: bool = False, look: bool = True
) -> Iterator[IndexedTar]:
    """Make the indexes of tars, each as soon as it is done, in the order of `archives`.

    Args:
        archives: paths and URLs.
        workers: processes; with 1 this one does all.
        again: make also those anew that fit their tar.
        look: write down codec, frames, keyframes, seconds and size of the videos of local tars whose header says so
            (mp4, mov).
    """
    work = partial(_indexed, again=again, look=look)
    if workers == 1 or len(archives) < 2:
        yield from map(work, archives)
        return
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    listener = QueueListener(said, _PassedOn())
    listener.start()
    try:  # the pool ends, and with it what its processes have to say, before the listener does
        size = min(workers, len(archives))
        with ProcessPoolExecutor(size, mp_context=context, initializer=_say_through, initargs=(said,)) as pool:
            yield from pool.map(work, archives)
    finally:
        listener.stop()


class _PassedOn(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        pass_on(record)


def _say_through(said: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[QueueHandler(said)])


def _indexed(archive: str, *, again: bool, look: bool) -> IndexedTar:
    try:
        if not again:
            listing = tar_listing(archive)
            if listing.facts or not look or is_remote(archive) or not any(map(_header_tells, listing.names)):
                return _counted(archive, listing)
        facts = look_at_header if look and not is_remote(archive) else None
        return _counted(archive, index_tar(archive, beside=True, look=facts)[0])
    except UnreadableError as error:
        return IndexedTar(archive, error.reason)


def _counted(archive: str, listing: TarListing) -> IndexedTar:
    keys = [(sample_key(name), name) for name in listing.names]
    return IndexedTar(
        archive,
        place=listing.place,
        files=len(keys),
        samples=len({parts[0] for parts, _ in keys if parts}),
        videos=len({parts[0] for parts, name in keys if parts and suffix_of(name) in VIDEO_SUFFIXES}),
        codecs=Counter(facts.codec for facts in listing.facts.values()),
    )


def _header_tells(location: str) -> bool:
    return suffix_of(location) in _HEADER_TELLS


def look_at_header(location: str) -> VideoFacts | None:
    """Return what the header of an mp4 or mov says of its video; None for other files, and damaged ones."""
    if not _header_tells(location):
        return None
    import av
    from av.error import FFmpegError

    try:
        with av.open(find_file(location).libav, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            entries = () if stream is None else stream.index_entries
            if stream is None or stream.codec_context is None or not len(entries) or stream.duration is None:
                return None
            codec, keyframes = stream.codec_context, sum(entry.is_keyframe for entry in entries)
            seconds = float(stream.duration * stream.time_base)
            return VideoFacts(codec.codec.canonical_name, stream.frames, keyframes, seconds, codec.height, codec.width)
    except (FFmpegError, OSError, IndexError, UnreadableError):
        return None


def index_named(locations: Iterable[str]) -> None:
    """Make the indexes that are missing of the tars whose members are named, several at once, with a progress bar.

    A worker that is to read one video of a large tar has no time for that. Tars that cannot be read are passed over:
    whoever reads a member says so.

    Raises:
        UserError: a URL whose filesystem is unknown, or needs a package that is not installed.
    """
    parts = (member_of(location) for location in locations if SEPARATOR in location)
    tars = list(dict.fromkeys(part[0] for part in parts if part and suffix_of(part[0]) == ".tar"))
    if not tars:
        return
    from tqdm import tqdm  # not every installation that trains has it

    with _alone_on_this_machine(), ThreadPoolExecutor(_TARS_AT_ONCE) as pool:
        try:
            # the bar shows where there is something to wait for, and on a terminal alone
            for _ in tqdm(pool.map(_index_missing, tars), "indexes of tars", len(tars), delay=2, disable=None):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _index_missing(archive: str) -> None:
    with suppress(UnreadableError):
        ensure_index(archive)


@contextmanager
def _alone_on_this_machine() -> Iterator[None]:
    """Let the processes of a run go one after the other: those that follow find the indexes that the first has made."""
    folder = storage_settings().folder / "indexes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")  # noqa: SIM115
    except OSError:  # nothing can be kept there either
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waits until another process has made the indexes of its tars", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a filesystem without locks
            pass
        yield
