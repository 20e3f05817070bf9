"""Batches of several data sets, of videos and of pictures, in one stream: each batch is of one set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import floor

from fastvtp.data.loader import VideoTextBatch, VideoTextLoader
from fastvtp.data.stream import Batches
from fastvtp.errors import UserError


@dataclass(frozen=True)
class BatchSource:
    """One data set of a stream of batches.

    loader: (start_step, num_steps) -> its loader, which counts its own batches. share: of the batches, relative to
    those of the other sets. kind: "video" or "image", which its batches bear. repeat: times that each frame is shown,
    one after the other; it is decoded once.
    """

    loader: Callable[[int, int], VideoTextLoader]
    share: float
    kind: str = "video"
    repeat: int = 1

    def shown(self, batch: VideoTextBatch, step: int) -> VideoTextBatch:
        """Turn a batch of the loader into the stream's batch number `step`."""
        video = batch.video if self.repeat == 1 else batch.video.repeat_interleave(self.repeat, dim=1)
        return replace(batch, video=video, step=step, kind=self.kind)


class MixedLoader:
    """Yields batches of several sources, each its share of them, evenly spread; a context manager.

    The sources take turns of `run` batches, those that one optimizer step accumulates: each step is of one set
    (alternating gradient descent, VideoPrism, appendix C.1).

    Whose batch step s is follows from s alone, and so does what it holds: a run resumes exactly at any step. `step` of
    a batch is its number in the mixed stream.

    Args:
        sources: the data sets.
        batches: the batches to make, of which `start_step`, `num_steps`, `rank` and `world_size` are followed.
        run: batches of a turn, on each rank.

    Raises UserError where the number of steps is left open.
    """

    def __init__(self, sources: Sequence[BatchSource], batches: Batches, *, run: int = 1):
        if batches.num_steps is None:
            raise UserError("num_steps is none: batches of several sources are a number of steps")
        start_step, num_steps = batches.start_step, batches.num_steps
        self._sources, self._steps, self._run = sources, range(start_step, start_step + num_steps), run
        self._rank, self._world_size = batches.rank, batches.world_size
        self._shares = [source.share for source in sources]
        first, last = (batches_before(step, self._shares, run) for step in (start_step, start_step + num_steps))
        self._loaders = [
            source.loader(start, end - start) for source, start, end in zip(sources, first, last, strict=True)
        ]

    @property
    def bad_files(self) -> dict[str, str]:
        return dict(sorted(item for loader in self._loaders for item in loader.bad_files.items()))

    @property
    def wait_seconds(self) -> float:
        return sum(loader.wait_seconds for loader in self._loaders)

    def __enter__(self) -> MixedLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers of all sources."""
        for loader in self._loaders:
            loader.close()

    def __iter__(self) -> Iterator[VideoTextBatch]:
        streams = [iter(loader) for loader in self._loaders]
        for step in self._steps:
            before, after = (batches_before(s, self._shares, self._run) for s in (step, step + 1))
            turn = next(place for place, count in enumerate(before) if after[place] > count)
            yield self._sources[turn].shown(next(streams[turn]), step * self._world_size + self._rank)


def batches_before(step: int, shares: Sequence[float], run: int = 1) -> list[int]:
    """Count how many of the first `step` batches are of each source, when they take turns of `run` batches.

    The last source takes its share of all turns, the one before it its share of what is left, and so on: each count
    stays within len(shares) turns of its share.
    """
    turns, rest = divmod(step, run)
    counts, following = (_turns_before(number, shares) for number in (turns, turns + 1))
    return [run * count + rest * (after - count) for count, after in zip(counts, following, strict=True)]


def _turns_before(number: int, shares: Sequence[float]) -> list[int]:
    counts, left = [], number
    for place in range(len(shares) - 1, 0, -1):
        counts.append(floor(left * (shares[place] / sum(shares[: place + 1]))))
        left -= counts[-1]
    return [left, *reversed(counts)]
