"""The FLOP of a step of the library's models, counted product by product.

torch's counter does not look into custom ops: attention, embedding and the masked words' loss are replaced by the same
in plain PyTorch, one sequence after the other.

Shape legend: L = rows of a sequence or frames, H = heads, K = head width, A = clips, C = places of a frame.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastvtp.modules import attention
from fastvtp.modules.losses import WordLoss
from fastvtp.systems.alpro import model as alpro
from fastvtp.systems.alpro import timesformer
from fastvtp.systems.simvtp import model as simvtp
from fastvtp.systems.videomae import model as videomae
from fastvtp.systems.videoprism import encoder as videoprism
from fastvtp.systems.videoprism import layers as prism_layers
from fastvtp_kernels import gather_tubelets

MODULES = (alpro, attention, prism_layers, simvtp, timesformer, videomae, videoprism)


def attend(query: Tensor, key: Tensor, value: Tensor, softcap: float) -> Tensor:
    """[L, H, K] each."""
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    logits = query @ key.mT * query.shape[-1] ** -0.5
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    return (logits.softmax(dim=-1) @ value).transpose(0, 1)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    softcap: float = 0.0,
) -> Tensor:
    asking = cu_seqlens.diff().tolist()
    asked = asking if cu_seqlens_k is None else cu_seqlens_k.diff().tolist()
    every = [sequences(x, sizes) for x, sizes in ((query, asking), (key, asked), (value, asked))]
    # rows behind the last sequence are of none
    return torch.cat([*(attend(*each, softcap) for each in zip(*every, strict=True)), query[sum(asking) :]])


def sequences(rows: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return rows[: sum(sizes)].split(sizes)


def varlen_attention_packed(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, key_lengths: Tensor | None = None, **options: Any
) -> Tensor:
    options.pop("causal", None)
    query, key, value = qkv.unbind(1)
    if key_lengths is not None:
        sizes = zip(cu_seqlens.diff().tolist(), key_lengths.tolist(), strict=True)
        answers = torch.cat([torch.arange(rows) < keys for rows, keys in sizes])
        key, value = key[: len(answers)][answers], value[: len(answers)][answers]
        options["cu_seqlens_k"] = torch.nn.functional.pad(key_lengths.cumsum(0), (1, 0))
    return varlen_attention(query, key, value, cu_seqlens, max_seqlen, **options)


def axial_attention_packed(qkv: Tensor, *, softcap: float = 0.0, causal: bool = False) -> Tensor:
    """[A, L, C, 3, H, K] -> [A, L, C, H, K]."""
    places = qkv.transpose(1, 2).flatten(0, 1)
    out = torch.stack([attend(*place.unbind(1), softcap) for place in places])
    return out.unflatten(0, (len(qkv), -1)).transpose(1, 2)


def tubelet_embed(
    video: Tensor, index: Tensor, weight: Tensor, bias: Tensor, positions: Tensor | None = None, **options: Any
) -> Tensor:
    values = gather_tubelets(video, index, dtype=weight.dtype, **options)
    weight = weight.permute(0, 2, 3, 4, 1).flatten(1)
    embedded = torch.nn.functional.linear(values, weight, bias)
    return embedded if positions is None else embedded + positions[index.long()]


def masked_word_loss(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> WordLoss:
    logits = torch.nn.functional.linear(features, weight, bias)
    return WordLoss(torch.nn.functional.cross_entropy(logits, labels), logits.argmax(dim=1))


PLAIN = {
    function.__name__: function
    for function in (varlen_attention, varlen_attention_packed, axial_attention_packed, tubelet_embed, masked_word_loss)
}


def counted_flops(step: Callable[[], Tensor]) -> int:
    """Of the loss that `step` gives and of its gradients."""
    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
        for module in MODULES:
            for name in PLAIN.keys() & vars(module).keys():
                patch.setattr(module, name, PLAIN[name])
        step().backward()
    return counter.get_total_flops()
