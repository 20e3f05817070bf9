import json
from dataclasses import replace

import pytest

from fastvtp.data.reading import ClipReading, ClipShape, one_spacing
from fastvtp.data.sampling import ClipAugmentation, CropSampling, FrameSampling
from fastvtp.errors import UserError
from fastvtp.settings import from_json, setting_names, to_json

READING = ClipReading(
    sampling="strided", frame_stride=2, crop_scale=(0.3, 0.9), crop_ratio=(0.9, 1.2), framing="squash", flip=False
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sampling": "strode"},
            "sampling must be one of strided, uniform, random_sorted, head_tail, .*, got 'strode'",
        ),
        ({"frame_stride": 0}, "frame_stride must be positive, got 0"),
        ({"fps": 0.0, "frame_stride": 1}, "fps must be positive, or none, got 0.0"),
        ({"fps": float("nan"), "frame_stride": 1}, "fps must be positive, or none, got nan"),
        ({"fps": 8}, "fps 8 and frame_stride 2 both say how far frames are apart: give one"),
        ({"crop_scale": (0.9, 0.2)}, r"crop_scale must be two shares, 0 < low <= high <= 1, got \(0.9, 0.2\)"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale must be two shares"),
        ({"crop_scale": (0.5, 1.1)}, "crop_scale must be two shares"),
        ({"crop_ratio": (1.2, 0.9)}, r"crop_ratio must be two shapes, 0 < narrowest <= widest, got \(1.2, 0.9\)"),
        ({"crop_ratio": (0.0, 0.9)}, "crop_ratio must be two shapes"),
        ({"framing": "stretch"}, "framing must be 'crop' or 'squash', got 'stretch'"),
    ],
)
def test_it_checks_itself(change, message):
    with pytest.raises(UserError, match=message):
        replace(READING, **change)


def test_it_says_which_frames_and_which_window():
    assert READING.frames(8) == FrameSampling("strided", 8, 2)
    window = CropSampling(aspect=2.0, scale=(0.3, 0.9), ratio=(0.9, 1.2), flip=False, framing="squash")
    assert READING.window(height=16, width=32) == window
    assert ClipReading().window(16, 16).framing == "crop"


@pytest.mark.parametrize(
    ("before", "given", "after"),
    [
        ({"frame_stride": 4}, {"fps": 6.5}, (1, 6.5)),
        ({"fps": 6.5}, {"frame_stride": 4}, (4, None)),
        ({"fps": 6.5}, {"frame_stride": 1}, (1, 6.5)),
        ({"frame_stride": 4}, {"fps": None}, (4, None)),
        ({"frame_stride": 4}, {"flip": False}, (4, None)),
    ],
)
def test_a_spacing_that_is_given_takes_the_place_of_the_other(before, given, after):
    reading = replace(ClipReading(**before), **one_spacing(given))
    assert (reading.frame_stride, reading.fps) == after
    behind = one_spacing({f"data.{name}": value for name, value in given.items()}, "data.")
    assert behind == {f"data.{name}": value for name, value in one_spacing(given).items()}


def test_the_framing_of_a_reading_that_names_none():
    assert ClipReading().framing is None
    assert ClipReading().framed("squash").framing == "squash"
    assert ClipReading().framed(None).framing == "crop"
    assert READING.framed("crop") == READING


def test_the_record_is_of_what_evaluation_shows():
    record = json.loads(json.dumps(READING.record()))
    assert record == {"sampling": "strided", "frame_stride": 2, "fps": None, "framing": "squash", "aspect": "display"}
    by_time = ClipReading(sampling="strided", fps=12.5)
    assert ClipReading.of_record(json.loads(json.dumps(by_time.record()))) == by_time
    assert ClipReading.of_record({**record, "views": [2, 1]}).record() == record
    earlier = {"sampling": "strided", "frame_stride": 2, "fit": "squash"}
    assert ClipReading.of_record(earlier).record() == record
    assert ClipReading.of_record({}) == ClipReading()
    with pytest.raises(UserError, match="framing must be 'crop' or 'squash', got 'stretch'"):
        ClipReading.of_record({"fit": "stretch"})


def test_json_and_back():
    reading = replace(READING, augmentation=ClipAugmentation(rand_augment="rand-m5-n2"))
    assert from_json(ClipReading, json.loads(json.dumps(to_json(reading)))) == reading
    names = ["sampling", "frame_stride", "fps", "crop_scale", "crop_ratio", "framing", "flip", "aspect", "damaged"]
    assert setting_names(reading) == [*names, "augmentation.rand_augment", "augmentation.erasing"]


def test_shapes():
    assert ClipShape(4, 32).size == (32, 32)
    assert ClipShape(4, (24, 40)).size == (24, 40)
    assert ClipShape(4, None).size is None
    with pytest.raises(UserError, match="num_frames must be positive, got 0"):
        ClipShape(0, 32)
    with pytest.raises(UserError, match=r"image_size must be positive, got \(0, 3\)"):
        ClipShape(4, (0, 3))
