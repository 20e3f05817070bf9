"""What becomes of right, wrong, missing and failing variants; rows, JSON, table, environment and command line."""

import json
import platform
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from benchmarks.harness import command
from benchmarks.harness import environment as environments
from benchmarks.harness.case import Case, CaseFactory, Cost, Missing, Options
from benchmarks.harness.command import bind, relative_error
from benchmarks.harness.environment import environment
from benchmarks.harness.record import Record, Row, markdown_table, write_json
from benchmarks.harness.running import Choice, run_case
from benchmarks.harness.timing import Ceilings, Timing
from fastvtp_kernels import BackendUnavailableError

CPU = torch.device("cpu")
CEILINGS = Ceilings(bytes_per_s=100.0, flops_per_s=1000.0)


def unavailable() -> object:
    raise BackendUnavailableError("no such chip")


def failing() -> object:
    raise RuntimeError("out of luck\nand more")


class FixedTimer:
    """Knows how long the right variants take, and no others."""

    seconds: ClassVar = {"usual": 8.0, "right": 2.0}

    def time(self, variants: dict[str, Any], seconds: float) -> dict[str, Timing]:
        return {name: Timing(self.seconds[name], p20=1, p80=9, wall=10, calls=7) for name in variants}


VARIANTS: dict[str, Any] = {
    "usual": lambda: 0.0,
    "right": lambda: 0.5,
    "wrong": lambda: 0.6,
    "not a number": lambda: float("nan"),
    "far off": lambda: float("inf"),
    "absent": Missing("not installed"),
    "unavailable": unavailable,
    "failing": failing,
}
CASE = Case(
    op="op", name="one", direction="forward", shape={"batch": 1}, dtype=torch.float32, device=CPU,
    cost=Cost(100, 500), variants=VARIANTS, baseline="usual", error=lambda output: output, tolerance=0.5,
)  # fmt: skip


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


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ([1.0, -4.0], 0.0),
        ([1.5, -4.0], 0.125),
        ([1.0, float("nan")], float("inf")),
        ([1.0], float("inf")),
    ],
)
def test_relative_error(output, error):
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    for tensors in ([exact, torch.tensor(output)], [torch.tensor(output), exact]):
        assert relative_error(tensors, [exact, exact]) == error


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_bound_calls_are_held_against_float64(direction):
    leaf = torch.tensor([0.1, 0.2, 0.3])

    def wrong_gradient(x: torch.Tensor) -> torch.Tensor:
        return x.square() + 0.01 * (x - x.detach())

    functions: dict[str, Any] = {"right": torch.square, "gradient": wrong_gradient, "absent": Missing("gone")}
    variants, error = bind(functions, torch.square, [leaf], direction)
    right: Any = variants["right"]
    gradient: Any = variants["gradient"]
    assert 0 < error(right()) < 1e-6
    assert (error(gradient()) > 1e-3) == (direction == "forward+backward")
    assert variants["absent"] == Missing("gone")
    assert not right()[0].requires_grad


def two_cases(options: Options) -> list[CaseFactory]:
    return [lambda: CASE, lambda: replace(CASE, name="two", variants={"usual": lambda: 0.0})]


def test_command_line_writes_table_and_json(tmp_path, capsys):
    path = tmp_path / "rows.json"
    command.main(two_cases, "about", ["--smoke", "--device", "cpu", "--json", str(path)])
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["environment"]["smoke"] is True
    assert set(content["environment"]["ceilings"]) == {"bytes_per_s", "flops_per_s"}
    assert [row["case"] for row in content["rows"]] == ["one"] * 8 + ["two"]
    assert capsys.readouterr().out.count("missing: not installed") == 1


def test_an_unknown_variant_is_named_after_the_others_have_run(capsys):
    with pytest.raises(SystemExit):
        command.main(two_cases, None, ["--smoke", "--device", "cpu", "--only", "usual", "unusual"])
    output = capsys.readouterr()
    assert output.out.count("usual") == 2
    assert "no variant 'unusual'; there are absent, failing" in output.err


def test_progress_without_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    command.main(two_cases, None, ["--smoke", "--device", "cpu", "--only", "usual"])
    assert "case 2 of 2" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "message"), [("toaster", "'toaster' is no device"), ("cuda", "sees no CUDA device")])
def test_a_device_that_is_not_there(name, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        command.main(two_cases, None, ["--smoke", "--device", name])
    assert message in capsys.readouterr().err


def test_one_default_for_each_device():
    seen = []

    def cases(options: Options) -> list[CaseFactory]:
        seen.append(options)
        return []

    command.main(cases, None, ["--device", "cpu", "--smoke", "--dtype", "bfloat16"])
    command.main(cases, None, ["--device", "cpu", "--smoke"])
    assert [options.dtype for options in seen] == [torch.bfloat16, torch.float32]


ROW = Row("op", "tiny", "usual", {"batch": 1}, "float32", "forward", 100, 500, 1.0, "usual")


def test_json_holds_every_field_and_no_nan(tmp_path):
    path = tmp_path / "rows.json"
    timed = replace(ROW, median_s=2.0, calls=3, speedup=1.0)
    record = Record(environment(CPU), [ROW, timed])
    write_json(path, record.rows, record.environment)
    content = json.loads(path.read_text())
    assert [Row(**row) for row in content["rows"]] == record.rows
    assert content["environment"] == record.environment
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [replace(ROW, median_s=float("nan"))], {})
    assert json.loads(path.read_text()) == content


def test_environment_says_what_ran(monkeypatch):
    answers = {"rev-parse": "abc", "status": " M kernels/a.py"}
    monkeypatch.setattr("benchmarks.harness.environment._git", lambda command, *_: answers[command])
    found = environment(CPU)
    assert (found["commit"], found["dirty"], found["device_type"], found["gpu"]) == ("abc", True, "cpu", None)
    assert torch.__version__.startswith(found["packages"]["torch"].split("+")[0])
    assert found["date"].endswith("+00:00")


def test_dirty_is_what_the_commit_lacks_of_the_sources(tmp_path, monkeypatch):
    """Of a repository that another user may own; results are written while it runs."""
    asked = []
    monkeypatch.setattr(environments, "_output", lambda *arguments: asked.append(arguments) or "")
    assert environment(CPU)["dirty"] is False
    assert all(command[:3] == ("git", "-c", "safe.directory=*") for command in asked)
    monkeypatch.undo()

    monkeypatch.setattr(environments, "ROOT", tmp_path)
    files = [tmp_path / name for name in ("kernels/a.py", "fastvtp/b.py", "benchmarks/results/gpu/c.json", "README.md")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    assert environment(CPU)["dirty"] is False
    clean = environment(CPU)["sources"]
    files[2].write_text("2")
    files[3].write_text("2")
    assert environment(CPU)["dirty"] is False
    (tmp_path / "fastvtp" / "new.py").touch()
    found = environment(CPU)
    assert found["dirty"] is True
    assert found["sources"] != clean


def test_environment_does_not_name_the_machines_own_kernel():
    name = environment(CPU)["platform"]
    assert name.startswith(f"{platform.system()}-{platform.machine()}")
    assert platform.release() not in name


def test_environment_of_a_gpu(monkeypatch):
    answer = "580.1, 345 MHz, 2619 MHz, 1980 MHz, 700.00 W, 31"
    monkeypatch.setattr("benchmarks.harness.environment._output", lambda *arguments: answer)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12"))
    found = environment(torch.device("cuda"))
    assert found["device"] == "a GPU"
    assert (found["gpu"]["driver_version"], found["gpu"]["power.limit"]) == ("580.1", "700.00 W")


def test_environment_without_git(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    found = environment(CPU)
    assert found["commit"] is found["dirty"] is None
    assert len(found["sources"]) == 12
    monkeypatch.setenv("FASTVTP_COMMIT", "c0ffee")
    assert environment(CPU)["commit"] == "c0ffee"


def test_table_is_aligned_and_complete():
    timed = replace(ROW, median_s=0.0021, p20_s=0.002, p80_s=0.003, wall_s=0.004, peak_bytes=5_000_000)
    timed.speedup, timed.fraction_of_floor, timed.error = 1.5, 0.25, 1e-7
    lines = markdown_table([timed, replace(ROW, note="missing: gone")]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].split("|")[5:-1]]
    assert cells == ["2.100", "2.000-3.000", "4.000", "5.0", "1.50", "25.0%", "error 1.0e-07"]
    assert [cell.strip() for cell in lines[3].split("|")[5:-1]] == ["", "", "", "", "", "", "missing: gone"]
