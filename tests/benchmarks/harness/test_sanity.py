"""On its real clock the CPU timer finds that equal work takes equal time, and 1.5 times the work 1.5 times as long.

This checks the machine as much as the code: that the harness, here and now, measures what is known beforehand. It has
the mark `sanity`, and `pytest -m "not sanity"` leaves it out where the machine is too busy to be measured on.

Other processes share the machine, so one measurement may be off through no fault of the timer: a neighbour that comes
and goes, or a core that is taken away for a while, can hit more calls of one variant than of the other. Each attempt
times longer than the one before, and the test fails only if none of four is in range. A timer with a bias is not let
off by that: it is out of range every time.
"""

import hashlib
from functools import partial

import pytest
import torch

from benchmarks.harness.timing import Function, timer_for

pytestmark = pytest.mark.sanity

# Each iteration hashes what the one before it made, in cache and on one core; together 0.2 to 0.5 ms, a fraction of the
# time slice that a busy scheduler gives: most calls run without an interruption, and the median is one of those.
ITERATIONS = 1000
ATTEMPT_SECONDS = (0.3, 0.7, 1.5, 3.0)


def work(iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", b"password", b"salt", iterations)


@pytest.mark.parametrize(("times_the_work", "low", "high"), [(1.0, 0.97, 1.03), (1.5, 1.4, 1.6)])
def test_ratio_of_two_variants_is_that_of_their_work(times_the_work, low, high):
    timer = timer_for(torch.device("cpu"))
    counts = {"one": ITERATIONS, "other": int(times_the_work * ITERATIONS)}
    variants: dict[str, Function] = {name: partial(work, count) for name, count in counts.items()}
    ratios = []
    for seconds in ATTEMPT_SECONDS:
        times = timer.time(variants, seconds)
        ratios.append(times["other"].median / times["one"].median)
        if low <= ratios[-1] <= high:
            return
    pytest.fail(f"ratios {ratios}, expected one from {low} to {high}")
