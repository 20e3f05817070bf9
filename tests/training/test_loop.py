import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from fastvtp import processes, runs
from fastvtp.errors import ConfigError
from fastvtp.settings import choose_device
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train
from tests.data.clips import write_audio


def configure(settings: list[str], *more: str):
    return apply_overrides(get_recipe("simvtp_demo"), [*settings, *more])


def metrics_of(run_dir: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("preset", ["official", "fastvtp"])
def test_pretrain_writes_report_scores_and_pictures(tiny_settings, preset):
    config = apply_overrides(get_recipe("simvtp_demo", preset), tiny_settings)
    report = runs.pretrain(config, progress_bar=False)
    run_dir = Path(config.output_dir)
    assert report == json.loads((run_dir / "report.json").read_text())
    assert report["steps"] == 6
    assert report["num_test"] == 8
    assert report["chance_R1"] == pytest.approx(12.5)
    assert set(report["retrieval"]["t2v"]) == {"R1", "R5", "R10", "MdR", "MnR"}
    assert report["bad_files"] == {"count": 0, "files": {}}
    assert report["clips_per_second"] > 0
    for name in ("curves.png", "gallery.html", "speed.jsonl", "model/tokenizer.json"):
        assert (run_dir / name).stat().st_size > 0
    records = metrics_of(config.output_dir)
    assert [record["step"] for record in records] == list(range(1, 7))
    terms = ("loss/pixel", "loss/word", "loss/contrastive", "loss/matching")
    for record in records:
        assert record["loss"] == pytest.approx(sum(record[term] for term in terms), rel=1e-4)


def test_training_learns(tiny_settings):
    result = train(configure(tiny_settings, "steps=60", "optimizer.warmup_steps=5"), progress_bar=False)
    records = metrics_of(result.model_dir.parent)
    for term in ("loss/pixel", "loss/word"):
        assert sum(r[term] for r in records[-10:]) < sum(r[term] for r in records[:10]), term


def test_bfloat16_stays_close_to_float32(tiny_settings, tmp_path):
    exact = train(configure(tiny_settings, f"output_dir={tmp_path / 'a'}"), progress_bar=False)
    rounded = train(configure(tiny_settings, f"output_dir={tmp_path / 'b'}", "precision=bfloat16"), progress_bar=False)
    assert rounded.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.02)
    assert rounded.metrics["loss"] != exact.metrics["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in rounded.model.parameters())


def test_bad_files_are_counted_and_named_and_the_run_finishes(captioned_videos, tiny_settings, tmp_path):
    """20 good clips and 4 bad ones, the folder of a user with an interrupted download."""
    folder = tmp_path / "folder"
    shutil.copytree(captioned_videos / "videos" / "train", folder)
    records = [json.loads(line) for line in (captioned_videos / "train.jsonl").read_text().splitlines()]
    lines = [{"video": Path(record["video"]).name, "caption": record["caption"]} for record in records]
    good = (folder / lines[0]["video"]).read_bytes()
    (folder / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video")
    write_audio(folder / "audio.mp4")
    bad = {"truncated.mp4", "empty.mp4", "text.mp4", "audio.mp4"}
    lines += [{"video": name, "caption": "a clip that cannot be read"} for name in sorted(bad)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    config = configure(tiny_settings, f"data.train={folder / 'train.jsonl'}", "data.test=none", "steps=6")
    report = runs.pretrain(config, progress_bar=False)
    assert report["steps"] == 6
    assert report["bad_files"]["count"] == 4
    assert {Path(name).name for name in report["bad_files"]["files"]} == bad
    assert all(reason for reason in report["bad_files"]["files"].values())


def test_a_run_is_never_overwritten(tiny_settings):
    config = configure(tiny_settings, "data.test=none")
    train(config, progress_bar=False)
    before = (Path(config.output_dir) / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run: add --resume"):
        train(config, progress_bar=False)
    with pytest.raises(ConfigError, match=r"batch_size: was 4, is 5; optimizer.learning_rate: was .*, is 1; set"):
        train(configure(tiny_settings, "batch_size=5", "optimizer.learning_rate=1"), resume=True, progress_bar=False)
    assert (Path(config.output_dir) / "metrics.jsonl").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(tiny_settings):
    config = configure(tiny_settings, "data.test=none")
    first = runs.pretrain(config, progress_bar=False)
    weights = (Path(config.output_dir) / "model/model.safetensors").read_bytes()
    again = runs.pretrain(config, resume=True, progress_bar=False)
    assert again == first
    assert (Path(config.output_dir) / "model/model.safetensors").read_bytes() == weights


def test_divergence_stops_the_run_and_is_never_saved(tiny_settings):
    settings = [*tiny_settings, "optimizer.learning_rate=1e30", "optimizer.warmup_steps=1", "log_every=100"]
    config = configure(settings, "checkpoint_every=3")
    with pytest.raises(FloatingPointError, match=r"loss is nan at step \d of .* whose clips are listed in"):
        train(config, progress_bar=False)
    assert not list(Path(config.output_dir).glob("checkpoints/*"))


def test_changed_annotations_are_not_resumed(tiny_settings, captioned_videos, tmp_path):
    annotations = captioned_videos / "edited.jsonl"  # beside the clips, to which its paths are relative
    annotations.write_text((captioned_videos / "train.jsonl").read_text())
    config = configure(tiny_settings, f"data.train={annotations}", "data.test=none")
    train(config, progress_bar=False)
    annotations.write_text("".join(annotations.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"the content of data.train changed"):
        train(config, resume=True, progress_bar=False)


def test_what_fails_before_the_first_step_claims_no_folder(tiny_settings, tmp_path):
    config = configure(tiny_settings, f"data.tokenizer={tmp_path / 'absent'}")
    with pytest.raises(FileNotFoundError):
        train(config, progress_bar=False)
    assert not Path(config.output_dir).exists()
    train(configure(tiny_settings), progress_bar=False)


def test_data_sets_hardly_larger_than_a_batch_train(tiny_settings, captioned_videos):
    """Three clips in batches of two: across the seam of two epochs a batch holds the same clip twice."""
    annotations = captioned_videos / "three.jsonl"
    lines = (captioned_videos / "train.jsonl").read_text().splitlines(keepends=True)
    annotations.write_text("".join(lines[:3]))
    settings = [*tiny_settings, f"data.train={annotations}", "data.test=none", "batch_size=2", "steps=30"]
    result = train(configure(settings, "checkpoint_every=30"), progress_bar=False)
    assert all(math.isfinite(record["loss"]) for record in metrics_of(result.model_dir.parent))


def test_devices():
    assert choose_device("cpu").type == "cpu"
    for name, message in (("gpu", "device=gpu"), ("meta", "expected auto, cpu or cuda"), ("cuda:99", "CUDA device")):
        with pytest.raises(ConfigError, match=message):
            choose_device(name)


def test_processes_that_cannot_share_a_step_are_told_what_would_do(tiny_settings, monkeypatch):
    monkeypatch.setattr(processes, "size", lambda: 2)
    # a group of one stands for that of two: every process is refused before any of them speaks of it
    monkeypatch.setattr(processes, "gather", lambda value: [value])
    with pytest.raises(ConfigError) as raised:
        train(configure(tiny_settings), progress_bar=False)
    assert str(raised.value) == (
        "2 processes cannot share the 1 micro-batch of 4 clips that batch_size=4 makes: start 1; or set "
        "micro_batch=2, the clips that each computes at a time"
    )
    assert not Path(configure(tiny_settings).output_dir).exists()
