"""How frames that are no squares come to a run, and to the scores of what it left."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvtp import runs
from fastvtp.cli import main as cli
from fastvtp.data.annotations import load_annotations
from fastvtp.data.reading import ClipReading
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import CheckpointError, ConfigError, UserError
from fastvtp.evaluation.scoring import evaluation_loader
from fastvtp.frozen import runs as probing
from fastvtp.frozen.recipes import probe_recipe
from fastvtp.frozen.training_heads import HeadTraining
from fastvtp.model_folder import write_model_folder, write_reading
from fastvtp.systems.captioner import tasks as captioning_tasks
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loading import training_loader
from fastvtp.training.state import Progress
from fastvtp.training.task import build_task
from tests.data.clips import write_clip
from tests.systems.alpro.test_training import configure
from tests.training.labelled import SIZES, write_rows

PUBLISHED = (
    "alpro_prompter", "alpro_pretrain", "alpro_msrvtt_retrieval", "alpro_didemo_retrieval", "alpro_msrvtt_qa",
    "alpro_msvd_qa",
)  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A list of four clips, 32 x 96: white but for the outer thirds, which the centred square leaves out."""
    folder = tmp_path_factory.mktemp("wide")
    for number in range(4):
        frames = np.full((4, 32, 96, 3), 255, np.uint8)
        frames[:, :, :32] = frames[:, :, 64:] = 20 * number
        write_clip(folder / f"{number}.mp4", frames=frames)
    rows = [{"video": f"{number}.mp4", "caption": f"borders of shade {number}"} for number in range(4)]
    return write_rows(folder / "clips.jsonl", rows)


@pytest.fixture(scope="module")
def squashed(wide) -> Path:
    """A run that was trained on squashed frames, scored on the same clips."""
    run_dir = wide.parent / "run"
    more = ["data.framing=squash", "data.crop_scale=1,1", f"data.test={wide}", "steps=1"]
    runs.pretrain(configure("alpro_prompter_tiny", wide, run_dir, *more), progress_bar=False)
    return run_dir


def shows_borders(video: torch.Tensor) -> bool:
    """Whether clips are dark at the sides, as they are where all of the frame is shown."""
    sides, middle = video[:, :, :, [2, -3]].float().mean(), video[:, :, :, 14:18].float().mean()
    assert middle > 230
    return bool(sides < 100)


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_training_clips(wide, tmp_path, fit):
    config = configure("alpro_prompter_tiny", wide, tmp_path, f"data.framing={fit}", "data.crop_scale=1,1", "steps=1")
    task = build_task(config)
    tokenizer = CaptionTokenizer.train(task.texts, vocab_size=100)
    with training_loader(config, task, tokenizer, torch.device("cpu"), Progress(), 1) as loader:
        video = next(iter(loader)).video
    white = (video > 128).float().flatten(1).mean(1)  # a third of a whole frame, any share of a narrower window
    assert bool(((white - 1 / 3).abs() < 0.03).all()) == (fit == "squash")
    assert fit == "squash" or len(white.unique()) > 1


def test_scores_follow_the_training_unless_told_otherwise(wide, squashed, tmp_path):
    moved = shutil.copytree(squashed / "model", tmp_path / "moved")
    for folder in (squashed, moved):
        opened = runs.open_model(folder, torch.device("cpu"))
        for fit, expected in ((None, True), ("squash", True), ("crop", False)):
            protocol = runs.EvaluationProtocol(reading=ClipReading(framing=fit), num_workers=0)
            with evaluation_loader(opened, load_annotations(wide), protocol) as loader:
                assert shows_borders(next(iter(loader)).video) == expected
    (moved / "reading.json").write_text('{"fit": "squash"}')  # as earlier versions wrote it
    assert runs.open_model(moved, torch.device("cpu")).framing == "squash"
    (moved / "reading.json").unlink()
    assert runs.open_model(moved, torch.device("cpu")).framing == "crop"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "reading.json: not JSON"),
        ('{"framing": "stretch"}', "expected the key 'framing', one of crop, squash, got {'framing'"),
        ('{"fit": "stretch"}', "expected the key 'framing', one of crop, squash, got {'fit'"),
    ],
)
def test_a_record_that_says_nothing_is_one_line(squashed, tmp_path, content, message):
    moved = shutil.copytree(squashed / "model", tmp_path / "moved")
    (moved / "reading.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        runs.open_model(moved, torch.device("cpu"))


ONE_CROP = "framing 'squash' shows whole frames: expected one crop, got 3; give one, or framing 'crop'"


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["fastvtp", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0), capsys.readouterr().err


def test_the_command(wide, squashed, monkeypatch, capsys, tmp_path):
    """The gallery shows what the model was shown."""
    common = ("evaluate", squashed, wide, "--num-workers", 0, "--quiet", "--output")
    for name, options in (("none", ()), ("squash", ("--fit", "squash")), ("crop", ("--fit", "crop"))):
        assert run(monkeypatch, capsys, *common, tmp_path / name, *options)[0] == 0
    shown = {name: (tmp_path / name / "gallery.html").read_bytes() for name in ("none", "squash", "crop")}
    assert shown["none"] == shown["squash"] == (squashed / "gallery.html").read_bytes()
    assert shown["crop"] != shown["squash"]
    for options, message in (
        (("--fit", "squash", "--views", "1x3"), ONE_CROP),
        (("--views", "1x3"), ONE_CROP),
        (("--fit", "stretch"), "framing must be 'crop' or 'squash', got 'stretch'"),
    ):
        status, error = run(monkeypatch, capsys, *common, tmp_path / "bad", *options)
        assert (status, error) == (2, f"fastvtp: {message}\n")


@pytest.fixture
def frozen() -> runs.OpenedModel:
    """A video model that was trained on squashed frames."""
    model = apply_overrides(get_recipe("simvtp_tiny"), SIZES).model
    return runs.OpenedModel(build_model(model), None, framing="squash")


def test_frozen_features_are_of_the_frames_of_the_training(wide, frozen, tmp_path):
    protocol = runs.EvaluationProtocol(num_workers=0)
    features = probing.extract(frozen, wide, tmp_path / "features", protocol=protocol, progress_bar=False)
    assert features.description["framing"] == "squash"


@pytest.mark.parametrize(("fit", "other"), [("squash", "crop"), ("crop", "squash")])
def test_a_captioner_is_of_the_fit_of_its_features(wide, frozen, tmp_path, monkeypatch, fit, other):
    """A run says beside its weights that clips came to it by `data.framing`."""
    monkeypatch.setattr(captioning_tasks, "language_width", lambda folder: 32)
    features, protocol = tmp_path / "features", runs.EvaluationProtocol(reading=ClipReading(framing=fit), num_workers=0)
    probing.extract(frozen, wide, features, protocol=protocol, progress_bar=False)
    given = [f"data.train={wide}", f"data.features={features}", "model.backbone=none", "model.language_model=x"]
    config = apply_overrides(get_recipe("videoprism_captioning_tiny"), given)
    build_task(apply_overrides(config, [f"data.framing={fit}"]))
    with pytest.raises(UserError, match=f"of framing '{fit}', expected '{other}': set data.framing={fit}$"):
        build_task(apply_overrides(config, [f"data.framing={other}"]))


@pytest.mark.parametrize(
    ("fit", "recorded"), [("crop", "squash"), ("squash", "crop"), ("squash", "squash"), ("squash", None)]
)
def test_a_captioner_of_clips_is_told_of_another_fit(wide, frozen, tmp_path, monkeypatch, caplog, fit, recorded):
    monkeypatch.setattr(captioning_tasks, "language_width", lambda folder: 32)
    write_model_folder(tmp_path, frozen.model, "simvtp")
    if recorded is not None:
        write_reading(tmp_path, recorded)
    config = frozen.model.config
    sizes = [f"model.num_frames={config.num_frames}", f"model.image_size={config.image_size}"]
    given = [
        f"data.train={wide}",
        f"data.framing={fit}",
        f"model.backbone={tmp_path}",
        "model.language_model=x",
        *sizes,
    ]
    build_task(apply_overrides(get_recipe("videoprism_captioning_tiny"), given))
    told = f"is {fit!r}, but the frozen backbone {tmp_path} was trained with {recorded!r}: set data.framing={recorded} "
    assert (told in caplog.text) == ("frozen backbone" in caplog.text) == (recorded not in (None, fit))


def test_pictures_are_of_the_frames_of_the_training(wide, frozen, tmp_path):
    words = CaptionTokenizer.train(["borders of shade"], vocab_size=100)
    ids = {"pad_token_id": words.pad_id, "mask_token_id": words.mask_id}
    sizes = {"vocab_size": words.vocab_size, "special_token_ids": tuple(sorted(words.special_ids))}
    config = dataclasses.replace(frozen.model.config, **ids, **sizes)
    opened = runs.OpenedModel(build_model(config), words, framing="squash")
    pictures = {
        fit: runs.visualize(opened, str(wide), tmp_path / str(fit), num_clips=2, framing=fit)[0].read_bytes()
        for fit in (None, "squash", "crop")
    }
    assert pictures[None] == pictures["squash"] != pictures["crop"]


def test_probes_are_trained_on_the_frames_of_the_training(wide, frozen, monkeypatch):
    rows = [{"video": f"{number}.mp4", "label": "ab"[number % 2]} for number in range(4)]
    reading, protocol = ClipReading(crop_scale=(1.0, 1.0)), runs.EvaluationProtocol(num_workers=0)
    seen = []

    def watch(probed, loader, *arguments, **options):
        seen.append(next(iter(loader)).video)
        return 0.0

    monkeypatch.setattr(probing, "train_probed_tower", watch)
    labelled = write_rows(wide.parent / "classes.jsonl", rows)
    training, videos = HeadTraining(steps=1, batch_size=2), probing.ProbeVideos(train=labelled)
    probing.train_on_videos(frozen, videos, training=training, reading=reading, protocol=protocol)
    assert shows_borders(seen[0])


def test_views_that_do_not_fit_are_refused_before_a_probe_is_trained(wide, frozen, monkeypatch):
    """Those of the published recipes have three crops."""
    monkeypatch.setattr(probing, "train_probed_tower", lambda *_, **__: pytest.fail("trained"))
    labelled = write_rows(wide.parent / "tested.jsonl", [{"video": f"{number}.mp4", "label": "a"} for number in (0, 1)])
    views = probe_recipe("k400").views
    videos = probing.ProbeVideos(train=labelled, test=labelled)
    with pytest.raises(UserError, match=re.escape(ONE_CROP)):
        probing.train_on_videos(frozen, videos, protocol=runs.EvaluationProtocol(views=views))
    cropped = runs.EvaluationProtocol(reading=ClipReading(framing="crop"), views=views)
    with pytest.raises(pytest.fail.Exception):
        probing.train_on_videos(frozen, videos, protocol=cropped)


def test_settings_that_do_not_fit_are_one_line(wide, tmp_path):
    config = configure("alpro_prompter_tiny", wide, tmp_path)
    with pytest.raises(ConfigError, match=r"^data\.framing must be 'crop' or 'squash', got 'stretch'$"):
        apply_overrides(config, ["data.framing=stretch"])
    with pytest.raises(ConfigError, match=rf"^data\.{re.escape(ONE_CROP)}$"):
        apply_overrides(config, ["data.framing=squash", "data.test_views=2,3"])
    assert apply_overrides(config, ["data.framing=squash", "data.test_views=2,1"]).data.test_views == (2, 1)
    with pytest.raises(ConfigError, match=r"^data\.framing must be 'crop' or 'squash', got none: a run says how"):
        apply_overrides(config, ["data.framing=none"])
    with pytest.raises(ConfigError, match=r"^data\.fit is now data\.framing: set data\.framing=squash$"):
        apply_overrides(config, ["data.fit=squash"])


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_official_recipes_squash(recipe):
    assert [get_recipe(recipe, preset).data.framing for preset in ("official", "fastvtp")] == ["squash", "crop"]


def test_the_setting_is_recorded(squashed):
    assert json.loads((squashed / "train_config.json").read_text())["data"]["framing"] == "squash"
    (checkpoint,) = (squashed / "checkpoints").iterdir()
    assert runs.open_model(checkpoint, torch.device("cpu")).framing == "squash"
