"""How time, peak memory and the machine's ceilings are measured.

Variants are interleaved call by call (A B C A B C ...), so that clocks, heat and neighbours hit all of them alike.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._C._profiler import _EventType

Function = Callable[[], object]

MIN_ROUNDS = 5
MAX_ROUNDS = 1000
# Calls that are timed back to back for the wall time take about this long.
WALL_SECONDS = 0.1
# The device sleeps for this multiple of the time the host needs to queue a call, and a little more.
BACKLOG, BACKLOG_MARGIN_S = 2.0, 100e-6


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and 20 % and 80 % quantiles of `calls` calls, and wall time back to back."""

    median: float
    p20: float
    p80: float
    wall: float
    calls: int


class Timer(Protocol):
    def time(self, variants: dict[str, Function], seconds: float) -> dict[str, Timing]:
        """Time the variants for about `seconds` in all, at least MIN_ROUNDS calls of each."""
        ...


def timer_for(device: torch.device) -> Timer:
    if device.type != "cuda":
        return CpuTimer()
    if device.index is not None:
        # The sleep kernel and the events go to the current device.
        torch.cuda.set_device(device)
    return CudaTimer(device)


def summarize(samples: list[float], wall: float) -> Timing:
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Timing(statistics.median(samples), deciles[1], deciles[7], wall, len(samples))


class CpuTimer:
    """A clock around each call. The wall time is the mean of the same calls: a CPU has no queue to hide in."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock

    def time(self, variants: dict[str, Function], seconds: float) -> dict[str, Timing]:
        for function in variants.values():
            function()
        samples: dict[str, list[float]] = {name: [] for name in variants}
        with _no_garbage_collection():
            for _ in _rounds(self._clock, seconds):
                for name, function in variants.items():
                    start = self._clock()
                    function()
                    samples[name].append(self._clock() - start)
        return {name: summarize(values, statistics.fmean(values)) for name, values in samples.items()}


class CudaTimer:
    """Device time between two events around each call, and wall time of back-to-back calls.

    Before each call a sleep kernel, long enough for the host to queue the whole call behind it, keeps host gaps out of
    the device time; a write of twice the L2 cache then evicts the call's inputs. A call that itself waits for the
    device (a boolean index does) empties the queue: the gap after its wait is its own and stays in its time.
    """

    def __init__(self, device: torch.device):
        self._device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(2 * l2_bytes, dtype=torch.uint8, device=device)
        self._cycles_per_second = self._sleep_rate()

    def time(self, variants: dict[str, Function], seconds: float) -> dict[str, Timing]:
        for function in variants.values():
            function()
        backlog = {name: self._backlog_cycles(function) for name, function in variants.items()}
        samples: dict[str, list[float]] = {name: [] for name in variants}
        with _no_garbage_collection():
            for _ in _rounds(time.perf_counter, seconds):
                pairs = [self._queue(function, backlog[name]) for name, function in variants.items()]
                torch.cuda.synchronize(self._device)
                for name, (start, end) in zip(variants, pairs, strict=True):
                    samples[name].append(start.elapsed_time(end) / 1e3)
            walls = {name: self._wall_seconds(function) for name, function in variants.items()}
        return {name: summarize(values, walls[name]) for name, values in samples.items()}

    def _queue(self, function: Function, cycles: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(cycles)
        self._flush.zero_()
        start.record()
        function()
        end.record()
        return start, end

    def _sleep_rate(self) -> float:
        cycles = 1_000_000
        rates = []
        for _ in range(3):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            torch.cuda._sleep(cycles)
            end.record()
            torch.cuda.synchronize(self._device)
            rates.append(cycles / (start.elapsed_time(end) / 1e3))
        return statistics.median(rates)

    def _backlog_cycles(self, function: Function) -> int:
        durations = []
        for _ in range(3):
            torch.cuda.synchronize(self._device)
            start = time.perf_counter()
            function()
            durations.append(time.perf_counter() - start)
        return int((BACKLOG * statistics.median(durations) + BACKLOG_MARGIN_S) * self._cycles_per_second)

    def _wall_seconds(self, function: Function) -> float:
        def seconds_for(calls: int) -> float:
            torch.cuda.synchronize(self._device)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            torch.cuda.synchronize(self._device)
            return time.perf_counter() - start

        calls = min(MAX_ROUNDS, max(MIN_ROUNDS, int(WALL_SECONDS / seconds_for(1))))
        return seconds_for(calls) / calls


def _rounds(clock: Callable[[], float], seconds: float) -> Iterator[int]:
    start = clock()
    for index in range(MAX_ROUNDS):
        if index >= MIN_ROUNDS and clock() - start >= seconds:
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


def peak_bytes(function: Function, device: torch.device) -> int:
    """Most memory that torch's allocator hands out during one call, above what is held before it; output included.

    Call the function once before: what it builds on first use would count too. On the CPU every allocation inside
    every operator is followed through the profiler; memory that does not come from torch (numpy, MKL's and OpenMP's
    own buffers) is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _cpu_peak_bytes(function)


def _cpu_peak_bytes(function: Function) -> int:
    # The profiler otherwise greets on stderr each time it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = _with_descendants(profiler.profiler.kineto_results.experimental_event_tree())
    allocations = [event for event in events if event.tag == _EventType.Allocation]
    held = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_time_ns):
        if event.extra_fields.device.type == "cpu":
            held += event.extra_fields.alloc_size
            peak = max(peak, held)
    return peak


def _with_descendants(events: list[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _with_descendants(event.children)


@dataclass(frozen=True)
class Ceilings:
    """What this device reached in this run: bytes read plus written by a copy, FLOP of a square matmul, per second."""

    bytes_per_s: float
    flops_per_s: float

    def floor_s(self, num_bytes: int, flops: int) -> float:
        """No implementation that moves these bytes and does these FLOP through matmul units can be faster."""
        return max(num_bytes / self.bytes_per_s, flops / self.flops_per_s)


def measure_ceilings(device: torch.device, dtype: torch.dtype, timer: Timer, *, smoke: bool = False) -> Ceilings:
    """Copy bandwidth and matmul rate on random data: bfloat16 on CUDA, `dtype` on the CPU. `smoke`: too small to mean
    anything."""
    if device.type == "cuda":
        dtype = torch.bfloat16
    copied_bytes, side = (1 << 16, 64) if smoke else (1 << 30, 8192) if device.type == "cuda" else (1 << 26, 1024)
    source = torch.randn(copied_bytes // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    times = timer.time({"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}, 0 if smoke else 0.5)
    return Ceilings(2 * copied_bytes / times["copy"].median, 2 * side**3 / times["matmul"].median)
