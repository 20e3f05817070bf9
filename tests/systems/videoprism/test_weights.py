"""Released VideoPrism checkpoints: every name and shape, files as they are released, and what starts from what."""

import dataclasses
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastvtp
from fastvtp.architecture import architecture_of
from fastvtp.checkpoints.loading import absent_parts, load_checkpoint
from fastvtp.checkpoints.reading import read_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.cli import main as cli
from fastvtp.data.sentencepiece import SentencePieceTokenizer
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.errors import CheckpointError, ConfigError, UserError
from fastvtp.model_folder import with_files_beside
from fastvtp.modules.positions import resize_positions
from fastvtp.systems.catalogue import (
    build_model,
    model_config,
)
from fastvtp.systems.conversion import convert
from fastvtp.training.initialization import prepare_tokenizer
from tests.systems.videoprism.make_hf_arrays import ARRAYS

PARITY = Path(__file__).parents[2] / "parity" / "arrays" / "videoprism"
SHAPES = json.loads((ARRAYS / "videoprism_shapes.json").read_text())
SOURCES = {"videoprism": "encoder", "video_text_prism": "lvt", "prism_classifier": "classifier"}
LAYERS = "params/temporal_encoder/transformers_stack/x_layers/"
PREFIXES = {"videoprism": "", "video_text_prism": "video_encoder.", "prism_classifier": "encoder."}


def released(architecture: str) -> dict[str, torch.Tensor]:
    return load_file(PARITY / SOURCES[architecture] / "params.safetensors")


def write_npz(path: Path, architecture: str) -> Path:
    arrays: dict[str, Any] = {name: array.numpy() for name, array in released(architecture).items()}
    np.savez(path, **arrays)
    return path


def model_for(architecture: str, **changes):
    """A fresh model whose encoder is of the released arrays' sizes."""
    config = config_of_checkpoint(released("video_text_prism"), architecture=architecture, **changes)
    torch.manual_seed(5)
    return build_model(config).eval()


@pytest.mark.parametrize("name", SHAPES)
def test_every_released_array_has_its_place(name):
    """On the meta device, for their sizes."""
    size = SHAPES[name]
    weights = {key: torch.empty(shape, device="meta") for key, shape in size["shapes"].items()}
    config = config_of_checkpoint(weights)
    assert config == model_config(name)
    with torch.device("meta"):
        model = architecture_of(config).model(config)
    report = load_checkpoint(model, weights)
    assert (report.fresh, report.ignored, report.resized) == ((), (), ())
    assert len(report.loaded) == len(model.state_dict())
    assert sum(parameter.numel() for parameter in model.parameters()) == size["num_params"]
    assert sum(weight.numel() for weight in weights.values()) == size["num_params"]
    for key in [key for key in weights if "base" in name and "vision_encoder" not in key]:
        fewer = {other: weight for other, weight in weights.items() if other != key}
        with pytest.raises(CheckpointError, match=r"missing|lacks|has no|is no checkpoint"):
            load_checkpoint(model, fewer)


def test_parameter_counts():
    counts = [size["num_params"] for size in SHAPES.values()]
    assert counts == [114_365_184, 353_965_056, 247_623_424, 579_877_120]


@pytest.mark.parametrize(
    ("architecture", "output"), [("videoprism", "native/embeddings"), ("prism_classifier", "logits")]
)
def test_an_npz_becomes_a_folder_of_ours(architecture, output, tmp_path):
    source = write_npz(tmp_path / "released.npz", architecture)
    done = convert(source, tmp_path / "ours")
    assert (done.architecture, done.report.fresh, done.report.ignored) == (architecture, (), ())
    io = load_file(PARITY / SOURCES[architecture] / "io.safetensors")
    case = output.rpartition("/")[0]
    model = fastvtp.load_pretrained(tmp_path / "ours")
    with torch.no_grad():
        found = model(io[f"{case}/inputs" if case else "inputs"])
    torch.testing.assert_close(found, io[output], rtol=0, atol=1e-5)
    again = build_model(config_of_checkpoint(tmp_path / "ours"))
    assert again.config == model.config
    load_checkpoint(again, tmp_path / "ours")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_video_text_model_by_the_command(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "hub"  # as downloaded: one .npz and nothing else
    folder.mkdir()
    write_npz(folder / "flax_lvt_repeated.npz", "video_text_prism")
    monkeypatch.setattr(sys, "argv", ["fastvtp", "convert", str(folder), str(tmp_path / "ours")])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert "fresh 0" in printed
    assert "video_text_prism is in" in printed
    model, io = fastvtp.load_pretrained(tmp_path / "ours"), load_file(PARITY / "lvt" / "io.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model.encode_video(io["inputs"]), io["video_embeddings"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("prefix", ["params/", ""])
@pytest.mark.parametrize("architecture", SOURCES)
def test_layers_by_themselves_are_the_same(architecture, prefix):
    """As nn.scan's twin without it would save them."""
    stacked, apart = released(architecture), {}
    for name, array in stacked.items():
        before, found, behind = name.removeprefix("params/").partition("/x_layers/")
        each = {f"{before}/x_layers_{i}/{behind}": layer for i, layer in enumerate(array)} if found else {before: array}
        apart |= {prefix + key: value for key, value in each.items()}
    config = config_of_checkpoint(apart)
    assert config == config_of_checkpoint(stacked)
    models = [build_model(config), build_model(config)]
    for model, weights in zip(models, (stacked, apart), strict=True):
        load_checkpoint(model, weights)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (next(name for name in apart if f"x_layers_{i}/self_attention/query/w" in name) for i in (0, 1))
    for absent, message in (
        (second, "expected as many of each"),
        (first, r"query/w has layers \[1\], expected 0 to 0"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(models[0], {name: array for name, array in apart.items() if name != absent})
    with pytest.raises(CheckpointError, match="query/w differs from layer to layer"):
        load_checkpoint(models[0], apart | {first: torch.zeros(32, 4, 9)})


@pytest.mark.parametrize("target", SOURCES)
@pytest.mark.parametrize("source", SOURCES)
def test_encoders_go_from_model_to_model(source, target):
    model, weights = model_for(target, **({"num_classes": 7} if target == "prism_classifier" else {})), released(source)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = absent_parts(model, weights)
    expected = {
        "videoprism": (), "video_text_prism": ("auxiliary", "pooler", "text_encoder"),
        "prism_classifier": ("pooler", "head"),
    }  # fmt: skip
    assert set(fresh) == (set() if source == target else set(expected[target]))
    report = load_checkpoint(model, weights, fresh=fresh)
    assert report.fresh == tuple(name for name in before if name.startswith(tuple(f"{part}." for part in fresh)))
    encoder = build_model(config_of_checkpoint(weights, architecture="videoprism"))
    load_checkpoint(encoder, weights)
    state = model.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[PREFIXES[target] + name]), name
    assert all(torch.equal(before[name], state[name]) for name in report.fresh)


def test_a_text_tower_alone_fills_that_of_a_model():
    weights = {name: array for name, array in released("video_text_prism").items() if "text_encoder" in name}
    model, whole = model_for("video_text_prism"), model_for("video_text_prism")
    report = load_checkpoint(model, weights)
    assert {name.split(".")[0] for name in report.loaded} == {"text_encoder"}
    load_checkpoint(whole, released("video_text_prism"))
    for name, value in whole.text_encoder.state_dict().items():
        assert torch.equal(value, model.text_encoder.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="is a text tower: it fills VideoPrism's of a model, and is none"):
        config_of_checkpoint(weights)


def test_tables_are_resized_as_the_encoder_resizes_them():
    """A model made for other clips gives the same for them."""
    weights = released("videoprism")
    own = build_model(config_of_checkpoint(weights)).eval()
    other = build_model(config_of_checkpoint(weights, num_frames=7, image_size=18)).eval()
    load_checkpoint(own, weights)
    report = load_checkpoint(other, weights)
    assert sorted(report.resized) == [
        "spatial_positions: 16 rows to 9, antialiased bilinear", "temporal_positions: 4 rows to 7, antialiased linear",
    ]  # fmt: skip
    assert torch.equal(other.temporal_positions, resize_positions(own.temporal_positions, (1, 4), (1, 7)))
    video = torch.rand(2, 7, 18, 18, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(own(video), other(video), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3, "width": 64, "num_heads": 4}, "set model.width=32 model.depth=2"),
        ({"mlp_hidden": 65, "temporal_depth": 1}, "set model.temporal_depth=2 model.mlp_hidden=64"),
        ({"num_heads": 8}, "num_heads is 4, the model has 8"),
        ({"auxiliary_depth": 1, "text_norm": "primer_hybrid"}, "set model.auxiliary_depth=2 model.text_norm=pre"),
    ],
)
def test_other_sizes_are_one_line(changes, message):
    weights = released("video_text_prism")
    model = build_model(config_of_checkpoint(weights, **changes))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, weights)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("params/patch_projection/linear/kernel", (107, 32), "expected 3 values a pixel, squared"),
        ("params/spatial_pos_emb/emb_var", (15, 32), "15 or 16 rows are no square grid"),
        ("params/spatial_encoder/transformers_stack/x_layers/self_attention/query/w", (2, 32, 8, 4), "heads"),
        ("params/mystery", (1,), "unexpected params/mystery"),
        ("params/spatial_ln/bias", (), r"params/spatial_ln/bias is \[\], expected 1 axes"),
        (LAYERS + "layer_norm/scale", (32,), r"scale is \[32\], expected 2 axes"),
        (LAYERS + "self_attention/post/w", (2, 32, 32), r"w is \[2, 32, 32\], expected 4 axes"),
        (LAYERS + "self_attention/key/w", (1, 32, 4, 8), "expected as many of each"),
        (LAYERS + "self_attention/value/b", (2, 4, 9), "expected as many of each"),
    ],
)
def test_odd_arrays_are_one_line(name, shape, message):
    weights = released("videoprism") | {name: torch.zeros(shape)}
    model = build_model(config_of_checkpoint(released("videoprism")))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"text_norm": "primer_hybrid", "auxiliary_depth": 0}, {"projection_dim": 8}])
def test_weights_of_ours_show_their_sizes(changes):
    """Without the config that lies beside them."""
    config = dataclasses.replace(
        config_of_checkpoint(released("video_text_prism")), learnable_temperature=True, **changes
    )
    state = build_model(config).state_dict()
    assert config_of_checkpoint(state, num_heads=4) == config
    again = build_model(config)
    assert load_checkpoint(again, state).fresh == ()


def test_a_vocabulary_comes_along(tmp_path):
    from tokenizers import Tokenizer, models

    source = write_npz(tmp_path / "released.npz", "video_text_prism")
    for entries in (64, 63):
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{i}", -1.0) for i in range(entries - 3))]
        Tokenizer(models.Unigram(vocabulary, unk_id=2)).save(str(tmp_path / f"{entries}.json"))
    done = convert(source, tmp_path / "ours", tokenizer=tmp_path / "64.json")
    assert done.tokenizer == f"copied from {tmp_path / '64.json'}"
    assert isinstance(load_tokenizer(tmp_path / "ours"), SentencePieceTokenizer)
    assert with_files_beside(fastvtp.load_pretrained(tmp_path / "ours"), tmp_path / "ours").tokenizer.vocab_size == 64
    with pytest.raises(UserError, match="has 63 entries, the model's vocabulary 64"):
        convert(source, tmp_path / "other", tokenizer=tmp_path / "63.json")
    settings = SimpleNamespace(data=SimpleNamespace(tokenizer=None), path=lambda _: str(source))
    reading: Any = SimpleNamespace(reads_text=True, tokenizer_sources=lambda: {"init": str(source)})
    with pytest.raises(ConfigError, match="has text embeddings and no tokenizer beside it"):
        prepare_tokenizer(cast(Any, settings), reading, None)
    settings.data.tokenizer = str(tmp_path / "64.json")
    assert isinstance(prepare_tokenizer(cast(Any, settings), reading, None), SentencePieceTokenizer)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_npz_is_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("bomb.npz", weights=np.array([Bomb()], dtype=object))
    with pytest.raises(
        CheckpointError, match=r"bomb\.npz cannot be read as plain arrays: Object arrays cannot be loaded"
    ):
        read_checkpoint("bomb.npz")
    assert not Path("exploded").exists()


def test_npz_that_cannot_be_read(tmp_path):
    def fails(message: str) -> None:
        with pytest.raises(CheckpointError, match=message) as caught:
            read_checkpoint(tmp_path / "a.npz")
        assert "\n" not in str(caught.value)

    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    fails("cannot be read as plain arrays")
    np.savez(tmp_path / "a.npz", names=np.array(["a"]))
    fails("names is of dtype <U1, expected numbers")
    with zipfile.ZipFile(tmp_path / "a.npz", "w"):
        pass
    fails("holds no tensors by name")
    for name in ("b", "c"):
        np.savez(tmp_path / f"{name}.npz", x=np.ones(1))
    with pytest.raises(CheckpointError, match=r"but 3 \.npz files: name one"):
        read_checkpoint(tmp_path)
