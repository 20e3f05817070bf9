"""What torch.autograd and torch.func may ask of every op, on every backend: right, or refused in one line by name."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import fastvtp_kernels as kernels
from fastvtp_kernels import dispatch
from fastvtp_kernels.derivatives import DerivativeError
from fastvtp_kernels.masking.replacement import Replacement
from fastvtp_kernels.ops import OPS
from tests.kernels.contrastive_cases import small_tiles
from tests.kernels.triton_cases import DEVICE, IMAGENET

TUBELET = (1, 3, 2)
GRID = (2, 2, 3)
# A clip of 2 x 2 x 3 tubelets.
VIDEO = torch.randint(0, 256, (2, 2, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
INDEX = torch.tensor([[0, 5, 5, 11], [7, 2, 1, 10]], device=DEVICE)
OFFSETS = torch.tensor([0, 3, 3, 8], dtype=torch.int32, device=DEVICE)
OUTSIDE = torch.tensor([[4, 0, 6, 3], [1, 2, 8, 7]], device=DEVICE)


class Case(NamedTuple):
    """An op as a function of tensors of these shapes; `integers`: of ids instead, which have no derivatives."""

    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    integers: bool = False


def _embed_into(out: Tensor, weight: Tensor, bias: Tensor, position: Tensor, **options: Any) -> Tensor:
    return kernels.tubelet_embed(
        VIDEO, INDEX, weight, bias, position, tubelet=TUBELET, **IMAGENET, out=out.clone(), out_rows=OUTSIDE, **options
    )


def _joined(*tensors: Tensor) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


WEIGHTS = ((4, 3, *TUBELET), (4,), (12, 4))
QKV = (8, 2, 4)
CASES: dict[str, Case] = {
    "contrastive_loss": Case(kernels.contrastive_loss, ((5, 4), (5, 4), ())),
    "contrastive_loss, ids, smoothed": Case(
        functools.partial(
            kernels.contrastive_loss, positives=torch.tensor([1, 2, 1, 4, 2], device=DEVICE), label_smoothing=0.2
        ),
        ((5, 4), (5, 4), ()),
    ),
    "sigmoid_loss": Case(kernels.sigmoid_loss, ((5, 4), (5, 4), (), ())),
    "hard_negatives": Case(
        lambda a, b, scale, **x: _joined(*kernels.hard_negatives(a, b, scale, seed=3, **x)), ((5, 4), (5, 4), ())
    ),
    "masked_pixel_loss": Case(
        lambda prediction, **x: kernels.masked_pixel_loss(prediction, VIDEO, INDEX, tubelet=TUBELET, **x), ((2, 4, 18),)
    ),
    "gather_tubelets": Case(
        lambda scale, **x: (
            scale
            * kernels.gather_tubelets(VIDEO.float() / 255, INDEX, tubelet=TUBELET, **IMAGENET, dtype=scale.dtype, **x)
        ),
        ((),),
    ),
    "tubelet_embed": Case(
        lambda *xs, **x: kernels.tubelet_embed(VIDEO, INDEX, *xs, tubelet=TUBELET, **IMAGENET, **x), WEIGHTS
    ),
    "tubelet_embed, into rows": Case(_embed_into, ((9, 4), *WEIGHTS)),
    "assemble_tokens": Case(
        lambda visible, token, position, **x: kernels.assemble_tokens(
            visible, token, position, INDEX, INDEX.flip(0), **x
        ),
        ((2, 4, 3), (3,), (12, 3)),
    ),
    "varlen_attention": Case(lambda *qkv, **x: kernels.varlen_attention(*qkv, OFFSETS, 5, **x), (QKV, QKV, QKV)),
    "varlen_attention, softcap": Case(
        lambda *qkv, **x: kernels.varlen_attention(*qkv, OFFSETS, 5, softcap=1.5, causal=True, **x), (QKV, QKV, QKV)
    ),
    "varlen_attention_packed": Case(
        lambda qkv, **x: kernels.varlen_attention_packed(qkv, OFFSETS, 5, **x), ((8, 3, 2, 4),)
    ),
    "axial_attention": Case(kernels.axial_attention, ((2, 3, 2, 2, 4),) * 3),
    "axial_attention_packed": Case(kernels.axial_attention_packed, ((2, 3, 2, 3, 2, 4),)),
    "tube_mask": Case(
        lambda ids, **x: _joined(*kernels.tube_mask(3, GRID, 0.5, seed=1, sample_ids=ids, **x)), ((3,),), True
    ),
    "block_tube_mask": Case(
        lambda ids: _joined(*kernels.block_tube_mask(3, GRID, 0.5, seed=1, sample_ids=ids)), ((3,),), True
    ),
    "running_cell_mask": Case(
        lambda ids: _joined(*kernels.running_cell_mask(3, (2, 4, 4), 0.5, seed=1, sample_ids=ids)), ((3,),), True
    ),
    "text_mask": Case(
        lambda ids, **x: kernels.text_mask(ids, OFFSETS, 0.5, special_ids=(0,), seed=1, **x), ((8,),), True
    ),
    "replace_masked_tokens": Case(
        lambda ids: kernels.replace_masked_tokens(
            ids, torch.arange(8, device=DEVICE) % 3 == 0, OFFSETS, Replacement(9, 50, 0.4, 0.3), seed=1
        ),
        ((8,),),
        True,
    ),
}
SELECTED = [
    (name, backend)
    for name in CASES
    for backend in (
        ("reference", "triton", "specification") if name.split(",")[0] in dispatch.ops() else ("",)
    )
    if (name, backend) != ("text_mask", "triton")
]  # fmt: skip
SAMPLED = ("contrastive_loss", "masked_pixel_loss", "assemble_tokens", "varlen_attention")
of_floats = pytest.mark.parametrize(("name", "backend"), [x for x in SELECTED if not CASES[x[0]].integers])
of_ids = pytest.mark.parametrize(("name", "backend"), [x for x in SELECTED if CASES[x[0]].integers])


@pytest.fixture(autouse=True)
def _quick():
    with small_tiles(), warnings.catch_warnings():
        # "There is a performance drop": vmap runs ops without a rule of their own one sample after another.
        warnings.simplefilter("ignore")
        yield


def function(name: str, backend: str) -> Callable[..., Tensor]:
    op = name.split(",")[0]
    if backend == "triton" and not next(x.available for x in dispatch.backends(op, DEVICE) if x.backend == "triton"):
        pytest.skip("Triton does not run here")
    return functools.partial(CASES[name].run, **({"backend": backend} if backend else {}))


def inputs(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if CASES[name].integers:
        return [torch.randint(1, 40, shape, generator=generator).to(DEVICE) for shape in CASES[name].shapes]
    return [torch.randn(x, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for x in CASES[name].shapes]


def scalar(name: str, backend: str) -> Callable[..., Tensor]:
    """The op's outputs under unequal weights, which depend on the inputs no further."""
    run = function(name, backend)

    def total(*xs: Tensor) -> Tensor:
        out = run(*xs)
        out = out if out.dtype == torch.float64 else out.float()
        return (out * torch.linspace(-1, 1.5, out.numel(), dtype=out.dtype, device=DEVICE).reshape(out.shape)).sum()

    return total


def differences(name: str) -> Tensor:
    """The directional derivative of the specification in float64, by central differences along `directions`."""
    run, xs, ts = function(name, "specification"), inputs(name, torch.float64), inputs(name, torch.float64, 1)
    ahead, behind = (run(*(x + step * t for x, t in zip(xs, ts, strict=True))) for step in (1e-5, -1e-5))
    return (ahead - behind) / 2e-5


def assert_refused(error: BaseException, name: str) -> None:
    said = str(error)
    assert said.startswith(name.split(",")[0] + " "), said
    assert "\n" not in said
    assert "backend='specification'" in said


def or_refused(ask: Callable[[], Any], name: str, backend: str) -> Any:
    """What `ask` gives, or None where that is refused properly."""
    try:
        return ask()
    except DerivativeError as error:
        assert backend != "specification"
        assert_refused(error, name)
        return None


def test_every_op_has_cases():
    public = {op for folder in OPS.values() for op in folder.functions}
    assert {name.split(",")[0] for name in CASES} == public


@of_floats
def test_forward_mode(name, backend):
    run, xs, ts = function(name, backend), inputs(name), inputs(name, seed=1)
    exact = differences(name)

    def dual(gradient: bool) -> Tensor | None:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x.clone().requires_grad_(gradient), t) for x, t in zip(xs, ts, strict=True)]
            return forward_ad.unpack_dual(run(*duals)).tangent

    asked = [lambda: torch.func.jvp(run, tuple(xs), tuple(ts))[1], lambda: dual(False), lambda: dual(True)]
    for ask in asked:
        tangent = or_refused(ask, name, backend)
        if name == "hard_negatives":
            assert tangent is None or not tangent.any()
        elif tangent is not None:
            torch.testing.assert_close(tangent.double(), exact.double().expand_as(tangent), rtol=1e-3, atol=1e-4)


@of_floats
def test_second_derivatives(name, backend):
    if name == "hard_negatives":
        pytest.skip("its results are integers")
    total, exact = scalar(name, backend), scalar(name, "specification")
    xs, ts = inputs(name), inputs(name, seed=1)

    def penalty(of: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in leaves]
        found = torch.autograd.grad(of(*leaves), leaves, create_graph=True)
        penalty = sum(x.square().sum() for x in found)
        assert isinstance(penalty, Tensor)
        if not penalty.requires_grad:
            return [torch.zeros_like(x) for x in leaves]
        return list(torch.autograd.grad(penalty, leaves, allow_unused=True, materialize_grads=True))

    def product(of: Callable[..., Tensor], leaves: list[Tensor], way: Any) -> tuple[Tensor, ...]:
        gradient = torch.func.grad(of, argnums=tuple(range(len(leaves))))
        tangents = tuple(t.to(x.dtype) for x, t in zip(leaves, ts, strict=True))
        if way is torch.func.jvp:
            return torch.func.jvp(gradient, tuple(leaves), tangents)[1]
        return torch.func.vjp(gradient, *leaves)[1](tangents)

    ways: list[Callable[..., Any]] = [
        penalty,
        functools.partial(product, way=torch.func.jvp),
        functools.partial(product, way=torch.func.vjp),
    ]
    for way in ways:
        found = or_refused(lambda way=way: way(total, xs), name, backend)
        if found is not None:
            right = way(exact, [x.double() for x in xs])
            for one, other in zip(found, right, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_a_refused_second_derivative_is_refused_by_a_backward_pass_too():
    a = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    loss = kernels.contrastive_loss(a, a.detach().flip(1), 2.0)
    with pytest.raises(DerivativeError, match="contrastive_loss has first derivatives"):
        loss.backward(create_graph=True)


@of_floats
def test_gradients_of_torch_func(name, backend):
    total, xs = scalar(name, backend), inputs(name)
    leaves = [x.clone().requires_grad_() for x in xs]
    output = total(*leaves)
    expected = [torch.zeros_like(x) for x in xs]
    if output.requires_grad:
        expected = torch.autograd.grad(output, leaves)
    places = tuple(range(len(xs)))
    _, backward = torch.func.vjp(total, *xs)
    gradient = torch.func.grad(total, argnums=places)
    # As the parameters of a model are that nobody detached.
    for found in (gradient(*xs), gradient(*leaves), backward(torch.ones((), device=DEVICE))):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@of_floats
def test_vmap_and_gradients_of_samples(name, backend):
    if backend == "triton" and name not in SAMPLED:
        pytest.skip("the interpreter is slow, and all ops of the dispatcher go one way")
    run, total = function(name, backend), scalar(name, backend)
    batch = [torch.stack(x) for x in zip(*(inputs(name, seed=seed) for seed in (0, 1)), strict=True)]
    samples = list(zip(*(x.unbind() for x in batch), strict=True))
    gradient = torch.func.grad(total)
    found = torch.func.vmap(gradient)(*batch)
    torch.testing.assert_close(found, torch.stack([gradient(*xs) for xs in samples]))
    if backend == "triton":
        return
    torch.testing.assert_close(torch.func.vmap(run)(*batch), torch.stack([run(*xs) for xs in samples]))
    # One tensor is the same for all samples.
    shared = torch.func.vmap(run, in_dims=(*[0] * (len(batch) - 1), None), randomness="error")
    if len(batch) > 1:
        right = torch.stack([run(*xs[:-1], batch[-1][0]) for xs in samples])
        torch.testing.assert_close(shared(*batch[:-1], batch[-1][0]), right)
    whole = torch.func.grad(lambda *xs: torch.func.vmap(total)(*xs).sum())(*batch)
    torch.testing.assert_close(whole, found)


@of_ids
def test_ids_under_vmap_and_beside_derivatives(name, backend):
    run = function(name, backend)
    (one,), (other,) = inputs(name, seed=0), inputs(name, seed=1)
    found = torch.func.vmap(run)(torch.stack([one, other]))
    assert torch.equal(found, torch.stack([run(one), run(other)]))
    value = torch.func.grad(lambda x: (x * run(one)).sum())(torch.ones((), device=DEVICE))
    assert value == run(one).sum()


def test_what_does_not_depend_on_the_input_is_not_refused():
    """Ops beside what is differentiated."""
    a, b = torch.randn(2, 3, 4, device=DEVICE)
    tangent = torch.func.jvp(lambda x: x * kernels.contrastive_loss(a, b, 3.0), (a,), (b,))[1]
    torch.testing.assert_close(tangent, b * kernels.contrastive_loss(a, b, 3.0))
    hessian = torch.func.hessian(lambda x: x**3 * kernels.sigmoid_loss(a, b, 3.0, 0.0))(torch.tensor(2.0))
    torch.testing.assert_close(hessian, 12 * kernels.sigmoid_loss(a, b, 3.0, 0.0))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_rows_of_all_samples_do_not_fit_one_buffer(backend):
    run, xs = function("tubelet_embed, into rows", backend), inputs("tubelet_embed, into rows")
    with pytest.raises(ValueError, match="tubelet_embed: out cannot be written under this transform"):
        torch.func.vmap(run, in_dims=(None, 0, None, None))(xs[0], torch.stack([xs[1]] * 2), *xs[2:])


def test_the_specification_knows_no_group():
    a = torch.randn(3, 4)
    with pytest.raises(dispatch.BackendUnavailableError, match="'specification' knows one process alone"):
        kernels.contrastive.op._contrastive_truth(a, a, torch.ones(()), None, 0.0, True, True, True, "group")
