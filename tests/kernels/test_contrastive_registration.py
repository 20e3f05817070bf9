"""The contrastive ops as torch's dispatcher sees them: schemas, fake tensors, compilation, gradients, what is refused.

Run as a script, this file applies opcheck to every op on the CPU: in a process that does not interpret, the reference.
"""

from typing import Any

import pytest

pytest.importorskip("triton")
import torch
from torch import Tensor

from fastvtp_kernels import hard_negatives
from fastvtp_kernels.ops import OPS
from tests.kernels import registration_checks
from tests.kernels.contrastive_cases import (
    LOSSES,
    ids,
    pair,
)
from tests.kernels.triton_cases import DEVICE

ROWS, WIDTH = 6, 20


def op_cases(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every torch.ops.fastvtp.<name>: all that is optional, and some."""
    a, b = pair(ROWS, WIDTH, device=device)
    scale, bias = (torch.full((), x, device=device, requires_grad=True) for x in (3.0, -2.0))
    low, other = (x.detach().bfloat16() for x in (a, b))
    positives = torch.tensor([4, 1, 4, 0, -1, 1], device=device)
    everything, nothing = (False, True, True, True, ""), (False, False, False, False, "")
    contrastive = [
        (a, b, scale, positives, 0.1, *everything),
        (a, b.detach(), scale.detach(), None, 0.0, True, True, False, False, ""),
        (low, other, scale.detach(), positives.int(), 0.0, *nothing),
    ]
    sigmoid = [
        (a, b, scale, bias, *everything),
        (a.detach(), b, scale.detach(), bias.detach(), False, False, True, False, ""),
        (low, other, scale.detach(), bias.detach(), *nothing),
    ]
    negatives = [
        (a.detach(), b.detach(), scale.detach(), [-(2**63), 2**32 - 1], None, positives, False, ""),
        (low, other, scale.detach(), [7, 0], None, None, False, ""),
        (low, other, scale.detach(), [0, 0], torch.tensor([7, 2**31]), None, False, ""),
    ]
    return {
        "contrastive_loss": contrastive,
        "contrastive_loss_reference": contrastive,
        "sigmoid_loss": sigmoid,
        "sigmoid_loss_reference": sigmoid,
        "hard_negatives": negatives,
        "hard_negatives_reference": negatives,
    }


def arguments(loss: str, dtype: torch.dtype = torch.float32, backend: str = "triton") -> dict[str, Any]:
    a, b = pair(ROWS, WIDTH, dtype=dtype)
    scalars = {"logit_scale": 3.0} | ({"logit_bias": -2.0} if loss == "sigmoid_loss" else {})
    options = {"label_smoothing": 0.1, "positives": ids("repeated", ROWS)} if loss == "contrastive_loss" else {}
    leaves = {name: torch.full((), x, device=DEVICE, requires_grad=True) for name, x in scalars.items()}
    return {"a": a, "b": b} | leaves | options | {"backend": backend}


def both_directions(a: Tensor, b: Tensor, groups: Tensor, backend: str) -> Tensor:
    return torch.stack(hard_negatives(a, b, 3.0, seed=2**64 - 1, step=5, groups=groups, backend=backend))


every_loss = pytest.mark.parametrize("loss", LOSSES)
every_backend = pytest.mark.parametrize("backend", ["triton", "reference"])


def of_negatives(backend: str) -> dict[str, Any]:
    a, b = pair(ROWS, WIDTH)
    return {"a": a.detach(), "b": b.detach(), "groups": ids("repeated", ROWS), "backend": backend}


def test_every_op_has_cases():
    registration_checks.check_complete(op_cases(DEVICE), "contrastive")
    assert {*LOSSES, "hard_negatives"} == set(OPS["contrastive"].functions)


def test_opcheck_where_kernels_run():
    registration_checks.check_schemas(op_cases(DEVICE))


def test_opcheck_on_a_cpu_without_interpreter():
    registration_checks.check_without_interpreter(__file__)


@every_backend
@every_loss
def test_one_graph_with_the_bits_of_eager(loss, backend):
    registration_checks.check_one_graph(LOSSES[loss], arguments(loss, backend=backend))


@every_backend
def test_one_graph_of_hard_negatives(backend):
    registration_checks.check_one_graph(both_directions, of_negatives(backend))


@every_backend
@every_loss
def test_fake_tensors_have_the_form_of_real_ones(loss, backend):
    registration_checks.check_fake_tensors(LOSSES[loss], arguments(loss, torch.bfloat16, backend))


def test_fake_hard_negatives_have_the_form_of_real_ones():
    registration_checks.check_fake_tensors(both_directions, of_negatives("triton"))


def test_meta_tensors_have_the_form_of_real_ones():
    registration_checks.check_meta_tensors(op_cases(DEVICE), op_cases(torch.device("meta")))


@every_backend
@every_loss
def test_there_is_no_second_derivative(loss, backend):
    registration_checks.check_no_second_derivative(LOSSES[loss], arguments(loss, backend=backend))


@every_loss
def test_float64_is_refused_by_name(loss):
    registration_checks.check_float64_is_refused(LOSSES[loss], arguments(loss, torch.float64))


def test_hard_negatives_of_float64_are_refused_by_name():
    inputs = of_negatives("triton")
    registration_checks.check_float64_is_refused(both_directions, inputs | {x: inputs[x].double() for x in "ab"})


@pytest.mark.parametrize("op", OPS["contrastive"].dispatched)
def test_float64_on_a_gpu_falls_back_with_one_line(op, caplog, monkeypatch):
    registration_checks.check_float64_falls_back(op, caplog, monkeypatch)


if __name__ == "__main__":
    registration_checks.check_schemas(op_cases(torch.device("cpu")))
