"""Which implementation of an op runs: the one place where a backend is chosen.

An explicit `backend=` argument wins over the environment variable FASTVTP_BACKEND, which wins over the automatic
choice. What cannot run raises and says why; the automatic choice on an accelerator is logged once.
"""

import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

BACKENDS = ("reference", "triton", "flash_attn", "xformers", "sdpa")
ATTENTION_BACKENDS = ("flash_attn", "xformers", "sdpa")
ENVIRONMENT_VARIABLE = "FASTVTP_BACKEND"

_logger = logging.getLogger("fastvtp_kernels")
_implementations: dict[str, dict[str, Callable[..., Any]]] = {}
_known: dict[str, tuple[str, ...]] = {}
_logged: set[tuple[str, str]] = set()


class BackendUnavailableError(RuntimeError):
    """The requested backend exists but cannot run this op here."""


class UnknownBackendError(ValueError):
    """The requested name is no backend at all."""


class Choice(NamedTuple):
    """A backend and why it was taken."""

    name: str
    reason: str


class Availability(NamedTuple):
    """One line of the table `fastvtp doctor` prints."""

    backend: str
    available: bool
    reason: str


def register(op: str, *, reference: Callable[..., Any], known: tuple[str, ...] = ("reference", "triton")) -> None:
    """Enter an op into the table with its reference implementation and the backend names it understands."""
    _implementations[op] = {"reference": reference}
    _known[op] = known


def ops() -> tuple[str, ...]:
    """Names of all registered ops."""
    return tuple(_implementations)


def backends(op: str) -> list[Availability]:
    """Every backend the op understands, whether it can run, and why (not)."""
    return [
        Availability(name, (missing := _missing(op, name)) is None, missing or "plain PyTorch, any device")
        for name in _known[op]
    ]


def _missing(op: str, name: str) -> str | None:
    if name in _implementations[op]:
        return None
    if name not in _known[op]:
        return f"{op} has no such backend; it knows {', '.join(_known[op])}"
    if name == "triton":
        return "no Triton kernel for this op in this version"
    return f"no {name} path for this op in this version"


def _requested(op: str, requested: str | None) -> Choice | None:
    if requested is not None:
        return Choice(requested, "backend argument")
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if not from_environment:
        return None
    # An attention library named for the whole process can only be meant for the attention ops.
    if from_environment in ATTENTION_BACKENDS and from_environment not in _known[op]:
        return None
    return Choice(from_environment, f"{ENVIRONMENT_VARIABLE}={from_environment}")


@torch.compiler.assume_constant_result
def resolve_backend(op: str, requested: str | None, device: torch.device) -> Choice:
    """The backend `op` runs with on `device`, and why.

    Raises UnknownBackendError (a ValueError) for a name that is no backend at all and BackendUnavailableError for one
    that cannot run here.
    """
    choice = _requested(op, requested)
    if choice is not None:
        if choice.name not in BACKENDS:
            raise UnknownBackendError(
                f"{op}: unknown backend {choice.name!r} ({choice.reason}); expected one of {BACKENDS}"
            )
        missing = _missing(op, choice.name)
        if missing is not None:
            raise BackendUnavailableError(
                f"{op}: backend {choice.name!r} ({choice.reason}) cannot run: {missing}; use backend='reference'"
            )
        return choice
    if device.type in ("cpu", "meta"):
        return Choice("reference", f"{device.type} tensors")
    choice = Choice("reference", f"{device.type} tensors, but {_missing(op, 'triton')}")
    if (op, device.type) not in _logged:
        _logged.add((op, device.type))
        _logger.warning("%s runs the %s backend: %s", op, choice.name, choice.reason)
    return choice


def implementation(op: str, requested: str | None, device: torch.device) -> Callable[..., Any]:
    """The function that `resolve_backend` chooses."""
    return _implementations[op][resolve_backend(op, requested, device).name]
