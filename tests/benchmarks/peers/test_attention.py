"""The peers of the attention benchmark: padding, the truth in parts, the libraries' calls on stand-ins."""

import sys
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.harness.case import Missing, Options
from benchmarks.peers import attention
from benchmarks.peers.attention import Batch, exact, peers
from benchmarks.peers.pinned import OtherKernelError, pinned
from fastvtp_kernels import varlen_attention
from tests.kernels import attention_stand_ins as stand_ins

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RAGGED, EQUAL = Batch((3, 1, 6), 2, 8, CPU), Batch((4, 4), 2, 8, CPU)
PLACES = {"flash_attn": "flash_attn", "flash_attn_3": "flash_attn_interface", "flash_attn_4": "flash_attn.cute"}
ON_CUDA = {
    *("sdpa flash", "sdpa cudnn", "sdpa efficient", "torch varlen"),
    *("flash_attn", "flash_attn_3", "flash_attn_4", "xformers cutlass"),
}


def rows_of(batch: Batch, count: int = 3) -> list[Tensor]:
    return [torch.randn(batch.tokens, batch.heads, batch.width, dtype=torch.float64) for _ in range(count)]


def attended(batch: Batch, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return varlen_attention(query, key, value, batch.offsets, batch.longest, backend="reference")


@pytest.mark.parametrize("batch", [RAGGED, EQUAL], ids=["ragged", "equal"])
def test_padding_there_and_back(batch):
    rows, *_ = rows_of(batch)
    padded = batch.pad(rows)
    assert padded.shape == (len(batch.lengths), batch.heads, batch.longest, batch.width)
    for sequence, found in zip(rows.split(batch.lengths), padded, strict=True):
        assert torch.equal(found[:, : len(sequence)], sequence.transpose(0, 1))
        assert not found[:, len(sequence) :].any()
    assert torch.equal(batch.unpad(padded), rows)
    assert (padded.data_ptr() == rows.data_ptr()) == batch.equal


@pytest.mark.parametrize("batch", [RAGGED, EQUAL], ids=["ragged", "equal"])
def test_truth_in_parts_is_the_truth(batch, monkeypatch):
    monkeypatch.setattr(attention, "EXACT_WEIGHTS", batch.heads * batch.longest**2)
    calls = []
    sdpa = attention._sdpa
    monkeypatch.setattr(attention, "_sdpa", lambda mask, *rows: calls.append(len(rows[0])) or sdpa(mask, *rows))
    leaves = [tensor.requires_grad_() for tensor in rows_of(batch)]
    expected, found = attended(batch, *leaves), exact(batch)(*leaves)
    assert calls == [1] * len(batch.lengths)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(out.sin().sum(), leaves) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins with the libraries' signatures that compute with the reference, by name with their calls."""
    calls: dict[str, list[Any]] = {name: [] for name in (*PLACES, "xformers")}
    for name, place in PLACES.items():
        function = stand_ins.flash(name, calls[name], with_lse=name != "flash_attn")
        stand_ins.module(monkeypatch, place, flash_attn_varlen_func=function)
    stand_ins.xformers(monkeypatch, calls["xformers"])
    return calls


@pytest.mark.parametrize("batch", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize(
    "make",
    [
        attention.flash_attn,
        attention.flash_attn_3,
        attention.flash_attn_4,
        attention.xformers,
        attention.naive,
        partial(attention.kernel_sdpa, SDPBackend.MATH),
        partial(attention.flex, options=Options(CPU, torch.float32, smoke=True)),
    ],
    ids=["flash_attn", "flash_attn_3", "flash_attn_4", "xformers", "naive", "sdpa kernel", "flex"],
)
def test_peers_compute_attention(make, batch, libraries):
    rows = rows_of(batch)
    torch.testing.assert_close(make(batch)(*rows), attended(batch, *rows))


def test_xformers_runs_its_own_kernels(libraries):
    attention.xformers(EQUAL)(*rows_of(EQUAL))
    assert libraries["xformers"] == [([4, 4], [4, 4], "", stand_ins.CUTLASS)]


def test_torch_varlen_needs_cuda_and_says_so_itself():
    rows = [row.bfloat16() for row in rows_of(EQUAL)]
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        attention.torch_varlen(EQUAL)(*rows)


def test_torch_varlen_by_other_kernels_than_flash_is_an_error(monkeypatch):
    """A release that prefers cuDNN's, or flash kernels of another package."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda q, k, v, *_: q * 1)
    with pytest.raises(OtherKernelError, match="torch varlen: aten::_flash_attention_forward did not run"):
        attention.torch_varlen(EQUAL)(*rows_of(EQUAL))
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: "FA4", raising=False)
    assert reasons(EQUAL, torch.bfloat16)["torch varlen"] == "torch's flash kernels have been replaced by FA4"


def test_a_pin_is_asked_once_and_lets_only_its_kernel_pass():
    rows = [row[None] for row in rows_of(EQUAL)]
    sdpa, math = torch.nn.functional.scaled_dot_product_attention, attention.OPERATORS[SDPBackend.MATH]
    # On the CPU it takes its own flash kernel.
    with pytest.raises(OtherKernelError, match=r"sdpa: aten::_scaled_dot_product_attention_math did not run, but aten"):
        pinned("sdpa", math, sdpa)(*rows)
    held = attention.kernel_sdpa(SDPBackend.MATH, EQUAL)
    profiles = []
    real = torch.profiler.profile
    with mock.patch.object(torch.profiler, "profile", lambda **options: profiles.append(0) or real(**options)):
        first, second = (held(*rows_of(EQUAL)) for _ in range(2))
    assert first.shape == second.shape
    assert len(profiles) == 1


def test_an_sdpa_kernel_is_the_only_one_allowed():
    with pytest.raises(RuntimeError, match=r"No (viable|available)"):
        attention.kernel_sdpa(SDPBackend.CUDNN_ATTENTION, EQUAL)(*rows_of(EQUAL))


def reasons(batch: Batch, dtype: torch.dtype, *, device: torch.device = CUDA) -> dict[str, str]:
    found = peers(batch, Options(device, dtype, smoke=True), backward=True)
    return {name: peer.reason for name, peer in found.items() if isinstance(peer, Missing)}


def test_on_cuda_all_are_offered(libraries):
    assert reasons(EQUAL, torch.bfloat16) == {}
    assert set(reasons(RAGGED, torch.bfloat16)) == {"sdpa flash"}


def test_what_cannot_run_says_why(monkeypatch):
    modules = ("flash_attn", "flash_attn_interface", "flash_attn.cute", "xformers", "torch.nn.attention.varlen")
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    found = reasons(EQUAL, torch.bfloat16)
    assert set(found) == {"flash_attn", "flash_attn_3", "flash_attn_4", "xformers cutlass", "torch varlen"}
    assert all(reason.startswith("cannot be imported: ") for reason in found.values())
    full = reasons(EQUAL, torch.float32)
    half_only = {name for name, reason in full.items() if reason == "takes float16 and bfloat16, not float32"}
    assert half_only == {"sdpa flash", "sdpa cudnn", "torch varlen", "flash_attn", "flash_attn_3", "flash_attn_4"}
    assert set(reasons(EQUAL, torch.bfloat16, device=CPU)) == ON_CUDA | {"flex attention"}


def test_a_loop_over_many_sequences_is_not_tried():
    many = Batch((1, *[2] * attention.LARGEST_LOOP), 2, 8, CPU)
    assert "65 sequences" in reasons(many, torch.float32)["naive"]
