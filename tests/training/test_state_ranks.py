"""Checkpoints go from one number of processes to another, and from whole weights to shards and back."""

import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fastvtp.errors import UserError
from fastvtp.model_folder import list_checkpoints, read_weights
from fastvtp.training.checkpoints import CheckpointWriter, newest_whole
from fastvtp.training.export import export_model
from fastvtp.training.state import restore
from tests.ranks import run_ranks
from tests.training.states import assert_same, contents, make_state, take_step, write_earlier, write_tokenizer


def _begin(rank: int, run_dir: str) -> dict:
    """Train in shards, save, and write the final model."""
    state = make_state("fsdp")
    with CheckpointWriter(Path(run_dir), write_tokenizer, keep=2) as writer:
        writer.save(state, {"loss": 1.0})
        before = contents(state)
        take_step(state, 3)  # while the other is written
        writer.wait()
        restore(newest_whole(Path(run_dir)), state)
    export_model(Path(run_dir) / "model", state, write_tokenizer)
    return {"before": before, "restored": contents(state)}


def _go_on(rank: int, kind: str, run_dir: str, following: str) -> dict:
    """Restore over garbage, and save again."""
    state = make_state(kind, steps=0, seed=5)
    restore(newest_whole(Path(run_dir)), state)
    with CheckpointWriter(Path(following), write_tokenizer, keep=2) as writer:
        writer.save(state, {"loss": 1.0})
    return contents(state)


def test_two_in_shards_then_one_then_two_replicas_then_two_in_shards(tmp_path):
    for name in "abcd":
        (tmp_path / name).mkdir()
    began = run_ranks(_begin, tmp_path / "a", str(tmp_path / "a"), processes=2)
    expected = began[0]["before"]
    for rank in began:
        assert_same(rank["before"], expected)
        assert_same(rank["restored"], expected)
    # what they hold is what one process alone comes to, but for the last digits, which vector units round by length
    for name, tensor in contents(make_state("plain"))["tensors"].items():
        torch.testing.assert_close(expected["tensors"][name], tensor, rtol=1e-6, atol=1e-7)

    plain = make_state("plain", steps=0, seed=4)
    restore(newest_whole(tmp_path / "a"), plain)
    assert_same(contents(plain), expected)
    with CheckpointWriter(tmp_path / "b", write_tokenizer, keep=2) as writer:
        writer.save(plain, {})

    for kind, source, following in (("ddp", "b", "c"), ("fsdp", "c", "d")):
        folders = str(tmp_path / source), str(tmp_path / following)
        for found in run_ranks(_go_on, tmp_path / following, kind, *folders, processes=2):
            assert_same(found, expected)
    assert len(list((tmp_path / "c/checkpoints/step_00000002/shards").iterdir())) == 2  # replicas share the writing

    # one process reads the weights for evaluation, their average, from a checkpoint and from the final model
    for folder in (newest_whole(tmp_path / "d"), tmp_path / "a" / "model"):
        for name, tensor in read_weights(folder).items():
            kept = expected["tensors"].get(f"average.{name}", expected["tensors"][f"model.{name}"])
            assert torch.equal(tensor, kept), name


@pytest.mark.long
def test_pairs_in_shards_and_three_in_shards(tmp_path):
    """More processes, and a number that divides nothing."""
    state, source = make_state(), tmp_path / "plain"
    with CheckpointWriter(source, write_tokenizer, keep=1) as writer:
        writer.save(state, {})
    for kind, processes in (("hsdp", 4), ("fsdp", 3), ("fsdp", 1)):
        target = tmp_path / f"{kind}{processes}"
        target.mkdir()
        for found in run_ranks(_go_on, target, kind, str(source), str(target), processes=processes):
            assert_same(found, contents(state))
        source = target
    found = make_state(steps=0)
    restore(newest_whole(source), found)
    assert_same(contents(found), contents(state))


def _trouble(rank: int, run_dir: str) -> dict:
    """What all processes make of what befalls one of them."""
    run, told = Path(run_dir), {}
    state = make_state("fsdp")

    def said(work) -> str:
        try:
            return f"returned {work()}"
        except (UserError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointWriter(run, write_tokenizer, keep=2) as writer:
        writer.save(state, {}, wait=True)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        state.progress.step = 3
        writer.save(state, {})
        writer.wait()
        told["with the disk of one full"] = [folder.name for folder in list_checkpoints(run)]
        told["waiting"] = said(lambda: writer.save(state, {}, wait=True))
        told["left"] = [path.name for path in run.rglob("partial_*")]
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        state.progress.step = 4
        writer.save(state, {}, wait=True)
    if rank == 0:
        shards = sorted((run / "checkpoints/step_00000004/shards").iterdir())
        shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"!")
    dist.barrier()
    told["damaged"] = said(lambda: newest_whole(run).name)
    if rank == 0:
        (run / "checkpoints/step_00000002/shards" / shards[0].name).unlink()
    dist.barrier()
    told["all damaged"] = said(lambda: newest_whole(run))
    told["one alone cannot read"] = said(
        lambda: restore(run / "checkpoints" / ("step_00000004", "absent")[rank], state)
    )

    earlier = run / "earlier/checkpoints/step_00000002"
    if rank == 0:
        write_earlier(earlier, make_state("plain"))
    dist.barrier()
    state = make_state("fsdp", steps=0)
    restore(newest_whole(run / "earlier"), state)
    return {"told": told, "earlier": contents(state)}


def test_trouble_of_one_process_is_that_of_all(tmp_path):
    first, second = run_ranks(_trouble, tmp_path, str(tmp_path / "run"), processes=2)
    run = tmp_path / "run/checkpoints"
    for told in (first["told"], second["told"]):
        assert told["with the disk of one full"] == ["step_00000002"]
        assert told["waiting"].startswith(f"UserError: {run / 'step_00000003'}: the checkpoint could not be written: ")
        assert "File too large" in told["waiting"]
        assert told["left"] == []
        assert told["damaged"] == "returned step_00000002"
        assert told["all damaged"].startswith(f"CheckpointError: {run.parent}: none of its 2 checkpoints is whole; of")
        assert "does not have the bytes that were written" in told["all damaged"]
    assert first["told"]["one alone cannot read"].startswith(f"FailedElsewhereError: process 1: {run / 'absent'}")
    assert second["told"]["one alone cannot read"].startswith(f"CheckpointError: {run / 'absent'}")
    # a checkpoint of an earlier version, one process's, in shards
    for rank in (first, second):
        assert_same(rank["earlier"], contents(make_state("plain")))
