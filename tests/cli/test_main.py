import json
import logging
import sys
from pathlib import Path

import pytest

from fastvtp.cli import main as cli
from fastvtp.data.synthetic import SyntheticConfig
from tests.training.labelled import settings


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `fastvtp ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["fastvtp", *arguments])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_doctor_names_every_op_and_its_backend(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = run(capsys, monkeypatch, "doctor")
    assert status == 0, err
    import fastvtp_kernels

    for op in ("varlen_attention", "tubelet_embed", "contrastive_loss", "tube_mask"):
        assert op in out
        assert hasattr(fastvtp_kernels, op)
    assert "reference" in out
    assert "torch" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", "simvtp_demo", "data.flipp=1"), "did you mean 'data.flip'"),
        (("pretrain", "simvtp_dem"), "did you mean 'simvtp_demo'"),
        (("pretrain", "simvtp_tiny", "data.train=absent.jsonl"), "data.train=absent.jsonl does not exist"),
        (("evaluate", "absent/run/model", "x.jsonl"), "absent/run/model is no folder"),
        (("demo", "data.train=mine.jsonl"), "the demo makes its own videos"),
        (("demo", "--preset", "oficial"), "did you mean 'official'"),
        (("finetune", "qa_finetun"), "did you mean 'qa_finetune'"),
        (("finetune", "qa_finetune_tiny", "data.train=tests", "init=absent"), "init=absent does not exist"),
        (("finetune", "qa_finetune_tiny", "data.train=tests", "init=none"), "expected a .jsonl file of questions"),
        (("evaluate", "absent", "x.jsonl", "--views", "3"), "--views expects two numbers such as 3,15, got '3'"),
        (("evaluate", "absent", "x.jsonl", "--views", "3x5"), "absent is no folder"),
        (("evaluate", "absent", "x.jsonl", "--precision", "half"), "precision must be 'float32' or 'bfloat16'"),
        (("finetune", "simvtp_tiny"), "simvtp_tiny is no recipe of `fastvtp finetune`: use `fastvtp pretrain simvtp"),
        (("pretrain", "alpro_msvd_qa"), "alpro_msvd_qa is no recipe of `fastvtp pretrain`: use `fastvtp finetune al"),
    ],
)
def test_user_errors_are_one_line(capsys, monkeypatch, arguments, message):
    status, _, err = run(capsys, monkeypatch, *arguments)
    assert status == 2
    assert message in err
    assert err.startswith("fastvtp: ")
    assert err.count("\n") == 1


def test_pretrain_evaluate_visualize(capsys, monkeypatch, tiny_settings, captioned_videos, tmp_path):
    run_dir, test = tmp_path / "run", str(captioned_videos / "test.jsonl")
    status, out, err = run(capsys, monkeypatch, "pretrain", "simvtp_demo", "--quiet", *tiny_settings)
    assert status == 0, err
    assert "6 steps, 0 undecodable files" in out

    status, out, err = run(
        capsys, monkeypatch, "evaluate", str(run_dir), test, "--output", str(tmp_path / "eval"), "--quiet"
    )
    assert status == 0, err
    report = json.loads((tmp_path / "eval/report.json").read_text())
    assert report["retrieval"] == json.loads((run_dir / "report.json").read_text())["retrieval"]
    assert json.loads(out) == report
    assert (report["views"], report["sampling"], report["framing"]) == ([1, 1], "uniform", "crop")
    assert "frame_stride" not in report

    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    status, out, err = run(
        capsys, monkeypatch, "visualize", str(newest), test, "--output", str(tmp_path / "pictures"), "--clips", "2"
    )
    assert status == 0, err
    for line in out.split():
        assert Path(line).stat().st_size > 1000
    bad = tmp_path / "bad"
    status, _, err = run(
        capsys, monkeypatch, "visualize", str(run_dir), test, "--output", str(bad), "--framing", "stretch"
    )
    assert (status, err) == (2, "fastvtp: framing must be 'crop' or 'squash', got 'stretch'\n")
    assert not bad.exists()


def test_finetune_and_evaluate(capsys, monkeypatch, captioned_videos, tmp_path):
    run_dir, test = tmp_path / "run", captioned_videos / "test_questions.jsonl"
    overrides = settings(captioned_videos / "train_questions.jsonl", run_dir)
    status, out, err = run(capsys, monkeypatch, "finetune", "qa_finetune_tiny", "--quiet", *overrides)
    assert status == 0, err
    assert "6 steps, 0 undecodable files" in out

    options = ["--views", "2x1", "--sampling", "strided", "--output", str(tmp_path / "eval"), "--quiet"]
    options += ["--num-workers", "0", "--batch-size", "5", "--precision", "bfloat16"]
    options += ["--train-data", str(captioned_videos / "train_questions.jsonl")]
    status, out, err = run(capsys, monkeypatch, "evaluate", str(run_dir), str(test), *options)
    assert status == 0, err
    report = json.loads(out)
    assert report["num_test"] == 24
    assert (report["views"], report["sampling"], report["frame_stride"]) == ([2, 1], "strided", 4)
    assert report["question_answering"]["accuracy"] >= 0
    assert report["question_answering"]["majority_by_kind"] > 0
    assert len((tmp_path / "eval/predictions.jsonl").read_text().splitlines()) == 24

    for command in (
        ("evaluate", str(run_dir), str(captioned_videos / "test.jsonl")),
        ("visualize", str(run_dir), test),
    ):
        status, _, err = run(capsys, monkeypatch, *map(str, command))
        assert status == 2
        assert "field 'question'" in err or "pictures are of simvtp and alpro, this model is a video_qa" in err
        assert err.count("\n") == 1


def test_finetune_prints_the_scores(capsys, monkeypatch, captioned_videos, tmp_path):
    for recipe, data, shown in (
        ("qa_finetune_tiny", "train_questions.jsonl", "majority_by_kind"),
        ("retrieval_finetune_tiny", "train.jsonl", "t2v: R1"),
    ):
        path = captioned_videos / data
        overrides = [*settings(path, tmp_path / recipe, "steps=1"), f"data.test={path}"]
        status, out, err = run(capsys, monkeypatch, "finetune", recipe, "--quiet", *overrides)
        assert status == 0, err
        assert shown in out


def test_entities_by_a_word_list(capsys, monkeypatch, captioned_videos, tmp_path):
    (tmp_path / "words.txt").write_text("background\nzebra\n")
    arguments = ("entities", str(captioned_videos / "train.jsonl"), "--output", str(tmp_path / "entities.txt"))
    status, out, err = run(capsys, monkeypatch, *arguments, "--words", str(tmp_path / "words.txt"))
    assert status == 0, err
    assert "1 entity of 20 captions" in out
    assert (tmp_path / "entities.txt").read_text() == "background\n"
    monkeypatch.setitem(sys.modules, "nltk.tag.perceptron", None)
    status, _, err = run(capsys, monkeypatch, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert "or give a word list" in err


def test_demo_end_to_end(capsys, monkeypatch, tiny_settings, tmp_path):
    monkeypatch.setattr(
        "fastvtp.data.synthetic.SyntheticConfig",
        lambda seed: SyntheticConfig(num_train=12, num_test=6, num_frames=8, height=64, width=64, seed=seed),
    )
    settings = [s for s in tiny_settings if not s.startswith(("data.train", "data.test"))]
    for _ in range(2):  # the second time everything is there, and the result the same
        status, out, err = run(capsys, monkeypatch, "demo", "--quiet", *settings)
        assert status == 0, err
        assert "t2v: R1" in out
    for name in ("report.json", "reconstruction.png", "reconstruction.gif", "gallery.html", "curves.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_unknown_backend_in_the_environment_is_one_line(capsys, monkeypatch, tiny_settings):
    monkeypatch.setenv("FASTVTP_BACKEND", "tritn")
    status, _, err = run(capsys, monkeypatch, "pretrain", "simvtp_demo", "--quiet", *tiny_settings)
    assert status == 2
    assert "unknown backend 'tritn' (FASTVTP_BACKEND=tritn)" in err
    status, out, _ = run(capsys, monkeypatch, "doctor")
    assert status == 0
    assert "tritn" in out
