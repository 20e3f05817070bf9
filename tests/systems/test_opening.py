"""What `fastvtp.load_pretrained` opens, and what encoders without anything behind them can start."""

import logging
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastvtp
from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.errors import CheckpointError, UserError
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.conversion import convert
from fastvtp.systems.recipes import get_recipe
from fastvtp.systems.videomae import weights as videomae
from fastvtp.training.config import apply_overrides
from fastvtp.training.initialization import load_initial_weights, prepare_tokenizer
from fastvtp.training.loop import train
from fastvtp.training.task import build_task
from tests.checkpoints.names import hugging_face, official, tiny_model
from tests.training.labelled import DECODER, settings

UNSEEN: dict[str, Any] = {"num_frames": 4, "image_size": 16, "num_heads": 2}
VIDEO = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _nobody_asks_the_hub(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def test_a_file_is_opened_as_its_model(tmp_path, caplog):
    source = tiny_model("video_classifier")
    torch.save({"module": official("video_classifier", source.state_dict())}, tmp_path / "tuned.pth")
    with caplog.at_level(logging.INFO):
        model = fastvtp.load_pretrained(tmp_path / "tuned.pth", **UNSEEN)
    assert not model.training
    assert torch.equal(model(VIDEO), source(VIDEO))
    assert "num_heads 2: given" in caplog.text
    assert "begin at random" not in caplog.text
    with pytest.raises(CheckpointError, match=r"tuned\.pth: give num_heads=\.\.\., which nothing in it shows"):
        fastvtp.load_pretrained(str(tmp_path / "tuned.pth"))
    with pytest.raises(UserError, match="no video_classifier option 'num_head'"):
        fastvtp.load_pretrained(tmp_path / "tuned.pth", num_head=2)


def test_a_file_that_is_not_there_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("absent.pth", "weights/absent.safetensors", "./absent.npz", "w/a/absent.ckpt", "runs/absent.tar"):
        with pytest.raises(CheckpointError, match=r"absent\.\w+: no such file or folder"):
            fastvtp.load_pretrained(name)
    (tmp_path / "notes.md").write_text("-")
    with pytest.raises(CheckpointError, match=r"notes\.md must end in \.safetensors, \.pth, \.pt, \.bin, \.npz"):
        fastvtp.load_pretrained("notes.md")


def test_a_folder_of_transformers_is_opened(tmp_path, caplog):
    source = tiny_model("video_classifier", layer_scale=0.0, norm_eps=1e-12, head_norm_eps=1e-5)
    weights = {
        name: tensor.contiguous() for name, tensor in hugging_face("video_classifier", source.state_dict()).items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "num_frames": 4, "image_size": 16}')
    with caplog.at_level(logging.INFO):
        model = fastvtp.load_pretrained(tmp_path)
    assert "num_heads 2: config.json" in caplog.text
    torch.testing.assert_close(model(VIDEO), source(VIDEO))


def test_a_run_is_opened_as_its_model(captioned_videos, tmp_path):
    overrides = settings(captioned_videos / "train.jsonl", tmp_path / "run", *DECODER, "steps=1", "data.vocab_size=250")
    trained = train(apply_overrides(get_recipe("simvtp_demo"), overrides), progress_bar=False).model
    for source in ("run", "run/model", "run/checkpoints/step_00000001"):
        opened = fastvtp.load_pretrained(tmp_path / source)
        assert opened.config == trained.config
        assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), trained.parameters(), strict=True))
    with pytest.raises(UserError, match="no simvtp option 'num_haeds'; did you mean 'num_heads'"):
        fastvtp.load_pretrained(tmp_path / "run", num_haeds=2)
    (tmp_path / "started").mkdir()
    (tmp_path / "started/train_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="started is a run without a checkpoint yet"):
        fastvtp.load_pretrained(tmp_path / "started")


# --- Encoders alone


def _tuned(state):
    return official("video_classifier", state)


def _pooled(state):
    return {f"model.{name}": tensor for name, tensor in _tuned(state).items() if not name.startswith("head.")}


def _bare(state):
    return {name: tensor for name, tensor in _tuned(state).items() if name.startswith(("patch_embed.", "blocks."))}


def _in_a_model(state):
    return {f"encoder.{name}": tensor for name, tensor in _bare(state).items()}


def _transformers(state):
    named = hugging_face("video_classifier", state)
    kept = {name: tensor for name, tensor in named.items() if not name.startswith(("fc_norm.", "classifier."))}
    return {name.removeprefix("videomae."): tensor for name, tensor in kept.items()}


LAYOUTS = {"tuned": _tuned, "hub": _pooled, "bare": _bare, "stripped": _in_a_model, "transformers": _transformers}
RECIPES = {
    "videomae_pretrain_tiny": ("encoder.", ("decoder", "encoder.norm"), "train.jsonl"),
    "simvtp_demo": ("encoder.", ("decoder", "encoder.norm", "text_embeddings", "word_head"), "train.jsonl"),
    "retrieval_finetune_tiny": ("video_encoder.", ("text_embeddings", "text_encoder"), "train.jsonl"),
    "qa_finetune_tiny": ("encoder.", ("encoder.norm", "text_embeddings", "head"), "train_questions.jsonl"),
}


def backbone(layout: str, **sizes):
    source = tiny_model("video_classifier", 5, layer_scale=0.0, num_frames=4, **sizes)
    return source, LAYOUTS[layout](source.state_dict())


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [*((recipe, "bare") for recipe in RECIPES), *(("retrieval_finetune_tiny", layout) for layout in LAYOUTS),
     ("videomae_pretrain_tiny", "transformers"), ("simvtp_demo", "tuned")],
)  # fmt: skip
def test_an_encoder_starts_every_kind_of_run(captioned_videos, tmp_path, caplog, recipe, layout):
    place, random, data = RECIPES[recipe]
    source, weights = backbone(layout)
    torch.save({"module": weights}, tmp_path / "encoder.pth")
    more = DECODER if recipe in ("videomae_pretrain_tiny", "simvtp_demo") else ()
    overrides = settings(captioned_videos / data, tmp_path / "run", f"init={tmp_path / 'encoder.pth'}", *more)
    config = apply_overrides(get_recipe(recipe), overrides)
    task = build_task(config)
    tokenizer = prepare_tokenizer(config, task, None)
    model = build_model(task.complete(tokenizer))
    with caplog.at_level(logging.INFO):
        load_initial_weights(model, config, task)
    loaded = model.state_dict()
    for name, tensor in source.state_dict().items():
        if name.startswith(("encoder.blocks.", "video_embeddings.")):
            assert torch.equal(loaded[name.replace("encoder.", place, 1)], tensor), name
    line = next(record.getMessage() for record in caplog.records if "begin at random" in record.getMessage())
    named = line.split(": ")[1].split(", ")
    assert set(random) <= set(named)
    if recipe == "retrieval_finetune_tiny":  # the trained norm of the mean, where there is one
        assert ("video_norm" in named) == (layout not in ("tuned", "hub"))


@pytest.mark.parametrize("architecture", ["videomae", "simvtp", "dual_encoder", "video_qa", "video_classifier"])
@pytest.mark.parametrize("layout", ["bare", "hub"])
def test_an_encoder_is_converted_to_every_architecture(tmp_path, architecture, layout):
    source, weights = backbone(layout, image_size=32)
    torch.save(weights, tmp_path / "encoder.pth")
    overrides = ["num_frames=4", "image_size=32", "num_heads=2"]
    if architecture in ("videomae", "simvtp"):
        overrides += ["video_mask_ratio=0.75"]
    done = convert(tmp_path / "encoder.pth", tmp_path / "out", architecture=architecture, overrides=overrides)
    model = fastvtp.load_pretrained(tmp_path / "out")
    place = "video_encoder.blocks.1." if architecture == "dual_encoder" else "encoder.blocks.1."
    trained = source.encoder.blocks[1].mlp.fc1.weight
    assert torch.equal(model.state_dict()[f"{place}mlp.fc1.weight"], trained)
    assert done.heads == {"num_heads": "2: given"}
    if architecture in ("videomae", "simvtp"):  # of the default sizes, as the encoder shows none
        assert {"decoder", "encoder.norm"} <= set(done.random_parts)
        assert (model.config.decoder_depth, model.config.decoder_width) == (4, 384)
    elif architecture == "video_classifier":
        assert done.random_parts == {"tuned": [], "hub": ["head"]}.get(layout, ["norm", "head"])


def test_a_decoder_that_lacks_a_part_is_not_replaced():
    weights = official("videomae", tiny_model("videomae").state_dict())
    del weights["decoder.head.bias"]
    with pytest.raises(CheckpointError, match=r"missing decoder\.head\.bias"):
        load_checkpoint(tiny_model("videomae"), weights)


def test_a_model_of_another_number_of_heads_is_warned_of(monkeypatch, caplog):
    monkeypatch.setitem(videomae.ENCODERS, (32, 2), (4, "VideoMAE ViT-X"))
    monkeypatch.setitem(videomae.DECODERS, (32, 2, 16), (2, "VideoMAE ViT-X"))
    weights = official("videomae", tiny_model("videomae").state_dict())
    with caplog.at_level(logging.INFO):
        load_checkpoint(tiny_model("videomae", num_heads=8), weights)
    warned, told = (record for record in caplog.records if "heads" in record.getMessage())
    assert warned.levelname == "WARNING"
    assert "num_heads 4: released size VideoMAE ViT-X, and the model 8" in warned.getMessage()
    assert told.getMessage() == "the state dict: decoder_num_heads 2: released size VideoMAE ViT-X"
    with pytest.raises(CheckpointError, match=r"width 32, num_heads 4: set model\.width=32 model\.num_heads=4$"):
        load_checkpoint(tiny_model("videomae", width=64, num_heads=2), weights)


def test_a_folder_keeps_what_it_was_given(tmp_path):
    write_model_folder(tmp_path / "own", tiny_model("videomae"), "videomae")
    done = convert(tmp_path / "own", tmp_path / "out", overrides=["decoder_num_heads=4"])
    assert done.heads == {"num_heads": "2: config.json", "decoder_num_heads": "4: given, 2: config.json"}
