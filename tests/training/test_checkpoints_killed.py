"""Checkpoints beside training: what a kill at any moment and a full disk leave."""

import json
import logging
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from fastvtp.errors import UserError
from fastvtp.model_folder import clear_partial_folders, list_checkpoints
from fastvtp.training.checkpoints import CheckpointWriter, newest_whole
from fastvtp.training.export import export_model
from fastvtp.training.state import restore
from tests.forking import forking_context
from tests.training.states import assert_same, contents, make_state, take_step, write_tokenizer


def _snapshots(run_dir: Path, snapshots: Path) -> None:
    """Save steps 2 and 3, and copy what is on the disk before each thing that the writing of step 3 changes there."""
    state = make_state()
    copying = threading.Lock()

    def before(event: str, arguments: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate") or (
            event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax"
        )
        if changes and str(arguments[0]).startswith(f"{run_dir}/") and copying.acquire(blocking=False):
            shutil.copytree(run_dir, snapshots / f"{len(list(snapshots.iterdir())):03}")
            copying.release()

    with CheckpointWriter(run_dir, write_tokenizer, keep=1) as writer:
        writer.save(state, {}, wait=True)
        state.progress.step = 3
        take_step(state, 3)
        sys.addaudithook(before)
        writer.save(state, {})


def run_child(work, *arguments) -> None:
    process = forking_context().Process(target=work, args=arguments)
    process.start()
    process.join(timeout=100)
    assert process.exitcode == 0


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    run_dir, snapshots = tmp_path / "run", tmp_path / "snapshots"
    snapshots.mkdir()
    run_child(_snapshots, run_dir, snapshots)
    older = make_state()
    expected = {2: contents(older)}
    take_step(older, 3)
    older.progress.step = 3
    expected[3] = contents(older)
    found = make_state(steps=0)
    steps = []
    for snapshot in sorted(snapshots.iterdir()):
        restore(newest_whole(snapshot), found)
        steps.append(found.progress.step)
        assert_same(contents(found), expected[steps[-1]])
        clear_partial_folders(snapshot)
        left = {path.name for path in (snapshot / "checkpoints").iterdir()}
        assert left <= {"step_00000002", "step_00000003"}
    assert len(steps) > 10  # five files and a rename to write, as many to delete
    assert steps == sorted(steps)
    assert {*steps} == {2, 3}


def _save_without_end(run_dir: Path, rank: int = 0, processes: int = 1) -> None:
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{run_dir}/store", rank=rank, world_size=processes)
    state = make_state("fsdp" if processes > 1 else "plain")
    with CheckpointWriter(run_dir, write_tokenizer, keep=1) as writer:
        for step in range(2, 10**6):
            state.progress.step = step
            writer.save(state, {})


LATER = [pytest.param(n, 0.03 * n, marks=pytest.mark.long) for n in range(20)]


@pytest.mark.parametrize(("number", "seconds"), [(1, 0.1), *LATER])
def test_killed_at_some_time(tmp_path, number, seconds):
    """Every checkpoint under a final name is whole; of two processes, those with odd numbers lose one first."""
    processes = 1 if seconds == 0.1 else 2
    children = [
        forking_context().Process(target=_save_without_end, args=(tmp_path, rank, processes))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    deadline = time.monotonic() + 100
    while not list_checkpoints(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(seconds)
    for child in children[:: -1 if number % 2 else 1]:
        child.kill()
        child.join(timeout=0.05 if number % 2 else 0)
    for child in children:
        child.join(timeout=100)
        assert child.exitcode in (-signal.SIGKILL, 1)  # 1: the other one was lost
    folders = list_checkpoints(tmp_path)
    assert folders
    for folder in folders:
        found = make_state(steps=0)
        restore(folder, found)
        assert found.progress.step == int(folder.name[5:])
    assert newest_whole(tmp_path) == folders[-1]


def _full_disk(run_dir: Path) -> None:
    """No file may grow beyond 100 kB for a while."""
    told: dict[str, object] = {}
    logging.basicConfig(filename=run_dir / "log.txt")
    state = make_state()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointWriter(run_dir, write_tokenizer, keep=1, keep_best="loss") as writer:
        writer.save(state, {"loss": 3.0}, wait=True)
        export_model(run_dir / "model", state, write_tokenizer)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        state.progress.step = 3
        writer.save(state, {"loss": 1.0})
        writer.wait()
        told["after a full disk"] = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
        told["best"] = state.progress.best
        for name, work in {
            "waiting": lambda: writer.save(state, {"loss": 1.0}, wait=True),
            "model": lambda: export_model(run_dir / "model", state, write_tokenizer),
        }.items():
            try:
                work()
            except UserError as error:
                told[name] = str(error)
        told["at the end"] = sorted(path.name for path in run_dir.rglob("partial_*"))
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        state.progress.step = 4
        writer.save(state, {"loss": 2.0})
    told["afterwards"] = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    (run_dir / "told.json").write_text(json.dumps(told))


def test_a_full_disk(tmp_path):
    run_child(_full_disk, tmp_path)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["after a full disk"] == ["step_00000002"]
    assert told["best"] == {"metric": "loss", "value": 3.0, "step": 2}
    final = tmp_path / "checkpoints/step_00000003"
    assert told["waiting"].startswith(f"{final}: the checkpoint could not be written: [Errno 27] File too large")
    assert told["model"].startswith(f"{tmp_path / 'model'}: the model could not be written:")
    assert "\n" not in told["waiting"] + told["model"]
    assert told["at the end"] == []
    assert told["afterwards"] == ["step_00000004"]
    assert (tmp_path / "model/model.safetensors").is_file()
    said = (tmp_path / "log.txt").read_text()
    assert f"{final}: the checkpoint could not be written, training goes on without: [Errno 27]" in said
    assert said.count("could not be written") == 1
