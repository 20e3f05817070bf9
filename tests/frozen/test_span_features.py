"""Features, probes and reports of lists whose lines are spans of their videos."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.errors import UserError
from fastvtp.evaluation.views import left_out
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.features import FeatureSettings, ListedVideos, extract_features
from fastvtp.frozen.localization import report_detections
from fastvtp.frozen.spans import load_spans
from fastvtp.frozen.towers import video_tower
from fastvtp.systems.captioner.features import CachedClips
from fastvtp.systems.captioner.scores import write_caption_lines
from tests.data.clips import barcode_frames, write_clip, write_lines
from tests.frozen.frozen_clips import make_loader
from tests.frozen.towers import make_tower_model

LOSSLESS: dict[str, Any] = {"fps": 8, "pix_fmt": "yuv444p", "options": {"qp": "0"}}
SPANS = [(0.9, 2.3), (2.3, 4.05), (60.0, 70.0), (4.05, None)]  # of 5 s; the third lies behind the end


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A list of spans of one video, the frames of each good span as a file of their own, and features of both."""
    root = tmp_path_factory.mktemp("spans")
    frames = barcode_frames(40, 64, 96)
    write_clip(root / "movie.mp4", frames=frames, **LOSSLESS)
    lines = [{"video": "movie.mp4", "start": start, "end": end, "caption": f"{start}"} for start, end in SPANS]
    write_lines(root / "list.jsonl", *lines)
    for name, first, last in (("a", 8, 19), ("b", 19, 33), ("c", 33, 40)):
        write_clip(root / f"{name}.mp4", frames=frames[first:last], **LOSSLESS)
    write_lines(root / "cut.jsonl", *({"video": f"{name}.mp4"} for name in "abc"))
    for name in ("list", "cut"):
        videos = ListedVideos(load_videos(str(root / f"{name}.jsonl")))
        extract_features(
            video_tower(make_tower_model()),
            videos,
            make_loader((2, 1)),
            root / name,
            FeatureSettings(shard_size=3),
            protocol={"views": (2, 1)},
            progress=False,
        )
    return root


def test_each_span_has_features_of_its_own(place):
    of_spans, of_files = FeatureSet(place / "list"), FeatureSet(place / "cut")
    assert len(of_spans) == 3
    for index in range(3):
        torch.testing.assert_close(of_spans[index], of_files[index])
    assert not torch.allclose(of_spans[0], of_spans[1])


def test_a_feature_folder_keeps_the_spans(place):
    features, listed = FeatureSet(place / "list"), load_videos(str(place / "list.jsonl"))
    good = [record for record in listed if record.start != 60]
    assert [record.named() for record in features.records] == [record.named() for record in good]
    assert features.left_out == {f"{place / 'movie.mp4'} 60-70 s": "span 60-70 s is outside its 5 s"}


def test_a_captioner_finds_the_features_of_the_very_span(place, caplog):
    records = load_annotations(place / "list.jsonl")
    clips = CachedClips(str(place / "list"), records)
    assert [(clip.record, clip.feature) for clip in clips._clips] == [(0, 0), (1, 1), (3, 2)]
    assert "1 of 4 clips have no features there" in caplog.text
    with pytest.raises(UserError, match="none of the 1 videos"):
        CachedClips(str(place / "list"), [replace(records[0], end=2.25)])
    with pytest.raises(UserError, match="none of the 1 videos"):
        CachedClips(str(place / "list"), [replace(records[0], start=None, end=None)])


def test_annotations_of_a_span_fit_features_of_that_span_alone(place):
    features = FeatureSet(place / "list")
    segments = {"duration": 5, "segments": [{"start": 1, "end": 2, "label": "run"}]}
    line = {"video": "movie.mp4", "start": 0.9, "end": 2.3, **segments}
    truth = load_spans(write_lines(place / "truth.jsonl", line))
    assert report_detections({}, truth, features).count == 1
    late = {**line, "start": 4, "end": 5, "id": "late", "segments": []}
    truth = load_spans(write_lines(place / "truth.jsonl", line, late))
    assert report_detections({}, truth, features).left_out == [f"{place / 'movie.mp4'} 4-5 s"]
    other = {**line, "end": 2.5, "id": features.records[0].id}
    with pytest.raises(UserError, match=r"'movie.mp4 0.9-2.3' is of 0.9-2.3, expected 0.9-2.5 as in the annotations"):
        report_detections({}, load_spans(write_lines(place / "truth.jsonl", other)), features)


def test_reports_name_spans(place):
    records = load_annotations(place / "list.jsonl")
    assert left_out(records, [0, 1, 3]) == [f"{place / 'movie.mp4'} 60-70 s"]
    write_caption_lines(place / "captions.jsonl", {1: "a dog", 3: "a cat"}, records)
    lines = [json.loads(line) for line in (place / "captions.jsonl").read_text().splitlines()]
    assert [(line["start"], line["end"]) for line in lines] == [(2.3, 4.05), (4.05, None)]
    again = load_annotations(place / "captions.jsonl")
    assert [replace(record, captions=()) for record in again] == [
        replace(records[index], captions=()) for index in (1, 3)
    ]
