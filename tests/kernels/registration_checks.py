"""What the tests of the ops' registration share: the same claims about different ops.

`op_cases` maps the name of each torch.ops.fastvtp.<name> to lists of its arguments; `inputs` are keyword arguments of a
public op, with backend="triton".
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvtp_kernels
from fastvtp_kernels import BackendUnavailableError, dispatch
from fastvtp_kernels.derivatives import DerivativeError
from fastvtp_kernels.ops import OPS
from tests.kernels.triton_cases import pattern, results

ROOT = Path(__file__).parents[2]
OpCases = dict[str, list[tuple[Any, ...]]]


def check_complete(op_cases: OpCases, *folders: str) -> None:
    """There are cases of every op that these folders of the kernel package register, and of no other."""
    assert set(op_cases) == {name for folder in folders for name in OPS[folder].registered}


def check_schemas(op_cases: OpCases) -> None:
    for name, cases in op_cases.items():
        for case in cases:
            torch.library.opcheck(getattr(torch.ops.fastvtp, name).default, case)


def check_without_interpreter(script: str) -> None:
    """Run a test file as a script, in a process whose CPU ops do not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(Path(fastvtp_kernels.__file__).parents[1])))
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def check_one_graph(function: Callable[..., Tensor], inputs: dict[str, Any]) -> None:
    torch._dynamo.reset()
    compiled = results(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs)
    eager = results(function, inputs)
    assert compiled.keys() == eager.keys()
    for name, value in compiled.items():
        assert torch.equal(value, eager[name]), name


def _described(values: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (x.shape, x.dtype, x.device, x.stride()) for name, x in values.items()}


def check_fake_tensors(function: Callable[..., Tensor], inputs: dict[str, Any]) -> None:
    real = _described(results(function, inputs))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {name: mode.from_tensor(x) if isinstance(x, Tensor) else x for name, x in inputs.items()}
        found = _described(results(function, fakes))
    assert found == real, f"{found} != {real}"


def check_meta_tensors(real: OpCases, meta: OpCases) -> None:
    for name, cases in real.items():
        op = getattr(torch.ops.fastvtp, name).default
        for case, shapes in zip(cases, meta[name], strict=True):
            outputs = [x if isinstance(x, tuple) else (x,) for x in (op(*case), op(*shapes))]
            for one, other in zip(*outputs, strict=True):
                assert other.device.type == "meta", name
                assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride()), name


def check_no_second_derivative(function: Callable[..., Tensor], inputs: dict[str, Any]) -> None:
    leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
    output = function(**inputs)
    for incoming in (pattern(output), pattern(output).requires_grad_()):
        with pytest.raises(DerivativeError, match=r"has first derivatives .* a second derivative .* backend='specif"):
            torch.autograd.grad(output, leaves, incoming, create_graph=True, retain_graph=True)


def check_float64_is_refused(function: Callable[..., Tensor], inputs: dict[str, Any]) -> None:
    said = (
        r"cannot run: the Triton kernel computes in float16, bfloat16 and float32, not in torch\.float64; use backend="
    )
    with pytest.raises(BackendUnavailableError, match=said):
        function(**inputs)


def check_float64_falls_back(op: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the automatic choice would be on a GPU that runs Triton; the device itself is not touched."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_logged", set())
    monkeypatch.setattr(dispatch, "_triton_cannot_run_on", lambda device: None)
    gpu = torch.device("cuda")
    with caplog.at_level(logging.WARNING, logger="fastvtp_kernels"):
        names = [dispatch.resolve_backend(op, None, gpu, dtype).name for dtype in (torch.float32, *[torch.float64] * 3)]
    assert names == ["triton", "reference", "reference", "reference"], names
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"{op} runs the reference backend: cuda tensors, but the Triton kernel"), said
    assert said.endswith("not in torch.float64"), said
