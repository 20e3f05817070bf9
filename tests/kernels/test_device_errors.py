"""A GPU's errors in the interpreter: they are what is documented, and every kernel meets the law with the worst."""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
import triton
import triton.language as tl

from fastvtp_kernels import (
    assemble_tokens,
    axial_attention_packed,
    contrastive_loss,
    hard_negatives,
    sigmoid_loss,
    tube_mask,
    tubelet_embed,
    unit_errors,
    varlen_attention,
)
from fastvtp_kernels.interpreter import interpreting
from tests.kernels import contrastive_cases, test_triton_pixel_loss, test_triton_token_assembly, test_triton_tubelets
from tests.kernels.attention_cases import LENGTHS, forced, grid_side_by_side, options_of, packed
from tests.kernels.contrastive_cases import batches, of_batches, pair
from tests.kernels.device_errors import MODES, Errors
from tests.kernels.triton_cases import assert_meets_the_law

if not interpreting():
    pytest.skip("kernels run on the GPU", allow_module_level=True)
from tests.kernels.unit_injection import UNITS, injected

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities and NaNs
ULP = 2.0**-23


@triton.jit
def _units(x_ptr, y_ptr, out_ptr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    x, y = tl.load(x_ptr + place), tl.load(y_ptr + place)
    tl.store(out_ptr + place, tl.exp2(x))
    tl.store(out_ptr + COUNT + place, tl.log2(tl.abs(x)))
    tl.store(out_ptr + 2 * COUNT + place, x / y)
    tl.store(out_ptr + 3 * COUNT + place, tl.sqrt(tl.abs(x)))
    if x.dtype == tl.float32:
        tl.store(out_ptr + 4 * COUNT + place, tl.div_rn(x, y))


def units(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    results = x.new_zeros(5, len(x))
    _units[(1,)](x, y, results, COUNT=len(x))
    return dict(zip([*UNITS, "exact division"], results, strict=True))


def operands(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (torch.linspace(*ends, 256, dtype=torch.float64).to(dtype) for ends in ((-9, 9.1), (0.3, 7)))
    return x, y.roll(100)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "exact"])
def test_each_unit_is_called_and_errs_within_its_bound(mode):
    exact = units(*operands())
    with injected(mode) as calls:
        found = units(*operands())
        again = units(*operands())
    assert calls == dict.fromkeys(UNITS, 2)
    bounds = {
        "exp2": unit_errors.EXP2,
        "log2": unit_errors.LOG2,
        "division": unit_errors.DIVISION,
        "square root": unit_errors.SQUARE_ROOT,
    }
    for name, bound in bounds.items():
        error = (found[name].double() - exact[name].double()) / exact[name].double().abs()
        assert error.abs().max() <= bound + ULP / 2
        if mode == "uniform":
            assert error.unique().numel() > 2
        else:
            assert error.abs().min() >= bound / 2 - ULP / 4
        assert bool((error > 0).any()) == (mode != "down")
        assert bool((error < 0).any()) == (mode != "up")
        # Not by chance: a kernel that computes a number twice has it twice.
        assert torch.equal(found[name], again[name])
    assert torch.equal(found["exact division"], exact["exact division"])
    assert all(torch.equal(x, exact[name]) for name, x in units(*operands()).items())


def test_what_the_manuals_list_is_exact_and_small_powers_are_flushed():
    x = torch.tensor([0.0, -0.0, -float("inf"), float("inf"), float("nan"), -126.5, -125.0, 1.0])
    with injected("up"):
        powers = units(x, x)["exp2"]
    assert powers[:4].tolist() == [1.0, 1.0, 0.0, float("inf")]
    assert powers[4].isnan()
    assert powers[5:].tolist() == [0.0, 2.0**-125 * (1 + 2 * ULP), 2 * (1 + 2 * ULP)]


def test_double_precision_has_no_errors():
    exact = units(*operands(torch.float64))
    with injected("worst") as calls:
        found = units(*operands(torch.float64))
    assert not calls
    assert all(torch.equal(value, exact[name]) for name, value in found.items())


def _attention(case: str, options: str, **shape: Any) -> None:
    with forced(case):
        assert_meets_the_law(varlen_attention, packed(*LENGTHS[case], **options_of(options, case), **shape))


def _axial() -> None:
    with forced("streaming"):
        assert_meets_the_law(axial_attention_packed, grid_side_by_side(1, 20, 2, 3, 1, 16))


def _loss(name: str, **options: Any) -> None:
    with contrastive_cases.small_tiles():
        loss = {"contrastive_loss": contrastive_loss, "sigmoid_loss": sigmoid_loss}[name]
        assert_meets_the_law(partial(of_batches, loss, **options), batches(name, 37, 24))


def _negatives() -> None:
    a, b = (x.detach() for x in pair(20, 24))
    with contrastive_cases.small_tiles():
        found = hard_negatives(a, b, 14.0, seed=3, step=0, backend="triton")
    expected = hard_negatives(a, b, 14.0, seed=3, step=0, backend="reference")
    assert all(map(torch.equal, found, expected))


def _pixels(video_dtype: torch.dtype, normalize: str | None = "patch_channel") -> None:
    inputs = test_triton_pixel_loss.example(video_dtype=video_dtype)
    assert_meets_the_law(partial(test_triton_pixel_loss.scaled, -3.0, normalize=normalize), inputs)


def _masks() -> None:
    found, expected = (tube_mask(3, (2, 3, 3), 0.5, seed=1, backend=x) for x in ("triton", "reference"))
    assert torch.equal(found.visible, expected.visible)


SOFTMAX = {"exp2", "log2", "division"}
# One case of each family of kernels, forward and backward: what runs, and which units it has.
FAMILIES: dict[str, tuple[Any, set[str]]] = {
    "tiny attention": (partial(_attention, "tiny crossed", "everything"), SOFTMAX),
    "resident attention": (partial(_attention, "resident", "softcap", heads=1), SOFTMAX),
    "streaming attention": (partial(_attention, "streaming crossed", "plain", heads=1), SOFTMAX),
    "streaming attention, bfloat16": (
        partial(_attention, "streaming", "causal", heads=1, dtype=torch.bfloat16),
        SOFTMAX,
    ),
    "attention of a grid": (_axial, SOFTMAX),
    "InfoNCE": (partial(_loss, "contrastive_loss", label_smoothing=0.1), {"exp2", "log2"}),
    "SigLIP": (partial(_loss, "sigmoid_loss"), {"exp2", "division"}),
    "hard negatives": (_negatives, {"exp2", "log2"}),
    "pixel loss of bytes": (partial(_pixels, torch.uint8), {"division", "square root"}),
    "pixel loss of numbers": (partial(_pixels, torch.float32), {"division", "square root"}),
    "gathered tubelets": (
        lambda: test_triton_tubelets.assert_gathers(test_triton_tubelets.gather_example(), torch.float32),
        {"division"},
    ),
    "embedded tubelets": (lambda: assert_meets_the_law(tubelet_embed, test_triton_tubelets.example()), set()),
    "decoder input": (
        lambda: assert_meets_the_law(assemble_tokens, test_triton_token_assembly.example(order="one per clip")),
        set(),
    ),
    "masks": (_masks, set()),
}


@pytest.mark.parametrize(("run", "expected"), FAMILIES.values(), ids=FAMILIES)
def test_every_family_of_kernels_meets_the_law_with_the_worst_errors(run, expected):
    with injected("worst") as calls:
        run()
    assert set(calls) == expected


def test_a_session_in_which_nothing_was_changed_fails():
    config = SimpleNamespace()
    for changed, status in ((0, pytest.ExitCode.TESTS_FAILED), (1, pytest.ExitCode.OK)):
        errors, session = Errors("worst"), SimpleNamespace(config=config, exitstatus=pytest.ExitCode.OK)
        errors.pytest_sessionstart()
        for _ in range(changed):
            units(*operands())
        errors.pytest_sessionfinish(session)
        assert session.exitstatus == status


def test_a_session_counts_what_its_workers_changed():
    config = SimpleNamespace(workeroutput={})
    worker, errors = Errors("up"), Errors("up")
    worker.pytest_sessionstart()
    units(*operands())
    worker.pytest_sessionfinish(SimpleNamespace(config=config))
    errors.pytest_testnodedown(config)
    assert errors.calls == dict.fromkeys(UNITS, 1)
