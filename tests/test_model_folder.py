import json

import pytest
import torch

import fastvtp
from fastvtp.errors import CheckpointError, UserError
from fastvtp.model_folder import write_model_folder

SIZES = {"width": 48, "depth": 1, "num_heads": 2, "decoder_width": 24, "decoder_num_heads": 2, "vocab_size": 120}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = fastvtp.create_model("simvtp_tiny", **SIZES)
    write_model_folder(tmp_path / "model", model, "simvtp")
    return tmp_path / "model"


def test_round_trip_gives_the_same_features(folder):
    torch.manual_seed(0)
    model = fastvtp.create_model("simvtp_tiny", **SIZES).eval()
    loaded = fastvtp.load_pretrained(folder)
    assert loaded.config == model.config
    assert not loaded.training
    video = torch.randint(0, 256, (2, 8, 96, 96, 3), dtype=torch.uint8)
    assert torch.equal(loaded.encode_video(video), model.encode_video(video))


def test_fixed_temperature_survives_although_it_is_not_stored(tmp_path):
    model = fastvtp.create_model("simvtp_tiny", preset="official", temperature=0.2, **SIZES)
    write_model_folder(tmp_path, model, "simvtp")
    assert fastvtp.load_pretrained(tmp_path).contrast.logit_scale().item() == pytest.approx(5.0)


def break_config(folder, **changes) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["config"].update(changes)
    path.write_text(json.dumps(description))


def error_of(folder) -> str:
    with pytest.raises((CheckpointError, ValueError)) as raised:
        fastvtp.load_pretrained(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_every_key_that_does_not_fit_is_named(folder):
    break_config(folder, depth=2, vocab_size=121, projection_dim=None)
    message = error_of(folder)
    assert "missing encoder.blocks.1.attn.proj.weight" in message
    assert "unexpected contrast.text_projection.weight" in message
    assert "word_head.weight is [120, 48], the model has [121, 48]" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": [224, 398]},
            "image_size must be an integer, the side of square frames in pixels, got [224, 398]",
        ),
        ({"num_frames": "8"}, "num_frames must be an integer, got '8'"),
        ({"tubelet": 16}, "tubelet must be three integers, got 16"),
        ({"tubelet": [2, 16]}, "tubelet must be three integers, got (2, 16)"),
        ({"num_heads": None}, "num_heads must be an integer, got None"),
        ({"special_token_ids": [0, "a"]}, "special_token_ids must be a list of integers, got (0, 'a')"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a number, got '4'"),
        ({"qkv_bias": "yes"}, "qkv_bias must be true or false, got 'yes'"),
        ({"decoder": 1}, "decoder must be a text, got 1"),
    ],
)
def test_a_setting_of_another_type_is_named_with_the_folder(folder, changes, message):
    break_config(folder, **changes)
    assert error_of(folder) == f"{folder}: {message}"
    if changes != {"tubelet": [2, 16]}:  # a list of Python's, which the message shows as it is
        (name, value), *_ = changes.items()
        with pytest.raises(UserError, match=f"^{name} must be "):
            fastvtp.create_model("simvtp_tiny", **{name: value})


def test_a_config_that_is_no_object_is_named(folder):
    (folder / "config.json").write_text(json.dumps({"architecture": "simvtp", "config": [1, 2]}))
    assert error_of(folder) == f"{folder / 'config.json'}: config must be an object of settings, got [1, 2]"


@pytest.mark.parametrize("model", ["alpro_tiny", "alpro_prompter_tiny", "videoprism_tiny", "videoprism_lvt_tiny"])
def test_frames_are_square(model):
    for size in ((224, 398), [224, 224], 96.0, "96", None):
        with pytest.raises(
            UserError, match=r"^image_size must be an integer, the side of square frames in pixels, got"
        ):
            fastvtp.create_model(model, image_size=size)


def test_an_unknown_override_is_named(folder):
    with pytest.raises(UserError, match="no simvtp option 'num_frame'; did you mean 'num_frames'"):
        fastvtp.load_pretrained(folder, num_frame=4)
    with pytest.raises(UserError, match="no position_resize 'linear'"):
        fastvtp.load_pretrained(folder, num_frames=4, position_resize="linear")


def test_tables_of_texts_are_cut_and_said(folder, caplog):
    whole, cut = fastvtp.load_pretrained(folder), fastvtp.load_pretrained(folder, max_text_length=9)
    tables = [model.text_embeddings.position_embeddings.weight for model in (whole, cut)]
    assert torch.equal(tables[1], tables[0][:9])
    assert f"{folder}: text_embeddings.position_embeddings.weight: the first 9 of 64 rows" in caplog.text
    with pytest.raises(CheckpointError, match=r"position_embeddings.weight is \[64, 48\], the model has \[65, 48\]"):
        fastvtp.load_pretrained(folder, max_text_length=65)


@pytest.mark.parametrize("way", ["bicubic", "official"])
def test_learned_tables_of_alpro_are_resized_and_said(tmp_path, caplog, way):
    sizes = {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "image_size": 24, "num_frames": 2}
    text = {"text_depth": 1, "fusion_depth": 1, "text_num_heads": 2, "text_hidden": 16, "vocab_size": 120}
    model = fastvtp.create_model("alpro_prompter_tiny", **sizes, **text)
    encoder = model.video_encoder
    torch.nn.init.normal_(encoder.time_positions)
    write_model_folder(tmp_path, model, "alpro_prompter")
    other = fastvtp.load_pretrained(tmp_path, num_frames=6, image_size=40, position_resize=way).video_encoder
    assert torch.equal(other.time_positions, encoder.time_positions[[0, 0, 0, 1, 1, 1]])
    if way == "official":
        expected = encoder.patch_positions[torch.arange(25) * 9 // 25]
    else:
        grid = encoder.patch_positions.T.view(1, 16, 3, 3)
        expected = torch.nn.functional.interpolate(grid, size=(5, 5), mode="bicubic").flatten(2)[0].T
    torch.testing.assert_close(other.patch_positions, expected)
    said = "9 rows to 25, " + ("bicubic" if way == "bicubic" else "nearest in the flattened index")
    assert f"video_encoder.patch_positions: {said}" in caplog.text
    assert "video_encoder.time_positions: 2 rows to 6, nearest" in caplog.text


def test_bad_folders(folder, tmp_path):
    assert "is no folder" in error_of(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in error_of(tmp_path / "empty")
    break_config(folder, colour=1)
    assert "unknown SimVTPConfig fields: colour" in error_of(folder)
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in error_of(folder)


def test_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    assert "not a readable safetensors file" in error_of(folder)
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in error_of(folder)
