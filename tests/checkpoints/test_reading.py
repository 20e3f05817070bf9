"""Files and folders of checkpoints, whole, wrapped, damaged and hostile."""

import argparse
import json
import pickle
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.checkpoints.reading import read_checkpoint
from fastvtp.errors import CheckpointError
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
        lambda weights: {"model_state_dict": weights, "optim_state_dict": {"state": {}}, "global_step": 3},
    ],
)
def test_pickles(tmp_path, suffix, wrap):
    torch.save(wrap(WEIGHTS), tmp_path / f"model{suffix}")
    read(tmp_path / f"model{suffix}")


def as_trained() -> dict[str, Any]:
    """What the authors' loop saves: numpy computes its rates, and its command line may name folders."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0] |= {"lr": np.linspace(0, 1, 3)[1], "lr_scale": np.float32(2), "warmup": np.int64(3)}
    arguments = argparse.Namespace(output_dir=Path("a/b"), log_dir=PureWindowsPath("a"), lr=np.float64(0.1))
    return {"model": WEIGHTS, "optimizer": optimizer.state_dict(), "args": arguments}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("core", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_rates_of_numpy_and_paths_are_no_obstacle(tmp_path, zipped, core):
    path = tmp_path / "model.pth"
    torch.save(as_trained(), path, _use_new_zipfile_serialization=zipped)
    saved = torch.load(path, weights_only=False)  # as it was meant
    assert type(saved["optimizer"]["param_groups"][0]["lr"]) is np.float64
    if not zipped:  # numpy 1 called its module otherwise
        content = path.read_bytes()
        assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
        path.write_bytes(content.replace(b"numpy._core.multiarray", core).replace(b"numpy.core.multiarray", core))
    read(path)


def test_a_path_of_another_system_is_no_obstacle(tmp_path):
    torch.save({**WEIGHTS, "output": Path("a")}, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "model.pth").read_bytes()
    assert b"PosixPath" in content
    (tmp_path / "model.pth").write_bytes(content.replace(b"PosixPath", b"WindowsPath"))
    read(tmp_path / "model.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_refused_is_named(tmp_path, zipped):
    content = {**WEIGHTS, "random": np.zeros(3), "step": Fraction(1, 2)}
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    refused = "fractions.Fraction, numpy._core.multiarray._reconstruct, numpy.ndarray" if zipped else "_reconstruct"
    with pytest.raises(CheckpointError) as raised:
        read_checkpoint(tmp_path / "model.pth")
    message = str(raised.value).replace("numpy.core", "numpy._core")
    assert f"{refused}; if you trust it, open it with weights_only=False and save its" in message
    assert message.isprintable()


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
    assert str(raised.value).isprintable()


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
    trust = "; if you trust it, open it with weights_only=False and save its state dict alone"
    fails(
        tmp_path / "model.pth",
        f"cannot be read as plain tensors: it holds builtins.getattr, {Path.__module__}.Path{trust}",
    )
    fails(tmp_path / "bare.pth", trust)
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
    fails(tmp_path / "cut.pth", "is the file whole, and made by torch.save?")
    torch.save(WEIGHTS, tmp_path / "model.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "model.pth").read_bytes()[:-100])
    fails(tmp_path / "cut.pth", "is the file whole, and made by torch.save?")
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
    load_checkpoint(model, tmp_path / "model.pth")
    assert model.encoder.norm.weight.dtype == torch.float32
    assert torch.equal(model.encoder.norm.weight, weights["encoder.norm.weight"].half().float())
