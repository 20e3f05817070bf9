"""The attention ops as torch's dispatcher sees them: schemas, fake tensors, compilation, gradients, what is refused.

Run as a script, this file applies opcheck to every op on the CPU: in a process that does not interpret, the reference.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvtp_kernels
from fastvtp_kernels import (
    BackendUnavailableError,
    axial_attention,
    dispatch,
    varlen_attention,
    varlen_attention_packed,
)
from tests.kernels.attention_cases import OPTIONS, grid, packed, side_by_side
from tests.kernels.triton_cases import DEVICE, pattern, results

ROOT = Path(__file__).parents[2]
PLAIN = (0.25, 0.0, False, 0.0, 0)
EVERYTHING = (0.7, 1.5, True, 0.3, -5)


def op_cases(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every torch.ops.fastvtp.<name>: tiny sequences, and longer ones with every option."""
    ops = torch.ops.fastvtp
    crossed = [x.to(device) if isinstance(x, torch.Tensor) else x for x in packed([3, 0, 2], [4, 1, 0]).values()]
    long = side_by_side([33, 1])
    qkv, cu = long["qkv"].detach().to(device).requires_grad_(), long["cu_seqlens"].to(device)
    views = qkv.detach().unbind(1)
    axis = [x.detach().to(device).requires_grad_() for x in grid(1, 3, 2, 2, 16).values()]
    forward = {
        "attention": [(*crossed, *PLAIN), (*views, cu, 33, cu, 33, *EVERYTHING)],
        "attention_packed": [(qkv, cu, 33, *EVERYTHING)],
        "axial_attention": [(*axis, *PLAIN[:3]), (*axis, *EVERYTHING[:3])],
    }
    backward = {}
    for name, cases in forward.items():
        tensors = 1 if name == "attention_packed" else 3
        backward[f"{name}_backward"] = []
        for case in cases:
            inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in case]
            output, lse = getattr(ops, name).default(*inputs)
            saved = (pattern(output), *inputs[:tensors], output, lse)
            backward[f"{name}_backward"].append((*saved, *inputs[tensors:]))
    return forward | backward


def check_every_op(device: torch.device) -> None:
    for name, cases in op_cases(device).items():
        for case in cases:
            torch.library.opcheck(getattr(torch.ops.fastvtp, name).default, case)


# The public ops with arguments for every regime that the lengths and float32 give.
PUBLIC: dict[str, tuple[Any, dict[str, Any]]] = {
    "varlen_attention": (varlen_attention, packed([3, 0, 2], [4, 1, 0], **OPTIONS["everything"])),
    "varlen_attention, longer": (varlen_attention, packed([33, 1], heads=1)),
    "varlen_attention_packed": (varlen_attention_packed, side_by_side([3, 0, 2]) | OPTIONS["softcap"]),
    "axial_attention": (axial_attention, grid(1, 3, 2, 2, 16, causal=True)),
}
public_ops = pytest.mark.parametrize(("function", "inputs"), PUBLIC.values(), ids=PUBLIC)


def in_dtype(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """With fresh leaves, under backend="triton"."""
    return {
        name: x.detach().to(dtype).requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    } | {"backend": "triton"}


def test_every_op_has_cases():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastvtp::")}
    assert {f"fastvtp::{name}" for name in op_cases(DEVICE)} == {name for name in registered if "attention" in name}


def test_opcheck_where_kernels_run():
    check_every_op(DEVICE)


def test_opcheck_on_a_cpu_without_interpreter():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(Path(fastvtp_kernels.__file__).parents[1])))
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@public_ops
def test_one_graph_with_the_bits_of_eager(function, inputs):
    torch._dynamo.reset()
    inputs = in_dtype(inputs, torch.float32)
    compiled = results(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs)
    eager = results(function, inputs)
    assert compiled.keys() == eager.keys()
    for name, value in compiled.items():
        assert torch.equal(value, eager[name]), name


def described(values):
    return {name: (x.shape, x.dtype, x.device, x.stride()) for name, x in values.items()}


@public_ops
def test_fake_tensors_have_the_form_of_real_ones(function, inputs):
    inputs = in_dtype(inputs, torch.bfloat16)
    real = described(results(function, inputs))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {name: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        assert described(results(function, fakes)) == real


def test_meta_tensors_have_the_form_of_real_ones():
    real, meta = op_cases(DEVICE), op_cases(torch.device("meta"))
    for name, cases in real.items():
        op = getattr(torch.ops.fastvtp, name).default
        for case, shapes in zip(cases, meta[name], strict=True):
            outputs = [x if isinstance(x, tuple) else (x,) for x in (op(*case), op(*shapes))]
            for one, other in zip(*outputs, strict=True):
                assert other.device.type == "meta"
                assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride()), name


@public_ops
def test_there_is_no_second_derivative(function, inputs):
    inputs = in_dtype(inputs, torch.float32)
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    output = function(**inputs)
    gradients = torch.autograd.grad(output, leaves, pattern(output).requires_grad_(), create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward(retain_graph=True)


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
    said = (
        r"cannot run: the Triton kernel computes in float16, bfloat16 and float32, not in torch\.float64; use backend="
    )
    with pytest.raises(BackendUnavailableError, match=said):
        function(**in_dtype(inputs, torch.float64))


@pytest.mark.parametrize("op", ["varlen_attention", "varlen_attention_packed", "axial_attention"])
def test_float64_on_a_gpu_falls_back_with_one_line(op, caplog, monkeypatch):
    """What the automatic choice would be on a GPU that runs Triton; the device itself is not touched."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_logged", set())
    monkeypatch.setattr(dispatch, "_triton_cannot_run_on", lambda device: None)
    gpu = torch.device("cuda")
    with caplog.at_level(logging.WARNING, logger="fastvtp_kernels"):
        names = [dispatch.resolve_backend(op, None, gpu, dtype).name for dtype in (torch.float32, *[torch.float64] * 2)]
    assert names == ["triton", "reference", "reference"]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{op} runs the reference backend: cuda tensors, but the Triton kernel")


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (varlen_attention, packed([2, 1], width=264)),
        (varlen_attention_packed, side_by_side([2, 1], width=264)),
        (axial_attention, grid(1, 2, 1, 1, 264)),
    ],
)
def test_wider_heads_are_refused_in_one_line(function, inputs):
    with pytest.raises(ValueError, match=r"^\w*attention\w*: heads are 264 wide, the Triton kernels take up to 256$"):
        function(**inputs, backend="triton")


if __name__ == "__main__":
    check_every_op(torch.device("cpu"))
