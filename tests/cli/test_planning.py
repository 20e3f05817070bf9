"""`fastvtp plan`."""

import json
from dataclasses import fields

import pytest
import torch
from typer.testing import CliRunner

from fastvtp.architecture import build_model
from fastvtp.cli import main as cli
from fastvtp.cli.planning import DataOptions, MachineOptions
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.initialization import prepare_tokenizer
from fastvtp.training.loader_rate import LoaderRate
from fastvtp.training.plan import Assumptions, plan
from fastvtp.training.task import build_task
from tests.cli.test_main import run
from tests.data.clips import write_clip, write_lines
from tests.data.test_span_clips import H264

MEASURED = ("gpus", "clip_mb", "words")
"""Options that are found out where they are not given."""


def test_the_options_are_the_assumptions():
    options = {entry.name: entry.default for bundle in (MachineOptions, DataOptions) for entry in fields(bundle)}
    assert options == {**{entry.name: entry.default for entry in fields(Assumptions)}, **dict.fromkeys(MEASURED)}


def test_the_tables_have_what_the_file_has(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "plan.json"
    arguments = ["plan", "simvtp_base", "batch_size=4096", "micro_batch=4", "--gpus", "1024", "--clips", "618000000"]
    result = CliRunner().invoke(cli.app, [*arguments, "--step-seconds", "0.6", "--json", str(path)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert text.startswith("All figures are models, of the configuration and of the assumptions below. Nothing is mea")
    found = json.loads(path.read_text())
    assert (found["recipe"], found["run"]["processes"]) == ("simvtp_base", 1024)
    for shown in (
        "parameters │ 141,914,301, of which 141,914,301 are trained",
        f"{found['strategies']['hsdp']['memory']['total'] / 2**30:.2f} GiB",
        "memory of a process ┃ ddp ┃ fsdp2 ┃ hsdp ┃",
        f"{found['reading']['clips_a_second']:,.0f} a second",
        "stored │ 618.00 TB",
        "between two failures │ 5.7 hours",
    ):
        assert shown in text
    for assumption in found["assumptions"].values():
        assert f"{assumption['what']} │" in text
        assert f"│ {assumption['option']} │" in text
    assert found["data"] is None
    assert "data.train" in found["missing"]
    assert "Nothing is measured. not here: its clips, files and texts are assumed: data.train=" in text


def test_what_needs_a_time_asks_for_one():
    result = CliRunner().invoke(cli.app, ["plan", "videoprism_stage1", "micro_batch=8", "--gpus", "16"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.replace("│", " ").split())
    assert "steps take give --step-seconds or --clips-per-second-per-gpu" in text
    assert "frames decoded in a step give --decoded-frames" in text
    assert "strategy ddp: adafactor needs whole matrices" in text


def test_the_model_that_does_not_tell_is_said_not_to():
    result = CliRunner().invoke(cli.app, ["plan", "videoprism_captioning_tiny", "--gpus", "1"])
    assert result.exit_code == 0, result.output
    assert "not told" in result.output


def test_the_default_is_a_number_of_gpus_that_can_share_a_step():
    for settings, gpus in (([], 1), (["batch_size=60", "micro_batch=5"], 6), (["batch_size=64", "micro_batch=2"], 8)):
        result = CliRunner().invoke(cli.app, ["plan", "simvtp_tiny", *settings])
        assert result.exit_code == 0, result.output
        assert f"{gpus}, on 1 machine" in result.output


def planned(capsys, monkeypatch, tmp_path, *arguments, seconds=0.0):
    monkeypatch.setenv("COLUMNS", "200")
    look = ("--reading-seconds", f"{seconds}", "--json", str(tmp_path / "plan.json"))
    status, out, err = run(capsys, monkeypatch, "plan", *arguments, *look)
    assert status == 0, err
    return json.loads((tmp_path / "plan.json").read_text()), " ".join(out.replace("│", " ").split())


def test_the_data_of_the_run_are_looked_at(capsys, monkeypatch, tmp_path, captioned_videos, tiny_settings):
    found, text = planned(capsys, monkeypatch, tmp_path, "simvtp_demo", *tiny_settings, "--probe", "3")
    train = captioned_videos / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    videos = [captioned_videos / row["video"] for row in rows]
    mean = sum(videos[place].stat().st_size for place in (0, 6, 13)) / 3  # three of twenty clips, evenly
    reading, assumed = found["reading"], found["assumptions"]
    assert (found["data"]["clips"], found["data"]["videos"], found["data"]["files"]["opened"]) == (20, 20, 3)
    assert reading["epochs"] == 4 * 6 / 20
    assert assumed["clip_mb"]["value"] == pytest.approx(mean / 1e6)
    assert reading["stored_bytes"] == pytest.approx(20 * mean)
    assert assumed["clip_mb"]["measured"] == "3 clips of 20"
    assert "measured" not in assumed["network"]
    # the run itself, with its tokenizer
    config = apply_overrides(get_recipe("simvtp_demo"), tiny_settings)
    task = build_task(config)
    tokenizer = prepare_tokenizer(config, task, None)
    lengths = [len(ids) for ids in tokenizer.encode(task.texts, task.max_text_length)]
    assert assumed["words"]["value"] == pytest.approx(sum(lengths) / len(lengths))
    parameters = sum(each.numel() for each in build_model(task.complete(tokenizer), torch.device("cpu")).parameters())
    assert found["run"]["parameters"] == parameters != plan(config, Assumptions(gpus=1))["run"]["parameters"]
    for said in (f"data.train {train} (jsonl", "clips 20 of 20 videos", "3 files opened, on", "measured: 3 clips"):
        assert said in text


def test_what_is_given_goes_before_what_is_found(capsys, monkeypatch, tmp_path, tiny_settings):
    options = ("--clips", "1000", "--clip-mb", "2", "--words", "7", "--probe", "0")
    found, text = planned(capsys, monkeypatch, tmp_path, "simvtp_demo", *tiny_settings, *options)
    values = {name: (said["value"], said.get("measured")) for name, said in found["assumptions"].items()}
    assert (values["clips"], values["clip_mb"], values["words"]) == ((1000, None), (2.0, None), (7.0, None))
    assert found["reading"]["stored_bytes"] == 1000 * 2e6
    assert "none opened: --probe N opens some" in text


def test_spans_are_read_for_their_part_of_a_file(capsys, monkeypatch, tmp_path):
    """One video of 60 frames; a clip of half of it, and one of it all, which is not strided."""
    write_clip(tmp_path / "a.mp4", 60, height=48, width=128, fps=24, **H264)
    size = (tmp_path / "a.mp4").stat().st_size
    rows = [{"video": "a.mp4", "caption": "x", "end": 1.25}, {"video": "a.mp4", "caption": "y"}]
    write_lines(tmp_path / "list.jsonl", *rows, {"video": "gone.mp4", "caption": "z"})
    settings = [f"data.train={tmp_path / 'list.jsonl'}", "data.sampling=uniform", "batch_size=2"]
    found, text = planned(capsys, monkeypatch, tmp_path, "simvtp_tiny", *settings)
    assert found["assumptions"]["clip_mb"]["value"] == pytest.approx(0.75 * size / 1e6)
    assert found["assumptions"]["decoded_frames"]["value"] == pytest.approx(45)
    assert found["reading"]["frames_a_step"] == pytest.approx(2 * 45)
    assert (found["data"]["spans"], found["data"]["videos"]) == (1, 2)
    assert f"cannot be decoded 1 of 2: {tmp_path}/gone.mp4: No such file or directory" in text


def test_a_path_that_was_given_and_is_not_there_is_one_line(capsys, monkeypatch, tmp_path):
    for setting in ("data.train", "data.test", "init"):
        status, _, err = run(capsys, monkeypatch, "plan", "simvtp_tiny", f"{setting}={tmp_path}/absent.jsonl")
        assert (status, err.count("\n")) == (2, 1)
        assert f"{setting}={tmp_path}/absent.jsonl does not exist; give " in err


def test_classes_of_the_data_are_counted(capsys, monkeypatch, tmp_path):
    write_lines(tmp_path / "list.jsonl", *({"video": f"{label}.mp4", "label": label} for label in "abcde"))
    settings = [f"data.train={tmp_path / 'list.jsonl'}", "--probe", "0"]
    found, _ = planned(capsys, monkeypatch, tmp_path, "classification_finetune_tiny", *settings)
    config = get_recipe("classification_finetune_tiny")
    before = plan(config, Assumptions(gpus=1))["run"]["parameters"]
    more = 5 - config.model.num_classes
    assert found["run"]["parameters"] == before + more * (config.model.width + 1)


def test_data_whose_run_needs_what_is_not_there_yet_are_assumed(capsys, monkeypatch, tmp_path, captioned_videos):
    """The recipe names entities and a prompter that other commands make first."""
    monkeypatch.chdir(tmp_path)
    train = captioned_videos / "train.jsonl"
    found, text = planned(capsys, monkeypatch, tmp_path, "alpro_pretrain_tiny", f"data.train={train}")
    said = f"data.train={train} was not looked at: runs/demo/data/entities.txt: no such file"
    assert found["data"] is None
    assert found["missing"]["data.train"] == said
    assert f"not here: its clips, files and texts are assumed: {said}" in text


def test_a_list_that_cannot_be_read_is_refused_whatever_else_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.jsonl").write_text("{\n")
    status, _, err = run(capsys, monkeypatch, "plan", "retrieval_finetune_tiny", "data.train=list.jsonl")
    assert status == 2
    assert "list.jsonl" in err


def test_missing_test_data_leave_the_rest_measured(capsys, monkeypatch, tmp_path, captioned_videos):
    monkeypatch.chdir(tmp_path)
    given = f"data.train={captioned_videos / 'train.jsonl'}"
    found, text = planned(capsys, monkeypatch, tmp_path, "alpro_prompter_tiny", given, "--probe", "1")
    assert found["data"]["clips"] == 20
    assert "not here: data.test=runs/demo/data/test.jsonl does not exist" in text
    assert "are assumed: data" not in text


def test_the_opening_of_videos_is_shown_unless_it_is_to_be_quiet(capsys, monkeypatch, tmp_path, tiny_settings):
    for quiet in ((), ("--quiet",)):
        status, _, err = run(capsys, monkeypatch, "plan", "simvtp_demo", *tiny_settings, "--probe", "1", *quiet)
        assert status == 0, err
        assert ("probing" in err) is not bool(quiet)


def test_the_loader_is_tried_and_compared_with_what_is_trained_on(capsys, monkeypatch, tmp_path, tiny_settings):
    def tried(*options):
        given = (*tiny_settings, "data.num_workers=1", "--gpus", "2", "--probe", "0", *options)
        return planned(capsys, monkeypatch, tmp_path, "simvtp_demo", "micro_batch=2", *given, seconds=1)

    found, text = tried()
    loader = found["reading"]["loader"]
    assert (loader["workers"], loader["needed"]) == (1, None)
    assert loader["clips"] > 0
    assert loader["clips_a_second"] > 1
    assert "clips a second of a process with 1 worker, on " in text
    assert "not known whether it keeps up: give --step-seconds or --clips-per-second-per-gpu" in text

    monkeypatch.setattr("fastvtp.training.planned_data.loader_rate", lambda *_, **how: LoaderRate(50.0, 99, 2, 8))
    found, text = tried("--step-seconds", "0.02")  # 4 clips a step, 2 a process
    assert found["reading"]["loader"]["needed"] == pytest.approx(100)
    assert "reading here 50.0 clips a second of a process with 2 workers, on 8 cores; 100.0 are trained on: " in text
    assert "training would wait 50% of the time; data.num_workers=4 may suffice" in text
    assert "it keeps up with the 40.0 that are trained on" in tried("--clips-per-second-per-gpu", "40")[1]


def test_why_it_is_not_known_how_reading_keeps_up_is_said(capsys, monkeypatch, tmp_path, tiny_settings):
    _, text = planned(capsys, monkeypatch, tmp_path, "simvtp_demo", *tiny_settings, "--probe", "0")
    assert "not known whether it keeps up: --reading-seconds 0" in text
    assert (
        "not known whether it keeps up: data.train was not looked at"
        in planned(capsys, monkeypatch, tmp_path, "simvtp_base")[1]
    )
    write_lines(tmp_path / "list.jsonl", {"video": "gone.mp4", "caption": "x"}, {"video": "lost.mp4", "caption": "y"})
    settings = (f"data.train={tmp_path / 'list.jsonl'}", "data.num_workers=0", "batch_size=2")
    _, text = planned(capsys, monkeypatch, tmp_path, "simvtp_tiny", *settings, seconds=1)
    assert "not known whether it keeps up: 2 videos in a row cannot be decoded" in text


def test_the_loader_of_a_run_of_few_steps_is_tried_as_any_other(capsys, monkeypatch, tmp_path, tiny_settings):
    given = (*tiny_settings, "steps=2", "optimizer.warmup_steps=0", "data.num_workers=0", "--probe", "0")
    found, text = planned(capsys, monkeypatch, tmp_path, "simvtp_demo", *given, "--step-seconds", "1e-6", seconds=0.5)
    assert found["reading"]["loader"]["clips"] > 0
    assert "training would wait " in text


def test_of_many_texts_a_tokenizer_is_trained_on_some(capsys, monkeypatch, tmp_path, tiny_settings):
    monkeypatch.setattr("fastvtp.training.planned_data._TRAINED_ON", 5)
    seen = []
    train = CaptionTokenizer.train
    noted = lambda texts, vocab_size: seen.append(texts) or train(texts, vocab_size)  # noqa: E731
    monkeypatch.setattr(CaptionTokenizer, "train", noted)
    _, text = planned(capsys, monkeypatch, tmp_path, "simvtp_demo", *tiny_settings, "--probe", "0")
    assert [len(texts) for texts in seen] == [5]
    assert "entries, counted of a tokenizer trained on 5 of the 20 texts" in text
