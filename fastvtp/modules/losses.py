"""Losses that several systems share: masked words, the contrast of texts and clips, their matching.

The loss of masked pixels is `fastvtp_kernels.masked_pixel_loss` itself.

Shape legend: M = masked words, V = words of the vocabulary, B = pairs of a text and a clip, D = width.
"""

import importlib.util
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fastvtp.modules.capacity import NO_LABEL
from fastvtp.modules.precision import wide
from fastvtp_kernels import contrastive_loss
from fastvtp_kernels.derivatives import first_alone, for_every_caller, wants_gradient
from fastvtp_kernels.precision import accumulate_product, follow_autocast, without_autocast

# logits that are in memory at a time: 64 MB of float32
_CHUNK_LOGITS = 1 << 24


class WordLoss(NamedTuple):
    """What `masked_word_loss` gives. loss: [], the mean cross-entropy. predicted: int64 [M], the likeliest words."""

    loss: Tensor
    predicted: Tensor


def masked_word_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    backend: Literal["chunked", "liger"] | None = None,
) -> WordLoss:
    """Compute the cross-entropy of a linear word head over the masked words (BERT's masked language model,
    arXiv:1810.04805).

    The M x V logits are never in memory at once, nor are their gradients: those of the inputs are computed with the
    loss, some rows at a time (cf. arXiv:2410.10989, section 3.2).

    features: [M, D] tokens at the masked words. weight: [V, D]. bias: [V]. labels: int64 [M] in [0, V), or
        -100, which no loss counts.
    backend: "chunked" is PyTorch on any device; "liger" is liger-kernel's fused linear cross-entropy on CUDA, which
        reads the number of words back from the device. None: "liger" for CUDA tensors if it is installed, but not
        under torch.compile, whose graph it would break.
    Under torch.autocast logits are rounded to its dtype, as those of a linear layer are; sums are float32. The loss of
    no word is 0.

    Raises ValueError if shapes do not fit or the backend is unknown, RuntimeError if "liger" cannot run.
    """
    words, width = features.shape
    if weight.shape[1] != width or labels.shape != (words,) or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"masked_word_loss: features {list(features.shape)}, weight {list(weight.shape)}, bias "
            f"{None if bias is None else list(bias.shape)} and labels {list(labels.shape)} do not fit "
            "[M, D], [V, D], [V] and [M]"
        )
    features, weight = follow_autocast(features, weight)
    bias = None if bias is None else follow_autocast(bias)[0]
    with without_autocast(features.device):
        if _uses_liger(features, backend):
            total, predicted = _liger(features, weight, bias, labels)
        else:
            inputs = (features, weight) if bias is None else (features, weight, bias)
            differentiate = any(wants_gradient(x) for x in inputs)
            total, predicted, *_ = _differentiable(features, weight, bias, labels, differentiate)
    return WordLoss(total / (labels != NO_LABEL).sum().clamp(min=1), predicted)


def _uses_liger(features: Tensor, backend: str | None) -> bool:
    if backend not in (None, "chunked", "liger"):
        raise ValueError(f"masked_word_loss: backend is {backend!r}, expected 'chunked', 'liger' or None")
    if backend == "chunked" or (backend is None and (not features.is_cuda or torch.compiler.is_compiling())):
        return False
    installed = importlib.util.find_spec("liger_kernel") is not None
    if backend == "liger" and not (installed and features.is_cuda):
        reason = "liger-kernel is not installed" if not installed else f"the tensors are on {features.device.type}"
        raise RuntimeError(f"masked_word_loss: backend 'liger' needs liger-kernel and CUDA tensors, but {reason}")
    # Its launches do not expect an empty batch.
    return installed and len(features) > 0


def _liger(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
        liger_fused_linear_cross_entropy,
    )

    found = liger_fused_linear_cross_entropy(
        features, weight, labels, bias, reduction="sum", accum_dtype=torch.float32, return_predicted_tokens=True
    )
    return found.loss, found.predicted_tokens


@torch.library.custom_op("fastvtp::word_loss", mutates_args=())
def _chunked(
    features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the sum of the losses, the predicted words, and the sum's gradients of features, weight and bias, which
    are empty unless `differentiate`."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    total, predicted, *gradients = _fake_chunked(features, weight, bias, labels, differentiate)
    total.zero_()
    for gradient in gradients:
        gradient.zero_()
    of_features, of_weight, of_bias = gradients
    height = max(1, _CHUNK_LOGITS // max(1, len(weight)))
    for start in range(0, len(features), height):
        rows = slice(start, start + height)
        logits = F.linear(features[rows], weight, bias)
        torch.argmax(logits, dim=1, out=predicted[rows])
        logits = logits.to(dtype)
        counted = labels[rows, None] != NO_LABEL
        total += cross_entropy(logits, labels[rows], reduction="sum")
        if not differentiate:
            continue
        of_logits = logits.softmax(dim=1)
        label = labels[rows, None].clamp(min=0)
        of_logits.scatter_add_(1, label, of_logits.new_full(label.shape, -1.0)).masked_fill_(~counted, 0.0)
        of_bias += of_logits.sum(dim=0)
        of_logits = of_logits.to(features.dtype)
        of_features[rows] = of_logits @ weight
        accumulate_product(of_weight, of_logits.T, features[rows])
    return total, predicted, of_features, of_weight, of_bias


@_chunked.register_fake
def _fake_chunked(
    features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, differentiate: bool
) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(features.dtype, torch.float32)
    words, width = weight.shape
    return (
        features.new_empty((), dtype=dtype),
        torch.empty_like(labels),
        features.new_empty(features.shape if differentiate else (0, width)),
        weight.new_empty((words, width) if differentiate else (0, width), dtype=dtype),
        weight.new_empty(words if differentiate else 0, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:])
    features, weight, bias, *_ = inputs
    ctx.dtypes = features.dtype, weight.dtype, None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    found = (
        None if dtype is None else (gradient * grad).to(dtype)
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    )
    return *found, None, None


_INSTEAD = "torch.nn.functional.cross_entropy of the logits has every derivative"
_chunked.register_autograd(first_alone("masked_word_loss", _gradients, _INSTEAD), setup_context=_save)
_differentiable = for_every_caller("masked_word_loss", _chunked, _save, _gradients, _INSTEAD)


CONTRAST_PRECISIONS: dict[str, Literal["float32", "bf16x3"] | None] = {
    "auto": None,
    "float32": "float32",
    "bf16x3": "bf16x3",
}
"""How a contrast may multiply features, as settings name it, and as the kernels do."""


def video_text_contrast(
    text: Tensor,
    video: Tensor,
    logit_scale: Tensor,
    *,
    sample_ids: Tensor | None = None,
    directions: str = "mean",
    precision: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Compute InfoNCE of the cosine similarities of a batch: a loss [], float32 (float64 of float64).

    text, video: [B, D], of which rows i belong together; they are scaled to unit length here, in the loss's dtype.
    logit_scale: [] the inverse temperature, with gradient if it is learned.
    sample_ids: int64 [B]; rows with equal ids are the same clip and count as right answers for each other.
    group: the ranks whose rows are negatives too; None: this batch alone. `fastvtp_kernels.contrastive_loss` says what
        each rank's gradient is.
    directions: "mean" of the losses from text to video and from video to text, or their "sum" (the released SimVTP).
    precision: how kernels multiply the features: "float32" or "bf16x3", see `fastvtp_kernels.contrastive_loss`; "auto":
        the latter for a batch of more than 2048 pairs.

    Raises ValueError for other directions or precisions.
    """
    if precision not in CONTRAST_PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(CONTRAST_PRECISIONS)}, got {precision!r}")
    if directions not in ("mean", "sum"):
        raise ValueError(f"directions must be 'mean' or 'sum', got {directions!r}")
    with torch.autocast(text.device.type, enabled=False):
        loss = contrastive_loss(
            normalize(wide(text), dim=-1),
            normalize(wide(video), dim=-1),
            wide(logit_scale),
            positives=sample_ids,
            precision=CONTRAST_PRECISIONS[precision],
            group=group,
        )
    return loss if directions == "mean" else 2 * loss


_STREAM = 0x56544D  # keeps these numbers apart from the loader's, which are keyed by (seed, epoch, index)


def random_mismatch(sample_ids: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """Draw for each sample another clip of the batch, uniformly: int64 [B], sample_ids[result[i]] != sample_ids[i]
    (SimVTP).

    sample_ids: int64 [B], equal where the same clip stands in the batch twice. A sample with no other clip beside it
    gets itself; `matching_loss` leaves it out. The draw follows from (seed, step) and is made on the host, so that the
    packing that depends on it costs no device read.
    """
    different = sample_ids[:, None] != sample_ids[None, :]
    choices = different.sum(axis=1)
    rng = np.random.default_rng((seed, step, _STREAM))
    chosen = (rng.random(len(choices)) * choices).astype(np.int64)  # the how-many-eth of them
    mismatch = (different.cumsum(axis=1) > chosen[:, None]).argmax(axis=1)
    return np.where(choices > 0, mismatch, np.arange(len(choices)))


def matching_labels(is_mismatch: Tensor) -> Tensor:
    """Return labels of B matched and then B mismatched pairs, int64 [2B]: 1 for a match and 0 for a mismatch, or -100,
    which the loss leaves out, where `is_mismatch`, bool [B], is False."""
    mismatched = torch.where(is_mismatch, 0, -100)
    return torch.cat([torch.ones_like(mismatched), mismatched])


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy of two-way logits [2B, 2] over the pairs whose label, int64 [2B], is not -100."""
    return cross_entropy(wide(logits), labels, ignore_index=-100)


def matching_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of the labelled pairs that are judged rightly, float32 []."""
    return (logits.argmax(-1) == labels).sum() / (labels != -100).sum()
