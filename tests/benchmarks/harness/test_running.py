"""What becomes of right, wrong, missing and failing variants; a run that is stopped leaves what it has measured."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.harness import command, running
from benchmarks.harness.case import Case, Missing, Options
from benchmarks.harness.record import LEFT_OUT, NOT_REACHED, Row
from benchmarks.harness.running import Choice, run, run_case
from benchmarks.harness.timing import HostSide, Timing
from tests.benchmarks.harness.made import CASE, CEILINGS, CPU, FixedTimer

OPTIONS = Options(CPU, torch.float32, smoke=True)
NAMES = ("usual", "right", "third")


def rows_of(*only: str) -> dict[str, Row]:
    return {row.variant: row for row in run_case(Choice(only).of(CASE), CEILINGS, FixedTimer(), seconds=0)}


def test_right_variants_are_timed():
    row = rows_of()["right"]
    assert (row.median_s, row.p20_s, row.p80_s, row.wall_s, row.calls) == (2, 1, 9, 10, 7)
    assert (row.error, row.note, row.dtype, row.baseline, row.peak_bytes) == (0.5, "", "float32", "usual", 0)
    assert (row.model_bytes, row.model_flops, row.floor_s) == (100, 500, 1.0)
    assert (row.speedup, row.fraction_of_floor) == (4.0, 0.5)


@pytest.mark.parametrize(
    ("variant", "error", "note"),
    [
        ("wrong", 0.6, "wrong: error 0.6, at most 0.5 allowed"),
        ("not a number", None, "wrong: error nan, at most 0.5 allowed"),
        ("far off", None, "wrong: error inf, at most 0.5 allowed"),
        ("absent", None, "missing: not installed"),
        ("unavailable", None, "missing: no such chip"),
        ("failing", None, "failed: RuntimeError: out of luck"),
    ],
)
def test_others_are_named_and_get_no_time(variant, error, note):
    row = rows_of()[variant]
    assert (row.error, row.note) == (error, note)
    assert row.median_s is row.wall_s is row.speedup is row.peak_bytes is None


def test_only_some_variants():
    rows = rows_of("right", "absent")
    assert set(rows) == {"right", "absent"}
    assert rows["right"].speedup is None


class Calls:
    """A timer that calls each variant once more and says that it took a second for each variant that is timed."""

    def time(self, variants: dict[str, Any], seconds: float) -> dict[str, Timing]:
        for function in variants.values():
            function()
        return {name: Timing(len(variants), p20=1, p80=1, wall=1, calls=2) for name in variants}


def case_of(**variants: Any) -> Case:
    return replace(CASE, variants=variants)


def right() -> float:
    return 0.0


def second_time(function: Any) -> Any:
    """Right when checked, then what `function` makes of it."""
    calls = []

    def call() -> object:
        calls.append(1)
        return right() if len(calls) == 1 else function()

    return call


def run_out() -> None:
    raise MemoryError("no more")


def test_rows_are_saved_after_every_step(monkeypatch):
    """Of variants that take long to check, those that are through are timed before the next one's turn."""
    for slow, medians in ((0.0, [None, 1, 2, 3]), (1e9, [None, None, None, 3])):
        monkeypatch.setattr(running, "SLOW_CHECK_S", slow)
        saved: list[list[tuple[str, float | None]]] = []

        def save(rows: list[Row], saved: list[Any] = saved) -> None:
            saved.append([(row.note, row.median_s) for row in rows])

        run_case(case_of(**dict.fromkeys(NAMES, right)), CEILINGS, Calls(), -1.0, save)
        assert saved[0] == [(NOT_REACHED, None)] * 3
        first = [rows[0][1] for rows in saved]
        assert list(dict.fromkeys(first)) == list(dict.fromkeys(medians))
        assert {note for note, _ in saved[-1]} == {""}


def test_a_variant_that_fails_when_timed_is_dropped_and_the_others_are_timed():
    rows = run_case(case_of(usual=right, broken=second_time(run_out), third=right), CEILINGS, Calls(), 0)
    assert [row.note for row in rows] == ["", "failed: MemoryError: no more", ""]
    assert [row.median_s for row in rows] == [2, None, 2]
    assert rows[1].peak_bytes is None


def test_an_error_of_no_variant_in_particular_is_told_of_all(monkeypatch):
    monkeypatch.setattr(Calls, "time", lambda *_: run_out())
    rows = run_case(case_of(usual=right, third=right), CEILINGS, Calls(), 0)
    assert [row.note for row in rows] == ["failed: MemoryError: no more"] * 2


def test_a_peak_that_cannot_be_measured_costs_no_time():
    def twice() -> object:
        return second_time(right)() if len(calls) < 2 else run_out()

    calls: list[int] = []

    def counting() -> object:
        found = twice()
        calls.append(1)
        return found

    (row,) = run_case(case_of(usual=counting), CEILINGS, Calls(), 0)
    assert row.median_s == 1
    assert row.note == "no peak memory: failed: MemoryError: no more"


def test_late_calls_and_work_of_the_host_are_named():
    times = {"usual": Timing(1, 1, 1, 1, 7, late=3), "third": Timing(1, 1, 1, 1, 7)}
    timer: Any = type("Timer", (), {"time": lambda self, variants, seconds: times})()
    on_cuda = replace(case_of(usual=right, third=HostSide(right)), device=torch.device("cuda"))
    rows = {name: Row("op", "c", name, {}, "float32", "forward", 1, 1, 1.0, "usual") for name in times}
    functions: Any = dict(on_cuda.variants)
    running._time(on_cuda, rows, functions, timer, 0)
    assert rows["usual"].note == "the host was not ahead in 3 of 7 calls"
    assert rows["third"].note == "wall time: the host does the work"
    assert isinstance(running._named("third", functions["third"]), HostSide)


def build(name: str, size: int, options: Options) -> Case:
    if name == "bad":
        raise ValueError("too large\nindeed")
    return replace(case_of(usual=right), name=name)


def test_a_case_that_cannot_be_built_is_a_row_and_the_others_run():
    saved: list[tuple[int, int]] = []
    record = run(
        [partial(build, name, 3, OPTIONS) for name in ("one", "bad", "two")],
        OPTIONS,
        save=lambda record: saved.append((len(record.rows), record.environment["cases_done"])),
    )
    assert saved[0] == (0, 0), "a file is there before the first case"
    assert saved[-1] == (3, 3)
    assert record.environment["cases"] == 3
    assert [(row.op, row.case) for row in record.rows] == [("op", "one"), ("not built", "build(bad, 3)"), ("op", "two")]
    assert record.rows[1].note == "failed: ValueError: too large"


def test_after_a_lost_device_nothing_more_is_blamed(monkeypatch, capsys, tmp_path):
    def lost(device: object) -> None:
        raise running.DeviceLostError("illegal access")

    monkeypatch.setattr(running, "_refuse_a_lost_device", lost)
    path = tmp_path / "rows.json"
    first = case_of(usual=right, broken=run_out, third=right)
    with pytest.raises(SystemExit) as ended:
        command.main(lambda options: [lambda: first, lambda: first], None, ["--smoke", "--json", str(path)])
    assert ended.value.code == 1
    assert "the device is lost: illegal access" in capsys.readouterr().err
    rows = json.loads(path.read_text())["rows"]
    assert [row["note"] for row in rows] == [NOT_REACHED, "failed: MemoryError: no more", NOT_REACHED]


def test_what_words_leave_out_is_said():
    case = case_of(usual=right, compiled=right, flex=right, gone=Missing("gone"))

    def notes(choice: Choice) -> dict[str, str]:
        return {row.variant: row.note for row in run_case(choice.of(case), CEILINGS, Calls(), 0)}

    gone = "missing: gone"
    found = notes(Choice(without=("comp", "flex")))
    assert found == {
        "usual": "",
        "compiled": f"missing: {LEFT_OUT} (--without comp)",
        "flex": f"missing: {LEFT_OUT} (--without flex)",
        "gone": gone,
    }
    left_out = f"missing: {LEFT_OUT} (--with compiled)"
    assert notes(Choice(having=("compiled",))) == {"usual": "", "compiled": "", "flex": left_out, "gone": left_out}
    assert notes(Choice(only=("flex", "gone"))) == {"flex": "", "gone": gone}
