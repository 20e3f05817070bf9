"""Stand-ins for packages that need CUDA: with their parameters, computing by the reference, listing their calls.

The parameters are those of flash-attn 2.8 (flash_attn), of FlashAttention-3's hopper/flash_attn_interface.py and of
FlashAttention-4 (flash_attn.cute); of torch 2.13, torch.nn.attention.varlen; of xformers 0.0.35.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from fastvtp_kernels import varlen_attention

CPU = torch.device("cpu")


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


class Unwritten(torch.autograd.Function):
    """flash-attn's memory: rows after the last sequence are NaN, in the output and in the gradients."""

    @staticmethod
    def forward(ctx, rows, offsets):
        ctx.offsets = offsets
        rows = rows.clone()
        rows[int(offsets[-1]) :] = float("nan")
        return rows

    @staticmethod
    def backward(ctx, *grads):
        return Unwritten.apply(grads[0], ctx.offsets), None


def attend(q, k, v, layout, *, scale, causal, softcap=0.0):
    cu_q, cu_k, max_q, max_k = layout
    q, k, v = Unwritten.apply(q, cu_q), Unwritten.apply(k, cu_k), Unwritten.apply(v, cu_k)
    keys = {"cu_seqlens_k": cu_k, "max_seqlen_k": max_k}
    options = {"softmax_scale": scale, "causal": causal, "softcap": softcap, "backend": "reference"}
    return Unwritten.apply(varlen_attention(q, k, v, cu_q, max_q, **keys, **options), cu_q)


def module(monkeypatch, name: str, **contents: Any) -> None:
    made = ModuleType(name)
    made.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, made)


_OFFSETS = "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k"
PARAMETERS = {
    "flash_attn": f"""q, k, v, {_OFFSETS}, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
        softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None""",
    "flash_attn_3": f"""q, k, v, {_OFFSETS}, seqused_q=None, seqused_k=None, softmax_scale=None, causal=False, qv=None,
        q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0,
        num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False""",
    "flash_attn_4": """q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
        softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1,
        pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None, aux_tensors=None,
        return_lse=False""",
    "torch_varlen": """query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
        window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None, num_splits=None""",
}


def _with_parameters(text: str, run: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """A function of these parameters that hands them over by name, with those that were left out."""
    signature = inspect.signature(eval(f"lambda {' '.join(text.split())}: None"))

    def call(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        return run(bound.arguments)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def flash(name: str, calls: list[Any], with_lse: bool = False) -> Callable[..., Any]:
    """flash_attn_varlen_func of the package behind a backend; some releases return the log-sum-exp too."""

    def run(given: dict[str, Any]) -> Any:
        assert not any(given.get(unused) is not None for unused in ("qv", "seqused_q", "seqused_k", "alibi_slopes"))
        options = {name: given[name] for name in ("causal", "softcap")}
        layout = [given[name] for name in _OFFSETS.split(", ")]
        calls.append((*layout[2:], given["softmax_scale"], *options.values(), given["deterministic"]))
        output = attend(given["q"], given["k"], given["v"], layout, scale=given["softmax_scale"], **options)
        return (output, None) if with_lse else output

    return _with_parameters(PARAMETERS[name], run)


def torch_varlen(calls: list[Any]) -> Callable[..., Any]:
    """torch.nn.attention.varlen.varlen_attn."""

    def run(given: dict[str, Any]) -> Any:
        rows = given["query"], given["key"], given["value"]
        assert all(x.stride(-1) == 1 for x in rows)
        layout = [given[name] for name in ("cu_seq_q", "cu_seq_k", "max_q", "max_k")]
        calls.append((*layout[2:], given["scale"], given["window_size"]))
        return attend(*rows, layout, scale=given["scale"], causal=given["window_size"] == (-1, 0))

    return _with_parameters(PARAMETERS["torch_varlen"], run)


class BlockDiagonalMask:
    def __init__(self, lengths, lengths_k, causal=""):
        self.lengths, self.lengths_k, self.causal = lengths, lengths_k, causal

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        assert device == CPU
        kv_seqlen = q_seqlen if kv_seqlen is None else kv_seqlen
        assert all(type(length) is int and length > 0 for length in (*q_seqlen, *kv_seqlen))
        return cls(list(q_seqlen), list(kv_seqlen))

    def make_causal(self):
        return BlockDiagonalMask(self.lengths, self.lengths_k, "top left")

    def make_causal_from_bottomright(self):
        return BlockDiagonalMask(self.lengths, self.lengths_k, "bottom right")


CUTLASS = ("cutlassF", "cutlassB")


def xformers(monkeypatch, calls) -> None:
    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        assert attn_bias is not None
        calls.append((attn_bias.lengths, attn_bias.lengths_k, attn_bias.causal, op))
        assert p == 0.0
        assert query.shape[:2] == (1, sum(attn_bias.lengths))
        assert key.shape[:2] == (1, sum(attn_bias.lengths_k))
        layout = (
            *map(offsets, (attn_bias.lengths, attn_bias.lengths_k)),
            max(attn_bias.lengths),
            max(attn_bias.lengths_k),
        )
        return attend(query[0], key[0], value[0], layout, scale=scale, causal=bool(attn_bias.causal))[None]

    fmha = SimpleNamespace(
        attn_bias=SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask), MemoryEfficientAttentionCutlassOp=CUTLASS
    )
    module(monkeypatch, "xformers")
    module(monkeypatch, "xformers.ops", memory_efficient_attention=memory_efficient_attention, fmha=fmha)
