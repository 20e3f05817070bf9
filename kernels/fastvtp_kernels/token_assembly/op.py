"""Visible tokens and mask tokens joined into the decoder's input."""

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implementation, register
from ..registration import define_gradient, define_op, launcher
from ..validation import check_devices, check_floating, check_index, check_shape, values_readable
from . import gradients, reference

_assemble = define_op(
    "assemble_tokens(Tensor visible, Tensor mask_token, Tensor position, Tensor visible_index, Tensor masked_index, "
    "Tensor? permutation) -> Tensor",
    launch=launcher(__name__, "assemble_tokens"),
    reference=reference.assemble_tokens,
    fake=lambda visible, token, position, visible_index, masked_index, permutation: visible.new_empty(
        visible.shape[0], visible.shape[1] + masked_index.shape[1], visible.shape[2]
    ),
)
_assemble_backward = define_op(
    "assemble_tokens_backward(Tensor grad, Tensor mask_token, Tensor position, Tensor visible_index, "
    "Tensor masked_index, Tensor? permutation, bool position_gradient) -> (Tensor, Tensor, Tensor)",
    launch=launcher(__name__, "assemble_tokens_backward"),
    reference=gradients.assemble_tokens_backward,
    fake=lambda grad, token, position, visible_index, masked_index, permutation, position_gradient: (
        grad.new_empty(*visible_index.shape, grad.shape[2]),
        token.new_empty(token.shape),
        position.new_empty(position.shape if position_gradient else 0),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    with_position = ctx.needs_input_grad[2]
    visible, token, position = _assemble_backward(grad.contiguous(), *ctx.saved_tensors, with_position)
    return visible, token, position if with_position else None, None, None, None


register(
    "assemble_tokens",
    reference=reference.assemble_tokens,
    triton=define_gradient(_assemble, _save, _gradients),
)


def assemble_tokens(
    visible: Tensor,
    mask_token: Tensor,
    position: Tensor,
    visible_index: Tensor,
    masked_index: Tensor,
    *,
    permutation: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Assemble the decoder's input: visible tokens first, then one mask token per hidden place, each with its position
    added.

    Without `permutation` (VideoMAE, SimVTP):
        cat([visible + position[visible_index], mask_token + position[masked_index]])
    With it (token shuffling of VideoPrism, Zhao et al. 2024, Algorithm 1) tokens are shuffled first and positions added
    in natural order afterwards, so that the decoder has to find out where a token came from:
        output[:, i] = cat([visible, mask_token ...])[:, permutation[i]] + position[i]
    Of all shuffles, the one that brings every token back to its own place restores the raster order.

    Args:
        visible: [B, Kv, D].
        mask_token: [D] or [1, 1, D].
        position: [tokens, D]; with `permutation` exactly Kv + Km rows.
        visible_index: int32 or int64 [B, Kv]; used for positions, hence not with `permutation`.
        masked_index: int32 or int64 [B, Km]; with `permutation` only its shape counts.
        permutation: int32 or int64 [Kv + Km], one order for the batch, or [B, Kv + Km]; or None.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        [B, Kv + Km, D] in the dtype of `visible`. Gradients flow to visible, mask_token and position.

    Raises:
        ValueError: a shape does not fit or (on the CPU) an index is out of range.
        TypeError: a dtype is not one of those above.
    """
    op = "assemble_tokens"
    check_floating(op, visible=visible, mask_token=mask_token, position=position)
    check_shape(op, "visible", visible, "B", "Kv", "D")
    batch_size, _, width = visible.shape
    check_shape(op, "position", position, "tokens", width)
    if tuple(mask_token.shape) not in ((width,), (1, 1, width)):
        raise ValueError(f"{op}: mask_token has shape {list(mask_token.shape)}, expected [{width}] or [1, 1, {width}]")
    tokens = position.shape[0]
    check_index(op, "visible_index", visible_index, tokens, *visible.shape[:2])
    check_index(op, "masked_index", masked_index, tokens, batch_size, "Km")
    if permutation is not None:
        length = visible.shape[1] + masked_index.shape[1]
        check_shape(op, "position", position, length, width)
        batched = [batch_size] if permutation.ndim == 2 else []
        check_index(op, "permutation", permutation, length, *batched, length, what="places")
        if (
            values_readable(permutation)
            and (permutation.sort(dim=-1).values != torch.arange(length, device=permutation.device)).any()
        ):
            raise ValueError(f"{op}: permutation names a place twice, expected each of 0..{length - 1} once")
    indices = {"visible_index": visible_index, "masked_index": masked_index, "permutation": permutation}
    check_devices(op, visible=visible, mask_token=mask_token, position=position, **indices)
    run = implementation(op, backend, visible.device, visible.dtype)
    return run(visible, mask_token, position, visible_index, masked_index, permutation)
