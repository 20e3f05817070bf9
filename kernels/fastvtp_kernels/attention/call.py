"""What an attention op is asked besides its query, key and value, and how the registered ops spell it.

Inside the package one `Call` travels from the public op to every implementation. The ops of torch's dispatcher take
flat arguments only; their schemas, and both directions between them and a `Call`, stand here and nowhere else.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import philox


class Options(NamedTuple):
    """How logits become weights: softmax(softcap * tanh(scale * q.k / softcap)), masked and dropped."""

    scale: float
    softcap: float = 0.0
    """0: the logits are taken as they are."""
    causal: bool = False
    """The last query of a sequence sees its last key, each query before it one key less."""
    dropout_p: float = 0.0
    seed: int | Tensor | None = 0
    """The 64 bits that decide which weights are dropped; None where nothing is."""


class Call(NamedTuple):
    """Where the sequences lie in packed rows of queries and keys, and the options of all of them."""

    cu_seqlens: Tensor
    """int32 [S + 1]: sequence s has the queries cu_seqlens[s]:cu_seqlens[s + 1]."""
    max_seqlen: int
    cu_seqlens_k: Tensor
    """int32 [S + 1], the same for keys and values; the very tensor cu_seqlens in self-attention."""
    max_seqlen_k: int
    options: Options
    dense: bool = False
    """Every sequence is known to have max_seqlen queries and max_seqlen_k keys, and every row is in a sequence."""
    order: Tensor | None = None
    """int32 [S], the order in which kernels take the sequences; None: as they stand."""
    key_lengths: Tensor | None = None
    """int32 [S], in self-attention: the first so many keys of each sequence answer, the others are as if they were not
    there; None: all do."""
    deterministic: bool | None = None
    """Whether the backward pass has to repeat bit for bit, as `dispatch.must_repeat` takes it; our own always does."""

    def flat(self) -> tuple[Any, ...]:
        """Return the arguments of FLAT; `dense` is not among them, the kernels have no use for it."""
        return *self[:4], *self.options, self.order

    def flat_self_attention(self) -> tuple[Any, ...]:
        """Return the arguments of FLAT_SELF_ATTENTION, for a call whose keys have the offsets of its queries."""
        return *self[:2], self.key_lengths, *self.options, self.order

    def answering(self) -> Tensor:
        """Return how many keys of each sequence answer: int32 [S]."""
        return self.cu_seqlens_k.diff() if self.key_lengths is None else self.key_lengths

    def ahead(self) -> Tensor:
        """Return how many keys more than its own number a sequence's first query sees where `causal`: int32 [S]."""
        return self.cu_seqlens_k.diff() - self.cu_seqlens.diff()


_AXIAL = "float scale, float softcap, bool causal"
_OPTIONS = f"{_AXIAL}, float dropout_p, Tensor? seed, Tensor? order"
_OFFSETS = "Tensor cu_seqlens, SymInt max_seqlen"
FLAT = f"{_OFFSETS}, Tensor cu_seqlens_k, SymInt max_seqlen_k, {_OPTIONS}"
FLAT_SELF_ATTENTION = f"{_OFFSETS}, Tensor? key_lengths, {_OPTIONS}"
FLAT_AXIAL = _AXIAL
"""Along an axis there are no offsets, no order and no dropout: three numbers of the options are left."""


def of_flat(*values: Any) -> Call:
    """Build the call whose `flat` these are."""
    cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k, *options, order = values
    return Call(cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k, Options(*options), False, order)


def of_flat_self_attention(cu_seqlens: Tensor, max_seqlen: int, key_lengths: Tensor | None, *rest: Any) -> Call:
    """Build the call whose `flat_self_attention` these are."""
    *options, order = rest
    return Call(cu_seqlens, max_seqlen, cu_seqlens, max_seqlen, Options(*options), False, order, key_lengths)


def axial_call(query: Tensor, options: Options) -> Call:
    """Return the call on the rows of a grid [A, L, C, H, Dh], transposed to [A, C, L, H, Dh]: A * C sequences of L
    rows."""
    outer, length, inner = query.shape[:3]
    offsets = torch.arange(outer * inner + 1, device=query.device, dtype=torch.int32) * length
    return Call(offsets, length, offsets, length, options, dense=True)


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """Return the 64 bits of a seed as int64 [1] on the device: there it is data, on which neither a graph nor code
    depends."""
    if isinstance(seed, Tensor):
        return seed.reshape(1)
    return torch.full((1,), philox.signed(seed or 0), dtype=torch.int64, device=device)
