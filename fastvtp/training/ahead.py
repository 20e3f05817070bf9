"""Plans made ahead: while a step is computed, a thread lays out the batch after it."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

from fastvtp.data.loader import VideoTextBatch


def with_plans(
    batches: Iterator[VideoTextBatch], plan: Callable[[VideoTextBatch], Any], *, most: int
) -> Iterator[VideoTextBatch]:
    """Give each batch its plan, which is made while the one before it is in use.

    A batch is asked for before its predecessor is given, so that one is held in advance, and none beyond `most`, the
    number that will be used. plan: makes it from a batch, on the host; it runs in a thread of its own and must draw no
    number from torch's generators. What it raises is raised where its batch would be given.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="plans") as thread:
        ahead: deque[tuple[VideoTextBatch, Future[Any]]] = deque()
        for batch in islice(batches, most):
            ahead.append((batch, thread.submit(plan, batch)))
            if len(ahead) > 1:
                yield _planned(*ahead.popleft())
        while ahead:
            yield _planned(*ahead.popleft())


def _planned(batch: VideoTextBatch, plan: Future[Any]) -> VideoTextBatch:
    return replace(batch, plan=plan.result())
