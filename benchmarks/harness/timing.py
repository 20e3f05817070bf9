"""Measures time, and how fast the machine is at best.

Variants are interleaved call by call (A B C A B C ...), so that clocks, heat and neighbours hit all of them alike.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

Function = Callable[[], object]

MIN_ROUNDS, SMOKE_ROUNDS = 5, 2
MAX_ROUNDS = 1000
# Calls that are timed back to back for the wall time take about this long.
WALL_SECONDS = 0.1
# The device sleeps for this multiple of the time the host needs to queue a call, and a little more. In the longest of
# sleeps the host fills the device's queue (about a thousand launches): a longer one would not let it queue more.
BACKLOG, BACKLOG_MARGIN_S, MOST_BACKLOG_S = 2.0, 100e-6, 0.1
# A device that idled runs slowly for some time.
WARM_UP_S, WARM_UP_CYCLES, RATE_CYCLES, RATES = 0.1, 10_000_000, 1_000_000, 5


class HostSide:
    """A variant on the host's side does its work on the processor: on CUDA too the clock times it, from call to result.

    Between two events on the device that work would not be seen.
    """

    def __init__(self, function: Function):
        self._function = function

    def __call__(self) -> object:
        return self._function()


@dataclass(frozen=True)
class Timing:
    """A timing is in seconds per call: median, 20 % and 80 % quantiles of `calls` calls, and wall time back to back.

    `late` counts calls that the device began before the host had queued them whole; these may hold gaps of the host.
    """

    median: float
    p20: float
    p80: float
    wall: float
    calls: int
    late: int = 0


class Timer(Protocol):
    """A timer times several variants in turns; one stands for each kind of device."""

    def time(self, variants: dict[str, Function], seconds: float) -> dict[str, Timing]:
        """Time the variants for about `seconds` in all, at least MIN_ROUNDS calls of each."""
        ...


def timer_for(device: torch.device, rounds: int | None = None) -> Timer:
    """Return a timer for the device that calls each variant at least `rounds` times, by default MIN_ROUNDS."""
    if device.type != "cuda":
        return CpuTimer(rounds=rounds)
    if device.index is not None:
        # The sleep kernel and the events go to the current device.
        torch.cuda.set_device(device)
    return CudaTimer(device, rounds)


def summarize(samples: list[float], wall: float, late: int = 0) -> Timing:
    """Return median and quantiles of the sampled seconds, together with what was counted beside."""
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Timing(statistics.median(samples), deciles[1], deciles[7], wall, len(samples), late)


class CpuTimer:
    """The CPU's timer reads a clock around each call.

    The wall time is the mean of the same calls: a CPU has no queue to hide in.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, rounds: int | None = None):
        self._clock, self._least = clock, rounds or MIN_ROUNDS

    def time(self, variants: dict[str, Function], seconds: float) -> dict[str, Timing]:
        """Call each variant once, then time all of them in turns."""
        for function in variants.values():
            function()
        samples: dict[str, list[float]] = {name: [] for name in variants}
        with _no_garbage_collection():
            for _ in _rounds(self._clock, seconds, self._least):
                for name, function in variants.items():
                    start = self._clock()
                    function()
                    samples[name].append(self._clock() - start)
        return {name: summarize(values, statistics.fmean(values)) for name, values in samples.items()}


@dataclass
class Backlog:
    """A backlog says how long the device sleeps before a call; it grows where that was short, while growing helps."""

    cycles: int
    most: int
    late: int = 0

    def __post_init__(self) -> None:
        self.cycles = self._first = min(self.cycles, self.most)

    def grow(self) -> bool:
        """Sleep twice as long from now on and return True, or count the call as late and return False."""
        if self.late or self.cycles >= self.most:
            self.late, self.cycles = self.late + 1, self._first
            return False
        self.cycles = min(2 * self.cycles, self.most)
        return True


class CudaTimer:
    """The CUDA timer takes device time between two events around each call, and wall time of back-to-back calls.

    Before each call a sleep kernel, long enough for the host to queue the call behind it, keeps host gaps out of the
    device time; a write of twice the L2 cache then evicts the call's inputs. Where the device wakes before the host is
    through, the call is queued again behind a longer sleep. Two kinds of calls stay late and are counted: one that
    itself waits for the device (a boolean index does), whose gap is its own, and one of more launches than the device's
    queue holds, about a thousand.
    """

    def __init__(self, device: torch.device, rounds: int | None = None):
        self._device, self._least = device, rounds or MIN_ROUNDS
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(2 * l2_bytes, dtype=torch.uint8, device=device)
        self._cycles_per_second = self._sleep_rate()

    def time(self, variants: dict[str, Function], seconds: float) -> dict[str, Timing]:
        """Call each variant once, then time all of them in turns, and their wall time at the end."""
        for function in variants.values():
            function()
        queued = {name: function for name, function in variants.items() if not isinstance(function, HostSide)}
        backlogs = {name: self._backlog(function) for name, function in queued.items()}
        samples: dict[str, list[float]] = {name: [] for name in variants}
        with _no_garbage_collection():
            for _ in _rounds(time.perf_counter, seconds, self._least):
                pairs = [self._queue_in_time(function, backlogs[name]) for name, function in queued.items()]
                torch.cuda.synchronize(self._device)
                for name, (start, end) in zip(queued, pairs, strict=True):
                    samples[name].append(start.elapsed_time(end) / 1e3)
                for name in variants.keys() - queued.keys():
                    samples[name].append(self._seconds_for(variants[name], 1))
            walls = {name: self._wall_seconds(function) for name, function in variants.items()}
        late = {name: backlog.late for name, backlog in backlogs.items()}
        return {name: summarize(values, walls[name], late.get(name, 0)) for name, values in samples.items()}

    def _queue_in_time(self, function: Function, backlog: Backlog) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        while True:
            start, end = self._queue(function, backlog.cycles)
            if not start.query() or not backlog.grow():
                return start, end

    def _queue(self, function: Function, cycles: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(cycles)
        self._flush.zero_()
        start.record()
        function()
        end.record()
        return start, end

    def _sleep_rate(self) -> float:
        """Return the cycles a second of the clock at its highest: with a lower rate sleeps would come out short."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < WARM_UP_S:
            torch.cuda._sleep(WARM_UP_CYCLES)
            torch.cuda.synchronize(self._device)
        rates = []
        for _ in range(RATES):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            torch.cuda._sleep(RATE_CYCLES)
            end.record()
            torch.cuda.synchronize(self._device)
            rates.append(RATE_CYCLES / (start.elapsed_time(end) / 1e3))
        return max(rates)

    def _backlog(self, function: Function) -> Backlog:
        durations = []
        for _ in range(3):
            torch.cuda.synchronize(self._device)
            start = time.perf_counter()
            function()
            durations.append(time.perf_counter() - start)
        seconds = BACKLOG * statistics.median(durations) + BACKLOG_MARGIN_S
        return Backlog(int(seconds * self._cycles_per_second), int(MOST_BACKLOG_S * self._cycles_per_second))

    def _seconds_for(self, function: Function, calls: int) -> float:
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def _wall_seconds(self, function: Function) -> float:
        calls = min(MAX_ROUNDS, max(self._least, int(WALL_SECONDS / self._seconds_for(function, 1))))
        return self._seconds_for(function, calls) / calls


def _rounds(clock: Callable[[], float], seconds: float, least: int) -> Iterator[int]:
    start = clock()
    for index in range(MAX_ROUNDS):
        if index >= least and clock() - start >= seconds:
            return
        yield index


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True)
class Ceilings:
    """The ceilings are what a device reached in a run: bytes that a copy reads and writes, FLOP of a square matmul."""

    bytes_per_s: float
    flops_per_s: float

    def floor_s(self, num_bytes: int, flops: int) -> float:
        """Return how long these bytes take at the copy's rate, or these FLOP at the matmul's, whichever is longer."""
        return max(num_bytes / self.bytes_per_s, flops / self.flops_per_s)


def measure_ceilings(device: torch.device, dtype: torch.dtype, timer: Timer, *, smoke: bool = False) -> Ceilings:
    """Measure copy bandwidth and matmul rate on random data, in bfloat16 on CUDA and in `dtype` on the CPU.

    In a smoke run the data are too small for the rates to mean anything.
    """
    if device.type == "cuda":
        dtype = torch.bfloat16
    copied_bytes, side = (1 << 16, 64) if smoke else (1 << 30, 8192) if device.type == "cuda" else (1 << 26, 1024)
    source = torch.randn(copied_bytes // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    times = timer.time({"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}, 0 if smoke else 0.5)
    return Ceilings(2 * copied_bytes / times["copy"].median, 2 * side**3 / times["matmul"].median)
