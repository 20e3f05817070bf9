"""Colours of DALI's decoder, put right in its graph or left to PyAV: within 4 levels of PyAV's and of the standard."""

import io

import av
import numpy as np
import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.dali_trial import conversions, patches_as, patches_clip, patches_of
from fastvtp.data.video.colours import Colours, correction, levels_lost
from fastvtp.data.wordpiece import CaptionTokenizer
from tests.data.loaders import make_loader

BT709, UNSAID, BT601, SMPTE240, BT2020 = 1, 2, 6, 7, 9
TAGS = [Colours(space, full) for space in (BT709, UNSAID, BT601, SMPTE240, BT2020) for full in (False, True)]
SUFFIX = {"vp9": "webm", "mjpeg": "avi", "h264": "mp4"}


def landscape(codec, full, saturation):
    """Smooth pictures in YUV like a landscape's: a bright sky, a dark ground, colours of the given share of the most.

    They use the blacks and whites of their range, and are smooth because decoders differ in how they enlarge chroma.
    """
    y, x = np.mgrid[0:128, 0:192] / np.array([128.0, 192.0])[:, None, None]
    low, high = (0, 255) if full else (16, 235)
    luma = low + (high - low) * (0.05 + 0.9 * (1 - y) * (0.8 + 0.2 * np.sin(6 * x)))
    room = 112 * saturation * (4 * (luma - low) * (high - luma) / (high - low) ** 2).clip(0, 1)
    blue, red = 128 + room * np.cos(5 * x), 128 + room * np.sin(5 * x) * np.cos(3 * y)
    planes = [luma, blue[::2, ::2], red[::2, ::2]]
    packed = np.concatenate([plane.round().astype(np.uint8).reshape(-1) for plane in planes]).reshape(192, 192)
    frame = av.VideoFrame.from_ndarray(packed, format="yuvj420p" if codec == "mjpeg" else "yuv420p")
    return [frame, frame]


def shown(path, decoder, size=None):
    """The first frame, int16 `[H, W, 3]`."""
    tokenizer = CaptionTokenizer.train(["x"], 50)
    how = {"num_frames": 1, "max_text_length": 8, "batch_size": 1, "image_size": size, "num_workers": 0}
    with make_loader([VideoRecord("x", str(path), ("x",))], tokenizer, train=False, decoder=decoder, **how) as loader:
        (batch,) = list(loader)
        assert loader.bad_files == {}
        return batch.video[0, 0].to(torch.int16).numpy()


@pytest.mark.parametrize(("codec", "colours"), [*(("vp9", tag) for tag in TAGS), ("mjpeg", Colours(BT601, True))])
def test_flat_patches_have_the_colours_of_the_standard(tmp_path, codec, colours):
    path = tmp_path / f"a.{SUFFIX[codec]}"
    path.write_bytes(patches_clip(codec, colours))
    by_pyav, by_dali = (patches_of(shown(path, decoder)) for decoder in ("pyav", "dali"))
    assert np.abs(by_pyav - by_dali).max() <= 4
    assert np.abs(patches_as(colours) - by_dali).max() <= 4


@pytest.mark.parametrize("colours", TAGS, ids=str)
def test_pictures_like_nature_are_dalis_and_right(tmp_path, colours, caplog):
    path = tmp_path / "a.webm"
    path.write_bytes(patches_clip("vp9", colours, pictures=landscape("vp9", colours.full, 0.35)))
    for size in (None, 48):
        by_pyav, by_dali = (shown(path, decoder, size) for decoder in ("pyav", "dali"))
        assert np.quantile(np.abs(by_pyav - by_dali), 0.999) <= 4
    assert caplog.messages == []


def test_what_dali_would_cut_off_is_left_to_pyav(tmp_path, caplog):
    path = tmp_path / "a.webm"
    path.write_bytes(patches_clip("vp9", Colours(BT709, False), pictures=landscape("vp9", False, 1.0)))
    by_pyav, by_dali = (shown(path, decoder) for decoder in ("pyav", "dali"))
    assert np.array_equal(by_pyav, by_dali)
    (said,) = caplog.messages
    assert "vp9 coded as BT.709, limited range with vivid colours" in said


def test_the_conversion_of_a_decoder_is_found_by_trying(monkeypatch):
    conversions.cache_clear()
    answers = [(BT709, False), (UNSAID, False)]

    def decode_as(encoded, frames, device_id):
        with av.open(io.BytesIO(encoded.tobytes())) as container:
            frame = next(container.decode(video=0))
        space, full = answers.pop(0)
        rgb = frame.reformat(format="rgb24", src_colorspace=space if space == BT709 else 5, src_color_range=1 + full)
        return rgb.to_ndarray()[None]

    monkeypatch.setattr("fastvtp.data.dali_trial.decode_alone", decode_as)
    found = conversions(frozenset(["vp9"]), None)
    conversions.cache_clear()
    assert found == {("vp9", False): Colours(BT709, False), ("vp9", True): Colours(UNSAID, False)}


def test_a_repair_is_exact_where_nothing_was_cut_off():
    """Grey stays grey; of BT.709's red, which BT.601's RGB cannot hold, a part is lost."""
    own, taken = Colours(BT709, False), Colours(UNSAID, False)
    repair = correction(own, taken)
    yuv = np.array([[90.0, 120, 140, 1], [180, 128, 128, 1], [40, 126, 129, 1]])
    wrong, right = ((yuv @ one.to_rgb().T)[:, :3] for one in (taken, own))
    np.testing.assert_allclose(wrong @ repair[:, :3].T + repair[:, 3], right, atol=1e-2)
    assert levels_lost(np.full((4, 4, 3), 77, np.uint8), repair) < 0.01
    assert levels_lost(np.tile(np.array([255, 0, 0], np.uint8), (4, 4, 1)), repair) > 10
