"""Batches of videos and batches of pictures in one stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import floor

from fastvtp.data.loader import VideoTextBatch, VideoTextLoader

LoaderOf = Callable[[int, int], VideoTextLoader]
"""(start_step, num_steps) -> the loader of one kind, counting its own batches."""


class MixedLoader:
    """Yields batches of two loaders, each a fixed share of them, evenly spread; a context manager.

    Which kind step s is follows from s alone, and so does what it holds: a run resumes exactly at any step. Batches of
    `images` have kind "image". `step` of a batch is that of the mixed stream.

    Args:
        videos, images: make the loaders.
        image_share: of the batches, in (0, 1).
        start_step, num_steps: the steps to make.
    """

    def __init__(self, videos: LoaderOf, images: LoaderOf, *, image_share: float, start_step: int, num_steps: int):
        self._share, self._steps = image_share, range(start_step, start_step + num_steps)
        first, last = (images_before(step, image_share) for step in (start_step, start_step + num_steps))
        self._images = images(first, last - first)
        self._videos = videos(start_step - first, num_steps - (last - first))

    @property
    def bad_files(self) -> dict[str, str]:
        return dict(sorted((self._videos.bad_files | self._images.bad_files).items()))

    @property
    def wait_seconds(self) -> float:
        return self._videos.wait_seconds + self._images.wait_seconds

    def __enter__(self) -> MixedLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers of both."""
        self._videos.close()
        self._images.close()

    def __iter__(self) -> Iterator[VideoTextBatch]:
        videos, images = iter(self._videos), iter(self._images)
        for step in self._steps:
            if images_before(step + 1, self._share) > images_before(step, self._share):
                yield replace(next(images), step=step, kind="image")
            else:
                yield replace(next(videos), step=step)


def images_before(step: int, share: float) -> int:
    """How many of the first `step` batches are of pictures."""
    return floor(step * share)
