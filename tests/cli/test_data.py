"""`fastvtp data check` and `fastvtp data show`."""

import json

import numpy as np
import pytest
from PIL import Image

from fastvtp.data.annotations import load_annotations
from fastvtp.data.file_survey import FileProbe
from fastvtp.data.formats.lists import VideoList
from tests.cli.test_main import run
from tests.conftest import tiny_overrides
from tests.data.clips import write_clip, write_lines
from tests.data.test_span_clips import H264


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("a", "b"):
        write_clip(root / f"{name}.mp4", 60, height=48, width=128, fps=24, **H264)
    rows = [{"video": f"{name}.mp4", "caption": f"the [bold] video {name}"} for name in ("a", "b")]
    write_lines(root / "list.jsonl", *rows)
    write_lines(root / "bad.jsonl", *rows, {"video": "gone.mp4", "caption": "gone"})
    return root


@pytest.fixture
def command(capsys, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        return run(capsys, monkeypatch, "data", *arguments)

    return call


def test_a_sound_set_is_checked_on_the_screen_and_as_json(command, folder):
    status, out, _ = command("check", "list.jsonl", "--probe", "all", "--against", "bad.jsonl", "--quiet")
    assert status == 0
    for text in ("list.jsonl: captions", "2 of 2 videos", "2 files opened", "128x48: 2", "shared with other data sets"):
        assert text in out
    assert "cannot be used" not in out
    status, out, _ = command("check", "list.jsonl", "--probe", "1", "--json", "--quiet")
    report = json.loads(out)
    assert (status, report["records"], report["probe"]["files"]) == (0, 2, 1)


def test_what_cannot_be_used_ends_with_the_code_1(command, folder, monkeypatch):
    status, out, _ = command("check", "bad.jsonl", "--quiet")
    assert status == 1
    assert "cannot be used" in out
    assert f"{folder}/gone.mp4" in out
    assert "No such file" in out
    status, out, _ = command("check", "bad.jsonl", "--json", "--quiet")
    assert (status, json.loads(out)["unusable"]) == (1, 1)

    def probed(videos, *, seconds, workers, progress):
        return {video: FileProbe(f"took longer than {seconds:g} s, {workers} at a time") for video in videos}

    monkeypatch.setattr("fastvtp.data.survey.probe_files", probed)
    limit = ("--file-seconds", "7.5", "--workers", "2")
    status, out, _ = command("check", "list.jsonl", "--probe", "all", "--json", "--quiet", *limit)
    assert status == 1
    assert set(json.loads(out)["probe"]["undecodable"].values()) == {"took longer than 7.5 s, 2 at a time"}


def test_all_that_is_wrong_with_lines_is_told_and_ends_with_the_code_1(command, folder):
    rows = [json.dumps({"video": "a.mp4", "caption": "x"})] * 2
    (folder / "lines.jsonl").write_text("\n".join([*rows, *['{"video": 1, "caption": "y"}'] * 7, rows[0], '{"a']))
    status, out, _ = command("check", "lines.jsonl", "--quiet")
    assert status == 1
    assert "8 malformed lines: a run ends at the first" in out
    named = [line for line in out.splitlines() if "field 'video': expected non-empty text, got 1" in line]
    assert [f"lines.jsonl, line {number}:" in line for number, line in enumerate(named, start=3)] == [True] * 5
    assert "and 3 more: --json names all" in out
    assert "2 lines of the same video, span and text as an earlier one, the first" in out
    assert "opened" in out
    assert "none, so damage and ends of spans are not told: --probe N opens some, --probe all every one" in out
    status, out, _ = command("check", "lines.jsonl", "--json", "--quiet")
    report = json.loads(out)
    assert (status, report["unusable"], len(report["malformed"]), report["more_malformed"]) == (1, 8, 8, False)
    assert report["malformed"][-1].endswith("lines.jsonl, line 11: not JSON: Unterminated string starting at column 2")
    assert "of the same video" not in command("check", "list.jsonl", "--quiet")[1]


def test_spans_are_told_where_files_are_opened(command, folder):
    spans = ({"start": 9}, {"start": 2, "end": 4})  # of 2.5 s
    write_lines(folder / "spans.jsonl", *({"video": "a.mp4", "caption": "x", **span} for span in spans))
    assert command("check", "spans.jsonl", "--quiet")[0] == 0
    status, out, _ = command("check", "spans.jsonl", "--quiet", "--probe", "all")
    assert status == 1
    assert "none, so damage" not in out
    assert "spans without a frame: 9-end s begins after its 2.5 s" in out
    assert f"1 span ends after the video, whose end counts: {folder}/a.mp4 2-4 s, by 1.5 s" in out


def test_a_file_has_one_spelling(command, folder, monkeypatch):
    (folder / "deep").mkdir()
    write_lines(folder / "deep/list.jsonl", {"video": "../gone.mp4", "caption": "x"}, {"video": "../a.mp4"})
    monkeypatch.chdir(folder / "deep")
    status, out, err = command("check", "../deep/../deep/list.jsonl", "--quiet")
    assert status == 1
    assert ".." not in out + err
    assert f"{folder}/gone.mp4" in out
    assert f"{folder}/deep/list.jsonl, line 2: field 'caption'" in out


def test_equal_values_make_one_row_and_no_empty_bar(command, folder):
    status, out, err = command("check", "list.jsonl", "--probe", "all")
    assert status == 0
    assert "2.5 s each" in out
    assert "60 each" in out
    assert ", max 60" not in out
    write_lines(folder / "one.jsonl", {"video": "a.mp4", "label": "x"}, {"video": "b.mp4", "label": "y"})
    (folder / "b.mp4").write_bytes((folder / "b.mp4").read_bytes() + b"\0")  # no two files are as large as each other
    status, out, err = command("check", "one.jsonl", "--probe", "1")
    assert "equal sizes" not in err
    assert "probing" in err
    assert "1 each" in out
    assert "largest" not in out


def test_names_are_folded_and_never_cut(command, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = f"{'a_long_name' * 15}.mp4"
    write_lines(folder / "long.jsonl", {"video": name, "caption": "gone"})
    status, out, _ = command("check", "long.jsonl", "--quiet")
    assert status == 1
    assert "…" not in out
    cells = [line.split("│")[1:3] for line in out.partition("cannot be used")[2].splitlines() if "│" in line]
    assert "".join(cell[0].strip() for cell in cells) == f"{folder}/{name}"
    assert "No such file" in " ".join(cell[1].strip() for cell in cells)


def test_missing_videos_are_what_a_run_makes_of_them(command, folder):
    """Of a published list, which names three videos of which two are there, and of paths."""
    write_lines(folder / "names.jsonl", *({"clip_name": name, "caption": name} for name in ("a", "gone", "b")))

    def checked(name, *options):
        status, out, _ = command("check", name, "--json", "--quiet", *options)
        return (status, *(json.loads(out)[field] for field in ("records", "left_out", "missing", "unusable")))

    left_out, absent = "not there, and left out", "No such file or directory"
    assert checked("names.jsonl") == (1, 2, 1, {"gone": left_out}, 1)
    assert checked("names.jsonl", "--missing", "keep") == (1, 3, 0, {f"{folder}/gone": absent}, 1)
    assert checked("bad.jsonl")[:3] == (1, 3, 0)
    assert checked("bad.jsonl", "--missing", "drop") == (1, 2, 1, {"gone.mp4": left_out}, 1)
    for name in ("names.jsonl", "bad.jsonl"):
        status, _, err = command("check", name, "--missing", "refuse")
        assert (status, err.count("\n")) == (2, 1)
        assert "1 of 3 videos are not in" in err
        for policy, becomes in (("drop", "they are left out"), ("keep", "they are kept, and are bad files")):
            assert f"1 missing: {becomes}" in command("check", name, "--missing", policy, "--quiet")[1]
        for policy in ("drop", "keep"):
            told = checked(name, "--missing", policy)[1]
            assert told == len(load_annotations(VideoList(str(folder / name), missing=policy)))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("check", "list.jsonl", "--probe", "some"), "--probe some: expected a number of videos, or all"),
        (("check", "list.jsonl", "--file-seconds", "0"), "--file-seconds 0: expected more than 0"),
        (("check", "nothing.jsonl"), "nothing.jsonl: no such file or folder"),
        (("show", "simvtp_tini"), "no recipe 'simvtp_tini'; did you mean 'simvtp_tiny'?"),
        (("show", "list.jsonl", "frames=3"), "no setting 'frames'; did you mean 'num_frames'?"),
        (("show", "list.jsonl", "fps=3", "frame_stride=2"), "fps 3 and frame_stride 2 both say"),
        (("show", "list.jsonl", "--output", "s.txt"), "--output s.txt: expected the name of a picture, such as"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, complaint):
    status, _, err = command(*arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert complaint in err


def test_a_data_set_is_shown_by_the_settings_given(command, folder):
    settings = ("num_frames=3", "image_size=24,40", "sampling=strided", "data.fps=6", "flip=false")
    status, out, _ = command(
        "show", "list.jsonl", *settings, "--clips", "3", "--output", "s/sheet.png", "--json", "d.json"
    )
    assert (status, out) == (0, "3 clips of 2 records in s/sheet.png, the draws in d.json\n")
    draws = json.loads((folder / "d.json").read_text())
    assert [draw["size"] for draw in draws] == [[24, 40]] * 3
    for draw in draws:
        assert np.diff(draw["frames"]).tolist() == [4, 4]
        assert not draw["flip"]
        assert set(draw) >= {"id", "video", "start", "end", "frames", "seconds", "window", "flip", "caption"}
    with Image.open(folder / "s" / "sheet.png") as sheet:
        assert sheet.width > 3 * 40
        assert sheet.height > 3 * 24
    command(
        "show", "list.jsonl", *settings, "--clips", "3", "--seed", "1", "--json", "e.json", "--output", "s/sheet.png"
    )
    assert json.loads((folder / "e.json").read_text()) != draws


def test_a_recipe_is_shown_at_its_size_by_its_reading(command, folder, captioned_videos, tmp_path):
    given = [*tiny_overrides(captioned_videos, tmp_path / "run"), "seed=5", "data.sampling=strided", "data.fps=4"]
    outputs = ("--output", str(tmp_path / "sheet.png"), "--json", str(tmp_path / "draws.json"), "--clips", "4")
    status, out, err = command("show", "simvtp_tiny", *given, *outputs)
    assert (status, out.split(" in ")[0]) == (0, "4 clips of 20 records"), err
    draws = json.loads((tmp_path / "draws.json").read_text())
    assert [(len(draw["frames"]), draw["size"]) for draw in draws] == [(4, [32, 32])] * 4
    assert not (tmp_path / "run").exists()
    seeded = (*outputs[:2], "--json", str(tmp_path / "seeded.json"), *outputs[4:], "--seed", "5")
    command("show", "simvtp_tiny", *(text for text in given if text != "seed=5"), *seeded)
    assert json.loads((tmp_path / "seeded.json").read_text()) == draws


def test_a_list_behind_a_url_is_called_by_it(command, folder):
    fsspec = pytest.importorskip("fsspec")
    memory, row = fsspec.filesystem("memory"), {"video": f"{folder}/a.mp4", "caption": "a"}
    memory.pipe_file("/check/list.jsonl", json.dumps(row).encode())
    memory.pipe_file("/check/bad.jsonl", json.dumps(row).encode() + b"\n{}\n")
    status, out, err = command("check", "memory://check/list.jsonl", "--quiet")
    assert (status, "memory://check/list.jsonl: captions" in out) == (0, True)
    assert "fastvtp-lists-" not in out + err
    status, out, err = command("check", "memory://check/bad.jsonl", "--quiet")
    assert status == 1
    assert "memory://check/bad.jsonl, line 2: field 'caption'" in " ".join(out.split())
    assert "fastvtp-lists-" not in out + err
