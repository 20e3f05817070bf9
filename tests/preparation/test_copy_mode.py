"""Shards of videos that are cut at keyframes and not encoded: their lists show exactly what was asked for."""

import json

import av
import numpy as np
import pytest

from fastvtp.data.annotations import load_annotations
from fastvtp.data.video.decoding import Video
from fastvtp.errors import UserError
from fastvtp.preparation.settings import ClipEncoding, ClipFilters, Preparation
from tests.cli.test_main import run as run_command
from tests.data.clips import decode_upright, write_clip, write_lines
from tests.preparation.sets import described, digests, members, pictures, run

B_FRAMES = {"x264-params": "cpu-independent=1:bframes=3:b-adapt=0:scenecut=0"}
ROWS = [
    {"video": "a.mp4", "caption": "all", "id": "whole"},
    {"video": "a.mp4", "caption": "some", "id": "seconds", "start": 0.7, "end": 1.55},
    {"video": "a.mp4", "caption": "others", "id": "frames", "start_frame": 26, "end_frame": 40},
    {"video": "a.mp4", "caption": "a group of pictures", "id": "even", "start": 1.0, "end": 1.5},
    {"video": "b.webm", "caption": "of another codec", "id": "vp8"},
]


@pytest.fixture
def listed(tmp_path):
    write_clip(tmp_path / "a.mp4", frames=pictures(0, 48, 72, 96), fps=24, gop=12, options=B_FRAMES, rotation=90)
    write_clip(tmp_path / "b.webm", codec="libvpx")
    return write_lines(tmp_path / "train.jsonl", *ROWS)


def shown(record):
    with Video(record.video) as video:
        frames = range(video.num_frames) if record.span is None else record.span.frames_of(video)
        return video.read(frames), video.seconds[frames.start : frames.stop]


def test_the_list_of_copies_shows_what_the_list_of_sources_shows(tmp_path, listed):
    report = run(listed, tmp_path / "out", codec="copy")
    before = {record.id: record for record in load_annotations(listed) if record.id != "vp8"}
    for source in (tmp_path / "out", tmp_path / "out" / "000000.tar"):
        after = {record.captions: record for record in load_annotations(source)}
        assert len(after) == len(before) == 4
        for record in before.values():
            (want, when), (got, times) = shown(record), shown(after[record.captions])
            np.testing.assert_array_equal(got, want)
            np.testing.assert_allclose(times - times[0], when - when[0], atol=1e-6)
    assert report is not None
    assert report["rejected"]["by_rule"] == {"copy": 1}
    assert report["rejected"]["clips"][0]["reason"] == "mp4 cannot hold its codec, vp8"
    assert report["copied"]["clips"] == 4
    # frames 12 to 38 for 17 to 37, 24 to 40 for 26 to 39; B frames may bring one more
    assert (48 + 27 + 17 + 12) / 24 - 0.15 < report["copied"]["seconds"] < (48 + 28 + 18 + 12) / 24 + 0.15
    assert report["frames"] == 48 + 21 + 14 + 12
    assert "Copied from keyframes on" in (tmp_path / "out" / "report.html").read_text()


def test_the_manifest_says_what_a_copy_holds(tmp_path, listed):
    run(listed, tmp_path / "out", codec="copy")
    clips = json.loads((tmp_path / "out" / "000000.json").read_bytes())["clips"]
    told = {clip["id"]: clip for clip in clips}
    copied = told["seconds"]["copied"]
    assert [copied[name] for name in ("first", "stop", "start")] == [5, 26, 0.5]
    assert 27 <= copied["frames"] <= 28  # the frame behind, and what it is predicted from
    assert copied["end"] == pytest.approx(40 / 24, abs=0.05)
    assert (told["seconds"]["start"], told["seconds"]["end"]) == (0.7, 1.55)
    assert (told["seconds"]["frames"], told["seconds"]["span"]) == (21, {"start_frame": 5, "end_frame": 26})
    assert told["whole"]["span"] == told["even"]["span"] == {}
    rows = {row["id"]: row for row in described(tmp_path / "out" / "000000.tar")}
    assert (rows["seconds"]["start_frame"], rows["seconds"]["end_frame"]) == (5, 26)
    assert "start_frame" not in rows["whole"]
    assert rows["seconds"]["clip"]["copied"] == told["seconds"]["copied"]
    assert (rows["seconds"]["clip"]["codec"], rows["seconds"]["clip"]["height"]) == ("h264", 96)
    assert "motion" not in rows["seconds"]["scores"]  # nobody asked for it, and it takes decoding


def test_nothing_is_encoded_and_the_same_shards_come_again(tmp_path, listed):
    for name in ("one", "two"):
        run(listed, tmp_path / name, codec="copy")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    content = members(tmp_path / "one" / "000000.tar")["0000000000.mp4"]
    assert content.index(b"moov") < content.index(b"mdat")

    def packets(path):
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0)]

    (tmp_path / "clip.mp4").write_bytes(content)
    assert packets(tmp_path / "clip.mp4") == packets(tmp_path / "a.mp4")
    np.testing.assert_array_equal(decode_upright(tmp_path / "clip.mp4"), decode_upright(tmp_path / "a.mp4"))


def test_videos_of_tars_are_copied_where_they_lie(tmp_path, listed):
    run(listed, tmp_path / "one", codec="copy")
    run(tmp_path / "one" / "captions.jsonl", tmp_path / "two", codec="copy")
    for name in (0, 1, 2, 3):
        (first, when), (second, times) = (shown(load_annotations(tmp_path / each)[name]) for each in ("one", "two"))
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(when - when[0], times - times[0], atol=1e-6)


def test_filters_that_need_pictures_decode_them(tmp_path, listed):
    run(listed, tmp_path / "encoded")
    report = run(listed, tmp_path / "out", codec="copy", min_motion=0.001)
    assert report is not None
    assert report["samples"] == 4
    motion = [[clip["scores"]["motion"] for clip in described(tmp_path / name / "000000.tar")]
              for name in ("encoded", "out")]  # fmt: skip
    np.testing.assert_allclose(motion[1], motion[0][:4], atol=0.2)
    with pytest.raises(UserError, match=r"no clip is left \(motion 4, copy 1\)"):
        run(listed, tmp_path / "still", codec="copy", min_motion=250)


@pytest.mark.parametrize(("name", "value"), [("short_side", 224), ("fps", 8.0), ("gop", 3), ("crf", 22)])
def test_what_a_copy_cannot_change_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"codec=copy leaves pictures as they are encoded: leave {name} out"):
        ClipEncoding(codec="copy", **{name: value})


def test_the_command_refuses_and_tells(tmp_path, listed, capsys, monkeypatch):
    arguments = ["prepare", str(listed), str(tmp_path / "out"), "--codec", "copy", "--workers", "1", "--quiet"]
    status, _, err = run_command(capsys, monkeypatch, *arguments, "--short-side", "224")
    assert status == 2
    assert "leave short_side out" in err
    assert not (tmp_path / "out").exists()
    status, out, _ = run_command(capsys, monkeypatch, *arguments)
    assert status == 0
    assert "copied from keyframes on, not encoded: " in out


def test_settings_that_were_not_said_are_recorded_as_what_they_come_to():
    described = Preparation(encoding=ClipEncoding(), filters=ClipFilters()).described()
    assert [described[name] for name in ("short_side", "gop", "crf", "codec")] == [224, 3, 22, "h264"]
    copied = Preparation(encoding=ClipEncoding(codec="copy")).described()
    assert [copied[name] for name in ("short_side", "fps", "gop", "crf", "codec")] == [None, None, None, None, "copy"]
