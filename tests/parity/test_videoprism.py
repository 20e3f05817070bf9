"""Parity with the released VideoPrism: on its arrays, on made folders of other sizes, and what must not pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.__main__ import main
from tests.parity.compare import relative_error
from tests.parity.prism_folders import make_folder
from tests.parity.prism_replica import (
    Arrays,
    classifier,
    encoder,
    text_tower,
    video_text,
)

ARRAYS = Path(__file__).parent / "arrays" / "videoprism"
INPUTS = ("inputs", "frame_paddings", "text_token_ids", "text_paddings")
OTHER_SIZES: list[dict[str, Any]] = [
    {"norm_policy": "primer_hybrid", "num_spatial_layers": 1, "num_temporal_layers": 3},
    {"scan": False, "model_dim": 16, "num_heads": 1, "mlp_dim": 64, "num_auxiliary_layers": 3},
    {"atten_logit_cap": 0.0, "patch_size": 3, "pos_emb_shape": [2, 3, 3], "vocabulary_size": 9},
    {"cases": {"": (1, 2, 5, False)}, "pos_emb_shape": [4, 3, 3], "num_heads": 7},
    {"cases": {"a.b/c/": (2, 4, 2, True), "d/": (1, 3, 4, False)}, "num_unimodal_layers": 1, "num_classes": 1},
]


def verdict(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def outputs(folder: Path) -> set[str]:
    """Names of the rows that a model's sub-folder must give, with its gradients."""
    names = {f"{folder.name}/{n}" for n in load_file(folder / "io.safetensors") if n.split("/")[-1] not in INPUTS}
    gradients = folder.parent / "grads" / folder.name / "grads.safetensors"
    if gradients.is_file():
        names |= {f"grads/{folder.name}/{n}" for n in load_file(gradients) if not n.startswith("cotangent/")}
    return names


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A small folder, within tolerance."""
    path = tmp_path_factory.mktemp("parity") / "videoprism"
    make_folder(path, seed=1)
    return path


@pytest.fixture
def change(pristine, tmp_path) -> Callable[..., Path]:
    """Makes a copy of the pristine folder, one file of which is replaced by `edit` of its content."""

    def edited(file: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        path = shutil.copytree(pristine, tmp_path / "copy") / file
        if path.suffix == ".json":
            path.write_text(json.dumps(edit(json.loads(path.read_text()))))
        else:
            save_file(edit(load_file(path)), path)
        return tmp_path / "copy"

    return edited


def test_released_arrays(capsys):
    assert main(["videoprism", str(ARRAYS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0] for line in lines[1:-1]}
    models = [folder for folder in ARRAYS.iterdir() if (folder / "io.safetensors").is_file()]
    assert rows >= set().union(*(outputs(folder) for folder in models))
    ops = {f"ops/{n}" for n in load_file(ARRAYS / "ops" / "ops.safetensors")}
    assert len(ops & rows) == 38
    given = ("/params/", "/paddings", "/tokens", "/emb", "/source_shape", "/image", "/x", "/scale", "/bias")
    left = {n for n in ops - rows if not any(part in n for part in given)}
    assert left == {f"ops/attention/{n}" for n in "qkv"} | {"ops/per_dim_scale/per_dim_scale"}
    assert lines[-1].startswith("233 of 233 arrays compared, tolerance 2e-06 to 0.001")


@pytest.mark.parametrize(
    ("below", "count"),
    [
        ("encoder", 57),
        ("lvt", 105),
        ("text_primer", 28),
        ("classifier", 4),
        ("ops", 39),
        ("grads", 190),
        ("grads/lvt", 105),
    ],
)
def test_one_sub_folder_alone(below, count, capsys):
    assert main(["videoprism", str(ARRAYS / below)]) == 0
    assert verdict(capsys).startswith(f"{count} of {count} arrays compared")


def test_replica_on_released_arrays():
    """The made folders are worth what the replica is."""

    def read(name: str) -> tuple[dict[str, Any], Arrays, Arrays]:
        folder = ARRAYS / name
        weights = load_file(folder / "params.safetensors")
        config = json.loads((folder / "config.json").read_text())
        exact = {n.removeprefix("params/"): w.double().requires_grad_() for n, w in weights.items()}
        return config, exact, load_file(folder / "io.safetensors")

    def check(found: Arrays, expected: Arrays, case: str = "") -> None:
        for name, array in found.items():
            if case + name in expected:
                compared.add(case + name)
                assert relative_error(array, expected[case + name]) < 5e-6, name

    compared: set[str] = set()
    config, weights, io = read("encoder")
    for case in ("native/", "padded/", "down/"):
        padding = io.get(f"{case}frame_paddings")
        found = encoder(weights, config, io[f"{case}inputs"].double(), None if padding is None else padding.double())
        check(found, io, case)
        if case == "native/":
            gradients = load_file(ARRAYS / "grads" / "encoder" / "grads.safetensors")
            (found["embeddings"] * gradients["cotangent/embeddings"]).sum().backward()
    for name, array in weights.items():
        if not name.endswith("key/b"):  # rounding in float32
            assert array.grad is not None
            assert relative_error(array.grad, gradients[f"grad/params/{name}"]) < 1e-5, name
    assert compared == {n for n in io if n.split("/")[-1] not in INPUTS}
    config, weights, io = read("lvt")
    texts = io["text_token_ids"], io["text_paddings"].double()
    compared = set()
    check(video_text(weights, config, io["inputs"].double(), *texts), io)
    padding = io["padded/frame_paddings"].double()
    check(video_text(weights, config, io["inputs"].double(), *texts, padding), io, "padded/")
    assert compared == {n for n in io if n.split("/")[-1] not in INPUTS}
    config, weights, io = read("text_primer")
    check(text_tower(weights, config, io["text_token_ids"], io["text_paddings"]), io)
    config, weights, io = read("classifier")
    check(classifier(weights, config["encoder_params"], io["inputs"].double()), io)


@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_other_sizes(sizes, tmp_path, capsys):
    make_folder(tmp_path / "made", seed=len(str(sizes)), **sizes)
    assert main(["videoprism", str(tmp_path / "made")]) == 0, capsys.readouterr().out
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    folders = [folder for folder in (tmp_path / "made").iterdir() if folder.name != "grads"]
    assert rows >= set().union(*(outputs(folder) for folder in folders))


def test_absent_sub_folders(pristine, tmp_path, capsys):
    for name in ("encoder", "lvt"):
        shutil.copytree(pristine / name, tmp_path / name)
    assert main(["videoprism", str(tmp_path)]) == 0
    assert verdict(capsys).endswith("all within tolerance")


@pytest.mark.parametrize(
    ("file", "name", "by"),
    [
        ("encoder/io", "whole/stage/temporal_ln", 1e-3),
        ("encoder/io", "padded/spatial_features", 1e-3),
        ("encoder/io", "long/embeddings", 1e-3),
        ("lvt/io", "text_features", 1e-3),
        ("lvt/io", "padded/video_embeddings", 1e-5),
        ("lvt/io", "prob_over_texts_temp0.01", 1e-3),
        ("classifier/io", "global_embeddings", 1e-3),
        ("grads/encoder/grads", "grad_inputs", 1e-3),
        ("grads/lvt/grads", "grad/params/auxiliary_encoder/transformers_stack/x_layers/self_attention/post/w", 1e-3),
        ("grads/text_primer/grads", "loss", 1e-3),
    ],
)
def test_perturbed_array_is_named(file, name, by, change, capsys):
    folder = change(f"{file}.safetensors", lambda arrays: {**arrays, name: arrays[name] * (1 + by)})
    assert main(["videoprism", str(folder)]) == 1
    start = file.removesuffix("/io").removesuffix("/grads")
    assert verdict(capsys).endswith(f"failed: {start}/{name}")
    assert main(["videoprism", str(folder), "--tolerance", "1e-2"]) == 0


def test_a_bias_is_measured_with_those_beside_it(change, capsys):
    """And still cannot be wrong."""
    name = "grad/params/spatial_encoder/transformers_stack/x_layers/self_attention/{}/b"

    def edit(arrays: dict[str, Any]) -> dict[str, Any]:
        scale = sum(arrays[name.format(part)].square().sum() for part in ("query", "key", "value")) ** 0.5
        key = name.format("key")
        return {**arrays, key: arrays[key] + 3e-4 * scale / arrays[key].numel() ** 0.5}

    assert main(["videoprism", str(change("grads/encoder/grads.safetensors", edit))]) == 1
    *rows, last = capsys.readouterr().out.splitlines()
    assert last.endswith(f"failed: grads/encoder/{name.format('key')}")
    row = next(row for row in rows if row.startswith(f"grads/encoder/{name.format('key')}"))
    assert "by the norm of queries', keys' and values' biases" in row
    assert "3.0e-04" in row


@pytest.mark.parametrize("file", ["encoder/io", "grads/lvt/grads", "text_primer/io"])
def test_array_without_a_counterpart_is_named(file, change, capsys):
    folder = change(f"{file}.safetensors", lambda arrays: {**arrays, "mystery": torch.ones(2)})
    assert main(["videoprism", str(folder)]) == 1
    assert verdict(capsys).endswith("/mystery")


def test_unknown_operations_are_named(tmp_path, capsys):
    folder = shutil.copytree(ARRAYS / "ops", tmp_path / "ops")
    arrays = load_file(folder / "ops.safetensors")
    save_file({**arrays, "rotary/y": torch.ones(2)}, folder / "ops.safetensors")
    assert main(["videoprism", str(folder)]) == 1
    assert verdict(capsys).endswith("failed: ops/rotary/y")


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("encoder/config.json", {"model_dim": 22}, "model_dim is 22, the weights have 21"),
        ("encoder/config.json", {"norm_policy": "post", "num_heads": 7}, "num_heads is 7, the weights have 3"),
        ("lvt/config.json", {"enable_causal_atten": False}, "the model's text tower is causal"),
        ("lvt/io.safetensors", {"text_paddings": torch.eye(3, 8)}, "ones behind each text"),
        ("lvt/params.safetensors", {"params/mystery": torch.ones(1)}, "unexpected params/mystery"),
        ("grads/lvt/grads.safetensors", {"cotangent/nothing": torch.ones(1)}, "no case has outputs"),
        ("encoder/io.safetensors", {"odd/frame_paddings": torch.ones(1, 1)}, "has no 'odd/inputs'"),
    ],
)
def test_folder_that_cannot_be_run(file, edit, message, change, capsys):
    assert main(["videoprism", str(change(file, lambda entries: {**entries, **edit}))]) == 2
    assert message in the_line(capsys)


def test_not_a_parity_folder(tmp_path, capsys):
    assert main(["videoprism", str(tmp_path / "none")]) == 2
    assert "is no folder of parity arrays" in the_line(capsys)
    assert main(["videoprism", str(tmp_path)]) == 2
    assert "holds no parity arrays" in the_line(capsys)
