"""The contrastive benchmark: cost model, smoke run, cases, the check of random draws, plots."""

import importlib.util
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import timing
from benchmarks.harness.case import Missing, Options
from benchmarks.harness.record import Row
from benchmarks.ops import contrastive
from benchmarks.ops.contrastive import (
    LOSSES,
    SCALARS,
    contrastive_cost,
    contrastive_main,
    draw_error,
    inputs_of,
    save_plot,
)
from benchmarks.peers.contrastive import multinomial
from fastvtp_kernels import contrastive_loss, hard_negatives, philox, sigmoid_loss
from fastvtp_kernels.contrastive.reference import sample_rows
from tests.benchmarks.ops.test_cost_models import counted, total_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMOKE = Options(CPU, torch.float32, smoke=True)
B, D = 5, 4


def features(count: int) -> list[Tensor]:
    return [torch.randn(B, D, dtype=torch.float64) for _ in range(count)]


def scalars(op: str) -> list[Tensor]:
    return [torch.tensor([value / 5], dtype=torch.float32) for value in SCALARS[op]]


@pytest.mark.parametrize("backward", [False, True])
def test_contrastive_cost_is_what_two_sweeps_do(backward):
    """Logits row by row: first for the log-sum-exps, then again for the gradients."""
    tensors = [leaf.requires_grad_() for leaf in [*features(2), *scalars("contrastive_loss")]]
    expected = contrastive_loss(*tensors)
    leaves = [leaf.detach() for leaf in tensors]
    a, b, scale, loss = counted(*leaves, torch.zeros(1))
    found = counted(*(torch.zeros_like(leaf) for leaf in leaves))
    of_a, of_b, of_scale = found
    rows, columns = torch.empty(B, dtype=torch.float64), torch.full((B,), -torch.inf, dtype=torch.float64)
    with FlopCounterMode(display=False) as flops:
        for i in range(B):
            logits = (a[i : i + 1] @ b[:].T)[0] * scale[0]
            rows[i], columns = logits.logsumexp(dim=0), torch.logaddexp(columns, logits)
            loss[0] -= logits[i] / B
        loss[0] += (rows.mean() + columns.mean()) / 2
        for i in range(B if backward else 0):
            products = a[i : i + 1] @ b[:].T
            logits = products * scale[0]
            gradient = ((logits - rows[i]).exp() + (logits - columns).exp()) / (2 * B)
            gradient[0, i] -= 1 / B
            of_a[i : i + 1] = gradient @ b[:] * scale[0]
            of_b[:] = of_b.tensor + gradient.T @ a[i : i + 1] * scale[0]
            of_scale[0] = of_scale.tensor[0] + (gradient * products).sum()
    torch.testing.assert_close(loss.tensor[0], expected.detach().float())
    if backward:
        torch.testing.assert_close([each.tensor for each in found], list(torch.autograd.grad(expected, tensors)))
    cost = contrastive_cost("contrastive_loss", B, D, 8, backward)
    assert (cost.bytes, cost.flops) == (total_bytes(a, b, scale, loss, *found), flops.get_total_flops())


@pytest.mark.parametrize("backward", [False, True])
def test_sigmoid_cost_is_what_one_sweep_does(backward):
    tensors = [leaf.requires_grad_() for leaf in [*features(2), *scalars("sigmoid_loss")]]
    expected = sigmoid_loss(*tensors)
    leaves = [leaf.detach() for leaf in tensors]
    a, b, scale, bias, loss = counted(*leaves, torch.zeros(1))
    found = counted(*(torch.zeros_like(leaf) for leaf in leaves))
    of_a, of_b, of_scale, of_bias = found
    with FlopCounterMode(display=False) as flops:
        for i in range(B):
            products = a[i : i + 1] @ b[:].T
            sign = 1 - 2 * F.one_hot(torch.tensor([i]), B)
            z = sign * (products * scale[0] + bias[0])
            loss[0] = loss.tensor[0] + F.softplus(z).sum() / B
            if backward:
                gradient = sign * z.sigmoid() / B
                of_a[i : i + 1] = gradient @ b[:] * scale[0]
                of_b[:] = of_b.tensor + gradient.T @ a[i : i + 1] * scale[0]
                of_scale[0] = of_scale.tensor[0] + (gradient * products).sum()
                of_bias[0] = of_bias.tensor[0] + gradient.sum()
    torch.testing.assert_close(loss.tensor[0], expected.detach().float())
    if backward:
        torch.testing.assert_close([each.tensor for each in found], list(torch.autograd.grad(expected, tensors)))
    cost = contrastive_cost("sigmoid_loss", B, D, 8, backward)
    assert (cost.bytes, cost.flops) == (total_bytes(a, b, scale, bias, loss, *found), flops.get_total_flops())


def test_hard_negatives_cost_is_one_product_and_its_draws():
    leaves = [*features(2), *scalars("hard_negatives")]
    a, b, scale, *chosen = counted(*leaves, *(torch.zeros(B, dtype=torch.int64) for _ in range(2)))
    own = torch.eye(B, dtype=torch.bool)
    words = philox.random_words(philox.HARD_NEGATIVES, 3, (torch.arange(B), 0, 0, 0))
    with FlopCounterMode(display=False) as flops:
        logits = torch.cat([a[i : i + 1] @ b[:].T for i in range(B)]) * scale[0]
    pairs = zip(words[:2], words[2:], strict=True)
    for direction, drawn, pair in zip((logits, logits.T.contiguous()), chosen, pairs, strict=True):
        drawn[:] = sample_rows(direction, own, philox.uniform(*pair))
    torch.testing.assert_close(tuple(each.tensor for each in chosen), tuple(hard_negatives(*leaves, seed=3)))
    cost = contrastive_cost("hard_negatives", B, D, 8, backward=False)
    assert (cost.bytes, cost.flops) == (total_bytes(a, b, scale, *chosen), flops.get_total_flops())


def test_figures_of_a_large_batch():
    """32768 pairs of 512, bfloat16, worked out by hand."""
    both = contrastive_cost("contrastive_loss", 32768, 512, 2, backward=True)
    assert (both.bytes, both.flops) == pytest.approx((134.2e6, 4.398e12), rel=1e-3)
    assert contrastive_cost("sigmoid_loss", 32768, 512, 2, backward=True).flops == pytest.approx(3.299e12, rel=1e-3)


ON_CPU = {"open_clip", "one product", "compiled one product", "compiled open_clip", "albef", "compiled albef"}


def smoke_rows(path, *arguments: str) -> list[Row]:
    contrastive_main(["--smoke", "--device", "cpu", "--json", str(path), *arguments])
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def test_smoke_run_times_every_variant_that_is_there(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)  # Triton's interpreter is slow
    plot = tmp_path / "new" / "plot.png"
    rows = smoke_rows(tmp_path / "rows.json", "--plot", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert {row.op for row in rows} == {*LOSSES, "hard_negatives"}
    assert {row.variant for row in rows} == ON_CPU | {"reference", "triton", "inf_cl"}
    for row in rows:
        if row.variant == "inf_cl":
            assert row.note == "missing: its kernels need a CUDA device"
        elif row.variant != "triton" or not row.note.startswith("missing: "):
            assert row.note == ""
            assert row.error is not None
            assert row.median_s is not None
            assert row.speedup is not None
            assert (row.peak_bytes or 0) > 0


def test_every_peer_is_right_in_bfloat16(tmp_path):
    arguments = "--dtype", "bfloat16", "--batches", "64", "--only", "reference", *ON_CPU
    rows = smoke_rows(tmp_path / "rows.json", *arguments)
    assert {row.case for row in rows} == {"B = 64"}
    assert {row.note for row in rows} == {""}


def test_a_wrong_loss_is_found(monkeypatch):
    torch.manual_seed(0)
    wrong = {"open_clip": lambda a, b, scale: contrastive_loss(a, b, 1.01 * scale)}
    monkeypatch.setattr(contrastive, "peers", lambda *arguments: wrong)
    case = contrastive.loss_case("contrastive_loss", 8, SMOKE, "forward+backward")
    right, wrong = case.variants["reference"], case.variants["open_clip"]
    assert not isinstance(right, Missing)
    assert not isinstance(wrong, Missing)
    assert case.error(right()) < case.tolerance < case.error(wrong())


def test_cases_of_each_device():
    def offered(options: Options, *batches: int) -> list[tuple[Any, ...]]:
        return [tuple(factory.args) for factory in contrastive.cases(options, batches)]

    on_cpu, on_cuda = Options(CPU, torch.float32), Options(CUDA, torch.bfloat16)
    assert len(offered(on_cpu)) == 5 * 3
    assert len(offered(on_cuda)) == 5 * 7
    assert offered(on_cuda)[-1] == (65536, on_cuda)
    assert offered(on_cpu, 9) == [
        ("contrastive_loss", 9, on_cpu, "forward"),
        ("contrastive_loss", 9, on_cpu, "forward+backward"),
        ("sigmoid_loss", 9, on_cpu, "forward"),
        ("sigmoid_loss", 9, on_cpu, "forward+backward"),
        (9, on_cpu),
    ]


def test_pairs_are_alike_and_nobody_else_is():
    a, b, _ = inputs_of("contrastive_loss", 100, SMOKE)
    torch.testing.assert_close([a.norm(dim=1), b.norm(dim=1)], [torch.ones(100)] * 2)
    cosines = a @ b.T
    assert cosines.diagonal().mean().item() == pytest.approx(5**-0.5, abs=0.05)
    assert cosines.mean().item() == pytest.approx(0, abs=0.05)


def test_moments_of_a_logit_are_those_over_the_others(monkeypatch):
    monkeypatch.setattr(contrastive, "STRIP_LOGITS", 2 * B)
    a, b = features(2)
    logits, others = 2 * a @ b.T, ~torch.eye(B, dtype=torch.bool)
    expected = [logits[row, others[row]] for row in range(B)]
    weights = [row.softmax(dim=0) for row in expected]
    mean = [weight @ row for weight, row in zip(weights, expected, strict=True)]
    square = [weight @ row**2 for weight, row in zip(weights, expected, strict=True)]
    found = contrastive._moments(a, b, torch.tensor(2.0))
    torch.testing.assert_close(found, (torch.stack(mean), torch.stack(square) - torch.stack(mean) ** 2))


def test_draws_from_the_softmax_are_right_and_no_others(monkeypatch):
    torch.manual_seed(0)
    a, b, scale = inputs_of("hard_negatives", 1000, SMOKE)
    monkeypatch.setattr(contrastive, "STRIP_LOGITS", 300_000)
    error, allowed = draw_error(a, b, scale), contrastive.DRAW_TOLERANCE
    right = hard_negatives(a, b, scale, seed=0)
    assert error(right) < allowed
    assert error(multinomial(a, b, scale)) < allowed
    assert error(multinomial(a, b, 0.8 * scale)) > allowed
    assert error(multinomial(b, a, scale)) > allowed
    assert error((right[0], right[0])) > allowed
    nearest = (a @ b.T).fill_diagonal_(-1)
    assert error((nearest.argmax(dim=1), right[1])) > allowed
    for index in (0, -1, 1000):
        impossible = right[0].clone()
        impossible[0] = index
        assert error((impossible, right[1])) == float("inf")
    assert error((right[0][1:], right[1])) == float("inf")


def row(op: str, variant: str, batch: int, seconds: float | None, peak: int | None = 3_000_000) -> Row:
    shape = {"batch": batch, "width": 4}
    return Row(
        *(op, f"B = {batch}", variant, shape, "float32", "forward"),
        model_bytes=1,
        model_flops=1,
        floor_s=batch / 1e4,
        baseline="a",
        median_s=seconds,
        peak_bytes=peak,
    )


def test_what_a_plot_shows():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    time, memory = Figure().subplots(2)
    rows = [row("op", "a", 20, 0.5), row("op", "a", 10, 0.25, 1_000_000), row("op", "b", 10, 1.0, 2_000_000)]
    contrastive._draw(time, memory, rows, {"a": "red", "b": "blue"})
    assert [line.get_label() for line in time.lines] == ["a", "b", "floor"]
    assert [line.get_xydata().tolist() for line in time.lines] == [
        [[10, 250], [20, 500]],
        [[10, 1e3]],
        [[10, 1], [20, 2]],
    ]
    assert [line.get_xydata().tolist() for line in memory.lines] == [[[10, 1], [20, 3]], [[10, 2]]]
    assert [line.get_color() for line in memory.lines] == ["red", "blue"]


def test_a_plot_has_a_column_per_op_and_leaves_out_what_was_not_timed(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    draw = contrastive._draw
    monkeypatch.setattr(contrastive, "_draw", lambda *given: drawn.append(given[2]) or draw(*given))
    rows = [row("one", "a", 10, 1.0), row("one", "gone", 10, None), row("two", "a", 10, 1.0)]
    rows.append(replace(rows[0], direction="forward+backward"))
    save_plot(rows, tmp_path / "plot.png")
    assert drawn == [[rows[0]], [rows[2]], [rows[3]]]


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        contrastive_main(["--smoke", "--plot", str(tmp_path / "plot.png")])
    assert "--plot: the package matplotlib is not installed" in capsys.readouterr().err


def test_a_batch_leaves_something_to_choose_from(capsys):
    with pytest.raises(SystemExit):
        contrastive_main(["--batches", "2"])
    assert "2 pairs, expected at least three" in capsys.readouterr().err
