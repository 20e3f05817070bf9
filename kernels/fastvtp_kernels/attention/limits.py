"""What other packages' attention can and cannot do, and the words in which it is refused."""

import importlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..derivatives import transforming
from ..dispatch import BackendUnavailableError
from ..packing import locate_rows
from .call import Call, Options

HALF = (torch.float16, torch.bfloat16)


class Limits(NamedTuple):
    """Whether a library knows softcap, its widest heads, and what divides their width, by bytes of the dtype."""

    softcap: bool = False
    widest: int | None = None
    multiple: dict[int, int] | None = None


LIMITS = {
    "sdpa": Limits(),
    "flash_attn": Limits(softcap=True, widest=256),
    "flash_attn_3": Limits(softcap=True, widest=256, multiple={2: 8}),
    # Its forward pass knows softcap; its backward pass over packed rows does not.
    "flash_attn_4": Limits(widest=256, multiple={2: 8}),
    "torch_varlen": Limits(widest=256, multiple={2: 8}),
    "xformers": Limits(multiple={2: 8, 4: 4, 8: 4}),
}


def refusal(backend: str, width: int, dtype: torch.dtype, options: Options, same: bool = True) -> str:
    """Say what of a call the library cannot do; "" if it can do it all.

    Args:
        backend: name of the library.
        width: of a head.
        dtype: of query, key and value.
        options: of the call.
        same: queries and keys have the same lengths.
    """
    limits = LIMITS[backend]
    multiple = (limits.multiple or {}).get(dtype.itemsize, 1)
    if options.dropout_p:
        return f"dropout_p={options.dropout_p} would drop other weights than seed asks for"
    if options.softcap and not limits.softcap:
        return f"it has no softcap (softcap={options.softcap})"
    if limits.widest is not None and width > limits.widest:
        return f"heads are {width} wide, it takes up to {limits.widest}"
    if width % multiple:
        return f"heads are {width} wide, it takes multiples of {multiple}"
    if backend == "xformers" and torch.compiler.is_compiling():
        return "under torch.compile the lengths cannot be read"
    if backend == "xformers" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        # Those read before are at hand, and every replay of the graph would go by them.
        return "while a CUDA graph is captured the lengths cannot be read"
    if backend == "xformers" and options.causal and not same:
        return "causal with more queries than keys in a sequence"
    return ""


def refuse(backend: str, what: str, instead: str = "triton") -> BackendUnavailableError:
    """Return the error that says what a library cannot do."""
    return BackendUnavailableError(
        f"attention: backend {backend!r} cannot run: {what}; use backend={instead!r} or backend='reference'"
    )


def check(backend: str, query: Tensor, options: Options) -> None:
    """Raise BackendUnavailableError if the library cannot do a call on heads like these."""
    what = refusal(backend, query.shape[-1], query.dtype, options)
    if not what and backend != "sdpa" and transforming():
        what = "transforms of torch.func (grad, vmap, ...) do not see into it"
    if what:
        raise refuse(backend, what, "sdpa" if query.shape[-1] > 256 and not options.softcap else "triton")


def imported(module: str, how: str) -> tuple[Any, str | None]:
    """Return the module and None, or None and why it cannot be imported; `how` says how it is installed."""
    try:
        return importlib.import_module(module), None
    except ModuleNotFoundError as error:
        if error.name is not None and module != error.name and not module.startswith(f"{error.name}."):
            return None, f"import {module} failed: {error}"
        return None, f"the package {module.removesuffix('.ops')} is not installed ({how})"
    except (ImportError, OSError) as error:
        return None, f"import {module} failed: {str(error).partition(chr(10))[0]}"


def needs_cuda(
    backend: str, device: torch.device, dtype: torch.dtype | None, dtypes: tuple[torch.dtype, ...]
) -> str | None:
    """Say why the library cannot run on this device in this dtype (None: no matter which), or None if it can."""
    if device.type != "cuda":
        return f"{backend} needs a CUDA device, not {device.type}"
    if dtype is not None and dtype not in dtypes:
        names = ", ".join(str(known).removeprefix("torch.") for known in dtypes)
        return f"{backend} computes in {names}, not in {dtype}"
    return None


def answering_rows(backend: str, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor, Call]:
    """Return keys and values of which those that answer come first, and the call without `key_lengths`: libraries know
    where sequences begin and end, and not that some of their keys are silent."""
    if call.key_lengths is None:
        return key, value, call
    if call.options.causal:
        raise refuse(backend, "causal with key_lengths: it aligns a sequence's last query with its last key")
    sequence, position = locate_rows(call.cu_seqlens_k, key.shape[0])
    answers = position < F.pad(call.key_lengths, (0, 1))[sequence]
    first = answers.int().argsort(descending=True, stable=True)
    offsets = F.pad(call.key_lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return key[first], value[first], call._replace(cu_seqlens_k=offsets, key_lengths=None)
