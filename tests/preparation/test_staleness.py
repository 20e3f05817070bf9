"""Videos that were repaired or replaced since their shards were made: it is said, and `retry` makes these anew."""

import json
import shutil

import pytest

from fastvtp.errors import UserError
from tests.preparation.sets import captioned, digests, quietly, run


@pytest.fixture
def prepared(tmp_path):
    """Six videos in three shards, of which the second has one that is no video."""
    source = captioned(tmp_path / "in", 6)
    shutil.copy(tmp_path / "in" / "2.mp4", tmp_path / "sound.mp4")
    (tmp_path / "in" / "2.mp4").write_bytes(b"no video")
    report = run(source, tmp_path / "out", per_shard=2)
    assert report is not None
    assert report["rejected"]["by_rule"] == {"unreadable": 1}
    return source, tmp_path / "out"


def _manifest(output, name):
    return json.loads((output / f"{name}.json").read_bytes())


def test_what_was_repaired_stays_rejected_until_it_is_tried_again(prepared, tmp_path, caplog):
    source, output = prepared
    shutil.copy(tmp_path / "sound.mp4", tmp_path / "in" / "2.mp4")
    kept = {path: path.stat().st_mtime_ns for path in output.glob("00000[02].*")}
    run(source, output, per_shard=2)
    assert "still rejected as unreadable: 1 clip; --retry makes the shards anew" in caplog.text
    report = run(source, output, per_shard=2, running=quietly(retry=True))
    assert report is not None
    assert (report["samples"], report["rejected"]["count"]) == (6, 0)
    assert {path: path.stat().st_mtime_ns for path in output.glob("00000[02].*")} == kept
    run(source, tmp_path / "fresh", per_shard=2)
    assert digests(output) == digests(tmp_path / "fresh")


def test_a_video_that_was_replaced_is_said(prepared, tmp_path, caplog):
    source, output = prepared
    shutil.copy(tmp_path / "in" / "1.mp4", tmp_path / "in" / "5.mp4")
    before = digests(output)
    run(source, output, per_shard=2)
    assert f"1 video changed since the shards were made: {tmp_path}/in/5.mp4; --retry makes" in caplog.text
    assert digests(output) == before
    (tmp_path / "in" / "4.mp4").unlink()
    caplog.clear()
    run(source, output, per_shard=2)
    assert f"2 videos changed since the shards were made: {tmp_path}/in/4.mp4, {tmp_path}/in/5.mp4" in caplog.text
    report = run(source, output, per_shard=2, running=quietly(retry=True))
    assert report is not None
    assert report["samples"] == 4
    assert digests(output)["000000.tar"] == before["000000.tar"]
    caplog.clear()
    run(source, output, per_shard=2)
    assert "changed since" not in caplog.text


def test_a_job_of_an_array_tries_its_own_again(prepared, tmp_path):
    source, output = prepared
    shutil.copy(tmp_path / "sound.mp4", tmp_path / "in" / "2.mp4")
    report = run(source, output, per_shard=2, running=quietly(retry=True, part=(0, 2)))
    assert report is not None
    assert report["samples"] == 5
    report = run(source, output, per_shard=2, running=quietly(retry=True, part=(1, 2)))
    assert report is not None
    assert report["samples"] == 6


def test_what_is_decided_over_all_clips_is_decided_again(tmp_path):
    """The first video is repaired and is the same as the last, which was kept and now goes, in a shard that was done
    and of which nothing changed."""
    source = captioned(tmp_path / "in", 4)
    shutil.copy(tmp_path / "in" / "3.mp4", tmp_path / "sound.mp4")
    (tmp_path / "in" / "0.mp4").write_bytes(b"no video")
    report = run(source, tmp_path / "out", 2, duplicates="hash")
    assert report is not None
    assert report["samples"] == 3
    shutil.copy(tmp_path / "sound.mp4", tmp_path / "in" / "0.mp4")
    with pytest.raises(UserError, match=r"retry of what is decided over all clips is one job's: leave shard out"):
        run(source, tmp_path / "out", 2, quietly(retry=True, part=(0, 2)), duplicates="hash")
    run(source, tmp_path / "fresh", 2, duplicates="hash")
    report = run(source, tmp_path / "out", 2, quietly(retry=True), duplicates="hash")
    assert report is not None
    assert report["rejected"]["by_rule"] == {"duplicate": 1}
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")
    assert _manifest(tmp_path / "out", "000001")["samples"] == 1
