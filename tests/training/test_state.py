"""What one process restores: everything, from checkpoints of this version and of earlier ones."""

import json
import pickle

import pytest
import torch

from fastvtp import create_model, load_pretrained
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.errors import CheckpointError
from fastvtp.model_folder import read_weights
from fastvtp.tensor_files import seal, write_manifest
from fastvtp.training.checkpoints import CheckpointWriter
from fastvtp.training.state import TrainingState, read_progress, restore
from tests.training.states import assert_same, contents, make_state, take_step, write_earlier, write_tokenizer

ADAFACTOR = {"algorithm": "adafactor", "learning_rate": 1e-3}
OPTIMIZERS = {
    "adamw": {},
    "torch-adafactor": ADAFACTOR,
    "adafactor-with-momentum": {**ADAFACTOR, "momentum": 0.9, "scale_by_parameter": False},
    "adafactor-without-momentum": {**ADAFACTOR, "scale_by_parameter": False},
}


def save(run_dir, state: TrainingState):
    with CheckpointWriter(run_dir, write_tokenizer, keep=2) as writer:
        writer.save(state, {"loss": 0.5})
    return run_dir / "checkpoints" / f"step_{state.progress.step:08d}"


def save_earlier(run_dir, state: TrainingState):
    folder = run_dir / "checkpoints" / f"step_{state.progress.step:08d}"
    write_earlier(folder, state)
    return folder


@pytest.mark.parametrize("write", [save, save_earlier])
@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_state_goes_on_like_the_one_that_was_saved(tmp_path, name, ema, write):
    state = make_state(ema=ema, **OPTIMIZERS[name])
    folder = write(tmp_path, state)
    other = make_state(steps=0, seed=9, ema=ema, **OPTIMIZERS[name])
    assert read_progress(folder) == state.progress != other.progress
    restore(folder, other)
    assert_same(contents(other), contents(state))
    for each in (state, other):
        take_step(each, 7)
    assert_same(contents(other), contents(state))
    assert load_tokenizer(folder).vocab_size > 5


@pytest.mark.parametrize("write", [save, save_earlier])
def test_weights_without_a_gradient_so_far_have_no_moments_afterwards(tmp_path, write):
    state = make_state()
    unused = state.model.contrast.bias_of_one
    del state.optimizer.state[unused]
    folder = write(tmp_path, state)
    other = make_state(steps=1, seed=9)
    restore(folder, other)
    assert other.model.contrast.bias_of_one not in other.optimizer.state
    assert_same(contents(other), contents(state))


def test_how_an_optimizer_computes_is_its_own_affair(tmp_path):
    """One kernel for all weights needs them whole; a run that goes on in shards may take another way."""
    state, other = make_state(), make_state(steps=0)
    for group in other.optimizer.param_groups:
        group["fused"] = None
        group["betas"] = (0.5, 0.5)
    restore(save(tmp_path, state), other)
    assert [(g["fused"], g["betas"]) for g in other.optimizer.param_groups] == [(None, (0.9, 0.95))] * 2


@pytest.mark.parametrize("write", [save, save_earlier])
def test_whoever_opens_a_checkpoint_gets_the_average(tmp_path, write):
    state = make_state(steps=3)
    folder, weights = write(tmp_path, state), state.model.state_dict()
    kept = read_weights(folder)
    assert kept.keys() == weights.keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, state.average.tensors.get(name, weights[name])), name
    assert {"contrast.counts", "contrast.frozen"} == kept.keys() - state.average.tensors.keys()


def test_a_checkpoint_is_a_model_folder(tmp_path):
    model = create_model("simvtp_tiny", width=48, depth=1, num_heads=2, decoder_width=24, decoder_num_heads=2)
    state = make_state(ema=False)
    state = TrainingState(model, torch.optim.AdamW(model.parameters()), None, state.progress)
    opened = load_pretrained(save(tmp_path, state))
    assert opened.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), model.parameters(), strict=True))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    state, other = make_state(), make_state(steps=0)
    folder = save(tmp_path, state)

    def refuse(*_, **__):
        raise AssertionError("something is unpickled")

    class Refusing(pickle.Unpickler):
        __init__ = refuse

    for name, value in (("load", refuse), ("loads", refuse), ("Unpickler", Refusing), ("_Unpickler", Refusing)):
        monkeypatch.setattr(pickle, name, value)
    monkeypatch.setattr(torch, "load", refuse)
    restore(folder, other)
    assert_same(contents(other), contents(state))
    assert not [path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:1] == b"\x80"]


@pytest.mark.parametrize("write", [save, save_earlier])
def test_a_run_that_averages_differently_is_told(tmp_path, write):
    state = make_state()
    with pytest.raises(CheckpointError, match=r"step_00000002 has an average of the weights, the run expects none"):
        restore(write(tmp_path / "a", state), make_state(steps=0, ema=False))
    state = make_state(ema=False)
    with pytest.raises(CheckpointError, match=r"step_00000002 has no average of the weights, the run expects one"):
        restore(write(tmp_path / "b", state), make_state(steps=0))


@pytest.mark.parametrize("write", [save, save_earlier])
def test_another_model_is_told(tmp_path, write):
    state, other = make_state(), make_state(steps=0)
    other.model.contrast.more = torch.nn.Parameter(torch.zeros(2))
    other.model.contrast.frozen = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"contrast.frozen is \[3\], the model has \[4\]; missing contrast.more"):
        restore(write(tmp_path, state), other)


def test_another_division_into_groups_is_told(tmp_path):
    state, other = make_state(), make_state(steps=0, layer_decay=0.5)
    with pytest.raises(CheckpointError, match=r"the optimizer has groups of [\d, ]+ parameters, the checkpoint of"):
        restore(save(tmp_path, state), other)


def change(folder, **values):
    path = folder / "training_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_values_that_make_no_sense_are_one_line(tmp_path):
    folder = save(tmp_path, make_state())
    for values, message in (
        ({"format": 3}, "training_state.json has format 3, this version of fastvtp reads 2"),
        ({"progress": {"stepp": 3}}, "training_state.json is not a usable training state: .*stepp"),
        ({"progress": None}, "training_state.json is not a usable training state"),
    ):
        change(folder, **{"format": 2, **values})
        with pytest.raises(CheckpointError, match=message) as raised:
            read_progress(folder)
        assert "\n" not in str(raised.value)
    (folder / "training_state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"training_state.json is not a usable training state"):
        restore(folder, make_state(steps=0))


def test_tensors_that_do_not_fit_the_values_are_one_line(tmp_path):
    folder = save(tmp_path, make_state())
    values = json.loads((folder / "training_state.json").read_text())
    values["optimizer"]["state"]["contrast.bias_of_one"]["tensors"].append("third_moment")
    change(folder, **values)
    with pytest.raises(CheckpointError, match=r"not a usable training state: .*bias_of_one.third_moment"):
        restore(folder, make_state(steps=0))


def test_a_shard_of_another_checkpoint_is_not_read(tmp_path):
    folder = save(tmp_path, make_state())
    (shard,) = (folder / "shards").iterdir()
    other = shard.with_name("shard-00002-model-00001-of-00001.safetensors")
    other.write_bytes(shard.read_bytes())
    with pytest.raises(CheckpointError, match=r"shard-00002.* is not in manifest.json"):
        restore(folder, make_state(steps=0))
    other.unlink()
    shard.write_bytes(b"junk")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    write_manifest(folder, {str(path.relative_to(folder)): seal(path) for path in files})
    with pytest.raises(CheckpointError, match=r"shards holds no readable safetensors files") as raised:
        restore(folder, make_state(steps=0))
    assert "\n" not in str(raised.value)


def test_a_damaged_state_of_an_earlier_version_is_one_line(tmp_path):
    folder = save_earlier(tmp_path, make_state())
    content = torch.load(folder / "training_state.pt")
    del content["averaged"]["n_averaged"]
    torch.save(content, folder / "training_state.pt")
    with pytest.raises(CheckpointError, match=r"training_state.pt is not a usable training state") as raised:
        restore(folder, make_state(steps=0))
    assert "\n" not in str(raised.value)
    (folder / "training_state.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"training_state.pt is not a usable training state"):
        read_progress(folder)


def test_a_pickle_of_an_earlier_version_is_never_executed(tmp_path):
    """A training_state.pt that would run code on loading is refused."""
    folder = save_earlier(tmp_path, make_state())

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"progress": Bomb()}, folder / "training_state.pt")
    with pytest.raises(CheckpointError):
        read_progress(folder)
    assert not (tmp_path / "exploded").exists()
