import json

import pytest
import torch

import fastvtp
from fastvtp.errors import CheckpointError
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
