"""Where a benchmark ran: versions, the commit and whether the sources are its own, the GPU."""

import platform
import subprocess
from types import SimpleNamespace

import torch

from benchmarks.harness import environment as environments
from benchmarks.harness.environment import environment
from tests.benchmarks.harness.made import CPU


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
