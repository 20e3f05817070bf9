"""Two trees of a made-up repository, whose benchmark takes as long as its kernel package says."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness.record import Row
from benchmarks.report import compare
from benchmarks.report.compare import Side, side, significant, verdict

ROOT = Path(__file__).parents[3]
BENCHMARK = """
import json, os, sys, time
from pathlib import Path
import fastvtp_kernels
arguments = sys.argv
log = Path(os.environ["COMPARE_LOG"])
with log.open("a") as file:
    print(Path.cwd().name, *arguments[3:], file=file)
time.sleep(fastvtp_kernels.SLEEP)
if fastvtp_kernels.BROKEN:
    sys.exit("first line\\nno such kernel")
median = fastvtp_kernels.MEDIAN
row = dict(op="tubelet_embed", case="tiny", variant="triton", shape={"batch": 2}, dtype="float32", direction="forward",
           model_bytes=1, model_flops=1, floor_s=1e-6, baseline="videomae", median_s=median, p20_s=0.99 * median,
           p80_s=1.01 * median, peak_bytes=fastvtp_kernels.PEAK, a_field_of_another_version=1)
Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps({"schema": 1, "rows": [row]}))
"""


def git(repository: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ["git", "-C", str(repository), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def set_kernels(repository: Path, median: float = 1e-3, peak: int = 5_000_000, sleep: float = 0, broken: bool = False):
    path = repository / "kernels" / "fastvtp_kernels" / "__init__.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"MEDIAN = {median}\nPEAK = {peak}\nSLEEP = {sleep}\nBROKEN = {broken}\n")


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A benchmark of tubelets is committed, one of masking is not; the kernels take a millisecond."""
    root = tmp_path / "repository"
    (root / "benchmarks" / "ops").mkdir(parents=True)
    (root / "benchmarks" / "__init__.py").touch()
    (root / "benchmarks" / "ops" / "tubelets.py").write_text(BENCHMARK)
    set_kernels(root)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "base")
    (root / "benchmarks" / "ops" / "masking.py").write_text(BENCHMARK)
    monkeypatch.setenv("COMPARE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # files written within a second of each other look the same
    return root


def log_of(repository: Path) -> list[str]:
    return (repository.parent / "log").read_text().splitlines()


def assert_clean(repository: Path):
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert not list(repository.parent.glob("**/fastvtp-base-*"))


def refusal(repository: Path, capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        compare.main(arguments, repository)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_each_tree_runs_its_own_code_in_turn(repository, capsys):
    set_kernels(repository, median=0.4e-3, peak=2_000_000)
    command = ["--base", "HEAD", "--only", "tubelet_embed", "--rounds", "3", "--seconds", "0.5", "--smoke"]
    assert compare.main(command, repository) == 0
    passed = "--seconds 0.5 --smoke --only triton reference"
    assert log_of(repository) == [f"{name} {passed}" for name in ("tree", "repository") * 3]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "tubelet_embed" in line]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "tubelet_embed",
        "tiny, forward, float32",
        "triton",
        "1.00 ms",
        "990 µs–1.01 ms",
        "400 µs",
        "396 µs–404 µs",
        "5.00",
        "2.00",
        "2.50× as fast",
    ]
    assert_clean(repository)


def test_a_base_from_before_the_folders_is_found(repository, capsys):
    """Its benchmarks lie beside each other; those of this tree in a folder per kind."""
    git(repository, "mv", "benchmarks/ops/tubelets.py", "benchmarks/tubelets.py")
    git(repository, "commit", "--quiet", "--message", "old")
    git(repository, "mv", "benchmarks/tubelets.py", "benchmarks/ops/tubelets.py")
    assert compare.main(["--base", "HEAD", "--only", "tubelets", "--rounds", "3"], repository) == 0
    assert "no difference beyond the spread" in capsys.readouterr().out
    assert [line.split()[0] for line in log_of(repository)] == ["tree", "repository"] * 3


def test_equal_trees_show_no_difference(repository, capsys):
    assert compare.main(["--base", "HEAD", "--rounds", "3"], repository) == 0
    out, err = capsys.readouterr()
    assert "no difference beyond the spread" in out
    assert "not in the base: masking" in err
    assert all("masking" not in line for line in out.splitlines())


def test_refusals_name_what_is_wrong(repository, capsys, tmp_path):
    assert "no commit 'nowhere'" in refusal(repository, capsys, "--base", "nowhere")
    assert "no commit '--all'" in refusal(repository, capsys, "--base=--all")
    assert "has no benchmarks/ops/masking.py" in refusal(repository, capsys, "--base", "HEAD", "--only", "tube_mask")
    assert "did you mean 'tubelets'?" in refusal(repository, capsys, "--base", "HEAD", "--only", "tublets")
    assert "expected a number of at least 3" in refusal(repository, capsys, "--base", "HEAD", "--rounds", "2")
    assert "no commit 'HEAD'" in refusal(tmp_path, capsys, "--base", "HEAD")
    assert not (tmp_path / "log").exists()


def test_a_failing_benchmark_ends_it_with_its_last_line(repository, capsys):
    set_kernels(repository, broken=True)
    message = refusal(repository, capsys, "--base", "HEAD", "--rounds", "3")
    assert f"benchmarks.ops.tubelets ended with status 1 in {repository}: no such kernel" in message
    assert_clean(repository)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(number, repository, tmp_path):
    set_kernels(repository, sleep=60)
    git(repository, "commit", "--quiet", "--all", "--message", "slow")
    code = "import pathlib, sys, benchmarks.report.compare as c; c.main(['--base', 'HEAD'], pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(repository)], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(git(repository, "worktree", "list").splitlines()) == 2
    running.send_signal(number)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert_clean(repository)


def rows(*medians: float | None, width: float = 0.01) -> list[Row]:
    return [
        Row(
            *("op", "case", "triton", {}, "float32", "forward", 1, 1, 1.0, ""),
            median_s=median,
            p20_s=None if median is None else median * (1 - width),
            p80_s=None if median is None else median * (1 + width),
        )
        for median in medians
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (rows(1.0, 1.0, 1.0), rows(0.5, 0.5, 0.5), "2.00× as fast"),
        (rows(1.0, 1.0, 1.0), rows(1.5, 1.5, 1.5), "1.50× SLOWER"),
        (rows(1.0, 1.0, 1.0, width=0.001), rows(1.02, 1.02, 1.02, width=0.001), "no difference beyond the spread"),
        # Calls that spread wide, and a round that is off.
        (rows(1.0, 1.0, 1.0, width=0.2), rows(0.8, 0.8, 0.8, width=0.1), "no difference beyond the spread"),
        (rows(1.0, 1.0, 0.79), rows(0.8, 0.8, 0.8), "no difference beyond the spread"),
        (rows(1.0), rows(None), "NO LONGER TIMED: no time"),
        (rows(None), rows(1.0), "now timed, before no time"),
        (rows(None), rows(None), "no time: no time"),
    ],
)
def test_significance(before, after, expected):
    assert verdict(side(before), side(after)) == expected


def test_a_variant_of_one_tree_alone():
    found = side(rows(1.0))
    assert verdict(None, found) == "only here"
    assert verdict(found, None) == "only in the base"


def test_three_percent_is_not_enough_however_small_the_spread():
    before = Side(1.0, 1.0, 1.0, None, "")
    assert not significant(before, Side(1.029, 1.029, 1.029, None, ""))
    assert significant(before, Side(1.031, 1.031, 1.031, None, ""))
