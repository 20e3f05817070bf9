"""Checkpoints beside training: what is written, what stays, and what a damaged file does."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from fastvtp.errors import CheckpointError, UserError
from fastvtp.model_folder import list_checkpoints
from fastvtp.training.checkpoints import CheckpointWriter, newest_whole
from fastvtp.training.shard_writer import ShardWriter
from fastvtp.training.state import read_progress, restore
from tests.training.states import assert_same, contents, make_state, take_step, write_earlier, write_tokenizer


def steps_in(run_dir: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in list_checkpoints(run_dir)]


def save_steps(run_dir: Path, state, metrics: dict[int, dict[str, float]], **settings) -> None:
    with CheckpointWriter(run_dir, write_tokenizer, **settings) as writer:
        for step, values in metrics.items():
            state.progress.step = step
            writer.save(state, values)


def test_what_is_written_is_a_copy(tmp_path, monkeypatch):
    """The weights change while the writing waits for its turn."""
    state, changed = make_state(), threading.Event()
    expected, write_data = contents(state), ShardWriter.write_data

    def later(*arguments):
        assert changed.wait(60)
        return write_data(*arguments)

    monkeypatch.setattr(ShardWriter, "write_data", later)
    with CheckpointWriter(tmp_path, write_tokenizer, keep=1) as writer:
        writer.save(state, {"loss": 1.0})
        take_step(state, 3)
        state.progress.bad_files["b.mp4"] = "cut short"
        for group in state.optimizer.param_groups:
            group["lr"] = 7.0
        changed.set()
    other = make_state(steps=0)
    restore(newest_whole(tmp_path), other)
    assert_same(contents(other), expected)


def test_training_goes_on_while_a_checkpoint_is_written_and_one_is_written_at_a_time(tmp_path, monkeypatch):
    state, begun, free = make_state(), threading.Event(), threading.Event()
    write_data, running, most = ShardWriter.write_data, [], []

    def slowly(*arguments):
        running.append(1)
        most.append(len(running))
        begun.set()
        assert free.wait(60)
        try:
            return write_data(*arguments)
        finally:
            running.pop()

    monkeypatch.setattr(ShardWriter, "write_data", slowly)
    with CheckpointWriter(tmp_path, write_tokenizer, keep=9) as writer:
        writer.save(state, {})
        assert begun.wait(60)
        assert steps_in(tmp_path) == []
        state.progress.step = 3
        threading.Timer(0.2, free.set).start()
        writer.save(state, {})  # waits for the first
        assert free.is_set()
        assert 2 in steps_in(tmp_path)
        writer.wait()
        assert steps_in(tmp_path) == [2, 3]
        state.progress.step = 4
        writer.save(state, {}, wait=True)
        assert steps_in(tmp_path) == [2, 3, 4]
    assert max(most) == 1


def test_the_newest_stay(tmp_path):
    (tmp_path / "checkpoints/partial_step_00000009").mkdir(parents=True)
    save_steps(tmp_path, make_state(), {step: {} for step in (1, 2, 3)}, keep=2)
    assert steps_in(tmp_path) == [2, 3]
    assert read_progress(newest_whole(tmp_path)).step == 3


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("loss", (3.0, 1.0, float("nan"), 2.0, 4.0), 2),
        ("accuracy/top1", (3.0, 1.0, float("nan"), 5.0, 4.0), 4),
        ("loss", (float("nan"), 2.0, 2.0, 3.0, 4.0), 2),
    ],
)
def test_the_best_stays_also_over_a_resume(tmp_path, name, values, best):
    state = make_state()
    metrics = {step: {name: value, "other": -step} for step, value in enumerate(values, start=1)}
    first, second = ({step: metrics[step] for step in steps} for steps in ((1, 2, 3), (4, 5)))
    save_steps(tmp_path, state, first, keep=1, keep_best=name)
    resumed = make_state(steps=0)
    restore(newest_whole(tmp_path), resumed)
    assert resumed.progress.best == state.progress.best
    save_steps(tmp_path, resumed, second, keep=1, keep_best=name)
    assert steps_in(tmp_path) == sorted({best, 5})
    assert resumed.progress.best == {"metric": name, "value": values[best - 1], "step": best}
    recorded = json.loads((tmp_path / f"checkpoints/step_{best:08d}/training_state.json").read_text())
    assert recorded["metrics"] == metrics[best]
    # by another metric, all that was best before counts for nothing
    save_steps(tmp_path, resumed, {6: metrics[5], 7: {"other": 9}}, keep=1, keep_best="other")
    assert steps_in(tmp_path) == [6, 7]


def test_a_metric_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="no metric 'los'; did you mean 'loss'"):
        save_steps(tmp_path, make_state(), {1: {"loss": 1.0}}, keep=1, keep_best="los")


def truncate(folder: Path) -> Path:
    (shard,) = (folder / "shards").iterdir()
    os.truncate(shard, shard.stat().st_size - 1)
    return shard


def flip_a_bit(folder: Path) -> Path:
    (shard,) = (folder / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    return shard


def lose_a_shard(folder: Path) -> Path:
    (shard,) = (folder / "shards").iterdir()
    shard.unlink()
    return shard


def lose_the_manifest(folder: Path) -> Path:
    (folder / "manifest.json").unlink()
    return folder / "manifest.json"


def spoil_the_manifest(folder: Path) -> Path:
    os.truncate(folder / "manifest.json", 50)
    return folder / "manifest.json"


def lose_the_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.json").unlink()
    return folder / "tokenizer.json"


DAMAGES = [truncate, flip_a_bit, lose_a_shard, lose_the_manifest, spoil_the_manifest, lose_the_tokenizer]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("two")
    save_steps(run_dir, make_state(), {1: {}, 2: {}}, keep=2)
    return run_dir


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(two, tmp_path, caplog, damage):
    run_dir = shutil.copytree(two, tmp_path / "run")
    older, newer = list_checkpoints(run_dir)
    assert newest_whole(run_dir) == newer
    path = damage(newer)
    caplog.clear()
    assert newest_whole(run_dir) == older
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert path.name in warning
    assert str(newer) in warning
    assert f"going on from {older}" in warning
    damage(older)
    with pytest.raises(CheckpointError, match=rf"none of its 2 checkpoints is whole; of the newest: .*{path.name}"):
        newest_whole(run_dir)


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert newest_whole(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert newest_whole(tmp_path) is None


def damage_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda folder: os.truncate(folder / "training_state.pt", 5000), "training_state.pt"),
        (lambda folder: damage_bytes(folder / "training_state.pt"), "training_state.pt"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_damage_to_checkpoints_of_earlier_versions(tmp_path, caplog, damage, name):
    state = make_state()
    folders = [tmp_path / f"checkpoints/step_0000000{step}" for step in (1, 2)]
    for folder in folders:
        write_earlier(folder, state)
    assert newest_whole(tmp_path) == folders[1]
    damage(folders[1])
    assert newest_whole(tmp_path) == folders[0]
    assert name in caplog.text


def test_a_damaged_checkpoint_is_not_counted_and_is_replaced_when_training_comes_to_it(two, tmp_path):
    """Kept is what is whole: here the run goes on from the first of two."""
    run_dir = shutil.copytree(two, tmp_path / "run")
    flip_a_bit(list_checkpoints(run_dir)[1])
    state = make_state(steps=0)
    restore(newest_whole(run_dir), state)
    for folder in reversed(list_checkpoints(run_dir)):
        folder.rename(folder.with_name(f"step_0000000{int(folder.name[5:]) * 2}"))  # 2, and 4, which is damaged
    save_steps(run_dir, state, {3: {}}, keep=1)
    assert steps_in(run_dir) == [3, 4]
    assert newest_whole(run_dir).name == "step_00000003"
    save_steps(run_dir, state, {4: {}}, keep=1)
    assert steps_in(run_dir) == [4]
    assert newest_whole(run_dir).name == "step_00000004"


def test_what_is_not_the_disks_fault_ends_the_run(tmp_path):
    def faulty(_: Path) -> None:
        raise ZeroDivisionError("of the tokenizer")

    state = make_state()
    with (
        pytest.raises(RuntimeError, match=r"process 0 could not write .*step_00000002: ZeroDivisionError: of the tok"),
        CheckpointWriter(tmp_path, faulty, keep=1) as writer,
    ):
        writer.save(state, {})
    assert steps_in(tmp_path) == []


def test_what_ends_the_run_is_not_hidden_by_a_checkpoint_that_failed_too(tmp_path, caplog):
    def faulty(_: Path) -> None:
        raise ZeroDivisionError("of the tokenizer")

    def run() -> None:
        with CheckpointWriter(tmp_path, faulty, keep=1) as writer:
            writer.save(make_state(), {})
            raise KeyError("the run's own")

    with pytest.raises(KeyError, match="the run's own"):
        run()
    assert "ZeroDivisionError: of the tokenizer" in caplog.text


def test_large_models_go_into_several_files(tmp_path, monkeypatch):
    from fastvtp.training import shard_writer

    monkeypatch.setattr(shard_writer, "_LARGEST_FILE", 200_000)
    state, other = make_state(), make_state(steps=0)
    save_steps(tmp_path, state, {2: {}}, keep=1)
    shards = list((newest_whole(tmp_path) / "shards").iterdir())
    assert len(shards) > 5
    restore(newest_whole(tmp_path), other)
    assert_same(contents(other), contents(state))
    largest = max(tensor.nbytes for tensor in contents(state)["tensors"].values())
    assert max(shard.stat().st_size for shard in shards) < max(200_000, largest) + 20_000


def test_no_warning_is_given_about_a_single_process(tmp_path, recwarn):
    save_steps(tmp_path, make_state(), {2: {}}, keep=1)
    restore(newest_whole(tmp_path), make_state(steps=0))
    assert [str(warning.message) for warning in recwarn if "torch" in str(warning.message)] == []
    assert torch.is_grad_enabled()
