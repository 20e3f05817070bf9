"""Holds a peer to its name: the kernel that it is called after is the one that runs, or the peer fails."""

import os
from collections.abc import Callable
from typing import Any

import torch


class OtherKernelError(RuntimeError):
    """Raised where a peer ran by another kernel than the one it is named after."""


def operators_of(run: Callable[[], Any]) -> set[str]:
    """Call the function, and return the names of all operators that ran in it."""
    # The profiler otherwise greets on stderr each time it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    return {event.name for event in profiler.events() or ()}


def pinned(name: str, operator: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return `run`, whose first call raises OtherKernelError unless torch's `operator` runs in it.

    Later calls are `run` alone, so that nothing of the question is timed.
    """
    asked = False

    def call(*arguments: Any) -> Any:
        nonlocal asked
        if asked:
            return run(*arguments)
        found: list[Any] = []
        ran = operators_of(lambda: found.append(run(*arguments)))
        if operator not in ran:
            others = ", ".join(sorted(one for one in ran if "attention" in one)) or "no attention at all"
            raise OtherKernelError(f"{name}: {operator} did not run, but {others}")
        asked = True
        return found[0]

    return call
