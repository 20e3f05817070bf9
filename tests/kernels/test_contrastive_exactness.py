"""The contrastive losses where they are small differences of large logits: no less exact than torch's cross-entropy.

What is right is the formula in float64; how wrong one may be is how wrong torch's own float32 formula is on the same
features. Errors are those of several batches, since one number would be luck.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvtp_kernels import contrastive_loss, dispatch, sigmoid_loss
from fastvtp_kernels.contrastive import chunked
from fastvtp_kernels.testing import truths
from tests.kernels.contrastive_cases import small_tiles
from tests.kernels.triton_cases import DEVICE

BATCHES = 3
SIZES = {"19x21": (19, 21), "43x30": (43, 30)}
# How far apart directions are: at scales of 20 and 100 the loss of told pairs is then between 1e-6 and 1e-3.
SPREAD = {1.0: 0.9, 20.0: 0.9, 100.0: 0.2}
KINDS = ("told", "learned", "tied", "missed")
IDS = ("own", "repeated")


def features(kind: str, rows: int, width: int, scale: float, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pairs told apart with ease ("told"), exactly equal ("learned"), half of them twice in the batch ("tied"), or with
    the partner of one row taken by another ("missed"); exact numbers of `dtype`, on DEVICE."""
    generator = torch.Generator().manual_seed(100 * seed + rows)
    away, common, noise = (
        F.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64)) for n in (rows, 1, rows)
    )
    spread = SPREAD[scale]
    a = F.normalize((1 - spread) ** 0.5 * common + spread**0.5 * away)
    b = a.clone() if kind == "learned" else F.normalize(a + 0.03 * noise)
    if kind == "tied":
        a[rows // 2 :], b[rows // 2 :] = a[: (rows + 1) // 2].clone(), b[: (rows + 1) // 2].clone()
    if kind == "missed":
        b[[1, 4]] = b[[4, 1]]
    return a.to(DEVICE, dtype), b.to(DEVICE, dtype)


def found(loss: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The loss and all gradients, float64."""
    leaves = [x.to(dtype or x.dtype).clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [x.detach().double().cpu() for x in (value, *torch.autograd.grad(value, leaves))]


def cross_entropy(a: Tensor, b: Tensor, scale: Tensor, positives: Tensor | None = None, smoothing: float = 0.0):
    logits = scale * (a @ b.T)
    own = torch.arange(len(a), device=a.device) if positives is None else positives
    target = (own[:, None] == own).to(logits.dtype)
    target = own if positives is None else target / target.sum(1, keepdim=True)
    return sum(F.cross_entropy(x, target, label_smoothing=smoothing) for x in (logits, logits.T)) / 2


def siglip(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * (a @ b.T) + bias
    matched = torch.eye(len(a), dtype=logits.dtype, device=a.device)
    return F.binary_cross_entropy_with_logits(logits, matched, reduction="sum") / len(a)


def assert_no_less_exact(
    loss: Callable[..., Tensor], formula: Callable[..., Tensor], batches: list[list[Tensor]], dtype: torch.dtype
) -> None:
    ours, theirs, sizes = [], [], []
    for inputs in batches:
        exact = found(formula, inputs, torch.float64)
        sizes.append(torch.stack([x.abs().max() for x in exact]))
        for errors, values in ((ours, found(loss, inputs)), (theirs, found(formula, inputs, torch.float32))):
            errors.append(torch.stack([(x - y).abs().max() for x, y in zip(values, exact, strict=True)]) / sizes[-1])
    info, single = torch.finfo(dtype), torch.finfo(torch.float32)
    names = ["loss", "gradient of a", "gradient of b", "gradient of the scale", "gradient of the bias"]
    rows = zip(names, *(torch.stack(x, 1) for x in (ours, theirs, sizes)), strict=False)
    for name, error, other, size in rows:
        rounded = name in names[1:3]
        # Torch's formula may be lucky; what rounding each logit explains is nobody's fault.
        logit = single.eps / 2 * max(abs(x) for inputs in batches for x in inputs[2:]).item()
        allowed = max(2 * other.max(), logit) + 4 * (info.eps if rounded else single.eps)
        if rounded and dtype == torch.float16:
            # What its smallest numbers cut off.
            allowed += info.smallest_normal * info.eps / size.min()
        assert error.max() <= allowed, f"{name}: error {error.max():.3g}, allowed {allowed:.3g}, of {size.min():.3g}"


def runnable(backend: str) -> None:
    if backend == "triton" and not next(
        x.available for x in dispatch.backends("contrastive_loss", DEVICE) if x.backend == "triton"
    ):
        pytest.skip("Triton does not run here")


def cases(kind: str, size: tuple[int, int], scale: float, dtype: torch.dtype, *more: float) -> list[list[Tensor]]:
    scalars = [torch.tensor(x, device=DEVICE) for x in (scale, *more)]
    return [[*features(kind, *size, scale, seed, dtype), *scalars] for seed in range(BATCHES)]


CASES = [
    *(("reference", kind, scale, size, ids) for kind in KINDS for scale in SPREAD for size in SIZES for ids in IDS),
    # The interpreter is slow.
    *(("triton", kind, 100.0, "19x21", ids) for kind, ids in zip(KINDS, ("own", "repeated") * 2, strict=True)),
]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_backend = pytest.mark.parametrize("backend", ["reference", "triton"])


@pytest.mark.parametrize(("backend", "kind", "scale", "size", "ids"), CASES)
def test_contrastive_loss(backend, kind, scale, size, ids, monkeypatch):
    runnable(backend)
    rows, width = SIZES[size]
    # Strips that do not divide the rows.
    monkeypatch.setattr(chunked, "_STRIP_LOGITS", 7 * rows)
    options: dict[str, Any] = {}
    if ids == "repeated":
        row = torch.arange(rows, device=DEVICE)
        options["positives"] = torch.where(row % 5 == 0, row % 3, row + rows)
    with small_tiles():
        assert_no_less_exact(
            partial(contrastive_loss, **options, backend=backend),
            partial(cross_entropy, **options),
            cases(kind, (rows, width), scale, torch.float32),
            torch.float32,
        )


@pytest.mark.parametrize(
    ("kind", "dtype"), [("told", torch.bfloat16), ("missed", torch.bfloat16), ("told", torch.float16)], ids=str
)
@every_backend
def test_contrastive_loss_of_short_features(kind, dtype, backend):
    runnable(backend)
    with small_tiles():
        assert_no_less_exact(
            partial(contrastive_loss, backend=backend), cross_entropy, cases(kind, (19, 21), 100.0, dtype), dtype
        )


@every_backend
def test_smoothed_contrastive_loss(backend):
    runnable(backend)
    with small_tiles():
        assert_no_less_exact(
            partial(contrastive_loss, label_smoothing=1e-4, backend=backend),
            partial(cross_entropy, smoothing=1e-4),
            cases("told", (19, 21), 100.0, torch.float32),
            torch.float32,
        )


@every_kind
@every_backend
@pytest.mark.parametrize(("scale", "bias"), [(1.0, -2.0), (20.0, -10.0), (100.0, -90.0)])
def test_sigmoid_loss(kind, backend, scale, bias):
    runnable(backend)
    with small_tiles():
        assert_no_less_exact(
            partial(sigmoid_loss, backend=backend), siglip, cases(kind, (19, 21), scale, torch.float32, bias),
            torch.float32,
        )  # fmt: skip


@every_backend
def test_pairs_that_are_told_apart_by_far_still_have_a_loss(backend):
    """log(1 + 36 exp(-40)): torch's float32 formula gives 0, and no gradient."""
    runnable(backend)
    a = torch.eye(37, device=DEVICE)
    inputs = [a, a, torch.tensor(40.0, device=DEVICE)]
    loss, of_a, *_, of_scale = found(partial(contrastive_loss, backend=backend), inputs)
    odds = 36 * torch.tensor(-40.0, dtype=torch.float64).exp()
    torch.testing.assert_close(loss, odds, rtol=1e-5, atol=0)
    torch.testing.assert_close(of_scale, -odds, rtol=1e-5, atol=0)
    torch.testing.assert_close(of_a.diagonal(), (-40 / 37 * odds).expand(37), rtol=1e-5, atol=0)


@every_backend
def test_rows_that_are_all_alike_tie(backend):
    """However large their logits: these must come from one product, or they differ by their rounding."""
    runnable(backend)
    one = F.normalize(torch.linspace(-1, 2, 33, device=DEVICE), dim=0)
    with small_tiles():
        values = [contrastive_loss(one.expand(n, -1), one.expand(n, -1), 97.3, backend=backend) for n in (2, 37, 41)]
    torch.testing.assert_close(torch.stack(values).cpu(), torch.tensor([2.0, 37, 41]).log(), rtol=3e-7, atol=0)


@every_backend
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_no_scale_makes_the_loss_negative(backend, scale):
    runnable(backend)
    for inputs in cases("learned", (19, 21), 100.0, torch.float32):
        value = contrastive_loss(*inputs[:2], scale, backend=backend)
        assert 0 <= value <= 1e-5 * scale


def test_float64_has_all_its_digits():
    """Logits beyond 20, where a softplus that is cut off there is wrong in the tenth digit."""
    a, b, scale = cases("missed", (11, 9), 100.0, torch.float64)[0]
    inputs = [a, b, (0.4 * scale).double(), torch.tensor(-2.0, dtype=torch.float64, device=DEVICE)]
    for loss, leaves in ((sigmoid_loss, inputs), (contrastive_loss, inputs[:3])):
        actual = found(partial(loss, backend="reference"), leaves)
        with truths():
            exact = found(partial(loss, backend="reference"), leaves)
        for one, other in zip(actual, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
