"""The peers of the contrastive benchmark: the usual losses, Inf-CL on a stand-in, and what is too large to try."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import Missing, Options
from benchmarks.harness.memory import peak_bytes
from benchmarks.ops.contrastive import inputs_of
from benchmarks.peers import contrastive
from benchmarks.peers.contrastive import MATRICES, USUAL, free_bytes, inf_cl, peers, too_large
from fastvtp_kernels import contrastive_loss, sigmoid_loss

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMOKE, ON_CUDA = Options(CPU, torch.float32, smoke=True), Options(CUDA, torch.bfloat16, smoke=True)
OPS = {"contrastive_loss": contrastive_loss, "sigmoid_loss": sigmoid_loss}


def inf_loss(q: Tensor, k: Tensor, labels: Tensor | None = None, scale=None, head_dim=256) -> Tensor:
    """The package's signature; like it, float32 rows in heads, and no gradient of `scale` without a process group."""
    assert scale is None
    assert labels is not None
    q, k = (x.view(len(x), -1, head_dim) for x in (q, k))
    assert q.dtype == torch.float32
    return F.cross_entropy(torch.einsum("mhd,nhd->mn", q, k), labels)


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("inf_cl")
    module.__dict__["cal_inf_loss"] = inf_loss
    monkeypatch.setitem(sys.modules, "inf_cl", module)


def offered(op: str) -> dict:
    """The op's peers on the CPU, and Inf-CL as on CUDA."""
    return {**USUAL[op], **({"inf_cl": inf_cl(128, CUDA)} if op == "contrastive_loss" else {})}


@pytest.mark.parametrize("op", OPS)
def test_peers_compute_the_loss_and_its_gradients(op, package):
    leaves = [leaf.requires_grad_() for leaf in inputs_of(op, 9, SMOKE)]
    expected = OPS[op](*leaves)
    gradients = torch.autograd.grad(expected, leaves)
    for name, peer in offered(op).items():
        loss = peer(*leaves)
        torch.testing.assert_close(loss, expected, msg=name)
        torch.testing.assert_close(torch.autograd.grad(loss, leaves), gradients, msg=name)


def test_inf_cl_is_given_float32(package):
    a, b, scale = inputs_of("contrastive_loss", 9, replace(SMOKE, dtype=torch.bfloat16))
    peer = inf_cl(128, CUDA)
    assert not isinstance(peer, Missing)
    torch.testing.assert_close(peer(a, b, scale), contrastive_loss(a.float(), b.float(), scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", USUAL)
def test_estimate_of_memory_bounds_what_the_usual_code_takes(op, dtype):
    batch, inputs = 512, inputs_of(op, 512, Options(CPU, dtype, smoke=True))
    leaves = [leaf.requires_grad_(op in OPS) for leaf in inputs]

    def call(peer) -> object:
        output = peer(*leaves)
        return torch.autograd.grad(output, leaves) if op in OPS else output

    for peer in USUAL[op].values():
        call(peer)
        estimate, features = MATRICES * batch**2 * 4, 4 * sum(leaf.nbytes for leaf in leaves)
        assert estimate / 2 < (peak_bytes(lambda peer=peer: call(peer), CPU) or 0) <= estimate + features


def reasons(op: str, width: int, options: Options = SMOKE) -> dict[str, str]:
    return {name: peer.reason for name, peer in peers(op, 100, width, options).items() if isinstance(peer, Missing)}


def test_what_would_not_fit_is_not_tried(monkeypatch, package):
    needed = MATRICES * 100 * 100 * 4
    monkeypatch.setattr(contrastive, "free_bytes", lambda device: needed / 0.8 + 1)
    assert not any(reasons(op, 32, ON_CUDA) for op in USUAL)
    monkeypatch.setattr(contrastive, "free_bytes", lambda device: needed / 0.8 - 1)
    found = {op: reasons(op, 32, ON_CUDA) for op in USUAL}
    assert set(found["contrastive_loss"]) == {"open_clip", "one product", "compiled one product"}
    assert set(found["sigmoid_loss"]) == {"open_clip", "compiled open_clip"}
    assert set(found["hard_negatives"]) == {"albef", "compiled albef"}
    assert found["hard_negatives"]["albef"] == "6 matrices of 100 x 100 are 0.00024 GB, more than 0.00024 GB"


def test_inf_cl_says_why_it_cannot_run(monkeypatch, package):
    monkeypatch.setattr(contrastive, "free_bytes", lambda device: 1e9)
    assert "inf_cl" not in reasons("contrastive_loss", 32, ON_CUDA)
    assert reasons("contrastive_loss", 40, ON_CUDA) == {"inf_cl": "takes widths that are multiples of 16, not 40"}
    assert reasons("contrastive_loss", 32) == {"inf_cl": "its kernels need a CUDA device"}
    monkeypatch.setitem(sys.modules, "inf_cl", None)
    assert reasons("contrastive_loss", 32, ON_CUDA)["inf_cl"].startswith("cannot be imported: ")


def test_free_memory(monkeypatch, tmp_path):
    assert 1e8 < free_bytes(CPU) < 1e14
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(contrastive, "Path", lambda name: meminfo)
    total = free_bytes(CPU)
    meminfo.write_text("MemTotal:       9 kB\nMemAvailable:       7 kB\n")
    assert free_bytes(CPU) == 7 * 1024 < total
    meminfo.write_text("MemTotal:       9 kB\n")
    assert free_bytes(CPU) == total
    stand_in = {"memory_reserved": 50, "memory_allocated": 20, "mem_get_info": (100, 1000)}
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(CUDA) == 130
    assert too_large(3, CUDA)
    assert not too_large(2, CUDA)
