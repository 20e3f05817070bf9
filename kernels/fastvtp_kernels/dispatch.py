"""Which implementation of an op runs: the one place where a backend is chosen.

The backend "reference" is the road in plain PyTorch: what CPU tensors take, tuned for CPUs (bucketed, chunked) and held
by the tolerance law to the op's specification, its folder's reference.py. That is the backend "specification": the
formula itself, slow and with all intermediates in memory, but with every derivative (second ones, forward mode) and
under every transform of torch.func. It is never an automatic choice.

An explicit `backend=` argument wins over the environment variable FASTVTP_BACKEND, which wins over the automatic
choice: the Triton kernels, or a library where it was measured to be faster (attention/choice.py). What cannot run
raises and says why; an automatic choice other than the Triton kernels on an accelerator is logged once.
"""

import functools
import importlib.util
import itertools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .derivatives import refusing
from .interpreter import interpreting

ATTENTION_BACKENDS = ("flash_attn", "flash_attn_3", "flash_attn_4", "torch_varlen", "xformers", "sdpa")
SPECIFICATION = "specification"
BACKENDS = ("reference", "triton", *ATTENTION_BACKENDS, SPECIFICATION)
ENVIRONMENT_VARIABLE = "FASTVTP_BACKEND"
DETERMINISM_VARIABLE = "FASTVTP_DETERMINISTIC"
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_logger = logging.getLogger("fastvtp_kernels")
_implementations: dict[str, dict[str, Callable[..., Any]]] = {}
_truths: dict[str, Callable[..., Any]] = {}
_libraries: dict[str, dict[str, "Library"]] = {}
_logged: set[tuple[str, "Choice"]] = set()


class BackendUnavailableError(RuntimeError):
    """Raised for a requested backend that exists but cannot run this op here."""


class UnknownBackendError(ValueError):
    """Raised for a requested name that is no backend at all."""


class Choice(NamedTuple):
    """A backend and why it was taken."""

    name: str
    reason: str


class Library(NamedTuple):
    """A backend that is another package.

    `missing` tells why it cannot run on a device in a dtype (None: no matter), or None if it can. What depends on more
    than that, `run` refuses itself.
    """

    run: Callable[..., Any]
    missing: Callable[[torch.device, torch.dtype | None], str | None]
    description: str


class Availability(NamedTuple):
    """One line of the table `fastvtp doctor` prints."""

    backend: str
    available: bool
    reason: str


def register(
    op: str,
    *,
    reference: Callable[..., Any],
    truth: Callable[..., Any] | None = None,
    triton: Callable[..., Any] | None = None,
    libraries: Mapping[str, Library] | None = None,
) -> None:
    """Enter an op into the table with its implementations; the names it understands are theirs and "triton".

    Args:
        op: the public function's name.
        reference: runs the backend of that name: plain PyTorch, as fast as a CPU allows.
        truth: the specification that every backend is held to, with the same arguments and result as `reference`;
            default: `reference` itself, where it is plain enough to be one.
        triton: launches the kernels; None where there are none.
        libraries: other packages' implementations by the names of their backends.
    """
    _truths[op] = truth or reference
    _libraries[op] = dict(libraries or {})
    _implementations[op] = {name: refusing(op, library.run) for name, library in _libraries[op].items()}
    _implementations[op] |= {"reference": reference, SPECIFICATION: _truths[op]}
    if triton is not None:
        _implementations[op]["triton"] = triton


def _known(op: str) -> tuple[str, ...]:
    return ("reference", "triton", *_libraries[op])


def ops() -> tuple[str, ...]:
    """Return names of all registered ops."""
    return tuple(_implementations)


def backends(op: str, device: torch.device | None = None) -> list[Availability]:
    """Return every backend the op understands, whether it can run on `device` (default: CUDA, else the CPU), and why
    (not)."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"reference": "plain PyTorch, any device", "triton": "Triton kernels"}
    available |= {name: library.description for name, library in _libraries[op].items()}
    return [
        Availability(name, (missing := _missing(op, name, device, None)) is None, missing or available[name])
        for name in _known(op)
    ]


def _missing(op: str, name: str, device: torch.device, dtype: torch.dtype | None) -> str | None:
    if name == SPECIFICATION:
        return None
    if name not in _known(op):
        return f"{op} has no such backend; it knows {', '.join(_known(op))}"
    if name not in _implementations[op]:
        return "no Triton kernel for this op in this version"
    if name in _libraries[op]:
        return _libraries[op][name].missing(device, dtype)
    if name == "triton":
        if dtype is not None and dtype not in TRITON_DTYPES:
            return f"the Triton kernel computes in float16, bfloat16 and float32, not in {dtype}"
        return _triton_cannot_run_on(device)
    return None


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _cuda_lacks(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels need compute capability 8.0 or newer"
    return None


def _triton_cannot_run_on(device: torch.device) -> str | None:
    if not _triton_is_installed():
        return "the package triton is not installed (pip install 'fastvtp[gpu]')"
    if device.type == "cuda":
        # A device without a number is whichever is the current one.
        return _cuda_lacks(device) if device.index is not None else _cuda_lacks.__wrapped__(device)
    if device.type == "cpu" and interpreting():
        return None
    return f"Triton kernels need a CUDA device, not {device.type} (TRITON_INTERPRET=1 runs them, slowly, on the CPU)"


def runs_triton(tensor: Tensor) -> bool:
    """Tell whether kernels can be launched on the tensor, wherever it comes from."""
    return tensor.dtype in TRITON_DTYPES and _triton_cannot_run_on(tensor.device) is None


def _requested(op: str, requested: str | None) -> Choice | None:
    if requested is not None:
        return Choice(requested, "backend argument")
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if not from_environment:
        return None
    # An attention library named for the whole process can only be meant for the attention ops.
    if from_environment in ATTENTION_BACKENDS and from_environment not in _known(op):
        return None
    return Choice(from_environment, f"{ENVIRONMENT_VARIABLE}={from_environment}")


@torch.compiler.assume_constant_result
def resolve_backend(
    op: str,
    requested: str | None,
    device: torch.device,
    dtype: torch.dtype | None = None,
    ranked: tuple[str, ...] = (),
) -> Choice:
    """Return the backend `op` runs with on `device`, computing in `dtype` (None: no matter), and why.

    `ranked` are the backends that were measured for this call, fastest first: the automatic choice on an accelerator
    takes the first that is there, and the Triton kernels without any.

    Raises UnknownBackendError (a ValueError) for a name that is no backend at all and BackendUnavailableError for one
    that cannot run here.
    """
    choice = _requested(op, requested)
    if choice is not None:
        if choice.name not in BACKENDS:
            raise UnknownBackendError(
                f"{op}: unknown backend {choice.name!r} ({choice.reason}); expected one of {BACKENDS}"
            )
        missing = _missing(op, choice.name, device, dtype)
        if missing is not None:
            raise BackendUnavailableError(
                f"{op}: backend {choice.name!r} ({choice.reason}) cannot run: {missing}; use backend='reference'"
            )
        return choice
    if device.type in ("cpu", "meta"):
        return Choice("reference", f"{device.type} tensors")
    for name in itertools.takewhile(lambda name: name != "triton", ranked):
        if _missing(op, name, device, dtype) is None:
            return _logged_once(op, Choice(name, f"{device.type} tensors, measured faster than triton"), logging.INFO)
    missing = _missing(op, "triton", device, dtype)
    if missing is None:
        return Choice("triton", f"{device.type} tensors")
    return _logged_once(op, Choice("reference", f"{device.type} tensors, but {missing}"), logging.WARNING)


@torch.compiler.assume_constant_result
def must_repeat(requested: bool | None) -> bool:
    """Tell whether a backward pass has to repeat bit for bit.

    It has, unless the caller waives it (False), or says nothing (None) while FASTVTP_DETERMINISTIC=0 does; not, then,
    where torch.use_deterministic_algorithms is on.
    """
    if requested is not None:
        return requested
    return os.environ.get(DETERMINISM_VARIABLE) != "0" or torch.are_deterministic_algorithms_enabled()


def _logged_once(op: str, choice: Choice, level: int) -> Choice:
    if (op, choice) not in _logged:
        _logged.add((op, choice))
        _logger.log(level, "%s runs the %s backend: %s", op, choice.name, choice.reason)
    return choice


def implementation(
    op: str,
    requested: str | None,
    device: torch.device,
    dtype: torch.dtype | None = None,
    ranked: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """Return the function that `resolve_backend` chooses."""
    if requested is None and not ranked and device.type == "cuda" and not torch.compiler.is_compiling():
        # What nearly every call on a GPU comes to, without a reason in words.
        triton = _implementations[op].get("triton") if dtype in TRITON_DTYPES else None
        if triton is not None and _requested(op, None) is None and _triton_cannot_run_on(device) is None:
            return triton
    return _implementations[op][resolve_backend(op, requested, device, dtype, ranked).name]
