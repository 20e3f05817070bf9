"""What is said of clips before a run is what the run shows."""

import itertools

import numpy as np
import pytest
from PIL import Image

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.draws import draws_of
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.data.timespans import FrameSpan
from fastvtp.errors import UserError
from tests.data.clips import decode_upright, write_clip
from tests.data.loaders import make_loader
from tests.data.test_frame_times import UNEVEN_MS
from tests.data.test_span_clips import H264

SHAPE = ClipShape(5, (48, 64))
READING = ClipReading(sampling="strided", fps=3.0, crop_scale=(0.3, 1.0))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of footage that is not square, not of a constant rate, turned, long, in spans, and one of a file that is
    none; and how each of the first is shown by a plain loop."""
    folder = tmp_path_factory.mktemp("shown")
    vfr = write_clip(folder / "vfr.mp4", 90, height=128, width=320, pts=(UNEVEN_MS * 8).tolist(), **H264)
    turned = write_clip(folder / "turned.mp4", 120, height=96, width=256, fps=24, rotation=90, **H264)
    (folder / "none.mp4").write_bytes(b"nothing")
    return [
        VideoRecord("vfr", str(vfr), ("one", "two", "three")),
        VideoRecord("span", str(vfr), ("a span",), start=20.0, end=50.0),
        VideoRecord("turned", str(turned), ("goes to the left",)),
        VideoRecord("frames", str(turned), ("some",), frames=FrameSpan(30, 100)),
        VideoRecord("none", str(folder / "none.mp4"), ("nothing",)),
    ]


@pytest.fixture(scope="module")
def pictures(records):
    return {path: decode_upright(path) for path in {record.video for record in records[:4]}}


def remade(said, pictures):
    """The clip of what is said alone: a plain loop's frames, cut, scaled by Pillow, mirrored."""
    height, width = pictures[said["video"]].shape[1:3]
    y0, x0, y1, x1 = said["window"]
    box, size = (x0 * width, y0 * height, x1 * width, y1 * height), (said["size"][1], said["size"][0])
    frames = [
        np.asarray(Image.fromarray(pictures[said["video"]][index]).resize(size, Image.Resampling.BILINEAR, box=box))
        for index in said["frames"]
    ]
    return np.stack(frames)[:, :, ::-1] if said["flip"] else np.stack(frames)


def test_the_pixels_follow_from_what_is_said(records, pictures):
    draws = list(draws_of(records, SHAPE, READING, seed=4, epoch=2, clips=20))
    assert {draw.said["id"] for draw in draws} == {"vfr", "span", "turned", "frames"}
    assert {draw.said["flip"] for draw in draws} == {True, False}
    assert not any(draw.said["flip"] for draw in draws if draw.said["id"] == "turned")
    for draw in draws:
        assert draw.frames.shape == (5, 48, 64, 3)
        off = np.abs(draw.frames.astype(int) - remade(draw.said, pictures))
        assert off.mean() < 6, draw.said
        other = {**draw.said, "frames": [(index + 20) % 80 for index in draw.said["frames"]]}
        assert np.abs(draw.frames.astype(int) - remade(other, pictures)).mean() > off.mean()


def test_times_and_spans_are_those_of_the_file(records):
    for draw in draws_of(records, SHAPE, READING, seed=4, clips=15):
        said, record = draw.said, draw.record
        expected = UNEVEN_MS / 1000 if record.id in ("vfr", "span") else np.arange(120) / 24
        np.testing.assert_allclose(said["seconds"], expected[said["frames"]], atol=1e-9)
        assert (said["start"], said["end"]) == (record.start, record.end)
        assert (said.get("start_frame"), said.get("end_frame")) == (
            (30, 100) if record.id == "frames" else (None, None)
        )
        assert said["caption"] in record.captions
        if record.id == "frames":
            assert set(said["frames"]) <= set(range(30, 100))


@pytest.mark.parametrize("reading", [READING, ClipReading(augmentation=ClipAugmentation("rand-m7-n4", 0.9))])
def test_they_are_the_clips_of_a_run_of_that_seed(records, reading):
    """In whatever batches, and from the first of the epoch on."""
    draws = list(draws_of(records, SHAPE, reading, seed=9, epoch=1, clips=7))
    settings = {"num_frames": 5, "image_size": (48, 64), "train": True, "seed": 9, "batch_size": 4, "num_workers": 0}
    own = ("sampling", "fps", "frame_stride", "crop_scale", "augmentation")
    settings |= {name: getattr(reading, name) for name in own}
    with make_loader(records, None, num_steps=3, **settings) as loader:
        clips = [clip for batch in loader for clip in zip(batch.video.numpy(), batch.captions, strict=True)]
    for draw, (pixels, caption) in zip(draws, clips[5:], strict=True):
        np.testing.assert_array_equal(draw.frames, pixels)
        assert draw.said["caption"] == caption
    assert [draw.said["number"] for draw in draws] == list(range(5, 12))


def test_what_stands_in_for_what_cannot_be_decoded_is_said(records):
    draws = list(draws_of(records, SHAPE, READING, clips=10))
    replaced = [draw.said for draw in draws if draw.said["replaces"]]
    assert {name for said in replaced for name in said["replaces"]} == {records[4].video}
    assert len(replaced) == 2  # once in each of two epochs


def test_augmentation_is_said_too(records):
    reading = ClipReading(augmentation=ClipAugmentation("rand-m7-n4", 0.5))
    draws = [draw.said for draw in draws_of(records, SHAPE, reading, clips=20)]
    assert all(len(said["operations"]) <= 4 for said in draws)
    assert len({name for said in draws for name, _ in said["operations"]}) > 5
    boxes = [said["erased"] for said in draws]
    assert None in boxes
    for y, x, height, width in filter(None, boxes):
        assert 0 <= y < y + height <= 1
        assert 0 <= x < x + width <= 1


def test_whole_pictures(records, pictures):
    for draw in itertools.islice(draws_of(records, ClipShape(3, None), READING, clips=4), 4):
        assert (draw.said["window"], draw.said["flip"]) == ([0, 0, 1, 1], False)
        np.testing.assert_array_equal(draw.frames, pictures[draw.said["video"]][draw.said["frames"]])


def test_no_clip_or_no_epoch_is_refused(records):
    for settings in ({"clips": 0}, {"epoch": -1}):
        with pytest.raises(UserError, match="expected at least one clip and an epoch from 0 on"):
            list(draws_of(records, SHAPE, READING, **settings))
