"""FlexAttention over packed rows, with the options of varlen_attention."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def sequence_of(offsets: Tensor, rows: int) -> Tensor:
    """Return the sequence of each of `rows` packed rows, int64; rows after the last sequence have one of their own."""
    return torch.searchsorted(offsets[1:].contiguous(), torch.arange(rows, device=offsets.device), right=True)


def flex_attention_of(
    offsets: tuple[Tensor, Tensor],
    rows: tuple[int, int],
    *,
    causal: bool = False,
    softcap: float = 0.0,
    run: Callable[..., Any] | None = None,
    compile_mask: bool = False,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return FlexAttention for packed rows [N, H, Dh], whose block mask is made by the first call.

    Args:
        offsets: of queries and of keys, int32 [S + 1].
        rows: how many there are of each.
        causal: the last query of a sequence sees its last key, each query before it one key less.
        softcap: c > 0 replaces logits by c * tanh(logits / c).
        run: torch's flex_attention, compiled; None is that function as it stands, which holds N x N logits.
        compile_mask: make the block mask by compiled code, which never holds an N x N mask.
    """
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

    sequence, sequence_k = (sequence_of(each, count) for each, count in zip(offsets, rows, strict=True))
    # Of a query in row r of the pack, the last key that it sees is in row r + last of its sequence.
    start, start_k = (each[:-1].long() for each in offsets)
    longer = (offsets[1].diff() - offsets[0].diff()).long()
    last = torch.nn.functional.pad(start_k - start + longer, (0, 1))

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine = sequence[query] == sequence_k[key]
        return mine & (key <= query + last[sequence[query]]) if causal else mine

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    @functools.cache
    def block_mask() -> BlockMask:
        return create_block_mask(visible, None, None, *rows, device=offsets[0].device, _compile=compile_mask)

    options: dict[str, Any] = {"score_mod": capped} if softcap else {}
    attention: Callable[..., Any] = run or flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        laid_out = (x.transpose(0, 1)[None] for x in (query, key, value))
        return attention(*laid_out, block_mask=block_mask(), **options)[0].transpose(0, 1)

    return attend
