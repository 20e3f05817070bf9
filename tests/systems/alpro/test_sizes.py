"""Resized position tables of ALPRO, its configuration read off checkpoints, and their conversion."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

import fastvtp
from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.errors import CheckpointError, UserError
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.conversion import convert
from tests.checkpoints.test_reading import Hostile
from tests.systems.alpro.weight_names import (
    SIZES,
    UNSEEN,
    alone,
    holds,
    native,
    official,
    tiny_alpro,
)


@pytest.mark.parametrize("naming", [official, native])
def test_position_tables_are_resized_as_asked(naming):
    state = tiny_alpro("alpro", 1).state_dict()
    grown = {"image_size": 24, "num_frames": 7, "max_text_length": 9}
    tables = "video_encoder.patch_positions", "video_encoder.time_positions"
    places = tuple(prefix + table for prefix in ("", "prompter.") for table in tables)
    text = "text_embeddings.position_embeddings.weight"

    model = tiny_alpro("alpro", 2, **grown)
    report = load_checkpoint(model, naming(state))
    for prefix in ("", "prompter."):
        name = prefix + tables[0]
        assert f"{name}: 4 rows to 9, bicubic" in report.resized
        grid = state[name].view(1, 2, 2, -1).permute(0, 3, 1, 2)
        expected = interpolate(grid, size=(3, 3), mode="bicubic", align_corners=False).flatten(2)[0].T
        torch.testing.assert_close(model.state_dict()[name], expected)
        assert f"{prefix + tables[1]}: 3 rows to 7, nearest" in report.resized
        nearest = [0, 0, 0, 1, 1, 2, 2]
        assert torch.equal(model.state_dict()[prefix + tables[1]], state[prefix + tables[1]][nearest])
        assert f"{prefix}{text}: the first 9 of 12 rows" in report.resized
        assert torch.equal(model.state_dict()[prefix + text], state[prefix + text][:9])
    holds(model, state, (*places, text, f"prompter.{text}"))

    model = tiny_alpro("alpro", 2, **grown)
    report = load_checkpoint(model, naming(state), position_resize="official")
    for prefix in ("", "prompter."):
        name = prefix + tables[0]
        assert f"{name}: 4 rows to 9, nearest in the flattened index" in report.resized
        assert torch.equal(model.state_dict()[name], state[name][[0, 0, 0, 1, 1, 2, 2, 3, 3]])
    with pytest.raises(UserError, match="no position_resize 'bilinear'"):
        load_checkpoint(model, naming(state), position_resize="bilinear")


def test_positions_of_no_square_and_captions_are_not_stretched():
    state = tiny_alpro("alpro_prompter", 1).state_dict()
    state["video_encoder.patch_positions"] = torch.ones(6, 32)
    with pytest.raises(CheckpointError, match="6 or 4 rows are no square grid"):
        load_checkpoint(tiny_alpro("alpro_prompter"), state)
    load_checkpoint(tiny_alpro("alpro_prompter"), state, position_resize="official")
    state = tiny_alpro("alpro_prompter", 1).state_dict()
    with pytest.raises(CheckpointError, match=r"position_embeddings.weight is \[12, 32\]"):
        load_checkpoint(tiny_alpro("alpro_prompter", max_text_length=13), state)


@pytest.mark.parametrize("architecture", ["alpro", "alpro_retrieval", "alpro_qa"])
@pytest.mark.parametrize("changes", [{}, {"mlp_ratio": 2.7}, {"image_size": 32, "num_frames": 1, "fusion_depth": 3}])
def test_sizes_are_read_off_the_shapes(architecture, changes):
    model = tiny_alpro(architecture, **changes)
    found = config_of_checkpoint(official(model.state_dict()), **UNSEEN)
    assert type(found) is type(model.config)
    for name in SIZES.keys() & vars(found).keys() - ({"num_entities"} if architecture != "alpro" else set()):
        assert getattr(found, name) == getattr(model.config, name), name
    assert int(found.width * found.mlp_ratio) == int(32 * changes.get("mlp_ratio", 4))


def test_a_released_bert_is_split_in_half():
    state = tiny_alpro("alpro_retrieval", text_depth=2, width=64, text_num_heads=1, num_heads=1).state_dict()
    found = config_of_checkpoint(official(state, text_depth=2), num_heads=1, text_num_heads=4)
    assert (found.text_depth, found.fusion_depth, found.num_heads, found.text_num_heads) == (2, 2, 1, 4)
    assert config_of_checkpoint(alone(tiny_alpro("alpro_prompter").state_dict()), **UNSEEN).text_depth == 1
    with pytest.raises(CheckpointError, match=r"give num_heads=\.\.\. and text_num_heads=\.\.\., which nothing"):
        config_of_checkpoint(official(tiny_alpro("alpro").state_dict()))
    with pytest.raises(CheckpointError, match="has no patch embedding"):
        config_of_checkpoint({"visual_encoder.a": torch.ones(1), "text_encoder.b": torch.ones(1)})


def test_our_own_settings_carry_over_to_later_stages(tmp_path):
    write_model_folder(tmp_path, tiny_alpro("alpro", word_weight=0.5, gather_negatives=False), "alpro")
    assert config_of_checkpoint(tmp_path).word_weight == 0.5
    found = config_of_checkpoint(tmp_path, architecture="alpro_retrieval")
    assert (found.word_weight, found.entity_weight, found.gather_negatives) == (0, 0, False)
    write_model_folder(tmp_path / "later", tiny_alpro("alpro_retrieval"), "alpro_retrieval")
    assert config_of_checkpoint(tmp_path / "later", architecture="alpro").entity_weight == 1


def test_a_pickled_checkpoint_becomes_a_folder(tmp_path):
    state = tiny_alpro("alpro", 1).state_dict()
    torch.save({"model": official(state), "epoch": 3}, tmp_path / "alpro_pretrain.pt")
    settings = [f"{name}={value}" for name, value in UNSEEN.items()]
    done = convert(tmp_path / "alpro_pretrain.pt", tmp_path / "all", overrides=settings)
    assert (done.architecture, done.report.fresh) == ("alpro", ())
    holds(fastvtp.load_pretrained(tmp_path / "all"), state)

    grown = [*settings, "image_size=24", "num_answers=9"]
    done = convert(
        tmp_path / "alpro_pretrain.pt", tmp_path / "qa",
        architecture="alpro_qa", overrides=grown, position_resize="official",
    )  # fmt: skip
    assert done.report.resized == ("video_encoder.patch_positions: 4 rows to 9, nearest in the flattened index",)
    assert {name.split(".")[0] for name in done.report.fresh} == {"classifier"}
    assert len(load_file(tmp_path / "qa" / "model.safetensors")["classifier.2.bias"]) == 9
    assert fastvtp.load_pretrained(tmp_path / "qa").config.image_size == 24

    torch.save({"model": official(state) | {"bad": Hostile(tmp_path / "was_here")}}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        convert(tmp_path / "hostile.pt", tmp_path / "out")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("text_depth", [1, 2])
def test_a_checkpoint_of_another_size_says_what_to_set(text_depth):
    """Where its BERT is split is the model's choice."""
    theirs = {"width": 64, "num_heads": 1, "fusion_depth": 3, "text_num_heads": 1, "text_hidden": 40}
    weights = official(tiny_alpro("alpro_retrieval", **theirs).state_dict())
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(tiny_alpro("alpro_retrieval", text_depth=text_depth, fusion_depth=1), weights)
    fitting = theirs | {"fusion_depth": 4 - text_depth}
    settings = " ".join(f"model.{name}={value}" for name, value in fitting.items() if "num_heads" not in name)
    heads = "model.num_heads and model.text_num_heads as it was trained (nothing in it shows how many)"
    assert str(raised.value).endswith(f": set {settings}, and {heads}")
    load_checkpoint(tiny_alpro("alpro_retrieval", text_depth=text_depth, **fitting), weights)
