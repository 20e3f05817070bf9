"""Question answering whose head starts from the word head of pretraining."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastvtp.model_folder import write_model_folder
from fastvtp.systems.catalogue import build_model, create_model
from fastvtp.systems.recipes import get_recipe
from fastvtp.systems.simvtp.tasks import FinetuneQA, word_head
from fastvtp.training.config import apply_overrides
from fastvtp.training.initialization import load_initial_weights, prepare_tokenizer
from fastvtp.training.loop import train
from fastvtp.training.task import build_task
from tests.training.labelled import DECODER, settings


@pytest.fixture(scope="module")
def pretrained(captioned_videos, tmp_path_factory) -> Path:
    """A pretraining run of one step."""
    run_dir = tmp_path_factory.mktemp("pretrained") / "run"
    overrides = settings(captioned_videos / "train.jsonl", run_dir, *DECODER, "steps=1", "data.vocab_size=250")
    train(apply_overrides(get_recipe("simvtp_demo"), overrides), progress_bar=False)
    return run_dir


def started(data: Path, output_dir: Path, init: Path, readout: str):
    """The answers and the model that a run would start from, and its tokenizer."""
    more = (f"init={init}", f"model.readout={readout}")
    config = apply_overrides(get_recipe("qa_finetune_tiny"), settings(data, output_dir, *more))
    task = build_task(config)
    tokenizer = prepare_tokenizer(config, task, None)
    torch.manual_seed(1)
    model = build_model(task.complete(tokenizer))
    load_initial_weights(model, config, task)
    task.prepare(model, tokenizer)
    assert isinstance(task, FinetuneQA)
    assert task.vocabulary is not None
    return task.vocabulary.answers, model, tokenizer


def test_the_head_starts_as_the_words_of_the_answers(captioned_videos, pretrained, tmp_path, caplog):
    data = captioned_videos / "train_questions.jsonl"
    with caplog.at_level(logging.INFO):
        answers, model, tokenizer = started(data, tmp_path, pretrained, "mask")
    assert f"the head of {len(answers)} answers starts from the word head of {pretrained}" in caplog.text
    words = load_file(pretrained / "model/model.safetensors")
    assert model.config.mask_token_id == tokenizer.mask_id
    head = model.head[-1]
    assert len(head.weight) == len(answers)
    for row, answer in enumerate(answers):
        ids = torch.from_numpy(tokenizer.encode([answer], 64)[0][1:-1]).long()
        torch.testing.assert_close(head.weight[row, :32], words["word_head.weight"][ids].mean(0))
        assert not head.weight[row, 32:].any()
        torch.testing.assert_close(head.bias[row], words["word_head.bias"][ids].mean())


def test_a_mean_needs_no_words(captioned_videos, pretrained, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        started(captioned_videos / "train_questions.jsonl", tmp_path, pretrained, "mean")
    assert "starts from the word head" not in caplog.text


def test_a_run_of_its_own_architecture_gives_no_words(captioned_videos, pretrained, tmp_path, caplog):
    data = captioned_videos / "train_questions.jsonl"
    overrides = settings(data, tmp_path / "first", f"init={pretrained}", "steps=1", "model.readout=mask")
    train(apply_overrides(get_recipe("qa_finetune_tiny"), overrides), progress_bar=False)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        started(data, tmp_path / "second", tmp_path / "first", "mask")
    assert "starts from the word head" not in caplog.text


def test_the_word_head_is_found_under_any_name(tmp_path):
    released = {
        "encoder.patch_embed.proj.weight": torch.zeros(8, 3, 2, 4, 4),
        "text_embeddings.word_embeddings.weight": torch.zeros(20, 8),
        "text_cls.weight": torch.randn(20, 8),
        "text_cls.bias": torch.randn(20),
    }
    torch.save({"model": released}, tmp_path / "released.pth")
    found = word_head(str(tmp_path / "released.pth"))
    assert found is not None
    assert torch.equal(found[0], released["text_cls.weight"])
    assert torch.equal(found[1], released["text_cls.bias"])

    videomae = create_model(
        "videomae_tiny",
        width=32,
        depth=1,
        num_heads=2,
        decoder_width=16,
        decoder_num_heads=2,
        image_size=32,
        video_mask_ratio=0.5,
    )
    write_model_folder(tmp_path / "videomae", videomae, "videomae")
    assert word_head(str(tmp_path / "videomae")) is None
