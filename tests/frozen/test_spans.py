import json

import pytest
import torch

from fastvtp.errors import UserError
from fastvtp.frozen.spans import load_spans


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def segment(start, end, label="jump"):
    return {"start": start, "end": end, "label": label}


def test_segments_are_shares_of_the_duration(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        {"video": "x.mp4", "duration": 10, "segments": [segment(1, 3.5), segment(0, 10, "run")]},
        {"video": "y.mp4", "id": "second", "duration": 4, "segments": []},
    )
    made = load_spans(path)
    assert made.kind == "segments"
    assert made.class_names == ("jump", "run")
    torch.testing.assert_close(made.spans[0], torch.tensor([[0.1, 0.35], [0.0, 1.0]]))
    assert made.labels[0].tolist() == [[True, False], [False, True]]
    assert (made.spans[1].shape, made.labels[1].shape, made.scores[1].shape) == ((0, 2), (0, 2), (0,))
    assert made.by_id() == {"x.mp4": 0, "second": 1}


def test_boxes_are_shares_of_the_centred_square(tmp_path):
    """Of 200 x 100 pixels the square spans 50 to 150; a box left of it is outside, one across its edge is clipped."""
    boxes = [
        {"box": [75, 20, 125, 80], "labels": ["talk", "sit"]},
        {"box": [0, 0, 100, 50], "labels": ["sit"], "score": 0.5},
        {"box": [0, 0, 50, 100], "labels": ["sit"]},
    ]
    row = {"video": "x.mp4", "width": 200, "height": 100, "boxes": boxes}
    made = load_spans(write_lines(tmp_path / "a.jsonl", row))
    assert (made.kind, made.outside, made.class_names) == ("boxes", 1, ("sit", "talk"))
    torch.testing.assert_close(made.spans[0], torch.tensor([[0.25, 0.2, 0.75, 0.8], [0.0, 0.0, 0.5, 0.5]]))
    assert made.labels[0].tolist() == [[True, True], [True, False]]
    assert made.scores[0].tolist() == [1, 0.5]


BOX = {"video": "x.mp4", "width": 200, "height": 100}
TIME = {"video": "x.mp4", "duration": 10}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (TIME, "line 1: expected a field 'segments' or 'boxes'"),
        ({**TIME, "segments": 3}, "line 1: field 'segments': expected a list, got 3"),
        ({**TIME, "segments": [3]}, "line 1: field 'segments': expected objects, got 3"),
        ({**TIME, "segments": [segment(3, 2)]}, "expected 0 <= start < end <= duration 10, got 3 and 2"),
        ({**TIME, "segments": [segment(3, 12)]}, "expected 0 <= start < end <= duration 10, got 3 and 12"),
        ({**TIME, "segments": [segment("1", 2)]}, "field 'start': expected a number, got '1'"),
        ({**TIME, "segments": [segment(1, 2, "")]}, "field 'label': expected non-empty text, got ''"),
        ({**TIME, "duration": 0, "segments": []}, "field 'duration': expected a positive number, got 0"),
        ({**TIME, "segments": []}, "no segments with a class"),
        ({**BOX, "boxes": [{"box": [1, 2, 3]}]}, r"field 'box': expected \[left, top, right, bottom\]"),
        ({**BOX, "boxes": [{"box": [5, 2, 3, 9], "labels": ["a"]}]}, "expected left < right and top < bottom"),
        ({**BOX, "boxes": [{"box": [1, 2, 3, 9], "labels": "a"}]}, "field 'labels': expected a list of classes"),
        ({"video": "x", "width": 9, "boxes": []}, "field 'height': expected a positive number, got None"),
    ],
)
def test_malformed_lines_are_named(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        load_spans(write_lines(tmp_path / "a.jsonl", row))
    assert "\n" not in str(caught.value)


def test_unknown_classes_and_repeated_videos(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {**TIME, "segments": [segment(1, 2)]})
    assert load_spans(path, ["run", "jump"]).labels[0].tolist() == [[False, True]]
    with pytest.raises(UserError, match="no class 'jump' among the 1 classes of the training set"):
        load_spans(path, ["run"])
    path = write_lines(tmp_path / "a.jsonl", *[{**TIME, "segments": [segment(1, 2)]}] * 2)
    with pytest.raises(UserError, match="expected each video once, with all its segments"):
        load_spans(path)
