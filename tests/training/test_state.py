import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastvtp
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import CheckpointError
from fastvtp.model_folder import list_checkpoints, read_weights
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import build_optimizer
from fastvtp.training.state import (
    Progress,
    read_state,
    restore_checkpoint,
    save_checkpoint,
)

SIZES = {"width": 48, "depth": 1, "num_heads": 2, "decoder_width": 24, "decoder_num_heads": 2, "vocab_size": 120}


@pytest.fixture
def parts():
    model = fastvtp.create_model("simvtp_tiny", **SIZES)
    optimizer = build_optimizer(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(model)
    return model, optimizer, averaged


def save(run_dir, parts, step):
    return save_checkpoint(run_dir, *parts, Progress(step=step), write_tokenizer, keep=2)


def write_tokenizer(folder):
    CaptionTokenizer.train(["a red star", "a blue ring"], vocab_size=60).save(folder)


def test_restores_weights_average_moments_random_state_and_progress(parts, tmp_path):
    model, optimizer, averaged = parts
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    averaged.update_parameters(model)
    progress = Progress(step=7, train_seconds=1.5, bad_files={"a.mp4": "empty"})
    folder = save_checkpoint(tmp_path, *parts, progress, write_tokenizer, keep=1)
    expected_noise = torch.randn(4)

    other = fastvtp.create_model("simvtp_tiny", **SIZES)
    other_optimizer = build_optimizer(other, OptimizerConfig())
    other_average = AveragedModel(other, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    state = read_state(folder)
    assert state["progress"] == progress
    restore_checkpoint(folder, state, other, other_optimizer, other_average)
    assert other_average.n_averaged == 2
    pairs = list(zip(averaged.parameters(), other_average.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(torch.equal(a, b) for (a, _), b in zip(pairs, other.parameters(), strict=True))
    assert torch.equal(torch.randn(4), expected_noise)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    moments = [optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])
    assert load_tokenizer(folder).vocab_size > 5
    # whoever opens the folder gets the average
    kept = read_weights(folder)
    assert all(torch.equal(kept[name], tensor) for name, tensor in averaged.module.state_dict().items())


def test_keeps_the_newest_and_ignores_unfinished_ones(parts, tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, parts, step)
    (tmp_path / "checkpoints/partial_00000004").mkdir()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]


def test_damaged_state_is_one_line(parts, tmp_path):
    folder = save(tmp_path, parts, 1)
    (folder / "training_state.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"training_state.pt is not a usable training state"):
        read_state(folder)


def test_a_pickle_is_never_executed(parts, tmp_path):
    """A training_state.pt that would run code on loading is refused."""
    folder = save(tmp_path, parts, 1)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"progress": Bomb()}, folder / "training_state.pt")
    with pytest.raises(CheckpointError):
        read_state(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_state_of_another_run_is_one_line(parts, tmp_path):
    folder = save(tmp_path, parts, 1)
    state = read_state(folder)
    del state["averaged"]["n_averaged"]
    with pytest.raises(CheckpointError, match=r"training_state.pt is not a usable training state") as raised:
        restore_checkpoint(folder, state, *parts)
    assert "\n" not in str(raised.value)
