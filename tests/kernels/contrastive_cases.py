"""Inputs of the contrastive ops: features of several kinds, ids, and losses of several batches at once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvtp_kernels import contrastive_loss, sigmoid_loss, tuning
from tests.kernels.triton_cases import (
    DEVICE,
    SMALL_TILES,
    random_values,
)

CONTRASTIVE = tuple(name for name in SMALL_TILES if name.startswith("contrastive"))
KINDS = ("unit", "aligned", "equal", "zero", "large")
# Batches of one comparison: a single number would be compared with the luck of the reference's rounding.
BATCHES = 2


@contextmanager
def small_tiles() -> Iterator[None]:
    """Within the context 37 rows are three tiles of rows, and their partial sums two blocks."""
    with ExitStack() as stack:
        for kernel in CONTRASTIVE:
            stack.enter_context(tuning.override(kernel, SMALL_TILES[kernel]))
        yield


def pair(
    *shape: int, kind: str = "unit", dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device = DEVICE
) -> tuple[Tensor, Tensor]:
    """Two feature tensors [..., B, D] that ask for gradients.

    Kinds: random directions ("unit"), pairs that have been learnt ("aligned"), one direction for all ("equal"), zeros,
    and random directions 30 long ("large").
    """
    a, b = (random_values(*shape, dtype=torch.float64, seed=2 * seed + i).detach().cpu() for i in (0, 1))
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    if kind == "aligned":
        b = F.normalize(a + 0.2 * b, dim=-1)
    if kind == "equal":
        a = b = a[..., :1, :].expand(shape)
    factor = {"zero": 0.0, "large": 30.0}.get(kind, 1.0)
    first, second = ((factor * x).to(device, dtype).contiguous().requires_grad_() for x in (a, b))
    return first, second


def ids(kind: str, rows: int, dtype: torch.dtype = torch.int64) -> Tensor | None:
    """Unsorted ids [rows]: no two equal or none at all ("none"), some ("repeated") or all of them equal ("equal")."""
    if kind == "none":
        return None
    places = torch.arange(rows, device=DEVICE)
    return {"repeated": 7 * places % (rows // 2 + 1) - 2, "equal": places * 0 + 5}[kind].to(dtype)


def scalar(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=DEVICE, requires_grad=True)


def of_batches(
    loss: Callable[..., Tensor],
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Losses [count] of a, b [count, B, D] with a scale (and a bias) each."""
    biases = [()] * len(a) if logit_bias is None else [(bias,) for bias in logit_bias]
    return torch.stack([loss(*batch, *bias, **options) for *batch, bias in zip(a, b, logit_scale, biases, strict=True)])


def batches(op: str, rows: int, width: int, dtype: torch.dtype = torch.float32, count: int = BATCHES) -> dict[str, Any]:
    """Arguments of `of_batches`; the scales and biases of the batches differ."""
    a, b = pair(count, rows, width, dtype=dtype)
    spread = torch.linspace(0.7, 1.3, count, device=DEVICE)
    inputs = {"a": a, "b": b, "logit_scale": (14 * spread).requires_grad_()}
    if op == "sigmoid_loss":
        inputs["logit_bias"] = (-3 * spread.flip(0)).requires_grad_()
    return inputs


LOSSES: dict[str, Callable[..., Tensor]] = {"contrastive_loss": contrastive_loss, "sigmoid_loss": sigmoid_loss}


def assert_within_rounding(
    found: dict[str, Tensor],
    a: Tensor,
    b: Tensor,
    logit_scale: float,
    logit_bias: float | None = None,
    positives: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> None:
    """Loss and gradients against the formula in float64, each within what rounding its terms and the logits explains.

    For inputs where the terms cancel, or where a rounded logit decides: the tolerance law would compare one accident
    with another. A logit may be wrong by `slip`, which multiplies its exponential by up to exp(2 slip); a logit's
    gradient is rounded to the features' dtype before it meets them, and so are the sums.
    """
    dtype, rows = a.dtype, len(a)
    info, single = torch.finfo(dtype), torch.finfo(torch.float32).eps
    # float16 also loses what is below its smallest numbers, of which the kernels' gain leaves 1 / 4096.
    smallest = info.smallest_normal * info.eps
    a, b = (x.detach().cpu().double() for x in (a, b))
    products, sizes = a @ b.T, a.abs() @ b.abs().T
    logits = logit_scale * products + (logit_bias or 0.0)
    slip = 8 * single * (1 + abs(logit_scale) * sizes.max() + abs(logit_bias or 0.0))
    place = torch.arange(rows) if positives is None else positives.cpu()
    own = (place[:, None] == place).double()
    own = (1 - label_smoothing) * own / own.sum(1) + label_smoothing / rows
    if logit_bias is None:
        softmaxes, share = [logits.softmax(1), logits.softmax(0)], 0.5 / rows
        terms, exact = sum(softmaxes) + 2 * own, sum(softmaxes) - 2 * own
        loss = share * (logits.logsumexp(0) + logits.logsumexp(1) - 2 * (own * logits).sum(1)).sum()
        loss_error = 2 * slip
    else:
        sign, share = 1 - 2 * own, 1 / rows
        softmaxes = [(sign * logits).sigmoid()]
        terms, exact = softmaxes[0], sign * softmaxes[0]
        loss = share * torch.nn.functional.softplus(sign * logits).sum()
        loss_error = share * (terms * slip.expm1()).clamp(max=slip).sum() + 8 * single * loss
    wrong = sum((x * (2 * slip).expm1()).clamp(max=1) for x in softmaxes) + 8 * single * terms
    stored = wrong + info.eps * terms + smallest / 4096
    expected = {
        "output": (loss, loss_error),
        "grad of a": (logit_scale * share * exact @ b, abs(logit_scale) * share * stored @ b.abs()),
        "grad of b": (logit_scale * share * exact.T @ a, abs(logit_scale) * share * stored.T @ a.abs()),
        "grad of logit_scale": (share * (exact * products).sum(), share * (wrong * sizes).sum()),
        "grad of logit_bias": (share * exact.sum(), share * wrong.sum()),
    }
    for name, value in found.items():
        right, allowed = expected[name]
        allowed = allowed + single * right.abs() + torch.finfo(torch.float32).tiny
        if name in ("grad of a", "grad of b"):
            allowed = allowed + info.eps * right.abs() + smallest
        error = (value.detach().cpu().double() - right).abs()
        excess = (error - allowed).max()
        assert excess <= 0, f"{name}: beyond its bound by {excess:.3g}; the largest bound is {allowed.max():.3g}"
