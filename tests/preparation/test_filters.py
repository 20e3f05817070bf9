"""Each filter rejects what it should, with its rule and reason, and leaves scores beside the rest."""

import shutil

import numpy as np
import pytest

from fastvtp.errors import UserError
from tests.data.clips import write_clip, write_lines
from tests.preparation.sets import captioned, described, pictures, run


def rejected(report):
    return [(each["id"], each["rule"], each["reason"]) for each in report["rejected"]["clips"]]


def test_durations_of_spans(tmp_path):
    write_clip(tmp_path / "a.mp4", 40, fps=10)
    spans = {"short": (0, 0.5), "right": (0, 2), "long": (0, 4), "beyond": (2.5, 99)}
    rows = ({"video": "a.mp4", "id": name, "start": start, "end": end} for name, (start, end) in spans.items())
    report = run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out", min_seconds=1, max_seconds=3)
    assert rejected(report) == [
        ("short", "duration", "0.5 s, expected 1 to 3"),
        ("long", "duration", "4 s, expected 1 to 3"),
    ]
    assert report["samples"] == 2


def test_resolution(tmp_path):
    for name, height in (("a", 48), ("b", 64)):
        write_clip(tmp_path / f"{name}.mp4", 8, height, 96)
    rows = [{"video": f"{name}.mp4"} for name in "ab"]
    report = run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out", min_side=60)
    assert rejected(report) == [("a.mp4", "resolution", "shorter side 48, expected at least 60")]


def test_motion(tmp_path):
    """One clip stands still; the other rises by 16 levels a frame, 8 frames a second."""
    write_clip(tmp_path / "still.mp4", 10, frames=np.full((10, 32, 32, 3), 90, np.uint8))
    rising = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.full((1, 32, 32, 3), 16, np.uint8) + 40
    write_clip(tmp_path / "moving.mp4", 10, frames=rising)
    rows = [{"video": f"{name}.mp4"} for name in ("still", "moving")]
    report = run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out", min_motion=1)
    assert rejected(report) == [("still.mp4", "motion", "motion 0, expected at least 1")]
    (kept,) = described(tmp_path / "out" / "000000.tar")
    assert kept["scores"]["motion"] == pytest.approx(16, abs=1)


def test_words(tmp_path):
    """Texts outside go, from the clip and from the list; a clip whose texts all go goes with them."""
    write_clip(tmp_path / "a.mp4", 8)
    write_clip(tmp_path / "b.mp4", 8)
    rows = [
        {"video": "a.mp4", "caption": ["one", "one two three", "a b c d e"]},
        {"video": "a.mp4", "caption": "x"},
        {"video": "b.mp4", "caption": "just two"},
    ]
    report = run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out", min_words=3, max_words=4)
    assert rejected(report) == [("b.mp4", "words", "no text of 3 to 4 words, the longest has 2")]
    (kept,) = described(tmp_path / "out" / "000000.tar")
    assert (kept["caption"], kept["scores"]["words"]) == (["one two three"], 3)
    assert len((tmp_path / "out" / "captions.jsonl").read_text().splitlines()) == 1


def test_duplicates_by_hash_over_all_shards(tmp_path):
    """A copy, and one at another size and quality, two shards on; the first of them stays."""
    source = captioned(tmp_path / "in", 8, height=64, width=96)
    shutil.copy(tmp_path / "in" / "0.mp4", tmp_path / "in" / "5.mp4")
    write_clip(tmp_path / "in" / "7.mp4", frames=pictures(1, 8, 128, 192), options={"crf": "35"})
    report = run(source, tmp_path / "out", per_shard=2, duplicates="hash", duplicate_bits=32)
    found = {name: (rule, reason) for name, rule, reason in rejected(report)}
    assert {*found} == {"v5", "v7"}
    assert found["v5"] == ("duplicate", "looks like v0 (0 of 256 bits differ)")
    assert found["v7"][1].startswith("looks like v1 (")
    assert all(len(kept["scores"]["look"]) == 72 for kept in described(tmp_path / "out" / "000000.tar"))


def test_settings_that_need_others_are_refused(tmp_path):
    source = captioned(tmp_path / "in", 1)
    for settings, message in (
        ({"duplicates": "embeddings"}, r"duplicates=embeddings needs a model"),
        ({"min_similarity": 0.2}, r"min_similarity needs similarity"),
        ({"duplicates": "looks"}, r'duplicates must be "hash" or "embeddings"'),
        ({"min_seconds": 3, "max_seconds": 2}, r"max_seconds must be min_seconds or more, got 2"),
        ({"codec": "h265"}, r"no codec 'h265'; did you mean"),
        ({"short_side": 0}, r"short_side must be at least 16 pixels, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            run(source, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
