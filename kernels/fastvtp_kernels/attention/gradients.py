"""The forward and backward passes of the registered attention ops in plain PyTorch, with the log-sum-exp between them.

Sequences are padded to [S, H, L, Dh] as in `padded`. The formulas are those of FlashAttention (Dao et al. 2022, §3 and
appendix B) with softcap and dropout.
"""

import math

import torch
from torch import Tensor

from ..packing import pad_rows, padded_slots, unpad_rows
from ..precision import compute_dtype
from .call import Call, Options
from .padded import attention_mask, dropout_keep


def logits_of(query: Tensor, key: Tensor, options: Options) -> Tensor:
    """Return the logits [..., Lq, Lk] of query [..., Lq, Dh] and key [..., Lk, Dh], capped but not masked."""
    logits = query @ key.transpose(-1, -2) * options.scale
    return options.softcap * torch.tanh(logits / options.softcap) if options.softcap else logits


def forward(query: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Return the output [N, H, Dh] and the log-sum-exp [H, N] in units of log 2, +inf for a query without a key."""
    packed = Padded(query, key, call)
    q, k, v = packed.queries(query), packed.keys(key), packed.keys(value)
    logits = logits_of(q, k, call.options).masked_fill(~packed.mask, float("-inf"))
    lse = logits.logsumexp(dim=-1, keepdim=True)
    weights = (logits - lse).exp().nan_to_num(0.0)
    output = packed.rows((weights * packed.keep) @ v).to(query.dtype)
    lse = lse.masked_fill(lse == float("-inf"), float("inf")) / math.log(2)
    return output, packed.rows(lse)[..., 0].mT.contiguous().to(compute_dtype(query.dtype))


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, call: Call
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, given that of the output and what `forward` returned."""
    packed, options = Padded(query, key, call), call.options
    q, k, v = packed.queries(query), packed.keys(key), packed.keys(value)
    g, o = packed.queries(grad), packed.queries(output)
    logits = logits_of(q, k, options)
    weights = (logits - packed.queries(lse.mT[..., None]) * math.log(2)).exp().masked_fill(~packed.mask, 0.0)
    delta = (g * o).sum(dim=-1, keepdim=True)
    logit_grad = weights * (g @ v.mT * packed.keep - delta) * options.scale
    if options.softcap:
        logit_grad = logit_grad * (1 - (logits / options.softcap).square())
    dq, dk = packed.rows(logit_grad @ k), packed.key_rows(logit_grad.mT @ q)
    dv = packed.key_rows((weights * packed.keep).mT @ g)
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


class Padded:
    """The way between packed rows and [S, H, L, Dh], with the masks that belong to the padded form."""

    def __init__(self, query: Tensor, key: Tensor, call: Call) -> None:
        cu, cu_k = call.cu_seqlens, call.cu_seqlens_k
        self.sequences, self.length, self.length_k = cu.shape[0] - 1, call.max_seqlen, call.max_seqlen_k
        self.slot = padded_slots(cu, query.shape[0], self.length)
        self.slot_k = padded_slots(cu_k, key.shape[0], self.length_k)
        self.dtype = compute_dtype(query.dtype)
        self.exists = torch.arange(self.length, device=cu.device) < cu.diff()[:, None]
        self.exists_k = torch.arange(self.length_k, device=cu.device) < call.answering()[:, None]
        self.mask = attention_mask(call) & self.exists[:, None, :, None]
        self.keep: Tensor | float = 1.0
        if call.options.dropout_p:
            self.keep = dropout_keep(call, query.shape[1]) / (1 - call.options.dropout_p)

    def queries(self, rows: Tensor) -> Tensor:
        return pad_rows(rows.to(self.dtype), self.slot, self.sequences, self.length).transpose(1, 2)

    def keys(self, rows: Tensor) -> Tensor:
        padded = pad_rows(rows.to(self.dtype), self.slot_k, self.sequences, self.length_k)
        # Rows that do not answer: zero times whatever they hold must be zero.
        return padded.masked_fill(~self.exists_k[..., None, None], 0).transpose(1, 2)

    def rows(self, padded: Tensor) -> Tensor:
        return unpad_rows(padded.transpose(1, 2), self.slot, self.exists)

    def key_rows(self, padded: Tensor) -> Tensor:
        return unpad_rows(padded.transpose(1, 2), self.slot_k, self.exists_k)
