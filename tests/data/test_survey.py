"""What a data set is found to hold, on files that were made to be so."""

import json
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest

from fastvtp.data.annotations import load_annotations
from fastvtp.data.file_survey import probe_files
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.survey import ALL, read_any, survey
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from tests.data.clips import truncate, write_clip, write_lines
from tests.data.errands import probe_or_fail
from tests.data.test_frame_times import UNEVEN_MS
from tests.data.test_span_clips import H264

VIDEOS = ("plain", "turned", "uneven", "again")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of some kinds, and lists of them."""
    root = tmp_path_factory.mktemp("surveyed")
    write_clip(root / "plain.mp4", 120, height=64, width=160, fps=24, **{**H264, "gop": 30})
    write_clip(root / "turned.mp4", 48, height=48, width=128, fps=24, rotation=90, **H264)
    write_clip(root / "uneven.mp4", 90, height=64, width=160, pts=(UNEVEN_MS * 8).tolist(), **H264)
    shutil.copy(root / "plain.mp4", root / "again.mp4")
    shutil.copy(root / "plain.mp4", root / "other.mp4")
    truncate(root / "plain.mp4", root / "cut.mp4", 0.4)
    same_size = bytearray((root / "plain.mp4").read_bytes())
    same_size[-1] ^= 1
    (root / "nearly.mp4").write_bytes(same_size)
    captions = ("a dog runs to the left", ["un chien", "le chien s'éloigne"], "a dog sits", "a dog sits")
    rows = [{"video": f"{name}.mp4", "caption": caption} for name, caption in zip(VIDEOS, captions, strict=True)]
    write_lines(root / "train.jsonl", *rows, {"video": "uneven.mp4", "caption": "a span", "start": 20, "end": 30})
    write_lines(
        root / "bad.jsonl",
        *rows[:2],
        {"video": "cut.mp4", "caption": "cut"},
        {"video": "gone.mp4", "caption": "gone"},
        {"video": "plain.mp4", "caption": "late", "start": 60},
        {"video": "plain.mp4", "caption": "late frames", "start_frame": 500},
    )
    write_lines(root / "test.jsonl", rows[1], {"video": "other.mp4", "caption": "a dog sits"})
    write_lines(root / "both.jsonl", *({"video": f"{name}.mp4", "caption": "x"} for name in ("other", "plain")))
    write_lines(root / "nearly.jsonl", {"video": "nearly.mp4", "caption": "x"})
    return root


def found(folder, name, **settings):
    others = [read_any(folder / other) for other in settings.pop("against", ())]
    return survey(read_any(folder / name), against=others, **settings)


def test_a_list_is_counted_without_opening_videos(folder):
    report = found(folder, "train.jsonl")
    assert (report["kind"], report["records"], report["videos"], report["spans"]) == ("captions", 5, 4, 1)
    assert report["bytes"] == sum((folder / f"{name}.mp4").stat().st_size for name in VIDEOS)
    captions = report["captions"]
    assert (captions["count"], captions["distinct"], captions["of_several_records"], captions["empty"]) == (6, 5, 1, 0)
    assert captions["words"] == {"min": 2, "median": 3, "mean": pytest.approx(19 / 6, abs=1e-3), "p95": 5.25, "max": 6}
    assert captions["captions_a_record"]["max"] == 2
    assert captions["tokens"] is None
    assert captions["not_ascii"] == pytest.approx(1 / 6)
    assert captions["name_a_direction"] == pytest.approx(1 / 6)
    assert captions["not_mirrored"] == pytest.approx(1 / 5)
    assert (report["missing"], report["probe"], report["same_bytes"], report["unusable"]) == ({}, None, None, 0)


def test_tokens_are_those_of_the_tokenizer(folder):
    texts = [text for record in load_annotations(folder / "train.jsonl") for text in record.captions]
    tokenizer = CaptionTokenizer.train(texts, 60)
    lengths = [len(ids) for ids in tokenizer.encode(texts, 1000)]
    tokens = found(folder, "train.jsonl", tokenizer=tokenizer)["captions"]["tokens"]
    assert (tokens["min"], tokens["max"]) == (min(lengths), max(lengths))
    assert tokens["mean"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-3)


def test_what_is_in_the_files(folder):
    probe = found(folder, "train.jsonl", probe=ALL)["probe"]
    assert (probe["files"], probe["undecodable"], probe["spans_without_a_frame"]) == (4, {}, {})
    assert probe["sizes"] == {"160x64": 3, "48x128": 1}
    assert probe["shapes"] == {"2.5": 3, "0.38": 1}
    assert probe["rotations"] == {"0": 3, "90": 1}
    assert probe["codecs"] == {"h264 yuv420p": 4}
    assert (probe["variable_rate"], probe["interlaced"], probe["mirrored"], probe["pixels_not_square"]) == (1, 0, 0, 0)
    assert (probe["frames"]["min"], probe["frames"]["max"]) == (48, 120)
    assert probe["seconds"]["min"] == pytest.approx(2)
    assert probe["frames_a_keyframe"]["max"] == pytest.approx(30)
    assert 0 < probe["decode_ms"]["min"] <= probe["decode_ms"]["max"] < 5000


def test_some_files_are_opened_evenly_over_the_list(folder, monkeypatch):
    opened = []

    def note(videos, **how):
        opened.extend(videos)
        return probe_files(videos, **how)

    monkeypatch.setattr("fastvtp.data.survey.probe_files", note)
    report = found(folder, "train.jsonl", probe=2)
    assert [path.rsplit("/")[-1] for path in opened] == ["plain.mp4", "uneven.mp4"]
    assert report["probe"]["files"] == 2


def test_files_that_hang_or_end_the_process_are_undecodable_and_hold_nothing_up(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fastvtp.data.file_survey.probe_file", probe_or_fail)
    names = ("plain", "hangs", "dies", "turned", "uneven")
    for name in names:
        source = folder / f"{name}.mp4"
        shutil.copy(source if source.exists() else folder / "plain.mp4", tmp_path / f"{name}.mp4")
    write_lines(tmp_path / "list.jsonl", *({"video": f"{name}.mp4", "caption": "x"} for name in names))
    report = found(tmp_path, "list.jsonl", probe=ALL, file_seconds=1.5, workers=2)
    assert report["probe"]["undecodable"] == {
        f"{tmp_path}/hangs.mp4": "took longer than 1.5 s",
        f"{tmp_path}/dies.mp4": "ended the process that worked on it (SIGSEGV)",
    }
    assert (report["probe"]["files"], report["unusable"]) == (5, 2)


def test_what_was_begun_ends_with_an_interruption(folder, monkeypatch):
    monkeypatch.setattr("fastvtp.data.file_survey.probe_file", probe_or_fail)
    threading.Timer(2.0, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        probe_files({str(folder / "hangs.mp4"): [], str(folder / "plain.mp4"): []}, workers=1)
    assert time.monotonic() - began < 10


def test_what_cannot_be_used_is_named_with_its_reason(folder):
    report = found(folder, "bad.jsonl")
    assert report["missing"] == {f"{folder}/gone.mp4": "No such file or directory"}
    assert report["unusable"] == 1
    report = found(folder, "bad.jsonl", probe=ALL)
    probe = report["probe"]
    assert list(probe["undecodable"]) == [f"{folder}/cut.mp4"]
    assert probe["undecodable"][f"{folder}/cut.mp4"].startswith("truncated")
    said = ("60-end s begins after its 5 s", "frames 500-end begins after its 120 frames")
    assert probe["spans_without_a_frame"] == {f"{folder}/plain.mp4": said}
    assert report["unusable"] == 3


def test_spans_that_end_after_their_videos_are_told_and_can_be_used(folder):
    spans = ({"start": 4, "end": 5}, {"start": 4, "end": 6.25}, {"start_frame": 100, "end_frame": 132}, {"end": 5.0001})
    write_lines(folder / "ends.jsonl", *({"video": "plain.mp4", "caption": "x", **span} for span in spans))
    report = found(folder, "ends.jsonl", probe=ALL)
    late = ("4-6.25 s, by 1.25 s", "frames 100-132, by 0.5 s")  # of 120 frames at 24 a second
    assert report["probe"]["spans_past_the_end"] == {f"{folder}/plain.mp4": late}
    assert (report["probe"]["spans_without_a_frame"], report["unusable"]) == ({}, 0)


def test_the_same_bytes_are_found_within_and_between_sets_whatever_is_opened(folder, monkeypatch):
    monkeypatch.setattr("fastvtp.data.file_survey._END_BYTES", 64)  # less than a file
    report = found(folder, "train.jsonl", against=("test.jsonl", "nearly.jsonl"), probe=1)
    assert report["same_bytes"] == [[f"{folder}/plain.mp4", f"{folder}/again.mp4"]]
    test, nearly = report["against"]
    assert (test["videos"], test["same_video"]) == (2, [f"{folder}/turned.mp4"])
    assert test["same_bytes"] == [[f"{folder}/{name}.mp4", f"{folder}/other.mp4"] for name in ("plain", "again")]
    assert test["same_captions"] == 3
    assert (nearly["same_video"], nearly["same_bytes"], nearly["same_captions"]) == ([], [], 0)
    assert found(folder, "train.jsonl", against=("test.jsonl",))["against"][0]["same_bytes"] is None
    (both,) = found(folder, "train.jsonl", against=("both.jsonl",), probe=1)["against"]
    assert both["same_video"] == [f"{folder}/plain.mp4"]
    assert both["same_bytes"] == [[f"{folder}/again.mp4", f"{folder}/plain.mp4"]]


# --- Other kinds


def test_classes_are_counted(folder, tmp_path):
    lines = [f"{folder}/{name}.mp4 {label}" for name, label in zip((*VIDEOS, "plain"), (0, 3, 0, 0, 0), strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    report = found(tmp_path, "list.csv")
    assert (report["kind"], report["records"], report["captions"]) == ("classes", 5, None)
    assert report["classes"]["count"] == 4
    assert report["classes"]["without_a_video"] == ["1", "2"]
    assert report["classes"]["largest"] == {"0": 4, "3": 1, "1": 0}
    assert len(report["same_clip"]) == 1


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"caption": "x"}, "captions"),
        ({"question": "what?", "answer": "x"}, "questions"),
        ({"label": "x"}, "classes"),
        ({"labels": ["x"]}, "classes"),
        ({}, "videos"),
    ],
)
def test_the_kind_of_a_list_is_told_from_its_fields(folder, tmp_path, fields, kind):
    write_lines(tmp_path / "list.jsonl", {"video": f"{folder}/plain.mp4", **fields})
    listed = read_any(tmp_path / "list.jsonl")
    assert (listed.kind, len(listed.records)) == (kind, 1)


def test_splits_of_one_published_list_are_compared(folder):
    """MSR-VTT's form, of two videos that the folder does not have under their names."""
    shutil.copy(folder / "plain.mp4", folder / "video0.mp4")
    shutil.copy(folder / "plain.mp4", folder / "video7.mp4")
    videos = [{"video_id": f"video{i}", "split": split} for i, split in ((0, "train"), (5, "train"), (7, "test"))]
    sentences = [{"video_id": video["video_id"], "caption": f"text {i}"} for i, video in enumerate(videos)]
    (folder / "videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    listed = VideoList(str(folder / "videodatainfo.json"), missing="keep")
    train, test = (read_any(replace(listed, split=split)) for split in ("train", "test"))
    report = survey(train, against=[test], probe=1)
    assert (report["kind"], report["records"], report["videos"]) == ("captions", 2, 2)
    assert report["data"].endswith("videodatainfo.json, split train")
    assert list(report["missing"]) == [f"{folder}/video5"]
    assert report["against"][0]["same_bytes"] == [[f"{folder}/video0.mp4", f"{folder}/video7.mp4"]]


def test_the_kind_of_a_folder_is_told_from_what_is_in_it(folder, tmp_path):
    for name in ("red", "blue"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        shutil.copy(folder / "turned.mp4", tmp_path / "classes" / name / "a.mp4")
    (tmp_path / "captions").mkdir()
    shutil.copy(folder / "turned.mp4", tmp_path / "captions")
    assert read_any(tmp_path / "classes").kind == "classes"
    assert read_any(tmp_path / "captions").kind == "videos"
    (tmp_path / "captions" / "turned.txt").write_text("it turns\n")
    assert read_any(tmp_path / "captions").kind == "captions"


def test_what_is_no_list_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_any(tmp_path / "nothing.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"video": "a.mp4", "caption": "x"}\n{"video"\n')
    with pytest.raises(UserError, match=r"broken.jsonl, line 2: not JSON"):
        read_any(tmp_path / "broken.jsonl")


def test_ids_that_several_records_have_are_named(folder):
    rows = [{"video": f"{name}.mp4", "caption": "x", "id": "clip"} for name in ("plain", "other")]
    write_lines(folder / "ids.jsonl", *rows, {"video": "uneven.mp4", "caption": "x", "id": "alone"})
    report = found(folder, "ids.jsonl")
    assert report["same_id"] == ["clip"]
    assert report["same_clip"] == []
