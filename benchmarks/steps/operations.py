"""Counts the operations that PyTorch dispatches in a step of SimVTP, forward and backward, without computing any.

    python -m benchmarks.steps.operations [--model simvtp_base] [--batch 64] [--operation NAME ...]

The model runs in bfloat16 autocast on fake tensors, which have a shape and no memory; its ops are one operation each,
as those of a GPU are. Views and allocations are not counted. `--operation` lists how often some are dispatched, by the
end of their names.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastvtp.systems.catalogue import model_config
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.model import SimVTP

Record = TypeVar("Record", bound=Any)
PRESETS = ("official", "fastvtp")
# What reads and writes no memory.
_FREE = frozenset(
    [
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "is_same_size",
        "lift_fresh",
        "_local_scalar_dense",
        "narrow",
        "new_empty",
        "new_empty_strided",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "sym_size",
        "t",
        "transpose",
        "unbind",
        "unflatten",
        "unsafe_split",
        "_unsafe_view",
        "unsqueeze",
        "view",
    ]
)


class Operations(NamedTuple):
    """How often each operation was dispatched, by its name, in both halves of a step."""

    forward: Counter[str]
    backward: Counter[str]

    def total(self) -> int:
        """Count the operations of the step."""
        return self.forward.total() + self.backward.total()

    def named(self, ending: str) -> int:
        """Count those whose name ends so."""
        return sum(count for half in self for name, count in half.items() if name.endswith(ending))


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if name not in _FREE and namespace != "prim":
            self.seen[f"{namespace}::{name}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fake(record: Record, mode: FakeTensorMode) -> Record:
    changes = {
        name: mode.from_tensor(value) if isinstance(value, Tensor) else _fake(value, mode)
        for name, value in vars(record).items()
        if isinstance(value, Tensor) or is_dataclass(value)
    }
    return replace(record, **changes)


def count(config: SimVTPConfig, batch: int) -> Operations:
    """Count the operations of one step on `batch` clips with captions of 10 to 32 tokens, without dropout of words."""
    generator = torch.Generator().manual_seed(0)
    longest = min(32, config.max_text_length)
    lengths = torch.randint(min(10, longest), longest + 1, (batch,), generator=generator).tolist()
    ids = torch.randint(150, config.vocab_size, (sum(lengths),), generator=generator)
    # The plan is the host's, and a model without memory makes it.
    with torch.device("meta"):
        host = SimVTP(config)
    plan = host.plan(ids, lengths, torch.arange(batch), seed=0, step=0, device="cpu")
    mode, forward, backward = FakeTensorMode(allow_non_fake_inputs=True), _Counter(), _Counter()
    with _environment(TRITON_INTERPRET="1", FASTVTP_BACKEND="triton"), mode:
        model = SimVTP(config).train()
        video = torch.empty(batch, config.num_frames, config.image_size, config.image_size, 3, dtype=torch.uint8)
        fake_plan = _fake(plan, mode)
        with forward, torch.autocast("cpu", torch.bfloat16):
            loss = model(video, fake_plan).loss
        with backward:
            loss.backward()
    return Operations(forward.seen, backward.seen)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps.operations", description="Counts the operations of a step."
    )
    parser.add_argument("--model", default="simvtp_base")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--operation", nargs="*", default=["embedding_dense_backward", "sum_rows", "index_copy_"])
    options = parser.parse_args(arguments)
    print(f"| preset | forward | backward | step | {' | '.join(options.operation)} |")
    print("|---" * (4 + len(options.operation)) + "|")
    for preset in PRESETS:
        config = replace(model_config(options.model, preset=preset), text_dropout=0.0)
        found = count(config, options.batch)
        cells = [preset, found.forward.total(), found.backward.total(), found.total()]
        print("| " + " | ".join(map(str, cells + [found.named(name) for name in options.operation])) + " |")


if __name__ == "__main__":
    main()
