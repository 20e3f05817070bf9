"""Times the Python of an attention call on CUDA tensors, on a machine without CUDA: what `host_time` runs in a process.

The package is loaded with the names of its two devices exchanged ("cuda" for "cpu", is_cuda for is_cpu), so that
tensors of the CPU take the way of a GPU's: no values are read, the dispatcher is passed by, kernels are launched. What
a launch does once it is handed to Triton is left out, and questions to the driver are answered at once. The clock is
the thread's CPU time.
"""

import importlib.machinery
import importlib.util
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

PACKAGE = "fastvtp_kernels"
ROUNDS, CALLS, SMOKE_CALLS = 15, 100, 5
HEADS, WIDTH, ROWS = 12, 64, (24, 40)
# Longest sequences of the regime that keeps a side on chip, and of the one that streams; the rows are fewer, for
# allocations as cheap as a GPU's.
SHORT, LONG = 168, 1600
SCHEMA = (
    "Tensor cu_seqlens, SymInt max_seqlen, Tensor? key_lengths, float scale, float softcap, bool causal, "
    "float dropout_p, Tensor? seed, Tensor? order"
)
_EXCHANGED = {"is_cuda": "is_cpu", "is_cpu": "is_cuda", '"cuda"': '"cpu"', '"cpu"': '"cuda"'}


def exchange(source: str) -> str:
    """Return a module's text with the names of the two devices exchanged."""
    return re.sub(r"\bis_cuda\b|\bis_cpu\b|\"cuda\"|\"cpu\"", lambda found: _EXCHANGED[found[0]], source)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        # Not the compiled file, which holds the text as it stands.
        return compile(exchange(self.get_data(self.path).decode()), self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


_launches = 0
# An op lives as long as its library.
_libraries: list[torch.library.Library] = []
# As a GPU's, with a number, where torch keeps one.
DEVICE = torch.empty(0, device="cpu:0").device


def _launched(*arguments: Any, **options: Any) -> None:
    global _launches
    _launches += 1


def pretend_cuda() -> None:
    """Make the package, which must not be loaded yet, take CPU tensors for CUDA tensors, and launches do nothing."""
    if PACKAGE in sys.modules:
        raise RuntimeError(f"{PACKAGE} is loaded already")
    sys.meta_path.insert(0, _Finder())
    from triton.runtime.jit import JITFunction

    stream = SimpleNamespace(cuda_stream=0)
    patch.object(JITFunction, "run", _launched).start()
    patch.multiple(
        torch.cuda,
        is_available=lambda: True,
        current_device=lambda: DEVICE.index,
        get_device_capability=lambda device=None: (9, 0),
        current_stream=lambda device=None: stream,
        is_current_stream_capturing=lambda: False,
    ).start()


def _calls() -> dict[str, Callable[[], Any]]:
    """Return calls of the package, and the empty ones that they are held against, by name."""
    import fastvtp_kernels as package

    lengths = torch.tensor(ROWS, device=DEVICE)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    qkv = torch.zeros(sum(ROWS), 3, HEADS, WIDTH, dtype=torch.bfloat16, device=DEVICE)
    leaf = qkv.clone().requires_grad_()
    rows = [part.contiguous() for part in qkv.unbind(1)]
    leaves = [part.clone().requires_grad_() for part in rows]
    incoming = torch.zeros_like(rows[0])

    def packed(tensor: Tensor, longest: int, **options: Any) -> Tensor:
        return package.varlen_attention_packed(tensor, offsets, longest, **options)

    def joint(tensors: Sequence[Tensor], longest: int) -> Tensor:
        query, key, value = tensors
        keys: dict[str, Any] = {"cu_seqlens_k": offsets, "max_seqlen_k": longest}
        return package.varlen_attention(query, key, value, offsets, longest, **keys)

    answering = lengths.int() - 1
    found: dict[str, Callable[[], Any]] = {}
    for name, longest in (("short", SHORT), ("long", LONG)):
        found |= {
            f"packed, {name}, forward": lambda longest=longest: packed(qkv, longest),
            f"packed, {name}, forward with a graph": lambda longest=longest: packed(leaf, longest),
            f"packed, {name}, forward and backward": lambda longest=longest: torch.autograd.grad(
                packed(leaf, longest), leaf, incoming
            ),
            f"key lengths, {name}, forward": lambda longest=longest: packed(qkv, longest, key_lengths=answering),
            f"joint, {name}, forward": lambda longest=longest: joint(rows, longest),
            f"joint, {name}, forward with a graph": lambda longest=longest: joint(leaves, longest),
            f"joint, {name}, forward and backward": lambda longest=longest: torch.autograd.grad(
                joint(leaves, longest), leaves, incoming
            ),
        }
    return found | _empty_calls(qkv, leaf, offsets, incoming)


def _empty_calls(qkv: Tensor, leaf: Tensor, offsets: Tensor, incoming: Tensor) -> dict[str, Callable[[], Any]]:
    """Return what a call costs that only allocates its results: bare, by an autograd.Function, by the dispatcher."""
    rest = offsets, SHORT, None, 0.125, 0.0, False, 0.0, None, None

    def run(tensor: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        count, _, heads, width = tensor.shape
        return tensor.new_empty((count, heads, width)), tensor.new_empty((heads, count), dtype=torch.float32)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *output, inputs[1])

    def gradient(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        tensor = ctx.saved_tensors[0]
        return tensor.new_empty(tensor.shape), *[None] * len(rest)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
            output = run(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            return gradient(ctx, *grads)

    library = torch.library.Library("fastvtp_floor", "DEF")
    _libraries.append(library)
    library.define(f"attention(Tensor qkv, {SCHEMA}) -> (Tensor, Tensor)")
    library.impl("attention", run, "CPU")
    torch.library.register_autograd("fastvtp_floor::attention", gradient, setup_context=save, lib=library)
    op = torch.ops.fastvtp_floor.attention.default
    found: dict[str, Callable[[], Any]] = {"floor: allocations": lambda: run(qkv)}
    for name, call in (("autograd.Function", Function.apply), ("dispatcher", op)):
        found |= {
            f"floor: {name}, forward": lambda call=call: call(qkv, *rest),
            f"floor: {name}, forward with a graph": lambda call=call: call(leaf, *rest),
            f"floor: {name}, forward and backward": lambda call=call: torch.autograd.grad(
                call(leaf, *rest)[0], leaf, incoming
            ),
        }
    return found


def measure(rounds: int = ROUNDS, calls: int = CALLS) -> dict[str, float]:
    """Return the seconds of a call by name: the median of `rounds` means over `calls`, taken in turns."""
    found = _calls()
    for name, call in found.items():
        before = _launches
        call()
        if _launches == before and not name.startswith("floor"):
            raise RuntimeError(f"{name}: no kernel was launched")
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds + 1):
        for name, seconds in _round(found, calls):
            times[name].append(seconds)
    # The first round fills the caches.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _round(found: dict[str, Callable[[], Any]], calls: int) -> Iterator[tuple[str, float]]:
    for name, call in found.items():
        grad = "graph" in name or "backward" in name
        with torch.set_grad_enabled(grad):
            start = time.thread_time()
            for _ in range(calls):
                call()
            yield name, (time.thread_time() - start) / calls


if __name__ == "__main__":
    pretend_cuda()
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
