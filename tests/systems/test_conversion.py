"""Configurations read off checkpoints, and `fastvtp convert`."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

import fastvtp
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.cli import main as cli
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import SPECIAL_TOKENS
from fastvtp.errors import CheckpointError, UserError
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.conversion import convert
from tests.checkpoints.make_hf_arrays import ARRAYS
from tests.checkpoints.names import (
    SIZES,
    official,
    tiny_model,
)

UNSEEN = {"num_frames": 4, "image_size": 16, "num_heads": 2}
WORDS = {"mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4)}
DECODER = {"decoder_num_heads": 2, "video_mask_ratio": 0.75}
ARCHITECTURES = {
    "simvtp": UNSEEN | DECODER | WORDS, "videomae": UNSEEN | DECODER, "video_classifier": UNSEEN,
    "dual_encoder": UNSEEN,
}  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{}, {"layer_scale": 0.0, "qkv_bias": False}, {"depth": 1}, {"mlp_ratio": 2.7}])
def test_sizes_are_read_off_the_shapes(architecture, changes):
    model = tiny_model(architecture, **changes)
    found = config_of_checkpoint(official(architecture, model.state_dict()), **ARCHITECTURES[architecture])
    assert type(found) is type(model.config)
    for name in {"qkv_bias", *SIZES} & vars(found).keys() - {"layer_scale"}:
        assert getattr(found, name) == getattr(model.config, name), name
    assert int(found.width * found.mlp_ratio) == int(32 * changes.get("mlp_ratio", 4))
    assert bool(found.layer_scale) == bool(
        model.config.layer_scale
    )  # whether there is one; its start is not to be seen


def test_a_ratio_that_floating_point_rounds_down_still_gives_the_width():
    model = tiny_model("video_classifier", width=22, mlp_ratio=1.37)
    found = config_of_checkpoint(official("video_classifier", model.state_dict()), num_heads=2)
    assert 22 * (30 / 22) < 30
    assert int(found.width * found.mlp_ratio) == len(model.encoder.blocks[0].mlp.fc1.weight) == 30


def test_settings_of_transformers():
    found = config_of_checkpoint(ARRAYS / "hf_pretraining", decoder_num_heads=4)
    assert (found.num_heads, found.decoder_num_heads, found.num_frames, found.image_size) == (3, 4, 4, 16)
    assert found.normalize_target


def test_our_own_settings_carry_over(tmp_path):
    changes = {"projection_dim": 6, "contrastive_directions": "mean", "pad_text": False, "tubelet": (2, 8, 8)}
    write_model_folder(tmp_path, tiny_model("simvtp", **changes), "simvtp")
    found = config_of_checkpoint(tmp_path, architecture="dual_encoder")
    assert {name: getattr(found, name) for name in changes} == changes
    assert found.num_heads == 2


def test_questions_are_not_padded_where_pretraining_was(tmp_path):
    write_model_folder(tmp_path, tiny_model("simvtp", pad_text=True), "simvtp")
    assert not config_of_checkpoint(tmp_path, architecture="video_qa").pad_text


def test_requests_that_cannot_be_met():
    weights = official("videomae", tiny_model("videomae").state_dict())
    with pytest.raises(UserError, match="no videomae option 'num_head'; did you mean 'num_heads'"):
        config_of_checkpoint(weights, num_head=2)
    with pytest.raises(UserError, match="no architecture 'videomea'"):
        config_of_checkpoint(weights, architecture="videomea")
    with pytest.raises(CheckpointError, match="num_heads 5 does not divide the width 32"):
        config_of_checkpoint(weights, num_heads=5, decoder_num_heads=2)
    with pytest.raises(CheckpointError, match="is a BERT: it fills the captions' embeddings of a model, and is none"):
        config_of_checkpoint({"embeddings.word_embeddings.weight": torch.zeros(5, 4)})
    with pytest.raises(CheckpointError, match="has no tubelet embedding"):
        config_of_checkpoint({"patch_embed.proj.bias": torch.zeros(5)})


SETTINGS = [f"{name}={value}" for name, value in (UNSEEN | DECODER).items()]
WITH_WORDS = [*SETTINGS, "mask_token_id=4", "special_token_ids=0,1,2,3,4"]


@pytest.fixture
def simvtp(tmp_path):
    weights = official("simvtp", tiny_model("simvtp").state_dict())
    torch.save({"model": weights, "epoch": 1}, tmp_path / "checkpoint.pth")
    return tmp_path


def write_vocabulary(folder, size: int) -> None:
    words = [f"word{number}" for number in range(size - len(SPECIAL_TOKENS))]
    (folder / "vocab.txt").write_text("\n".join([*words, *SPECIAL_TOKENS]))


def test_a_released_checkpoint_with_its_vocabulary(simvtp):
    write_vocabulary(simvtp, 50)
    done = convert(simvtp / "checkpoint.pth", simvtp / "out", overrides=SETTINGS)
    assert (done.architecture, done.report.fresh, done.report.ignored) == ("simvtp", (), ())
    assert done.tokenizer == f"copied from {simvtp}"
    model = fastvtp.load_pretrained(simvtp / "out")
    expected = tiny_model("simvtp").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert (model.config.pad_token_id, model.config.mask_token_id) == (45, 49)
    assert model.config.special_token_ids == (45, 46, 47, 48, 49)
    assert load_tokenizer(simvtp / "out").vocab_size == 50


def test_a_special_token_that_is_given_is_not_the_vocabularys(simvtp):
    write_vocabulary(simvtp, 50)
    convert(simvtp / "checkpoint.pth", simvtp / "out", overrides=[*SETTINGS, "mask_token_id=7"])
    config = fastvtp.load_pretrained(simvtp / "out").config
    assert (config.mask_token_id, config.pad_token_id) == (7, 45)


def test_vocabularies_that_are_not_the_models(simvtp):
    note = convert(simvtp / "checkpoint.pth", simvtp / "none", overrides=WITH_WORDS).tokenizer
    assert note is not None
    assert note.startswith("none beside")
    assert "tokenizer.json, vocab.txt or SentencePiece .model (--tokenizer)" in note
    write_vocabulary(simvtp, 51)
    note = convert(simvtp / "checkpoint.pth", simvtp / "other", overrides=WITH_WORDS).tokenizer
    assert note == f"not copied: {simvtp} has one of 51 entries, the model has 50"
    (simvtp / "tokenizer.json").write_text("{}")
    note = convert(simvtp / "checkpoint.pth", simvtp / "bad", overrides=WITH_WORDS).tokenizer
    assert note is not None
    assert "not a tokenizer.json" in note
    assert not (simvtp / "other" / "tokenizer.json").exists()


def test_a_vocabulary_from_elsewhere(simvtp):
    (simvtp / "elsewhere").mkdir()
    write_vocabulary(simvtp / "elsewhere", 50)
    write_vocabulary(simvtp, 51)
    for number, given in enumerate((simvtp / "elsewhere", simvtp / "elsewhere" / "vocab.txt")):
        output = simvtp / f"out{number}"
        done = convert(simvtp / "checkpoint.pth", output, overrides=SETTINGS, tokenizer=given)
        assert done.tokenizer == f"copied from {given}"
        assert load_tokenizer(output).vocab_size == 50
        assert fastvtp.load_pretrained(output).config.mask_token_id == 49


def test_a_run_is_converted_from_its_final_model_or_newest_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    for step in (1, 2):
        folder = run_dir / "checkpoints" / f"step_{step:08d}"
        write_model_folder(folder, tiny_model("simvtp", step), "simvtp")
        (folder / "training_state.pt").touch()
        write_vocabulary(folder, 50)
    (run_dir / "train_config.json").write_text("{}")
    assert convert(run_dir, tmp_path / "newest").tokenizer == f"copied from {folder}"
    write_model_folder(run_dir / "model", tiny_model("simvtp", 3), "simvtp")
    convert(run_dir, tmp_path / "final")
    for name, seed in (("newest", 2), ("final", 3)):
        found, expected = fastvtp.load_pretrained(tmp_path / name), tiny_model("simvtp", seed)
        assert torch.equal(found.word_head.bias, expected.word_head.bias)


def test_another_architecture_starts_what_it_must_afresh_and_always_alike(simvtp):
    settings = SETTINGS[:3]
    state = torch.random.get_rng_state()
    convert(simvtp / "checkpoint.pth", simvtp / "first", architecture="video_qa", overrides=settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    done = convert(simvtp / "checkpoint.pth", simvtp / "second", architecture="video_qa", overrides=settings)
    assert done.report.fresh == ("head.1.weight", "head.1.bias", "head.3.weight", "head.3.bias")
    first, second = (simvtp / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["fastvtp", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_command(simvtp, monkeypatch, capsys):
    output = simvtp / "out"
    arguments = (simvtp / "checkpoint.pth", output, *SETTINGS[:3], "--architecture", "dual_encoder")
    assert run(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "fresh 4: video_norm.weight, video_norm.bias, text_norm.weight, text_norm.bias\n" in said
    assert "mask_token" in next(line for line in said.splitlines() if line.startswith("ignored"))
    assert "loaded 67\n" in said
    assert f"dual_encoder is in {output}" in said
    assert json.loads((output / "config.json").read_text())["config"]["num_frames"] == 4

    assert run(monkeypatch, *arguments) == 2
    assert f"fastvtp: {output} exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frames"], "expected key=value, got 'frames'"),
        (["num_frame=4"], "no simvtp option 'num_frame'; did you mean 'num_frames'?"),
        (["num_frames=many"], "num_frames expects int, got 'many'"),
        (["--tokenizer", "absent.txt", *SETTINGS], "absent.txt: no such tokenizer file"),
        (["--tokenizer", "{}/vocab.txt", *SETTINGS], "has 51 entries, the model's vocabulary 50"),
        (["--tokenizer", "{}", "--architecture", "videomae", *SETTINGS], "videomae reads no text: leave out the token"),
        (["--architecture", "videomea"], "no architecture 'videomea'; did you mean 'videomae'?"),
        (["--origin", "bert"], "is no checkpoint of bert"),
        (["--position-resize", "bilinear", *WITH_WORDS], "no position_resize 'bilinear'"),
        (["--architecture", "videomae", *SETTINGS, "image_size=20"], "image_size 20 is not a multiple"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(simvtp, monkeypatch, capsys, arguments, message):
    write_vocabulary(simvtp, 51)
    arguments = [argument.replace("{}", str(simvtp)) for argument in arguments]
    assert run(monkeypatch, simvtp / "checkpoint.pth", simvtp / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (simvtp / "out").exists()


def test_a_text_model_without_captions_tables_starts_them_afresh(tmp_path):
    weights = official("videomae", tiny_model("videomae").state_dict())
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    write_vocabulary(tmp_path, 50)
    done = convert(tmp_path, tmp_path / "out", architecture="simvtp", overrides=[*SETTINGS, "vocab_size=50"])
    assert "word_head.bias" in done.report.fresh
    assert fastvtp.load_pretrained(tmp_path / "out").config.mask_token_id == 49
