"""Losses that pull matching pairs together, and the sampling of negatives that are hard to tell from them."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import philox
from ..derivatives import wants_gradient
from ..dispatch import BackendUnavailableError, implementation, register
from ..precision import allows_tf32, compute_dtype, follow_autocast, without_autocast
from ..validation import INDEX_DTYPES, check_devices, check_floating, check_seed, check_shape
from . import chunked, reference, registered
from .ranks import name_of


def _alone(op: str, group_name: str) -> None:
    if group_name:
        raise BackendUnavailableError(f"{op}: backend 'specification' knows one process alone, but group is given")


# What a loss returns besides is for its backward pass, which the specifications leave to autograd.
def _contrastive_truth(a: Tensor, b: Tensor, scale: Tensor, positives: Tensor | None, *rest: Any) -> list[Tensor]:
    smoothing, *_, group_name = rest
    _alone("contrastive_loss", group_name)
    return [reference.contrastive_loss(a, b, scale, positives, smoothing)]


def _sigmoid_truth(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, *rest: Any) -> list[Tensor]:
    _alone("sigmoid_loss", rest[-1])
    return [reference.sigmoid_loss(a, b, scale, bias)]


def _negatives_truth(*inputs: Any) -> tuple[Tensor, Tensor]:
    *alone, _, group_name = inputs
    _alone("hard_negatives", group_name)
    return reference.hard_negatives(*alone)


def _negatives_in_pytorch(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Draw without kernels: in one node for compilers where ranks exchange something, else in steps that they see."""
    run = registered.hard_negatives_reference if inputs[-1] else chunked.hard_negatives
    return run(*inputs)


register(
    "contrastive_loss",
    truth=_contrastive_truth,
    reference=registered.contrastive_loss_reference,
    triton=registered.contrastive_loss,
)
register(
    "sigmoid_loss",
    truth=_sigmoid_truth,
    reference=registered.sigmoid_loss_reference,
    triton=registered.sigmoid_loss,
)
register(
    "hard_negatives",
    truth=_negatives_truth,
    reference=_negatives_in_pytorch,
    triton=registered.hard_negatives,
)


Precision = Literal["float32", "bf16x3"]
"""How float32 features are multiplied, see `contrastive_loss`."""

# Rows of a global batch from which on float32 products cost more than everything else of a step.
_MANY_ROWS = 2048


class HardNegatives(NamedTuple):
    """Row of b chosen for each a, row of a chosen for each b; int64 [B], -1 where there is no candidate.

    Of a group's global batch they are rows of that: row r * B + i is row i of rank r.
    """

    b_for_a: Tensor
    a_for_b: Tensor


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    *,
    group: Any = None,
    label_smoothing: float = 0.0,
    positives: Tensor | None = None,
    precision: Precision | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute the symmetric InfoNCE (CLIP, Radford et al. 2021): mean of the two directions' cross-entropies.

    logits = logit_scale * a @ b.T; row i of `a` belongs to row i of `b`. Gradients flow to a, b and logit_scale, and
    are computed with the loss: what backward needs is [B, D] twice, in float32. The B x B logits are never in memory;
    the gradients of some rows of them are, up to 2^27 numbers at a time (on the CPU 2^22).

    Args:
        a: [B, D], used as given (normalise first).
        b: [B, D].
        logit_scale: number or scalar tensor (1 / temperature, not its logarithm).
        group: a torch.distributed group whose ranks hold B rows each of one global batch. Features of up to 64 MiB over
            all ranks are gathered at once, and their gradients' sums go back in one exchange; larger ones travel around
            the ring of ranks while each computes on another's, so that a rank holds two blocks of them at a time.
            Every rank returns the loss L of the global batch, and dL/d(logit_scale). Its features receive
            ranks * dL/da: data-parallel training averages gradients, so a parameter theta of the towers ends up with
            (1 / ranks) * sum_r (da_r/dtheta)^T (ranks * dL/da_r) = dL/dtheta, as one process with all rows has it.
        label_smoothing: this share of the target is spread evenly over all B columns.
        positives: int [B]; rows with equal ids are positives of one another, each with equal share of the target.
            Default: only i with i.
        precision: how the kernels multiply float32 features. "float32": exactly, without tensor cores, or in TF32 where
            torch is allowed to. "bf16x3": by tensor cores, each product as three of bfloat16 with sums in float32. Of
            unit features at a scale of 100 a logit is then wrong by up to 2e-4 (measured at widths 256 to 768, emulated
            on a CPU), where float32 sums are by 4e-5, TF32 by 0.07 and features in bfloat16 by 0.08. None: "bf16x3" for
            a global batch of more than 2048 rows where TF32 is not allowed, else "float32". It makes no difference to
            features of other dtypes, nor in plain PyTorch.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        Scalar, float32 (float64 for float64 features). Under torch.autocast the features are rounded to its dtype.

    Raises:
        ValueError: a shape does not fit, the batch is empty, label_smoothing is outside [0, 1], or (on every rank) the
            ranks' features differ in shape. If `group` serves CPU tensors beside NCCL, as it does when
            init_process_group is not told a backend, no host waits for a device to find that out.
        TypeError: features are not of one floating-point dtype, positives is not int32 or int64, or group is no
            process group.
    """
    op = "contrastive_loss"
    _check_pair(op, a, b, group, logit_scale=logit_scale)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing is {label_smoothing}, expected 0 <= label_smoothing <= 1")
    positives = _checked_ids(op, "positives", positives, a)
    a, b = follow_autocast(a, b)
    group_name, split = name_of(op, group), _splits(op, precision, a, group)
    run = implementation(op, backend, a.device, a.dtype)
    with without_autocast(a.device):
        scale = _scalar(logit_scale, a)
        wanted = _wanted(a, b, scale)
        return run(a, b, scale, positives, float(label_smoothing), split, *wanted, group_name)[0]


def sigmoid_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    group: Any = None,
    precision: Precision | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute the pairwise sigmoid loss (SigLIP, Zhai et al. 2023): -sum over all pairs of log sigmoid(±logit) / B.

    logits = logit_scale * a @ b.T + logit_bias; plus for i = j, minus elsewhere. Gradients flow to all four inputs, and
    are computed with the loss as in `contrastive_loss`.

    Args:
        a: [B, D], used as given (normalise first).
        b: [B, D].
        logit_scale: number or scalar tensor.
        logit_bias: number or scalar tensor.
        group: a torch.distributed group whose ranks hold B rows each of one global batch; `contrastive_loss` states
            the convention.
        precision: as in `contrastive_loss`.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        Scalar, float32 (float64 for float64 features). Under torch.autocast the features are rounded to its dtype.

    Raises:
        ValueError: a shape does not fit or the batch is empty.
        TypeError: features are not of one floating-point dtype.
    """
    op = "sigmoid_loss"
    _check_pair(op, a, b, group, logit_scale=logit_scale, logit_bias=logit_bias)
    a, b = follow_autocast(a, b)
    group_name, split = name_of(op, group), _splits(op, precision, a, group)
    run = implementation(op, backend, a.device, a.dtype)
    with without_autocast(a.device):
        scale, bias = _scalar(logit_scale, a), _scalar(logit_bias, a)
        return run(a, b, scale, bias, split, *_wanted(a, b, scale, bias), group_name)[0]


@torch.no_grad()
def hard_negatives(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    groups: Tensor | None = None,
    group: Any = None,
    precision: Precision | None = None,
    backend: str | None = None,
) -> HardNegatives:
    """Return one negative per row and direction, drawn in proportion to the softmax of its similarity (ALBEF, Li et al.
    2021).

    b_for_a[i] ~ softmax over j != i of logit_scale * a[i] . b[j]; a_for_b[j] ~ softmax over i != j of the same logits.
    The draw is an exact inverse CDF of a random number keyed by (seed, step, row); nothing waits for the device, but
    what `group` says.

    Args:
        a: [B, D], used as given (normalise first). No gradient flows.
        b: [B, D].
        logit_scale: number or scalar tensor.
        seed: 0 <= seed < 2^64, or one int64 in a tensor on the device, which captured graphs read anew.
        step: training step, 0 <= step < 2^32, or a tensor like seed.
        groups: int [B]; rows with equal ids are never negatives of one another. Default: no row of itself.
        group: a torch.distributed group whose ranks hold B rows each of one global batch, in the order of the ranks.
            Each rank draws for its own B rows among the rows of all ranks, and gets what one process with the whole
            batch would draw for them with the same backend, seed and step, which all ranks must give: the random number
            is keyed by the row's place in the global batch. `groups` are compared across ranks. The features of all
            ranks and their ids are sent to each (ranks * B * D numbers of a and as many of b, held there meanwhile);
            the clips and texts that the rows stand for are not, and a row of another rank's is the caller's to fetch.
            A rank computes the logits of its own rows in both directions, 4 * B * (ranks * B) * D FLOP (on the CPU up
            to 2^20 more at each end of its rows), and never has all of them in memory.
        precision: as in `contrastive_loss`; what is drawn from is then the softmax of those logits.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        HardNegatives(b_for_a, a_for_b), int64 [B] each: rows of the batch, with `group` of the global one. A row
        without any candidate (all rows are of its group) gets -1: index with `.clamp(min=0)` and leave rows with
        `b_for_a < 0` out of the loss, which needs no host wait.

    Raises:
        ValueError: a shape does not fit, the batch is empty, the seed or the step is out of range, or (on every rank)
            the ranks' features differ in shape, or their seeds or steps differ. As in `contrastive_loss`, no host waits
            for a device to find that out if `group` serves CPU tensors too.
        TypeError: features are not of one floating-point dtype, groups is not int32 or int64, or group is no process
            group.
        BackendUnavailableError: backend is "specification", which knows no group.
    """
    op = "hard_negatives"
    _check_pair(op, a, b, group, logit_scale=logit_scale)
    seed, step = check_seed(op, seed, step, device=a.device)
    groups = _checked_ids(op, "groups", groups, a)
    group_name, split = name_of(op, group), _splits(op, precision, a, group)
    run = implementation(op, backend, a.device, a.dtype)
    with without_autocast(a.device):
        # The dispatcher's integers are signed.
        scale = _scalar(logit_scale, a)
        draw = philox.for_kernels(seed, step, a.device)
        return HardNegatives(*run(a, b, scale, *draw, groups, split, group_name))


def _check_pair(op: str, a: Tensor, b: Tensor, group: Any, **scalars: Tensor | float) -> None:
    check_shape(op, "a", a, "B", "D")
    check_shape(op, "b", b, *a.shape)
    check_floating(op, a=a)
    if a.dtype != b.dtype:
        raise TypeError(f"{op}: a is {a.dtype} and b is {b.dtype}, expected one dtype")
    check_devices(op, a=a, b=b)
    # In a group the ranks tell each other first: one that raised alone would leave the others waiting.
    if a.shape[0] == 0 and group is None:
        raise ValueError(f"{op}: a has shape {list(a.shape)}, expected at least one row")
    for name, scalar in scalars.items():
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise ValueError(f"{op}: {name} has shape {list(scalar.shape)}, expected a scalar")


def _splits(op: str, precision: str | None, features: Tensor, group: Any) -> bool:
    """Tell whether the kernels multiply these features as three products of bfloat16."""
    if precision not in (None, "float32", "bf16x3"):
        raise ValueError(f"{op}: precision is {precision!r}, expected 'float32', 'bf16x3' or None")
    if precision is not None or features.dtype != torch.float32:
        return precision == "bf16x3" and features.dtype == torch.float32
    rows = len(features) * (1 if group is None else group.size())
    return features.is_cuda and rows > _MANY_ROWS and not allows_tf32()


def _scalar(value: Tensor | float, features: Tensor) -> Tensor:
    """[] in the dtype and on the device that the op computes on; gradients flow back through it."""
    dtype = compute_dtype(features.dtype)
    if isinstance(value, Tensor):
        return value.to(features.device, dtype).reshape(())
    return torch.full((), value, dtype=dtype, device=features.device)


def _wanted(*inputs: Tensor) -> tuple[bool, bool, bool]:
    """Tell whether a, b and any of the scalars ask for a gradient."""
    a, b, *scalars = (wants_gradient(x) for x in inputs)
    return a, b, any(scalars)


def _checked_ids(op: str, name: str, ids: Tensor | None, features: Tensor) -> Tensor | None:
    if ids is None:
        return None
    check_shape(op, name, ids, features.shape[0])
    check_devices(op, a=features, **{name: ids})
    if ids.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: {name} is {ids.dtype}, expected int32 or int64")
    return ids.contiguous()
