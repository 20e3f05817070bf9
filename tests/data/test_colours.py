"""Colours against the formula of the standard that a video names, whole and scaled."""

import av
import numpy as np
import pytest

from fastvtp.data.sampling import CropWindow
from fastvtp.data.video.decoding import Video

LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593), 2: (0.299, 0.114)}
"""Weights of red and blue by number of the matrix (ITU-T H.273, table 4); 2 is unspecified, which counts as BT.601."""
PATCHES = [
    (81, 90, 240),
    (145, 54, 34),
    (41, 240, 110),
    (180, 128, 128),
    (60, 150, 160),
    (200, 100, 140),
    (100, 170, 90),
]


def formula(y, u, v, matrix, full):
    """RGB of 8-bit Y'CbCr by ITU-R BT.601, BT.709 or BT.2020, 0 to 255."""
    red, blue = LUMA[matrix]
    luma = y / 255 if full else (y - 16) / 219
    cb, cr = ((chroma - 128) / (255 if full else 224) for chroma in (u, v))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    return np.clip(255 * np.array([r, (luma - red * r - blue * b) / (1 - red - blue), b]), 0, 255)


def write_patches(path, codec, matrix, full, pix_fmt):
    depth = 4 if "10le" in pix_fmt else 1
    with av.open(str(path), "w") as container:
        quality = {"libx264": {"qp": "1"}, "libvpx-vp9": {"lossless": "1", "cpu-used": "8"}}.get(codec, {"qmin": "1"})
        stream = container.add_stream(codec, rate=8, options=quality)
        stream.height, stream.width, stream.pix_fmt = 64, 32 * len(PATCHES), pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for _ in range(3):
            frame = av.VideoFrame(stream.width, stream.height, pix_fmt)
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            for component, plane in enumerate(frame.planes):
                rows = np.frombuffer(plane, np.uint16 if depth > 1 else np.uint8).reshape(plane.height, -1)
                for i, patch in enumerate(PATCHES):
                    width = plane.width // len(PATCHES)
                    rows[:, i * width : (i + 1) * width] = depth * patch[component]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", LUMA)
def test_colours_are_those_of_the_standard_that_the_video_names(tmp_path, matrix, full, pix_fmt):
    path = write_patches(tmp_path / "a.mp4", "libx264", matrix, full, pix_fmt)
    expected = np.array([formula(*patch, matrix, full) for patch in PATCHES])
    middles = 16 + 32 * np.arange(len(PATCHES))
    with Video(path) as video:
        assert np.abs(video.read([1])[0][32, middles] - expected).max() <= 3
        assert np.abs(video.read([1], size=(16, 56))[0][8, 4 + 8 * np.arange(7)] - expected).max() <= 3
        half = video.read([1], CropWindow(0.25, 1 / 7, 0.75, 1.0), (48, 96))[0]
        assert np.abs(half[24, 8 + 16 * np.arange(6)] - expected[1:]).max() <= 3


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("a.avi", "mjpeg", "yuvj420p"), ("a.webm", "libvpx-vp9", "yuv420p")]
)
def test_colours_of_other_codecs(tmp_path, codec, name, pix_fmt):
    full = codec == "mjpeg"
    matrix = 5 if full else 1
    path = write_patches(tmp_path / name, codec, matrix, full, pix_fmt)
    expected = np.array([formula(*patch, matrix, full) for patch in PATCHES])
    with Video(path) as video:
        whole, scaled = video.read([1])[0], video.read([1], size=(16, 56))[0]
    assert np.abs(whole[32, 16 + 32 * np.arange(7)] - expected).max() <= 4
    assert np.abs(scaled[8, 4 + 8 * np.arange(7)] - expected).max() <= 4
