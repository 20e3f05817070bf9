import pytest
import torch

import fastvtp
from fastvtp.checkpoints.native import CheckpointError
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import build_optimizer
from fastvtp.training.state import Progress, list_checkpoints, restore_checkpoint, save_checkpoint

SIZES = {"width": 48, "depth": 1, "num_heads": 2, "decoder_width": 24, "decoder_num_heads": 2, "vocab_size": 120}


@pytest.fixture
def parts():
    model = fastvtp.create_model("simvtp_tiny", **SIZES)
    optimizer = build_optimizer(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, CaptionTokenizer.train(["a red star", "a blue ring"], vocab_size=60), optimizer


def test_restores_weights_moments_random_state_and_progress(parts, tmp_path):
    model, tokenizer, optimizer = parts
    progress = Progress(step=7, train_seconds=1.5, bad_files={"a.mp4": "empty"})
    folder = save_checkpoint(tmp_path, model, tokenizer, optimizer, progress, keep=1)
    expected_noise = torch.randn(4)

    other = fastvtp.create_model("simvtp_tiny", **SIZES)
    other_optimizer = build_optimizer(other, OptimizerConfig())
    assert restore_checkpoint(folder, other, other_optimizer) == progress
    assert torch.equal(torch.randn(4), expected_noise)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    moments = [optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])
    assert CaptionTokenizer.load(folder / "tokenizer.json").vocab_size == tokenizer.vocab_size


def test_keeps_the_newest_and_ignores_unfinished_ones(parts, tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, *parts, Progress(step=step), keep=2)
    (tmp_path / "checkpoints/partial_00000004").mkdir()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]


def test_damaged_state_is_one_line(parts, tmp_path):
    model, _, optimizer = parts
    folder = save_checkpoint(tmp_path, *parts, Progress(step=1), keep=1)
    (folder / "training_state.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"training_state.pt is not a usable training state"):
        restore_checkpoint(folder, model, optimizer)


def test_a_pickle_is_never_executed(parts, tmp_path):
    """A training_state.pt that would run code on loading is refused."""
    model, _, optimizer = parts
    folder = save_checkpoint(tmp_path, *parts, Progress(step=1), keep=1)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"progress": Bomb()}, folder / "training_state.pt")
    with pytest.raises(CheckpointError):
        restore_checkpoint(folder, model, optimizer)
    assert not (tmp_path / "exploded").exists()
