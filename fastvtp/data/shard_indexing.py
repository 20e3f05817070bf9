"""Making the side indexes of many tars at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from fastvtp.data.locations import is_remote, suffix_of
from fastvtp.data.storage import find_file
from fastvtp.data.stored_file import UnreadableError
from fastvtp.data.tar_index import TarListing, VideoFacts, index_tar, tar_listing
from fastvtp.data.tar_samples import sample_key
from fastvtp.data.video_files import VIDEO_SUFFIXES

_HEADER_TELLS = frozenset({".mp4", ".mov", ".m4v"})


@dataclass(frozen=True)
class IndexedTar:
    """What came of a tar: its listing, or the reason why it has none."""

    archive: str
    listing: TarListing | None
    reason: str = ""

    @property
    def num_samples(self) -> tuple[int, int]:
        """Number of samples, and of those with a video."""
        names = () if self.listing is None else self.listing.names
        keys = [(sample_key(name), name) for name in names]
        every = {parts[0] for parts, _ in keys if parts is not None}
        return len(every), len({parts[0] for parts, name in keys if parts and suffix_of(name) in VIDEO_SUFFIXES})


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
    with ProcessPoolExecutor(min(workers, len(archives)), mp_context=context) as pool:
        yield from pool.map(work, archives)


def _indexed(archive: str, *, again: bool, look: bool) -> IndexedTar:
    try:
        if not again:
            listing = tar_listing(archive)
            if listing.facts or not look or is_remote(archive) or not any(map(_header_tells, listing.names)):
                return IndexedTar(archive, listing)
        facts = look_at_header if look and not is_remote(archive) else None
        return IndexedTar(archive, index_tar(archive, beside=True, look=facts)[0])
    except UnreadableError as error:
        return IndexedTar(archive, None, error.reason)


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
