"""Timers on a clock and a device of the tests' own making."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.harness import timing
from benchmarks.harness.timing import Ceilings, CpuTimer, CudaTimer, HostSide, Timing, measure_ceilings

CPU = torch.device("cpu")


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

    def __init__(self):
        self.host = self.free = 0.0
        self.clock: Callable[[], float] = lambda: 2e9

    def launch(self, host: float, device: float) -> None:
        self.host += host
        self.free = max(self.free, self.host) + device

    def synchronize(self, device: object = None) -> None:
        self.host = max(self.host, self.free)

    def _sleep(self, cycles: int) -> None:
        self.launch(0, cycles / self.clock())

    def get_device_properties(self, device: object) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=1024)

    def Event(self, enable_timing: bool) -> SimpleNamespace:  # noqa: N802
        event = SimpleNamespace()
        event.record = lambda: setattr(event, "at", max(self.free, self.host))
        event.query = lambda: event.at <= self.host
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

    variants = {"waits": waits_in_between, "queues": two_launches, "host": HostSide(two_launches)}
    times = timer.time(variants, seconds=0)
    # The wait empties the queue: the host's next launch is then a gap of this variant, not of its neighbour.
    assert times["waits"].median == pytest.approx(70e-6)
    assert times["queues"].median == pytest.approx(20e-6)
    assert times["queues"].wall == pytest.approx(100e-6, rel=0.02)
    assert times["host"].median == pytest.approx(110e-6), "by the clock, until the result is there"
    assert (times["waits"].late, times["queues"].late) == (times["waits"].calls, 0)


def test_a_call_that_takes_longer_to_queue_than_before_is_queued_again(device):
    """Three calls measure the host's time; later ones take ten times as long."""
    timer, calls = CudaTimer(CPU), 0

    def growing() -> None:
        nonlocal calls
        calls += 1
        for _ in range(2):
            device.launch(host=50e-6 if calls <= 4 else 500e-6, device=10e-6)

    found = timer.time({"growing": growing}, seconds=0)["growing"]
    assert (found.median, found.p80, found.late) == (pytest.approx(20e-6), pytest.approx(20e-6), 0)


def test_the_rate_of_sleeping_is_that_of_a_clock_that_has_woken(device):
    """Half as fast in its first 50 ms."""
    device.clock = lambda: 1e9 if device.host < 0.05 else 2e9
    assert CudaTimer(CPU)._cycles_per_second == pytest.approx(2e9)


@pytest.mark.parametrize(("name", "chosen"), [("cuda:1", ["cuda:1"]), ("cuda", [])])
def test_a_numbered_device_becomes_the_current_one(name, chosen, monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.append(str(device)))
    monkeypatch.setattr(timing, "CudaTimer", lambda device, rounds: str(device))
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
