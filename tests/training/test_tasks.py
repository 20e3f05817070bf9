import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastvtp import create_model, runs
from fastvtp.checkpoints.loading import absent_parts
from fastvtp.data.annotations import load_videos
from fastvtp.data.reading import ClipReading
from fastvtp.errors import ConfigError, UserError
from fastvtp.model_folder import read_weights, write_model_folder
from fastvtp.systems.recipes import get_recipe
from fastvtp.tensor_files import read_tensors
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loop import train
from fastvtp.training.task import build_task
from tests.training.labelled import (
    DECODER,
    choices,
    classes,
    rows_of,
    settings,
    several_captions,
    write_rows,
)

Paths = Callable[[Path, str], Path]


def captions(root: Path, split: str) -> Path:
    return root / f"{split}.jsonl"


def questions(root: Path, split: str) -> Path:
    return root / f"{split}_questions.jsonl"


def configure(recipe: str, train_data: Path, output_dir: Path, *more: str) -> TrainConfig:
    decoder = DECODER if "pretrain" in recipe else ()
    return apply_overrides(get_recipe(recipe), settings(train_data, output_dir, *decoder, *more))


def losses(run_dir: str | Path) -> list[float]:
    return [record["loss"] for record in rows_of(Path(run_dir) / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("recipe", "data", "section"),
    [
        ("retrieval_finetune_tiny", captions, "retrieval"),
        ("qa_finetune_tiny", questions, "question_answering"),
        ("qa_finetune_tiny", choices, "question_answering"),
        ("classification_finetune_tiny", classes, "classification"),
    ],
    ids=["retrieval", "open-ended", "multiple-choice", "classification"],
)
def test_the_loss_falls_and_the_report_has_the_scores(captioned_videos, tmp_path, recipe, data: Paths, section):
    config = configure(
        recipe, data(captioned_videos, "train"), tmp_path / "run", f"data.test={data(captioned_videos, 'test')}",
        "steps=40", "data.flip=false", "data.test_views=2,1", "data.test_sampling=strided", "data.frame_stride=2",
    )  # fmt: skip
    report = runs.pretrain(config, progress_bar=False)
    values = losses(tmp_path / "run")
    assert sum(values[-10:]) < 0.95 * sum(values[:10])
    assert section in report
    assert report["bad_files"]["count"] == 0
    assert report["num_test"] == len(rows_of(data(captioned_videos, "test")))
    assert report == json.loads((tmp_path / "run/report.json").read_text())

    # the folder alone gives the same scores again
    protocol = runs.EvaluationProtocol(
        reading=ClipReading(sampling="strided", frame_stride=2), views=(2, 1), num_workers=0
    )
    opened = runs.open_model(tmp_path / "run", torch.device("cpu"))
    again = runs.evaluate(
        opened, str(config.data.test), protocol=protocol, train_data=config.data.train, progress_bar=False
    )
    assert again[section] == report[section]


def test_videomae_learns_from_plain_videos(captioned_videos, tmp_path):
    """A folder without a word of text."""
    config = configure("videomae_pretrain_tiny", captioned_videos / "videos/train", tmp_path / "run", "steps=40")
    report = runs.pretrain(config, progress_bar=False)
    values = losses(tmp_path / "run")
    assert sum(values[-10:]) < 0.97 * sum(values[:10])
    assert report["steps"] == 40
    assert not (tmp_path / "run/model/tokenizer.json").exists()
    with pytest.raises(UserError, match="videomae has no scores"):
        runs.evaluate(runs.open_model(tmp_path / "run", torch.device("cpu")), str(captioned_videos / "test.jsonl"))


def test_videos_are_listed_once_and_captions_not_read(captioned_videos, tmp_path):
    rows = rows_of(captioned_videos / "train_questions.jsonl")
    listed = load_videos(str(captioned_videos / "train_questions.jsonl"))
    assert len(listed) == 20 < len(rows)
    assert {record.video for record in listed} == {
        record.video for record in load_videos(str(captioned_videos / "videos/train"))
    }
    for content, message in (("", "lists no videos"), ('{"vid": 1}\n', "line 1: field 'video'")):
        (tmp_path / "list.jsonl").write_text(content)
        with pytest.raises(UserError, match=message):
            load_videos(str(tmp_path / "list.jsonl"))


EVERYTHING = [
    "steps=7", "checkpoint_every=3", "keep_checkpoints=9", "batch_size=8", "micro_batch=4", "ema_decay=0.8",
    "optimizer.layer_decay=0.7", "model.drop_path=0.3", "data.augmentation.rand_augment=rand-m5-n2-inc1",
    "data.augmentation.erasing=0.5",
]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "data", "more"),
    [
        ("classification_finetune_tiny", classes, ["mixup=0.8", "model.head_dropout=0.1"]),
        ("qa_finetune_tiny", questions, ["model.text_dropout=0.1"]),
    ],
    ids=["classification", "question-answering"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(captioned_videos, tmp_path, recipe, data: Paths, more):
    """With average, augmentation, mixup, drop path, layer decay and micro-batches, bit for bit."""
    source = data(captioned_videos, "train")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(configure(recipe, source, whole, *EVERYTHING, *more), progress_bar=False)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "model")
    for step in (6, 7):
        shutil.rmtree(stopped / f"checkpoints/step_{step:08d}")
    result = train(configure(recipe, source, stopped, *EVERYTHING, *more), resume=True, progress_bar=False)
    assert result.steps == 7
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name
    expected, found = (read_tensors(run / "checkpoints/step_00000007") for run in (whole, stopped))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def trained_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    tensors = read_tensors(checkpoint)
    return {name.removeprefix("model."): tensors[name] for name in tensors if name.startswith("model.")}


def test_the_average_is_kept_and_evaluated(captioned_videos, tmp_path):
    config = configure(
        "classification_finetune_tiny", classes(captioned_videos, "train"), tmp_path / "run", "ema_decay=0.5",
        "steps=3", "checkpoint_every=1", "keep_checkpoints=3",
    )  # fmt: skip
    result = train(config, progress_bar=False)
    folders = [tmp_path / f"run/checkpoints/step_0000000{step}" for step in (1, 2, 3)]
    steps = [trained_weights(folder) for folder in folders]
    final = load_file(result.model_dir / "model.safetensors")
    scored = read_weights(folders[-1])
    for name in final:
        expected = 0.25 * steps[0][name] + 0.25 * steps[1][name] + 0.5 * steps[2][name]
        torch.testing.assert_close(final[name], expected)
        assert torch.equal(result.model.state_dict()[name], final[name])
        assert torch.equal(scored[name], final[name])
    assert not torch.equal(final["head.weight"], steps[2]["head.weight"])


def test_micro_batches_make_one_step(captioned_videos, tmp_path):
    """Two micro-batches of 4 are the 8 clips of one batch, whose loss is a mean over clips."""
    data = classes(captioned_videos, "train")
    more = ["optimizer.layer_decay=0.5", "ema_decay=none"]
    at_once = train(configure("classification_finetune_tiny", data, tmp_path / "a", *more), progress_bar=False)
    more += ["batch_size=8", "micro_batch=4"]
    in_parts = train(configure("classification_finetune_tiny", data, tmp_path / "b", *more), progress_bar=False)
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-4)
    assert in_parts.metrics["grad_norm"] == pytest.approx(at_once.metrics["grad_norm"], rel=1e-2)
    assert in_parts.steps == at_once.steps == 6


def test_rates_of_the_first_and_last_layers_differ_in_training(captioned_videos, tmp_path):
    """What the released SimVTP meant to do: with a strong decay the embeddings all but stand still."""
    data = classes(captioned_videos, "train")
    moved = {}
    for decay in (1.0, 0.01):
        config = configure(
            "classification_finetune_tiny", data, tmp_path / str(decay), f"optimizer.layer_decay={decay}",
            "ema_decay=none", "optimizer.weight_decay=0", "checkpoint_every=1", "keep_checkpoints=9",
        )  # fmt: skip
        train(config, progress_bar=False)
        first, last = (read_weights(tmp_path / f"{decay}/checkpoints/step_0000000{n}") for n in (1, 6))
        moved[decay] = {name: float((last[name] - first[name]).abs().max()) for name in last}
    assert moved[0.01]["video_embeddings.weight"] < 1e-4 * moved[1.0]["video_embeddings.weight"]
    assert moved[0.01]["head.weight"] > 0.3 * moved[1.0]["head.weight"]


def test_rare_answers_are_left_out(captioned_videos, tmp_path, caplog):
    config = configure("qa_finetune_tiny", questions(captioned_videos, "train"), tmp_path, "data.max_answers=3")
    with caplog.at_level(logging.INFO):
        task = build_task(config)
    assert set(task.questions.answers) == set(task.vocabulary.answers)
    assert len(task.vocabulary) == 3
    left_out = 60 - len(task.records)
    assert f"{left_out} training questions have none of the 3 answers: left out" in caplog.text
    for record, answer in zip(task.records, task.questions.answers, strict=True):
        row = next(
            row for row in rows_of(questions(captioned_videos, "train"))
            if row["question"] == record.captions[0] and record.video.endswith(row["video"])
        )  # fmt: skip
        assert row["answer"] == answer


def test_options_in_some_questions_alone_are_an_error(captioned_videos, tmp_path):
    rows = rows_of(choices(captioned_videos, "train"))
    del rows[0]["options"]
    data = write_rows(captioned_videos / "mixed.jsonl", rows)
    with pytest.raises(UserError, match="1 of 60 questions have no options: expected options in all or in none"):
        build_task(configure("qa_finetune_tiny", data, tmp_path))


@pytest.mark.parametrize(
    ("recipe", "data", "field"),
    [("qa_finetune_tiny", questions, "answer"), ("classification_finetune_tiny", classes, "label")],
)
def test_changed_labels_are_not_resumed(captioned_videos, tmp_path, recipe, data: Paths, field):
    rows = rows_of(data(captioned_videos, "train"))
    mine = write_rows(captioned_videos / "mine.jsonl", rows)
    config = configure(recipe, mine, tmp_path / "run", "steps=1")
    train(config, progress_bar=False)
    places = [place for place, row in enumerate(rows) if row[field] != rows[0][field]]
    rows[0][field] = rows[places[0]][field]
    write_rows(mine, rows)
    with pytest.raises(ConfigError, match=r"the content of data.train changed"):
        train(config, resume=True, progress_bar=False)


def test_retrieval_is_scored_with_every_caption(captioned_videos, tmp_path):
    data = several_captions(captioned_videos)
    train_data = captions(captioned_videos, "train")
    config = configure("retrieval_finetune_tiny", train_data, tmp_path / "run", "steps=1", f"data.test={data}")
    report = runs.pretrain(config, progress_bar=False)
    assert (report["num_test"], report["num_captions"]) == (8, 15)
    assert report["chance_R1"] == pytest.approx(100 * (13 + 2 * 2) / (15 * 8))  # two captions are the same
    assert "one more" in (tmp_path / "run/gallery.html").read_text()


def test_the_scores_are_computed_in_the_precision_of_the_run(captioned_videos, tmp_path, monkeypatch):
    test = f"data.test={classes(captioned_videos, 'test')}"
    data = classes(captioned_videos, "train")
    evaluate, seen = runs.evaluate, []

    def watching(opened, *arguments, protocol, **more):
        opened.model.encoder.blocks[0].mlp.fc1.register_forward_hook(lambda *call: seen.append(call[2].dtype))
        return evaluate(opened, *arguments, protocol=protocol, **more)

    monkeypatch.setattr(runs, "evaluate", watching)
    for precision in ("bfloat16", "float32"):
        more = (test, "steps=1", f"precision={precision}")
        runs.pretrain(configure("classification_finetune_tiny", data, tmp_path / precision, *more), progress_bar=False)
        assert seen == [getattr(torch, precision)]
        seen.clear()


def test_test_data_are_checked_before_training(captioned_videos, tmp_path):
    for recipe, data, test, message in (
        ("videomae_pretrain_tiny", captions, captions, "pretrain_videomae has no scores"),
        ("qa_finetune_tiny", choices, questions, "its questions have no options, those of data.train do"),
        ("qa_finetune_tiny", questions, captions, "field 'question'"),
        ("retrieval_finetune_tiny", captions, questions, "field 'caption'"),
        ("classification_finetune_tiny", classes, captions, "field 'label'"),
    ):
        config = configure(
            recipe, data(captioned_videos, "train"), tmp_path / "run", f"data.test={test(captioned_videos, 'test')}"
        )
        with pytest.raises(UserError, match=message):
            runs.pretrain(config, progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_the_released_simvtp_starts_the_recommended_preset(tmp_path):
    """It has no projections to contrast with: those alone begin fresh, and our own runs keep theirs."""
    small = {"width": 32, "depth": 1, "num_heads": 2, "decoder_width": 16, "decoder_num_heads": 2, "image_size": 32}
    small |= {"vocab_size": 50, "mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4), "video_mask_ratio": 0.5}
    source = create_model("simvtp_tiny", preset="official", **small)
    model = create_model("simvtp_tiny", preset="fastvtp", **small)
    assert absent_parts(model, write(tmp_path / "official", source)) == ("contrast",)
    assert absent_parts(model, write(tmp_path / "own", model)) == ()


def write(folder, model):
    write_model_folder(folder, model, "simvtp")
    return folder
