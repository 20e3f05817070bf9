"""Memory of a step in micro-batches, by what torch's profiler says of every allocation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.training.steps import CASES, in_micro_batches, in_one_forward, make_batch, parts

CLIPS = 4  # of a micro-batch


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that is taken at any time of this work, beside what was there before: exact, of all tensors."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    found: Any = profiled.profiler
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    sizes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(sizes.cumsum(0).max())


def peaks(name: str, micro_batches: int) -> tuple[int, int]:
    """Of a step of so many micro-batches: as the engine computes it, whose clips come one micro-batch after the other,
    and in one forward pass."""
    case = CASES[name]
    model = case.model()
    batch = make_batch(case, lengths=(4, 9, 7, 6) * micro_batches, ids=range(CLIPS * micro_batches))
    batches = parts(batch, micro_batches)

    class Loaded(list):  # copied when they are asked for
        def __getitem__(self, asked: Any) -> Any:
            return (replace(each, video=each.video.clone()) for each in list(self)[asked])

    engine = peak_bytes(lambda: in_micro_batches(case, model, Loaded(batches)))
    return engine, peak_bytes(lambda: in_one_forward(case, model, batch))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("simvtp_hard_learned", (1, 2, 4, 8)), ("dual_encoder", (2, 8)), ("alpro_paper", (2, 8)), ("videoprism", (2, 8))],
)
def test_memory_is_that_of_one_micro_batch(name, sizes):
    """With each further micro-batch a step keeps its clips, uint8, and its features and integers, which are less than a
    hundredth of what a forward pass keeps of it."""
    engine, whole = zip(*(peaks(name, micro_batches) for micro_batches in sizes), strict=True)
    clips = make_batch(CASES[name]).video[:CLIPS].nbytes
    last = (sizes[-1], engine[-1], whole[-1])
    for micro_batches, of_engine, of_whole in zip(sizes[:-1], engine, whole, strict=False):
        if micro_batches == 1:  # the only one is computed in one forward pass
            assert of_engine == pytest.approx(of_whole + clips, rel=1e-3)
            continue
        more = last[0] - micro_batches
        assert clips <= (last[1] - of_engine) / more < clips + 0.01 * (last[2] - of_whole) / more
    assert max(engine) < 0.3 * whole[-1]
