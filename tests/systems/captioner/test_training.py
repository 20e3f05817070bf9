"""Training of captioners: settings, cached features, and (with `transformers`) whole runs by the command line."""

import json
import shutil
import sys
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from fastvtp import runs
from fastvtp.cli import main as cli
from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.stream import Batches
from fastvtp.errors import ConfigError, UserError
from fastvtp.evaluation.report import score_lines
from fastvtp.frozen.features import FeatureSettings, ListedVideos, extract_features
from fastvtp.frozen.towers import video_tower
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.captioner.features import CachedClips, FeatureLoader, load_backbone
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loop import train
from fastvtp.training.task import build_task
from tests.frozen.frozen_clips import make_loader
from tests.frozen.towers import make_tower_model
from tests.training.labelled import (
    choices,
    rows_of,
    write_rows,
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of a small VideoPrism of random weights."""
    folder = tmp_path_factory.mktemp("backbone")
    write_model_folder(folder, make_tower_model("videoprism"), "videoprism")
    return folder


@pytest.fixture(scope="module")
def features(captioned_videos, tmp_path_factory):
    """Features of 16 of the 20 training clips, two views each."""
    folder = tmp_path_factory.mktemp("cached") / "features"
    records = load_annotations(captioned_videos / "train.jsonl")[2:18]
    tower, settings = video_tower(make_tower_model("videoprism")), FeatureSettings(shard_size=5)
    videos, protocol = ListedVideos(records), {"views": (2, 1)}
    extract_features(tower, videos, make_loader((2, 1)), folder, settings, protocol=protocol, progress=False)
    return folder


def configure(train_data, backbone, language, output_dir, *more) -> TrainConfig:
    return apply_overrides(
        get_recipe("videoprism_captioning_tiny"),
        [
            f"data.train={train_data}", f"output_dir={output_dir}", f"model.backbone={backbone}",
            f"model.language_model={language}", "data.test=none", "device=cpu", "data.num_workers=0",
            "tensorboard=false", "model.num_frames=4", "model.image_size=32", "model.num_queries=4", "batch_size=4",
            "steps=6", "log_every=1", "checkpoint_every=2", "keep_checkpoints=9", *more,
        ],
    )  # fmt: skip


# --- Cached features; no language model is needed


def batches_of(folder, records, *, start=0, steps=12, seed=0):
    with FeatureLoader(
        CachedClips(folder, records),
        Batches(batch_size=4, train=True, seed=seed, start_step=start, num_steps=steps),
    ) as made:
        return list(made)


def test_cached_batches_follow_from_seed_and_step(captioned_videos, features, backbone):
    records = load_annotations(captioned_videos / "train.jsonl")
    batches = batches_of(features, records)
    assert [batch.step for batch in batches] == list(range(12))
    # three epochs of the 16 clips that have features
    seen = torch.cat([batch.sample_ids for batch in batches]).tolist()
    for epoch in range(3):
        assert sorted(seen[16 * epoch : 16 * epoch + 16]) == list(range(2, 18))
    assert seen[:16] != seen[16:32]
    again = batches_of(features, records, start=5, steps=2)
    for one, other in zip(again, batches[5:7], strict=True):
        assert torch.equal(one.video, other.video)
        assert one.captions == other.captions
    assert [batch.sample_ids.tolist() for batch in batches_of(features, records, seed=1)] != [
        batch.sample_ids.tolist() for batch in batches
    ]
    encode, both = load_backbone(backbone), set()
    with make_loader((2, 1))(records) as loader:
        views = [pair for batch in loader for pair in zip(batch.sample_ids.tolist(), encode(batch.video), strict=True)]
    for batch in batches:
        for index, row, caption in zip(batch.sample_ids.tolist(), batch.video, batch.captions, strict=True):
            same = [
                place
                for place, (other, view) in enumerate(views)
                if other == index and torch.allclose(view, row, atol=1e-5)
            ]
            assert same
            assert caption in records[index].captions
            both.add(same[0] % 2)
    assert both == {0, 1}


def test_features_of_something_else_are_refused(captioned_videos, features, backbone, tmp_path, caplog):
    records = load_annotations(captioned_videos / "train.jsonl")
    with pytest.raises(UserError, match=r"none of the 1 videos of data.train has features there"):
        CachedClips(features, [VideoRecord("a", "/absent.mp4", ("a",))])
    clips = CachedClips(features, records)
    assert "4 of 20 clips have no features there: left out" in caplog.text
    clips.check_backbone(backbone)
    torch.manual_seed(5)
    other = make_tower_model("videoprism")
    other.bias.data.add_(1)
    write_model_folder(tmp_path, other, "videoprism")
    with pytest.raises(UserError, match=r"holds features of another model than model.backbone="):
        clips.check_backbone(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("videoprism_captioning_tiny", ["model.feature_width=8"], "follows from model.backbone and model.language_mo"),
        ("videoprism_captioning_tiny", ["model.num_queries=0"], "model.num_queries must be positive, got 0"),
        ("videoprism_captioning_tiny", ["model.question_template=what"], "model.question_template must hold"),
        ("classification_finetune_tiny", ["data.features=x"], "data.features is for finetune_captioning"),
    ],
)
def test_wrong_settings_are_one_line(recipe, overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(get_recipe(recipe), overrides)


def test_the_language_model_needs_its_library(captioned_videos, backbone, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = configure(captioned_videos / "train.jsonl", backbone, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match=r"pip install 'fastvtp\[captioning\]'"):
        build_task(config)
    with pytest.raises(ConfigError, match=r"needs model.language_model=FOLDER"):
        build_task(apply_overrides(config, ["model.language_model=none"]))


# --- Whole runs


@pytest.fixture(scope="module")
def language(captioned_videos, tmp_path_factory):
    """A toy language model that has read the 20 captions for a second."""
    pytest.importorskip("transformers")
    from fastvtp.systems.captioner.toy import ToyConfig, question_texts, train_toy_language_model

    folder = tmp_path_factory.mktemp("language")
    texts = [caption for record in load_annotations(captioned_videos / "train.jsonl") for caption in record.captions]
    texts += question_texts(captioned_videos / "train_questions.jsonl")
    train_toy_language_model(texts, folder, ToyConfig(steps=5, width=32, depth=1, vocab_size=300), progress=False)
    return folder


def run_command(capsys, monkeypatch, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["fastvtp", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert not stopped.value.code, printed.err
    return printed.out


def test_a_run_is_scored_resumed_and_used(captioned_videos, backbone, language, tmp_path, capsys, monkeypatch):
    test = captioned_videos / "test.jsonl"
    config = configure(
        captioned_videos / "train.jsonl", backbone, language, tmp_path / "run", f"data.test={test}",
        "batch_size=8", "micro_batch=4", "ema_decay=0.5",
    )  # fmt: skip
    report = runs.pretrain(config, progress_bar=False)
    scores = report["captioning"]
    assert set(scores["captions"]) == {"exact", "overlap"}
    assert scores["text_only"] is not None
    assert (report["num_test"], report["bad_files"]["count"]) == (8, 0)
    assert any(line.startswith("captions: exact") for line in score_lines(report))

    # the folder alone: weights of the resampler, which finds the frozen parts again
    opened = runs.open_model(tmp_path / "run", torch.device("cpu"))
    assert {name.split(".")[0] for name in opened.model.state_dict()} == {"resampler", "projection"}
    protocol = runs.EvaluationProtocol(num_workers=0)
    again = runs.evaluate(opened, str(test), protocol=protocol, output=tmp_path / "out", progress_bar=False)
    assert again["captioning"] == scores
    with pytest.raises(UserError, match=r"a caption is written from one view of a clip"):
        runs.evaluate(opened, str(test), protocol=runs.EvaluationProtocol(views=(2, 1)), progress_bar=False)

    written = tmp_path / "captions.jsonl"
    out = run_command(
        capsys, monkeypatch, "caption", tmp_path / "run", captioned_videos / "videos/test", "--output", written,
        "--num-workers", 0, "--quiet",
    )  # fmt: skip
    assert "8 captions in" in out
    expected = {row["video"]: row["caption"] for row in rows_of(tmp_path / "out/predictions.jsonl")}
    assert {row["video"]: row["caption"] for row in rows_of(written)} == expected

    # the frozen parts may have moved
    moved = tmp_path / "moved"
    shutil.copytree(backbone, moved / "backbone")
    shutil.copytree(language, moved / "language")
    (moved / "backbone/model.safetensors").rename(moved / "backbone/away")
    common = ("caption", tmp_path / "run", captioned_videos / "videos/test", "--output", written, "--quiet")
    monkeypatch.setattr(sys, "argv", ["fastvtp", *map(str, common), "--backbone", str(moved / "backbone")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "backbone has no model.safetensors" in capsys.readouterr().err
    (moved / "backbone/away").rename(moved / "backbone/model.safetensors")
    before = written.read_bytes()
    run_command(
        capsys, monkeypatch, *common, "--num-workers", 0, "--backbone", moved / "backbone", "--language-model",
        moved / "language",
    )  # fmt: skip
    assert written.read_bytes() == before

    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "run", stopped)
    shutil.rmtree(stopped / "model")
    shutil.rmtree(stopped / "checkpoints/step_00000006")
    resumed = apply_overrides(config, [f"output_dir={stopped}"])
    train(resumed, resume=True, progress_bar=False)
    for name in ("model/model.safetensors", "model/config.json", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_what_is_learned_of_a_question_is_its_answer(captioned_videos, backbone, language, tmp_path):
    source = captioned_videos / "train_questions.jsonl"
    task, rows = build_task(configure(source, backbone, language, tmp_path / "run")), rows_of(source)
    batch = SimpleNamespace(
        video=torch.zeros(2), sample_ids=torch.tensor([5, 1]), captions=[rows[5]["question"], rows[1]["question"]]
    )
    given = []
    output = SimpleNamespace(loss=torch.zeros(()), terms={})
    model = SimpleNamespace(device="cpu", has_backbone=True, texts=lambda *texts: given.append(texts))
    task.loss(lambda video, texts: output, model, cast(VideoTextBatch, batch))
    assert given == [
        ([rows[5]["answer"], rows[1]["answer"]], [f"Question: {rows[row]['question']} Answer:" for row in (5, 1)])
    ]


def test_questions_are_learned_and_answered(captioned_videos, backbone, language, tmp_path, capsys, monkeypatch):
    train_data, test_data = (captioned_videos / f"{split}_questions.jsonl" for split in ("train", "test"))
    config = configure(train_data, backbone, language, tmp_path / "run", f"data.test={test_data}")
    report = runs.pretrain(config, progress_bar=False)
    scores = report["question_answering"]
    assert {"accuracy", "text_only", "majority", "majority_by_kind"} <= set(scores)
    assert report["num_test"] == 24

    common = (tmp_path / "run", "--num-workers", 0, "--quiet")
    answered = json.loads(run_command(capsys, monkeypatch, "answer", *common, test_data, "--train-data", train_data))
    assert answered["question_answering"] == scores
    few = run_command(
        capsys, monkeypatch, "answer", *common, test_data, "--train-data", train_data, "--shots", 2, "--length",
        "mean", "--candidates", 5, "--output", tmp_path / "answers.jsonl",
    )  # fmt: skip
    assert json.loads(few)["question_answering"]["text_only"] >= 0
    assert len({row["prediction"] for row in rows_of(tmp_path / "answers.jsonl")}) <= 5
    several = json.loads(run_command(capsys, monkeypatch, "answer", *common, choices(captioned_videos, "test")))
    assert several["question_answering"]["chance"] == pytest.approx(100 / 3, abs=1)
    opened = runs.open_model(tmp_path / "run", torch.device("cpu"))
    for data, message in ((test_data, "open-ended questions need candidates"),):
        with pytest.raises(UserError, match=message):
            runs.evaluate(opened, str(data), progress_bar=False)


def test_cached_features_train_without_decoding(captioned_videos, features, backbone, language, tmp_path):
    rows = rows_of(captioned_videos / "train.jsonl")
    listed = write_rows(captioned_videos / "listed.jsonl", rows)
    config = configure(listed, "none", language, tmp_path / "run", f"data.features={features}")
    result = train(config, progress_bar=False)
    torch.manual_seed(config.seed)
    fresh, first = build_model(result.model.config), batches_of(features, load_annotations(listed), steps=1)[0]
    expected = fresh(first.video, fresh.texts(first.captions)).loss.item()
    assert rows_of(tmp_path / "run/metrics.jsonl")[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert not torch.equal(fresh.projection.weight, result.model.projection.weight)
    assert result.model.config.feature_width == 32
    assert result.model.config.language_width == 32
    with pytest.raises(ConfigError, match=r"data.test=.*: clips need model.backbone"):
        runs.pretrain(apply_overrides(config, [f"data.test={listed}"]), progress_bar=False)
    with pytest.raises(ConfigError, match=r"needs model.backbone=FOLDER, or data.features=FOLDER"):
        build_task(apply_overrides(config, ["data.features=none"]))
    with pytest.raises(ConfigError, match=r"model.num_heads 5 does not divide the feature_width 32"):
        build_task(apply_overrides(config, ["model.num_heads=5"]))


def test_a_backbone_of_fixed_size_says_which(captioned_videos, language, tmp_path):
    write_model_folder(tmp_path / "mae", make_tower_model("videomae"), "videomae")
    source = captioned_videos / "train.jsonl"
    build_task(configure(source, tmp_path / "mae", language, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"model.image_size is 64, the backbone .* reads 32: set model.image_size=32"):
        build_task(configure(source, tmp_path / "mae", language, tmp_path / "run", "model.image_size=64"))
