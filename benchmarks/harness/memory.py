"""Measures the peak memory of a call, also of one that replays a CUDA graph."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C._profiler import _EventType

from .timing import Function

GRAPH_WARM_UP = 3


class Graphed:
    """A graphed function runs as one CUDA graph, captured on the first call after three calls on another stream.

    A replay asks torch's allocator for nothing: what the call needs was handed out during the capture, so that is when
    its peak is taken.
    """

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Any = None
        self._peak_bytes: int | None = None

    def __call__(self) -> Any:
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        self._graph.replay()
        return self._output

    def peak_bytes(self) -> int | None:
        """Return the peak of the capture in bytes, None before the first call."""
        return self._peak_bytes

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARM_UP):
                self._function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.cuda.graph(graph):
            self._output = self._function()
        self._peak_bytes = torch.cuda.max_memory_allocated() - before
        self._graph = graph


def peak_bytes(function: Function, device: torch.device) -> int | None:
    """Return how much memory torch's allocator hands out at most during one call, beyond what is held before it.

    The output counts, and so would what the function builds on first use: call it once before. On the CPU every
    allocation inside every operator is followed through the profiler; memory that does not come from torch (numpy,
    MKL's and OpenMP's own buffers) is not seen. A `Graphed` function knows its own peak.
    """
    if isinstance(function, Graphed):
        return function.peak_bytes()
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
