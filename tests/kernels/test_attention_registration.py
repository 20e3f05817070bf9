"""The attention ops as torch's dispatcher sees them: schemas, fake tensors, compilation, gradients, what is refused.

Run as a script, this file applies opcheck to every op on the CPU: in a process that does not interpret, the reference.
"""

from typing import Any

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import axial_attention, axial_attention_packed, varlen_attention, varlen_attention_packed
from fastvtp_kernels.ops import OPS
from tests.kernels import registration_checks
from tests.kernels.attention_cases import (
    OPTIONS,
    grid,
    grid_side_by_side,
    packed,
    side_by_side,
)
from tests.kernels.triton_cases import (
    DEVICE,
    pattern,
    results,
)

PLAIN = (0.25, 0.0, False)
CAPPED = (0.7, 1.5, True)


def op_cases(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every torch.ops.fastvtp.<name>: tiny sequences, and longer ones with every option."""
    ops = torch.ops.fastvtp
    crossed = [x.to(device) if isinstance(x, torch.Tensor) else x for x in packed([3, 0, 2], [4, 1, 0]).values()]
    long = side_by_side([33, 1])
    qkv, cu = long["qkv"].detach().to(device).requires_grad_(), long["cu_seqlens"].to(device)
    views = qkv.detach().unbind(1)
    axis = [x.detach().to(device).requires_grad_() for x in grid(1, 3, 2, 2, 16).values()]
    sides = torch.stack([x.detach() for x in axis], dim=3).requires_grad_()
    seed, order = torch.tensor([-5], device=device), torch.tensor([1, 0], dtype=torch.int32, device=device)
    key_lengths = torch.tensor([20, 0], dtype=torch.int32, device=device)
    everything = *CAPPED, 0.3, seed, order
    forward = {
        "attention": [(*crossed, *PLAIN, 0.0, None, None), (*views, cu, 33, cu, 33, *everything)],
        "attention_packed": [(qkv, cu, 33, None, *everything), (qkv, cu, 33, key_lengths, *PLAIN, 0.0, None, None)],
        "axial_attention": [(*axis, *PLAIN), (*axis, *CAPPED)],
        "axial_attention_packed": [(sides, *CAPPED)],
    }
    backward = {}
    for name, cases in forward.items():
        tensors = 1 if name.endswith("packed") else 3
        backward[f"{name}_backward"] = []
        for case in cases:
            inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in case]
            output, lse = getattr(ops, name).default(*inputs)
            saved = (pattern(output), *inputs[:tensors], output, lse)
            backward[f"{name}_backward"].append((*saved, *inputs[tensors:]))
    return forward | backward | {"attention_order": [(cu,)]}


# The public ops with arguments for every regime that the lengths and float32 give.
PUBLIC: dict[str, tuple[Any, dict[str, Any]]] = {
    "varlen_attention": (varlen_attention, packed([3, 0, 2], [4, 1, 0], **OPTIONS["everything"])),
    "varlen_attention, longer": (varlen_attention, packed([33, 1], heads=1)),
    "varlen_attention_packed": (varlen_attention_packed, side_by_side([3, 0, 2]) | OPTIONS["softcap"]),
    "varlen_attention_packed, key lengths": (
        varlen_attention_packed,
        side_by_side([3, 0, 2]) | {"key_lengths": torch.tensor([1, 0, 2], dtype=torch.int32, device=DEVICE)},
    ),
    "axial_attention": (axial_attention, grid(1, 3, 2, 2, 16, causal=True)),
    "axial_attention_packed": (axial_attention_packed, grid_side_by_side(1, 3, 2, 3, 2, 16) | {"softcap": 1.5}),
}
public_ops = pytest.mark.parametrize(("function", "inputs"), PUBLIC.values(), ids=PUBLIC)


def in_dtype(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """With fresh leaves, under backend="triton"."""
    return {
        name: x.detach().to(dtype).requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    } | {"backend": "triton"}


def test_every_op_has_cases():
    registration_checks.check_complete(op_cases(DEVICE), "attention")
    assert {name.split(",")[0] for name in PUBLIC} == set(OPS["attention"].functions)


def test_opcheck_where_kernels_run():
    registration_checks.check_schemas(op_cases(DEVICE))


def test_opcheck_on_a_cpu_without_interpreter():
    registration_checks.check_without_interpreter(__file__)


@public_ops
def test_one_graph_with_the_bits_of_eager(function, inputs):
    registration_checks.check_one_graph(function, in_dtype(inputs, torch.float32))


@public_ops
def test_fake_tensors_have_the_form_of_real_ones(function, inputs):
    registration_checks.check_fake_tensors(function, in_dtype(inputs, torch.bfloat16))


def test_meta_tensors_have_the_form_of_real_ones():
    registration_checks.check_meta_tensors(op_cases(DEVICE), op_cases(torch.device("meta")))


@public_ops
def test_there_is_no_second_derivative(function, inputs):
    registration_checks.check_no_second_derivative(function, in_dtype(inputs, torch.float32))


@public_ops
def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_inputs(function, inputs):
    inputs = in_dtype(inputs, torch.float32)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        found = results(function, inputs)
    cast = results(function, in_dtype(inputs, torch.bfloat16))
    for name, value in found.items():
        assert value.dtype == (torch.bfloat16 if name == "output" else torch.float32), name
        assert torch.equal(value, cast[name].to(value.dtype)), name


@public_ops
def test_float64_is_refused_by_name(function, inputs):
    registration_checks.check_float64_is_refused(function, in_dtype(inputs, torch.float64))


@pytest.mark.parametrize("op", OPS["attention"].dispatched)
def test_float64_on_a_gpu_falls_back_with_one_line(op, caplog, monkeypatch):
    registration_checks.check_float64_falls_back(op, caplog, monkeypatch)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (varlen_attention, packed([2, 1], width=264)),
        (varlen_attention_packed, side_by_side([2, 1], width=264)),
        (axial_attention, grid(1, 2, 1, 1, 264)),
        (axial_attention_packed, grid_side_by_side(1, 2, 1, 3, 1, 264)),
    ],
)
def test_wider_heads_are_refused_in_one_line(function, inputs):
    with pytest.raises(ValueError, match=r"^\w*attention\w*: heads are 264 wide, the Triton kernels take up to 256$"):
        function(**inputs, backend="triton")


if __name__ == "__main__":
    registration_checks.check_schemas(op_cases(torch.device("cpu")))
