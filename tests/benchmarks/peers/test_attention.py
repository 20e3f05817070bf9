"""The peers of the attention benchmark: padding, the truth in parts, the libraries' calls on stand-ins."""

import sys
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.harness.case import Missing, Options
from benchmarks.peers import attention
from benchmarks.peers.attention import Batch, exact, peers
from fastvtp_kernels import varlen_attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RAGGED, EQUAL = Batch((3, 1, 6), 2, 8, CPU), Batch((4, 4), 2, 8, CPU)
ON_CUDA = {"sdpa flash", "sdpa cudnn", "sdpa efficient", "torch varlen", "flash_attn", "xformers"}


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


def packages(monkeypatch, **contents: Any) -> None:
    for name, content in contents.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)


def flash_call(q, k, v, cu_q, cu_k, longest_q, longest_k) -> Tensor:
    assert torch.equal(cu_q, cu_k)
    assert longest_q == longest_k
    return varlen_attention(q, k, v, cu_q, longest_q, backend="reference")


class BlockDiagonalMask:
    @staticmethod
    def from_seqlens(lengths, *, device) -> list[int]:
        assert device == CPU
        return list(lengths)


def xformers_call(q, k, v, attn_bias) -> Tensor:
    parts = [[tensor[0] for tensor in x.split(attn_bias, dim=1)] for x in (q, k, v)]
    return torch.cat([attended(Batch((len(part[0]),), 2, 8, CPU), *part) for part in zip(*parts, strict=True)])[None]


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins with the libraries' signatures that compute with the reference."""
    packages(
        monkeypatch,
        flash_attn={"flash_attn_varlen_func": flash_call},
        xformers={},
        xformers__ops={
            "fmha": SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)),
            "memory_efficient_attention": xformers_call,
        },
    )
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash_call)


@pytest.mark.parametrize("batch", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize(
    "make",
    [
        attention.torch_varlen,
        attention.flash_attn,
        attention.xformers,
        attention.naive,
        partial(attention.kernel_sdpa, SDPBackend.MATH),
    ],
    ids=["torch varlen", "flash_attn", "xformers", "naive", "sdpa kernel"],
)
def test_peers_compute_attention(make, batch, libraries):
    rows = rows_of(batch)
    torch.testing.assert_close(make(batch)(*rows), attended(batch, *rows))


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
    for name in ("flash_attn", "xformers", "torch.nn.attention.varlen"):
        monkeypatch.setitem(sys.modules, name, None)
    found = reasons(EQUAL, torch.bfloat16)
    assert set(found) == {"flash_attn", "xformers", "torch varlen"}
    assert all(reason.startswith("cannot be imported: ") for reason in found.values())
    full = reasons(EQUAL, torch.float32)
    half_only = {name for name, reason in full.items() if reason == "takes float16 and bfloat16, not float32"}
    assert half_only == {"sdpa flash", "sdpa cudnn", "torch varlen", "flash_attn"}
    assert set(reasons(EQUAL, torch.bfloat16, device=CPU)) == ON_CUDA | {"flex attention"}


def test_a_loop_over_many_sequences_is_not_tried():
    many = Batch((1, *[2] * attention.LARGEST_LOOP), 2, 8, CPU)
    assert "65 sequences" in reasons(many, torch.float32)["naive"]
