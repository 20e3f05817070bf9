"""The Python of attention calls: the package with its devices exchanged, the calls, the table."""

import json

import pytest

pytest.importorskip("triton")

from benchmarks.harness.environment import ROOT
from benchmarks.ops import host_calls, host_time


def test_devices_are_exchanged_where_they_are_named():
    text = 'x.is_cuda and device.type == "cpu" or ("cuda", is_cpu, CUDA, torch.cuda)'
    assert host_calls.exchange(text) == 'x.is_cpu and device.type == "cuda" or ("cpu", is_cuda, CUDA, torch.cuda)'
    assert host_calls.exchange(host_calls.exchange(text)) == text


def test_a_loaded_package_cannot_be_exchanged():
    with pytest.raises(RuntimeError, match="fastvtp_kernels is loaded already"):
        host_calls.pretend_cuda()


def test_every_call_is_timed_on_the_way_of_a_gpu(tmp_path, capsys):
    """The process itself refuses a call that launches no kernel."""
    host_time.main(["--smoke", "--json", str(tmp_path / "times.json")])
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    seconds = {row["call"]: row["seconds"] for row in rows}
    assert all(value > 0 for value in seconds.values())
    assert {name.partition(",")[0] for name in seconds if not name.startswith("floor")} == {
        "packed",
        "joint",
        "key lengths",
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| call | here µs |"
    assert len(lines) == len(seconds) + 2


def test_a_process_that_fails_says_why(tmp_path):
    (tmp_path / "fastvtp_kernels").mkdir()
    (tmp_path / "fastvtp_kernels" / "__init__.py").write_text("raise ValueError('not today')")
    with pytest.raises(RuntimeError, match="ValueError: not today"):
        host_time.measured(tmp_path, 1, 1)


def test_versions_stand_side_by_side():
    found = {"before": {"call": 2e-6, "gone": 1e-6}, "here": {"call": 1e-6, "new": 3e-6}}
    assert host_time.table(found).splitlines() == [
        "| call | before µs | here µs | ratio |",
        "| --- | --- | --- | --- |",
        "| call | 2.0 | 1.0 | 0.50 |",
        "| new |  | 3.0 |  |",
    ]


def test_a_commit_is_unpacked(tmp_path, monkeypatch):
    calls = []

    class Done:
        stdout = b"archive"

    monkeypatch.setattr(host_time.subprocess, "run", lambda command, **options: calls.append(command) or Done())
    assert host_time.sources_of("main", tmp_path) == tmp_path / "kernels"
    assert calls[0][-4:] == [str(ROOT), "archive", "main", "kernels"]
    assert calls[1] == ["tar", "-x", "-C", str(tmp_path)]
