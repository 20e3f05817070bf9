"""What the approximate units of a GPU may add to each op's results, derived for the tolerance law (`testing.py`).

A GPU's 2^x, division and square root are instructions with documented errors, and its logarithm a library function with
one; a CPU's are as good as correctly rounded. So a kernel that is right may be further off on the device than in the
interpreter, by what this module computes: first the errors of the units, then how they travel through each op's
formula into each element of the output and of the gradients. Travelling errors are added by magnitude, so the result is
a bound whatever their signs, to first order; ordinary roundings are none of its business, the law compares those with
PyTorch's.

Everything is float64, and small: for the sizes of tests.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention.call import Call, Options, axial_call
from .attention.gradients import Padded, logits_of
from .contrastive.reference import similarity
from .pixel_loss.reference import normalize_target
from .tubelets.reference import gather_pixels, to_unit_range

# Relative errors beyond a correctly rounded result. An ulp is at most 2^-23 of a float32 number.
EXP2 = 2 * 2.0**-23
"""`ex2.approx.ftz.f32`: "maximum ulp error is 2 ulp from correctly rounded result across the full range of inputs"; 1
of zero (PTX ISA, 9.7.3 Floating Point Instructions: ex2). Results below 2^-126 are flushed to zero."""
DIVISION = 2 * 2.0**-23
"""`div.full.f32`: "maximum ulp error is 2 across the full range of inputs" (same section: div). `tl.div_rn` is
exact."""
SQUARE_ROOT = 2.0**-23
"""`sqrt.approx.ftz.f32`: "maximum relative error over the entire positive finite floating-point range is 2^-23" (same
section: sqrt)."""
LOG2 = 2.0**-23
"""Triton computes tl.log2 by the CUDA library's log2f and not by lg2.approx, whose error near 1 is absolute: 1 ulp
(CUDA Programming Guide, Mathematical Functions: Standard Functions)."""

# No tile of keys, nor of columns of logits, is narrower.
_NARROWEST_TILE = 16


class Allowance(NamedTuple):
    """Bounds on the errors that the units cause, in the shapes of what they are of."""

    output: Tensor
    gradients: dict[int, Tensor]
    """Of the inputs, by their places among the arguments of the op's implementations."""


def _tiles(count: int) -> int:
    return -(-count // _NARROWEST_TILE)


def _tanh(x: Tensor) -> Tensor:
    """Bound the error of attention's tanh of x, a product with the quotient scale / softcap.

    From |x| = 0.625 on it is 1 - 2 t with t = 1 / (exp(2 x) + 1), whose relative error is DIVISION + (1 - t) EXP2;
    nearer to zero it is a polynomial.
    """
    t = (-2 * x).sigmoid()
    of_quotient = torch.where(x.abs() < 0.625, 0.0, 2 * t * (DIVISION + (1 - t) * EXP2))
    return of_quotient + x.abs() * (1 - x.tanh().square()) * DIVISION


def _attention(query: Tensor, key: Tensor, value: Tensor, call: Call, grad: Tensor) -> tuple[Tensor, ...]:
    """Bound the errors of the output and of the gradients of query, key and value.

    With logits l, weights exp(l - largest) are wrong by one EXP2, and by one for each later tile of keys, whose largest
    logit may be larger (a softcap adds its own); they meet in numerator and denominator, whose quotient is wrong by a
    DIVISION. The log-sum-exp is wrong by what the sum is, and by LOG2 of its logarithm. Backward computes weights from
    it by another EXP2. So weights p of backward are wrong by a factor 1 + r, gradients of logits p (dp - delta) by
    p (r |dp - delta| + the error of delta), and delta, the product of output and gradient, by what the output is.
    """
    options, packed = call.options, Padded(query, key, call)
    q, k, v, g = packed.queries(query), packed.keys(key), packed.keys(value), packed.queries(grad)
    logits = logits_of(q, k, options).masked_fill(~packed.mask, float("-inf"))
    if not logits.numel():
        return tuple(torch.zeros_like(x) for x in (query, query, key, value))
    lse = logits.logsumexp(dim=-1, keepdim=True)
    log_of_sum = (lse - logits.amax(dim=-1, keepdim=True)).nan_to_num(0.0)
    weights = (logits - lse).exp().nan_to_num(0.0)
    kept = weights * packed.keep
    output = kept @ v
    ratio, of_ratio = torch.zeros_like(logits), torch.zeros_like(logits)
    if options.softcap:
        x = logits_of(q, k, options._replace(softcap=0.0)) / options.softcap
        ratio, of_ratio = x.tanh(), _tanh(x)
    of_logit = options.softcap * of_ratio
    of_weight = (1 + _tiles(call.max_seqlen_k)) * EXP2 + of_logit
    of_sum = (weights * of_weight).sum(dim=-1, keepdim=True)
    output_error = (kept * of_weight) @ v.abs() + (of_sum + DIVISION) * output.abs()
    of_weight_again = EXP2 + of_logit + of_sum + LOG2 * log_of_sum
    centred = g @ v.mT * packed.keep - (g * output).sum(dim=-1, keepdim=True)
    delta_error = (g.abs() * output_error).sum(dim=-1, keepdim=True)
    logit_error = weights * (of_weight_again * centred.abs() + delta_error)
    logit_error = logit_error * (1 - ratio.square()) + weights * centred.abs() * 2 * ratio.abs() * of_ratio
    logit_error = logit_error * abs(options.scale)
    return (
        packed.rows(output_error),
        packed.rows(logit_error @ k.abs()),
        packed.key_rows(logit_error.mT @ q.abs()),
        packed.key_rows((of_weight_again * kept).mT @ g.abs()),
    )


def _varlen_attention(query: Tensor, key: Tensor, value: Tensor, call: Call, *, grad: Tensor) -> Allowance:
    output, *gradients = _attention(query, key, value, call, grad)
    return Allowance(output, dict(enumerate(gradients)))


def _varlen_attention_packed(qkv: Tensor, call: Call, *, grad: Tensor) -> Allowance:
    query, key, value = qkv.unbind(1)
    output, *gradients = _attention(query, key, value, call, grad)
    return Allowance(output, {0: torch.stack(gradients, dim=1)})


def _axial_attention(query: Tensor, key: Tensor, value: Tensor, options: Options, *, grad: Tensor) -> Allowance:
    q, k, v, g = (tensor.transpose(1, 2).flatten(0, 2) for tensor in (query, key, value, grad))
    found = _attention(q, k, v, axial_call(query, options), g)
    output, *gradients = (x.view(query.transpose(1, 2).shape).transpose(1, 2) for x in found)
    return Allowance(output, dict(enumerate(gradients)))


def _axial_attention_packed(qkv: Tensor, options: Options, *, grad: Tensor) -> Allowance:
    query, key, value = qkv.unbind(3)
    output, gradients = _axial_attention(query, key, value, options, grad=grad)
    return Allowance(output, {0: torch.stack([*gradients.values()], dim=3)})


def _contrastive_loss(
    a: Tensor, b: Tensor, scale: Tensor, positives: Tensor | None, smoothing: float, *_: Any, grad: Tensor
) -> Allowance:
    """Bound the errors of InfoNCE, which is computed from the log-odds L of all others against a row's own pair.

    L is a log-sum-exp of tiles, joined by another: an EXP2 each, one for each later join, and twice LOG2 of a
    logarithm no larger than that of the number of pairs. A row's loss is log(1 + exp(L)), its own gradient -1 / (1 +
    exp(-L)); the others are exp(logit - own - log(1 + exp(L))), with one EXP2 more.
    """
    rows, products = len(a), similarity(a, b)
    logits = scale * products
    own = torch.eye(rows, dtype=torch.bool)
    of_odds = (2 + _tiles(rows)) * EXP2 + 2 * LOG2 * torch.tensor(float(rows)).log().item()
    loss_error, logit_error = logits.new_zeros(()), torch.zeros_like(logits)
    for axis in (1, 0):
        others = (logits - logits.diagonal().unsqueeze(axis)).masked_fill(own, float("-inf"))
        share = others.logsumexp(dim=axis, keepdim=True).sigmoid()
        loss_error = loss_error + 0.5 * of_odds * share.mean()
        logit_error += logits.softmax(dim=axis) * (EXP2 + share * of_odds) * ~own
        logit_error += torch.where(own, share * (1 - share) * of_odds, 0.0)
    factor = grad.abs() * 0.5 / rows
    of_features = factor * scale.abs() * logit_error
    gradients = {
        0: of_features @ b.abs(),
        1: of_features.mT @ a.abs(),
        2: factor * (logit_error * products.abs()).sum(),
    }
    return Allowance(loss_error, gradients)


def _sigmoid_loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, *_: Any, grad: Tensor) -> Allowance:
    """Bound the errors of SigLIP: of log(1 + s) with s = exp(-|z|), and of s / (1 + s) or 1 / (1 + s).

    s is wrong by EXP2. The logarithm is 2 atanh(s / (2 + s)), whose relative error is at most 1.09 of the quotient's,
    one DIVISION; the gradient is one DIVISION of numbers that are wrong by EXP2 or less.
    """
    products = similarity(a, b)
    sign = 1 - 2 * torch.eye(len(a), dtype=products.dtype)
    z = sign * (scale * products + bias)
    small = (-z.abs()).exp()
    loss_error = (EXP2 * small / (1 + small) + 1.09 * DIVISION * small.log1p()).sum() / len(a)
    logit_error = z.sigmoid() * (DIVISION + EXP2) * grad.abs() / len(a)
    of_features = scale.abs() * logit_error
    of_scalars = (logit_error * products.abs()).sum(), logit_error.sum()
    return Allowance(loss_error, dict(enumerate((of_features @ b.abs(), of_features.mT @ a.abs(), *of_scalars))))


def _masked_pixel_loss(
    prediction: Tensor,
    video: Tensor,
    masked: Tensor,
    tubelet: Sequence[int],
    normalize: str | None,
    eps: float,
    *,
    grad: Tensor,
) -> Allowance:
    """Bound the errors of the loss by those of its target, a multiple of 1 / (deviation + eps) or of 1 / 255.

    The deviation is a SQUARE_ROOT, of bytes one of a DIVISION, of which it halves the error.
    """
    pixels = to_unit_range(gather_pixels(video, masked, tubelet), prediction.dtype)
    target = normalize_target(pixels, video.shape[-1], normalize, eps)
    target_error = target.abs() * (DIVISION if normalize is None else 1.5 * DIVISION + SQUARE_ROOT)
    share = 2 / prediction.numel()
    loss_error = share * ((prediction - target).abs() * target_error).sum()
    return Allowance(loss_error, {0: grad.abs() * share * target_error})


def gathered(values: Tensor, std: Sequence[float], pixels: Tensor) -> Tensor:
    """Bound the errors of gather_tubelets' values (x / 255 - mean) / std, given the pixels x / 255: two DIVISIONs."""
    widths = torch.tensor(std, dtype=values.dtype, device=values.device).repeat(values.shape[-1] // len(std))
    return DIVISION * (pixels / widths + values.abs())


_OF_OPS: dict[str, Callable[..., Allowance]] = {
    "varlen_attention": _varlen_attention,
    "varlen_attention_packed": _varlen_attention_packed,
    "axial_attention": _axial_attention,
    "axial_attention_packed": _axial_attention_packed,
    "contrastive_loss": _contrastive_loss,
    "sigmoid_loss": _sigmoid_loss,
    "masked_pixel_loss": _masked_pixel_loss,
}


class Ran:
    """One run of an op's specification in float64, with the gradient of its output once that is known."""

    def __init__(self, op: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.op, self.inputs, self.output = op, inputs, output
        self.grad: Tensor | None = None
        if output.requires_grad:
            output.register_hook(self._keep)

    def _keep(self, grad: Tensor) -> None:
        self.grad = grad

    def allowance(self) -> Allowance | None:
        """Return what the units may add to the op's results; None: it uses none."""
        if self.op not in _OF_OPS:
            return None
        inputs = [x.detach() if isinstance(x, Tensor) else x for x in self.inputs]
        grad = torch.zeros_like(self.output) if self.grad is None else self.grad
        return _OF_OPS[self.op](*inputs, grad=grad.detach())


def carried(runs: Sequence[Ran], output: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor | float]:
    """Bound the errors of "output" and of "grad of <leaf>" of code that ran these ops, and else what is linear.

    The bounds of an op's output go forward through that, and those of its inputs' gradients back to the leaves. A
    backward pass has been made already: nothing on the way may need what it has freed.
    """
    allowed: dict[str, Tensor | float] = {"output": 0.0, **{f"grad of {name}": 0.0 for name in leaves}}
    for run in runs:
        found = run.allowance()
        if found is None:
            continue
        allowed["output"] = allowed["output"] + _forward(found.output, run.output, output)
        for place, bound in found.gradients.items():
            for name, leaf in leaves.items():
                allowed[f"grad of {name}"] = allowed[f"grad of {name}"] + _back(bound, run.inputs[place], leaf)
    return allowed


def _forward(bound: Tensor, source: Tensor, output: Tensor) -> Tensor:
    if source is output or not source.requires_grad:
        return bound
    # A linear function is the derivative of its own derivative.
    zeros = torch.zeros_like(output, requires_grad=True)
    (transposed,) = torch.autograd.grad(output, source, zeros, create_graph=True)
    return torch.autograd.grad(transposed, zeros, bound)[0].abs()


def _back(bound: Tensor, target: Any, leaf: Tensor) -> Tensor | float:
    if target is leaf:
        return bound
    if not isinstance(target, Tensor) or target.grad_fn is None:
        return 0.0
    (found,) = torch.autograd.grad(target, leaf, bound, allow_unused=True, retain_graph=True)
    return 0.0 if found is None else found.abs()
