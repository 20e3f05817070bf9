"""Files and folders of checkpoints, whole, wrapped, damaged and hostile."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastvtp.checkpoints.native import CheckpointError
from fastvtp.checkpoints.reading import read_checkpoint
from fastvtp.checkpoints.released import load_released
from tests.checkpoints.names import official, tiny_model

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def read(path):
    weights = read_checkpoint(path).weights
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        # what the authors' training writes: the command line beside the weights
        lambda weights: {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}},
        lambda weights: {"module": weights},
        lambda weights: {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}, "epoch": 3},
        lambda weights: {"model": {"state_dict": weights}},
    ],
)
def test_pickles(tmp_path, suffix, wrap):
    torch.save(wrap(WEIGHTS), tmp_path / f"model{suffix}")
    read(tmp_path / f"model{suffix}")


def test_safetensors_and_folders(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    read(tmp_path / "model.safetensors")
    read(str(tmp_path))
    read(WEIGHTS)
    read(read_checkpoint(WEIGHTS))
    (tmp_path / "pickle").mkdir()
    torch.save(WEIGHTS, tmp_path / "pickle" / "pytorch_model.bin")
    read(tmp_path / "pickle")


@pytest.fixture
def shards(tmp_path):
    for number, name in enumerate(WEIGHTS):
        save_file({name: WEIGHTS[name]}, tmp_path / f"part{number}.safetensors")
    index = {"weight_map": {name: f"part{number}.safetensors" for number, name in enumerate(WEIGHTS)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_shards(shards):
    read(shards)


def test_shards_that_are_absent_or_elsewhere(shards):
    (shards / "part1.safetensors").unlink()
    fails(shards, "lacks part1.safetensors, which model.safetensors.index.json names")
    (shards / "inner").mkdir()
    (shards / "inner" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../part0.safetensors"}}')
    fails(shards / "inner", "lacks ../part0.safetensors")
    (shards / "model.safetensors.index.json").write_text('{"metadata": 1}')
    fails(shards, "has no weight_map")


def fails(source, message: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_checkpoint(source)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    victim = tmp_path / "was_here"
    content = {**WEIGHTS, "extra": Hostile(victim)}
    torch.save(content, tmp_path / "model.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("model.pth", "bare.pth"):
        fails(tmp_path / name, "cannot be read as plain tensors")
        fails(tmp_path / name, "if you trust it, save its state dict alone with torch.save, or as .safetensors")
    assert not victim.exists()
    pickle.loads((tmp_path / "bare.pth").read_bytes())  # as a reader without care would
    assert victim.exists()


def test_what_is_no_checkpoint(tmp_path):
    fails(tmp_path / "absent.pth", "no such checkpoint file or folder")
    fails(tmp_path, "holds neither model.safetensors, model.safetensors.index.json nor pytorch_model.bin")
    (tmp_path / "model.ckpt").write_bytes(b"")
    fails(tmp_path / "model.ckpt", "must end in .safetensors, .pth, .pt, .bin")
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    fails(tmp_path / "model.safetensors", "not a readable safetensors file")
    (tmp_path / "cut.pth").write_bytes(b"\x80")
    fails(tmp_path / "cut.pth", "cannot be read as plain tensors")
    torch.save([1, 2], tmp_path / "list.pth")
    fails(tmp_path / "list.pth", "holds a list, expected tensors by name")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    fails(tmp_path / "empty.pth", "holds no tensors by name")
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    fails(tmp_path, "config.json is not valid JSON")
    (tmp_path / "config.json").write_text("[]")
    fails(tmp_path, "holds a list, expected an object")


def test_half_precision_is_widened(tmp_path):
    weights = official("videomae", tiny_model("videomae").state_dict())
    torch.save({"model": {name: tensor.half() for name, tensor in weights.items()}}, tmp_path / "model.pth")
    model = tiny_model("videomae", 1)
    load_released(model, tmp_path / "model.pth")
    assert model.encoder.norm.weight.dtype == torch.float32
    assert torch.equal(model.encoder.norm.weight, weights["encoder.norm.weight"].half().float())
