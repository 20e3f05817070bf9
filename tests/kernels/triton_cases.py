"""What the tests of the Triton kernels share: where they run, seeded inputs, the comparison with the specification.

With a CUDA device the kernels run there; without one, in Triton's interpreter on CPU tensors (see tests/conftest.py).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fastvtp_kernels import tuning
from fastvtp_kernels.testing import assert_within_tolerance, poisoned_empty, truths
from fastvtp_kernels.tuning import Tile
from fastvtp_kernels.unit_errors import carried

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# Tiles that cut every dimension of the tests' inputs into several blocks.
SMALL_TILES = {
    "embed": Tile({"BLOCK_M": 16, "BLOCK_D": 16, "BLOCK_P": 16}),
    "weight_gradient": Tile({"BLOCK_M": 16, "BLOCK_D": 16, "BLOCK_P": 16}),
    "fold": Tile({"BLOCK_VALUES": 16}),
    "gather": Tile({"BLOCK_M": 2, "BLOCK_P": 32}),
    "pixel_loss": Tile({"BLOCK_M": 2, "BLOCK_P": 32}),
    "pixel_loss_bytes": Tile({"BLOCK_COLUMNS": 4}),
    "scale": Tile({"BLOCK": 64}),
    "tube_mask": Tile({"BLOCK_OTHERS": 4}),
    "assemble": Tile({"BLOCK_ROWS": 2, "BLOCK_D": 4}),
    "assemble_backward": Tile({"BLOCK_ROWS": 2, "BLOCK_D": 4, "STEPS": 2}),
    **{
        kernel: Tile({"BLOCK_ROWS": 2, "BLOCK_D": 4})
        for kernel in ("sum_segments", "sum_rows", "sum_sequences", "spread_sequences")
    },
    "sum_chunks": Tile({"CHUNK": 8, "BLOCK_ROWS": 2, "BLOCK_D": 4}),
    "contrastive_statistics": Tile({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_D": 16, "GROUP": 2}),
    "contrastive_gradient": Tile({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_D": 16, "GROUP": 2}),
    "contrastive_statistics_ids": Tile({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_D": 16, "GROUP": 2}),
    "contrastive_gradient_ids": Tile({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_D": 16, "GROUP": 2}),
    "contrastive_sigmoid": Tile({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_D": 16, "GROUP": 2}),
    "contrastive_own_products": Tile({"BLOCK_M": 16, "BLOCK_D": 16}),
    "contrastive_join": Tile({"BLOCK_PARTS": 2, "BLOCK": 16}),
    "contrastive_sample": Tile({"BLOCK_D": 16}),
}


def tiles_of(*kernels: str) -> dict[str, tuple[str, torch.dtype, Tile]]:
    """(kernel, a dtype that takes the tile, tile) by name: every tile of the table and the small ones."""
    columns: dict[tuning.Precision, torch.dtype] = {"half": torch.bfloat16, "single": torch.float32}
    return {
        f"{kernel} {column} {tile}": (kernel, columns[column], tile)
        for kernel in kernels
        for column in tuning.TABLE[kernel]
        for tile in [*tuning.tiles(kernel, column), SMALL_TILES[kernel]]
    }


def random_values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers on DEVICE that ask for a gradient."""
    values = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(DEVICE, dtype).requires_grad_()


def random_video(*shape: int, dtype: torch.dtype = torch.uint8, seed: int = 0) -> Tensor:
    """[B, T, H, W, C] on DEVICE: bytes, or (for a floating-point dtype) numbers in [0, 1]."""
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (video if dtype == torch.uint8 else video.double() / 255).to(DEVICE, dtype)


def strided(tensor: Tensor) -> Tensor:
    """The same values in memory that has gaps and runs backwards through the dimensions."""
    size = [*reversed(tensor.shape)]
    storage = tensor.new_zeros([*size[:-1], 2 * size[-1]])
    view = storage[..., ::2].permute(*reversed(range(tensor.ndim)))
    with torch.no_grad():
        view.copy_(tensor)
    return view.requires_grad_(tensor.requires_grad)


def pattern(output: Tensor) -> Tensor:
    """Numbers of 8 significant bits in [-2, 2], which every dtype holds but not their sums; of a scalar: 1."""
    steps = torch.arange(output.numel(), device=output.device).view(output.shape)
    sign = 1 - 2 * (steps % 3 % 2)
    return (sign * (128 + 37 * steps % 128) / 2 ** (7 + steps % 5)).to(output.dtype)


def expanded(output: Tensor) -> Tensor:
    """As `.sum().backward()` hands it over: one number, seen from every element."""
    return output.new_full((), 0.5).expand(output.shape)


def transposed(output: Tensor) -> Tensor:
    return pattern(output).mT.contiguous().mT


@contextmanager
def no_kernels() -> Iterator[None]:
    """Within the context nothing runs in the interpreter, not even the part of backward that a reference shares."""
    with patch.dict(os.environ, {"TRITON_INTERPRET": "0"}):
        yield


def results(
    function: Callable[..., Tensor], inputs: dict[str, Any], incoming: Callable[[Tensor], Tensor] = pattern
) -> dict[str, Tensor]:
    """The output and, by name, the gradient of every input that asks for one, given the output's gradient."""
    output = function(**inputs)
    wanted = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}
    if not wanted:
        return {"output": output}
    if not output.requires_grad:
        # A specification that met nothing to compute with.
        return {"output": output} | {f"grad of {name}": torch.zeros_like(x) for name, x in wanted.items()}
    # What lies around an op is walked again, with bounds on its errors.
    gradients = torch.autograd.grad(output, list(wanted.values()), incoming(output), retain_graph=True)
    return {"output": output} | {f"grad of {name}": x for name, x in zip(wanted, gradients, strict=True)}


def assert_meets_the_law(
    function: Callable[..., Tensor],
    inputs: dict[str, Any],
    incoming: Callable[[Tensor], Tensor] = pattern,
    poisoned: bool = True,
) -> None:
    """The kernels' output and gradients against the specification in float64, by the tolerance law.

    They may be twice as wrong as plain PyTorch (backend="reference") in the inputs' own dtypes, and besides by what the
    device's approximate units may add to the ops that the function runs; what else it does must be linear.
    """

    def on_cpu(x: Any, dtype: torch.dtype | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach().to("cpu", dtype if x.is_floating_point() else None).requires_grad_(x.requires_grad)

    def values(dtype: torch.dtype | None) -> dict[str, Any]:
        return {name: on_cpu(x, dtype) for name, x in inputs.items()}

    def plain(values: dict[str, Any]) -> dict[str, Tensor]:
        return results(lambda **x: function(**x, backend="reference"), values, incoming)

    with poisoned_empty() if poisoned else nullcontext():
        actual = results(lambda **x: function(**x, backend="triton"), inputs, incoming)
    with no_kernels():
        same, doubles = plain(values(None)), values(torch.float64)
        with truths() as runs:
            exact = plain(doubles)
    assert actual.keys() == exact.keys()
    leaves = {name: x for name, x in doubles.items() if isinstance(x, Tensor) and x.requires_grad}
    units = carried(runs, exact["output"], leaves)
    for name, value in actual.items():
        assert_within_tolerance(name, value, same[name], exact[name], units[name])


def assert_repeats(
    function: Callable[..., Tensor], inputs: dict[str, Any], incoming: Callable[[Tensor], Tensor] = pattern
) -> None:
    """Five runs give the same bits, whatever the memory held before."""
    first = results(function, inputs, incoming)
    for repeat in range(4):
        with poisoned_empty() if repeat % 2 == 0 else nullcontext():
            again = results(function, inputs, incoming)
        for name, value in first.items():
            assert torch.equal(value, again[name]), f"{name} changed between run 1 and run {repeat + 2}"
