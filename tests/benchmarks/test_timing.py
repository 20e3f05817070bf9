"""Timers on a clock and a device of the tests' own making, and peak memory of functions whose peak is known."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import timing
from benchmarks.timing import Ceilings, CpuTimer, CudaTimer, Timing, measure_ceilings, peak_bytes

CPU = torch.device("cpu")
FLOATS = 250_000
MEGABYTE = 4 * FLOATS


class Clock:
    """Stands still unless a call takes its known time."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, *seconds: float) -> Callable[[], None]:
        """Takes seconds[0] the first time, then the others in turn."""
        first, *others = seconds
        calls = 0

        def call() -> None:
            nonlocal calls
            self.now += others[(calls - 1) % len(others)] if calls and others else first
            calls += 1
            self.log.append(name)

        return call


def test_variants_take_turns_after_a_warm_up():
    clock = Clock()
    CpuTimer(clock).time({name: clock.taking(name, 1) for name in "ABC"}, seconds=0)
    assert "".join(clock.log) == "ABC" * (1 + timing.MIN_ROUNDS)


def test_quantiles_of_known_durations():
    clock = Clock()
    durations = [float(value) for value in range(11)]
    times = CpuTimer(clock).time({"A": clock.taking("A", 100, *durations)}, seconds=sum(durations))
    assert times["A"] == Timing(median=5, p20=2, p80=8, wall=5, calls=11)


def test_slower_code_shows_its_ratio_and_the_budget_ends_the_run():
    clock = Clock()
    times = CpuTimer(clock).time({"A": clock.taking("A", 2), "B": clock.taking("B", 3)}, seconds=100)
    assert times["B"].median / times["A"].median == 1.5
    assert times["A"].calls == times["B"].calls == 20


def test_a_budget_without_end_ends():
    clock = Clock()
    assert CpuTimer(clock).time({"A": clock.taking("A", 0)}, seconds=1)["A"].calls == timing.MAX_ROUNDS


class Device:
    """A device that works through a queue while the host fills it; stands in for torch.cuda."""

    sleep_rate = 2e9

    def __init__(self):
        self.host = self.free = 0.0

    def launch(self, host: float, device: float) -> None:
        self.host += host
        self.free = max(self.free, self.host) + device

    def synchronize(self, device: object = None) -> None:
        self.host = max(self.host, self.free)

    def _sleep(self, cycles: int) -> None:
        self.launch(0, cycles / self.sleep_rate)

    def get_device_properties(self, device: object) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=1024)

    def Event(self, enable_timing: bool) -> SimpleNamespace:  # noqa: N802
        event = SimpleNamespace()
        event.record = lambda: setattr(event, "at", max(self.free, self.host))
        event.elapsed_time = lambda end: (end.at - event.at) * 1e3
        return event


@pytest.fixture
def device(monkeypatch) -> Device:
    device = Device()
    monkeypatch.setattr(torch, "cuda", device)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: device.host)
    return device


def test_device_time_is_without_host_gaps_and_flushes(device):
    timer = CudaTimer(CPU)
    assert timer._flush.numel() == 2048
    timer._flush = SimpleNamespace(zero_=lambda: device.launch(1e-6, 5e-6))  # pyright: ignore[reportAttributeAccessIssue]

    def two_launches() -> None:
        device.launch(host=50e-6, device=10e-6)
        device.launch(host=50e-6, device=10e-6)

    def waits_in_between() -> None:
        device.launch(host=50e-6, device=10e-6)
        device.synchronize()
        device.launch(host=50e-6, device=10e-6)

    times = timer.time({"waits": waits_in_between, "queues": two_launches}, seconds=0)
    # The wait empties the queue: the host's next launch is then a gap of this variant, not of its neighbour.
    assert times["waits"].median == pytest.approx(70e-6)
    assert times["queues"].median == pytest.approx(20e-6)
    assert times["queues"].wall == pytest.approx(100e-6, rel=0.02)


@pytest.mark.parametrize(("name", "chosen"), [("cuda:1", ["cuda:1"]), ("cuda", [])])
def test_a_numbered_device_becomes_the_current_one(name, chosen, monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.append(str(device)))
    monkeypatch.setattr(timing, "CudaTimer", lambda device: str(device))
    assert timing.timer_for(torch.device(name)) == name
    assert made == chosen


def test_ceilings_are_bytes_read_and_written_and_two_flops_per_product():
    timer: Any = SimpleNamespace(time=lambda variants, seconds: {name: Timing(2.0, 2, 2, 2, 1) for name in variants})
    ceilings = measure_ceilings(CPU, torch.float32, timer, smoke=True)
    assert ceilings == Ceilings(bytes_per_s=2 * 65536 / 2, flops_per_s=2 * 64**3 / 2)


def test_floor_is_the_larger_of_both():
    ceilings = Ceilings(bytes_per_s=100.0, flops_per_s=1000.0)
    assert ceilings.floor_s(300, 2000) == 3.0
    assert ceilings.floor_s(100, 2000) == 2.0


def floats() -> torch.Tensor:
    return torch.empty(FLOATS)


def three_then_two() -> torch.Tensor:
    one, two = floats(), floats()
    del one
    three, four = floats(), floats()
    del three, four
    return two


def hands_back_what_was_there_before(held: list[torch.Tensor]) -> torch.Tensor:
    held.clear()
    return floats()


ONES = torch.ones(FLOATS)


@pytest.mark.parametrize(
    ("function", "megabytes"),
    [
        (three_then_two, 3),
        (floats, 1),
        (lambda: ONES.zero_(), 0),
        (partial(hands_back_what_was_there_before, [torch.ones(3 * FLOATS)]), 1),
    ],
    ids=["three of four at a time", "the output counts", "in place", "earlier memory"],
)
def test_peak_memory_on_the_cpu(function, megabytes):
    assert peak_bytes(function, CPU) == megabytes * MEGABYTE


def test_peak_memory_sees_temporaries_inside_an_operator():
    """The loss is one operator with a scalar result; its squares live inside it."""
    assert peak_bytes(lambda: F.mse_loss(ONES, ONES), CPU) >= MEGABYTE


def test_peak_memory_on_cuda_is_above_what_is_held(monkeypatch):
    state = {"held": 5, "peak": 90}
    stand_in = {
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": lambda device: state.update(peak=state["held"]),
        "memory_allocated": lambda device: state["held"],
        "max_memory_allocated": lambda device: state["peak"],
    }
    for name, function in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert peak_bytes(lambda: state.update(peak=max(state["peak"], 12)), torch.device("cuda")) == 7
