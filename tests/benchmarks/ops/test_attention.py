"""The attention benchmark: cost model, smoke run, cases, rates, plots."""

import importlib.util
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import timing
from benchmarks.harness.case import Missing, Options
from benchmarks.harness.record import Record, Row
from benchmarks.ops import attention
from benchmarks.ops.attention import Rate, attention_cost, attention_main, rates, save_plots
from benchmarks.peers.attention import Batch
from tests.benchmarks.ops.test_cost_models import counted, total_bytes
from tests.benchmarks.peers.test_attention import CPU, ON_CUDA, RAGGED, attended, rows_of

CUDA = torch.device("cuda")
ON_CPU = {"padded sdpa", "padded sdpa, padded input given", "flex attention", "naive", "reference"}


def test_cost_is_what_one_pass_in_each_direction_does():
    """One sequence and head after the other; the weights are computed again on the way back."""
    batch, scale = RAGGED, RAGGED.width**-0.5
    tensors = [tensor.float() for tensor in rows_of(batch, 4)]
    leaves = [tensor.requires_grad_() for tensor in tensors[:3]]
    expected = attended(batch, *leaves)
    gradients = torch.autograd.grad(expected, leaves, tensors[3])
    lse_of = torch.zeros(batch.tokens, batch.heads)
    q, k, v, out = counted(*(leaf.detach() for leaf in leaves), torch.zeros_like(tensors[3]))
    offsets, lse = counted(batch.offsets, lse_of)
    with FlopCounterMode(display=False) as forward_flops:
        for rows, head in parts(offsets, batch):
            logits = q[rows, head] @ k[rows, head].T * scale
            lse[rows, head] = logits.logsumexp(dim=-1)
            out[rows, head] = logits.softmax(dim=-1) @ v[rows, head]
    torch.testing.assert_close(out.tensor, expected.detach())
    forward = attention_cost(batch.lengths, batch.heads, batch.width, 4, backward=False)
    assert forward.bytes == total_bytes(q, k, v, out, offsets, lse)
    assert forward.flops == forward_flops.get_total_flops()

    inputs = counted(*(leaf.detach() for leaf in leaves), out.tensor, tensors[3], lse_of, batch.offsets)
    q, k, v, o, incoming, lse, offsets = inputs
    found = counted(*(torch.zeros_like(leaf) for leaf in leaves))
    dq, dk, dv = found
    with FlopCounterMode(display=False) as backward_flops:
        for rows, head in parts(offsets, batch):
            weights = (q[rows, head] @ k[rows, head].T * scale - lse[rows, head][:, None]).exp()
            grad = incoming[rows, head]
            dv[rows, head] = weights.T @ grad
            delta = (grad * o[rows, head]).sum(dim=-1, keepdim=True)
            logit_grad = weights * (grad @ v[rows, head].T - delta) * scale
            dq[rows, head] = logit_grad @ k[rows, head]
            dk[rows, head] = logit_grad.T @ q[rows, head]
    torch.testing.assert_close([counted.tensor for counted in found], list(gradients))
    both = attention_cost(batch.lengths, batch.heads, batch.width, 4, backward=True)
    assert both.bytes - forward.bytes == total_bytes(*inputs, *found)
    assert both.flops - forward.flops == backward_flops.get_total_flops()


def parts(offsets: Any, batch: Batch) -> list[tuple[slice, int]]:
    ends = [int(offsets[place]) for place in range(len(batch.lengths) + 1)]
    return [(slice(*pair), head) for pair in pairwise(ends) for head in range(batch.heads)]


def test_figures_of_videomae_b():
    """64 sequences of 168, bfloat16, worked out by hand."""
    forward, both = (attention_cost((168,) * 64, 12, 64, 2, backward) for backward in (False, True))
    assert (forward.bytes, forward.flops) == pytest.approx((66.6e6, 5.55e9), rel=2e-3)
    assert both.bytes - forward.bytes == pytest.approx(132.6e6, rel=2e-3)
    assert both.flops - forward.flops == pytest.approx(13.9e9, rel=2e-3)


def smoke_rows(path, *arguments: str) -> list[Row]:
    attention_main(["--smoke", "--device", "cpu", "--json", str(path), *arguments])
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def test_smoke_run_times_every_variant_that_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)  # Triton's interpreter is slow
    rows = smoke_rows(tmp_path / "rows.json")
    assert {row.case for row in rows} == {*attention.ACCEPTED, "4 tokens each", "4 video + 10-32 text tokens"}
    assert {row.variant for row in rows} == ON_CPU | ON_CUDA | {"compiled reference", "triton"}
    for row in rows:
        if row.variant in ON_CUDA:
            assert row.note == "missing: its kernels need a CUDA device"
        elif row.variant == "flex attention" and row.direction == "forward+backward":
            assert row.note.endswith("no backward pass on the CPU")
        elif row.variant != "triton" or not row.note.startswith("missing: "):
            assert row.note == ""
            assert row.error is not None
            assert row.median_s is not None
            assert row.speedup is not None
            assert (row.peak_bytes or 0) > 0
    assert "| acceptance, ragged lengths | naive | backward |" in capsys.readouterr().out


def test_every_peer_is_right_in_bfloat16(tmp_path):
    rows = smoke_rows(tmp_path / "rows.json", "--dtype", "bfloat16", "--lengths", "3", "--only", *ON_CPU)
    assert {row.note for row in rows} <= {"", "missing: FlexAttention has no backward pass on the CPU"}
    assert {row.case for row in rows} == {"3 tokens each", "3 video + 10-32 text tokens"}


def test_a_wrong_peer_is_found_packed_and_padded(monkeypatch):
    wrong = {"naive": lambda query, key, value: value + 0 * (query + key)}
    monkeypatch.setattr(attention, "peers", lambda *arguments: wrong)
    monkeypatch.setattr(attention, "padded_input_sdpa", lambda batch: wrong["naive"])
    case = attention.attention_case("one", (2, 5), Options(CPU, torch.float32, smoke=True), "forward+backward")
    for name in ("naive", "padded sdpa, padded input given"):
        variant = case.variants[name]
        assert not isinstance(variant, Missing)
        assert case.error(variant()) > 0.1


def offered(options: Options, *lengths: int) -> dict[str, tuple[int, ...]]:
    return {factory.args[0]: factory.args[1] for factory in attention.cases(options, lengths)}


def test_cases_of_the_cpu_end_in_its_acceptance():
    found = offered(Options(CPU, torch.float32))
    assert set(attention.ACCEPTED) < set(found)
    assert set(found["acceptance, equal lengths"]) == {168}
    ragged = found["acceptance, ragged lengths"]
    assert 10 <= min(ragged) < 60
    assert 340 < max(ragged) <= 400
    assert found == offered(Options(CPU, torch.float32))
    assert set(offered(Options(CPU, torch.float32), 9)) == {"9 tokens each", "9 video + 10-32 text tokens"}


def test_cases_on_cuda_have_a_step_of_tokens():
    found = offered(Options(CUDA, torch.bfloat16))
    assert len(found) == 2 * len(attention.LENGTHS)
    assert found["16 tokens each"] == (16,) * 16384
    assert found["168 tokens each"] == (168,) * 64
    for length in attention.LENGTHS:
        ragged = found[f"{length} video + 10-32 text tokens"]
        assert length + 10 <= min(ragged) <= max(ragged) <= length + 32
    assert all(5000 < sum(lengths) < 300_000 for lengths in found.values())


def test_of_most_worth_first():
    """Each regime's training step at equal lengths, before any ragged or forward case."""
    found = [
        (factory.args[0], factory.args[3]) for factory in attention.cases(Options(CUDA, torch.bfloat16), (168, 16))
    ]
    names = ["168 tokens each", "16 tokens each", *(f"{length} video + 10-32 text tokens" for length in (168, 16))]
    assert found == [
        (name, direction)
        for group in (names[:2], names[2:])
        for direction in ("forward+backward", "forward")
        for name in group
    ]


def row(variant: str, direction: Any, seconds: float | None, backward: bool, longest: int = 6) -> Row:
    shape = {"shortest": 3, "longest": longest}
    return Row(
        *("op", f"{longest}", variant, shape, "float32", direction),
        model_bytes=100 + 200 * backward,
        model_flops=10 + 50 * backward,
        floor_s=1.0,
        baseline="a",
        median_s=seconds,
    )


RECORD = Record(
    {"ceilings": {"bytes_per_s": 100.0, "flops_per_s": 20.0}},
    [
        row("a", "forward", 2.0, False),
        row("noise", "forward", 9.0, False),
        row("gone", "forward", None, False),
        row("a", "forward+backward", 12.0, True),
        row("noise", "forward+backward", 8.0, True),
        row("alone", "forward+backward", 6.0, True),
        row("a", "forward", 1.0, False, longest=600),
    ],
)


def test_backward_alone_is_the_difference():
    later = sorted(RECORD.rows[:-1], key=lambda row: row.direction != "forward+backward")
    found = {(rate.row.variant, rate.direction): rate for rate in rates(Record(RECORD.environment, later))}
    assert set(found) == {
        ("a", "forward"),
        ("noise", "forward"),
        ("a", "forward+backward"),
        ("a", "backward"),
        ("noise", "forward+backward"),
        ("alone", "forward+backward"),
    }
    assert found["a", "forward"][2:] == (2.0, 100, 10, 0.5)
    assert found["a", "backward"][2:] == (10.0, 200, 50, pytest.approx(0.25))
    *_, line = attention.rate_lines([found["a", "backward"]])
    assert line == "| 6 | a | backward | 10000.000 | 5e-12 | 2e-08 | 25.0% |"


def test_a_plot_per_regime(tmp_path):
    pytest.importorskip("matplotlib")
    accepted = replace(row("a", "forward", 1.0, False, longest=300), case="acceptance, ragged lengths")
    record = replace(RECORD, rows=[*RECORD.rows, accepted])
    written = save_plots(list(rates(record)), tmp_path / "new")
    assert [path.name for path in written] == ["attention_tiny.png", "attention_long.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_what_a_plot_shows():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    equal = Rate(row("a", "forward", 0.5, False), "forward", 0.5, 1, 1, 0.25)
    equal.row.shape["shortest"] = 6
    ragged = [Rate(row("a", "forward", 2.0, False, longest), "forward", 2.0, 1, 1, 0.5) for longest in (9, 7)]
    time, floor = Figure().subplots(2)
    attention._draw(time, floor, [equal, *ragged], {"a": "red"})
    assert [line.get_xydata().tolist() for line in time.lines] == [[[6, 500]], [[7, 2000], [9, 2000]]]
    assert [line.get_xydata().tolist() for line in floor.lines] == [[[6, 25]], [[7, 50], [9, 50]]]
    assert [line.get_markerfacecolor() for line in time.lines] == ["red", "none"]


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        attention_main(["--smoke", "--plot", str(tmp_path)])
    assert "--plot: the package matplotlib is not installed" in capsys.readouterr().err


def test_lengths_are_positive(capsys):
    with pytest.raises(SystemExit):
        attention_main(["--lengths", "0"])
    assert "0 tokens, expected at least one" in capsys.readouterr().err
