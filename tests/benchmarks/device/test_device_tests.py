"""The kernel tests by family: which tests, in which order, and what is counted."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks.device import device_order, device_tests
from benchmarks.device.device_order import COMMON, DEVICE_TESTS, WORDS, family_of
from benchmarks.device.device_tests import FAMILIES, PROCESSES, SMOKE_FAMILIES, TESTS, Recorder

CPU = torch.device("cpu")


def test_every_family_has_words_processes_and_a_file():
    families = {path.name: family_of(path.name) for path in TESTS.glob("test_triton_*.py")}
    assert set(families.values()) == set(FAMILIES) == set(WORDS) == set(PROCESSES)
    assert set(SMOKE_FAMILIES) < set(FAMILIES)


def test_every_test_of_the_device_belongs_to_a_family():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(TESTS / DEVICE_TESTS)], capture_output=True, text=True, cwd=device_tests.ROOT)
    nodes = re.findall(r"^\S+::.*$", done.stdout, re.M)
    assert len(nodes) > 50, done.stdout + done.stderr
    assert [node for node in nodes if family_of(node) == COMMON] == []
    found = {family: [node for node in nodes if family_of(node) == family] for family in FAMILIES}
    assert all(found.values())
    assert any("sigmoid_loss" in node for node in found["contrastive"])
    assert any("masked_pixel_loss" in node for node in found["pixel_loss"])


class Item(SimpleNamespace):
    """Hashable, as pytest's items are."""

    def __hash__(self) -> int:
        return id(self)


def item(name: str, file: str = "test_triton_attention.py", **parameters: object) -> Item:
    identity = f"{file}::{name}[{'-'.join(map(str, parameters.values()))}]"
    return Item(
        nodeid=identity,
        originalname=name,
        name=name,
        path=SimpleNamespace(name=file),
        callspec=SimpleNamespace(params=parameters),
        stash={},
    )


class Config:
    def __init__(self, **options: object):
        self._options = {"family": "attention", "until": None, "most": None, **options}
        self.dropped: list[Item] = []
        self.hook = SimpleNamespace(pytest_deselected=lambda items: self.dropped.extend(items))

    def getoption(self, name: str) -> object:
        return self._options[name]


def items() -> list:
    return [
        item("law", dtype=1),
        item("law", dtype=2),
        item("tiles", kernel="a", tile=1, order=0),
        item("tiles", kernel="a", tile=1, order=1),
        item("tiles", kernel="a", tile=2, order=0),
        item("law", file="test_triton_masking.py"),
        item("graph", file=DEVICE_TESTS, case="attention tiny"),
        item("repeats", file=DEVICE_TESTS, case="tube_mask"),
    ]


def test_a_familys_tests_come_by_worth():
    config, found = Config(), items()
    device_order.pytest_collection_modifyitems(config, found)  # pyright: ignore[reportArgumentType]
    assert [(one.originalname, *one.callspec.params.values()) for one in found] == [
        ("graph", "attention tiny"),
        ("law", 1),
        ("tiles", "a", 1, 0),
        ("tiles", "a", 2, 0),
        ("law", 2),
        ("tiles", "a", 1, 1),
    ]
    assert {one.originalname for one in config.dropped} == {"law", "repeats"}
    assert [one.stash[device_order.ESSENTIAL] for one in found] == [True] * 4 + [False] * 2

    few = items()
    device_order.pytest_collection_modifyitems(Config(most=2), few)  # pyright: ignore[reportArgumentType]
    assert [one.originalname for one in few] == ["graph", "law"]


def test_when_time_is_up_only_essential_tests_start():
    config, found = Config(until=1.0), items()
    device_order.pytest_collection_modifyitems(config, found)  # pyright: ignore[reportArgumentType]
    left_out = []
    for one in found:
        one.config = config
        try:
            device_order.pytest_runtest_setup(one)
        except pytest.skip.Exception as skipped:
            left_out.append((one.originalname, str(skipped)))
    assert left_out == [("law", device_order.LEFT_OUT), ("tiles", device_order.LEFT_OUT)]


def report(outcome: str, when: str = "call", why: object = "why") -> SimpleNamespace:
    return SimpleNamespace(outcome=outcome, when=when, duration=1.0, nodeid="a", longrepr=why)


def test_what_is_counted(tmp_path):
    recorder = Recorder(tmp_path / "counts.json", "masking", CPU)
    recorder.pytest_collectreport(report("passed"))
    recorder.pytest_collectreport(report("failed", why="ImportError: x\ny"))
    for one in (
        report("passed", "setup"),
        report("passed"),
        report("failed", "teardown"),
        report("skipped", "setup"),
        report("skipped", "setup", ("file", 1, f"Skipped: {device_order.LEFT_OUT}")),
    ):
        recorder.pytest_runtest_logreport(one)
    recorder.save()
    (row,) = json.loads((tmp_path / "counts.json").read_text())["rows"]
    failures = row.pop("failures")
    assert row == {
        "op": "masking",
        "finished": False,
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "left_out": 1,
        "seconds": 4.0,
    }
    assert [failure["message"] for failure in failures] == ["ImportError: x y", "why"]


def test_a_test_file_that_cannot_be_imported_counts_as_a_failure(tmp_path, monkeypatch):
    """The others of its family run; the family is not trusted."""
    (tmp_path / "test_triton_masking.py").write_text("import nothing_of_the_kind\n")
    (tmp_path / "test_triton_masking_more.py").write_text("def test_fine():\n    pass\n")
    script = (
        "import pathlib, sys, torch; from benchmarks.device import device_tests as tests; "
        "tests.TESTS = pathlib.Path(sys.argv[1]); "
        "tests.run_family('masking', tests.TESTS / 'counts.json', torch.device('cpu'), float('inf'), 1, True)"
    )
    monkeypatch.setenv("PYTHONPATH", f"{device_tests.ROOT}:{device_tests.ROOT / 'kernels'}")
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True)
    (row,) = json.loads((tmp_path / "counts.json").read_text())["rows"]
    assert (row["passed"], row["failed"], row["finished"]) == (1, 1, True)


def test_a_family_that_crashes_leaves_the_others_counts(tmp_path, monkeypatch):
    """And one that hangs is ended, with what it has counted."""
    (tmp_path / "benchmarks" / "device").mkdir(parents=True)
    (tmp_path / "benchmarks" / "device" / "device_tests.py").write_text(
        "import argparse, json, os, time\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--family'); parser.add_argument('--json')\n"
        "given, _ = parser.parse_known_args()\n"
        "open(given.json, 'w').write(json.dumps({'rows': [{'op': given.family}]}))\n"
        "if given.family == 'masking': os.abort()\n"
        "if given.family == 'attention': time.sleep(60)\n"
    )
    monkeypatch.setattr(device_tests, "ROOT", tmp_path)
    monkeypatch.setattr(device_tests, "POLL_S", 0.05)
    codes = device_tests.run_families(tmp_path / "tests.json", CPU, 3.0, 6, False, tmp_path / "logs")
    assert codes["masking"] < 0
    assert codes["attention"] < 0
    assert codes["tubelets"] == 0
    rows = json.loads((tmp_path / "tests.json").read_text())["rows"]
    assert {row["op"] for row in rows} == set(FAMILIES)
