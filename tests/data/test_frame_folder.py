"""Folders of pictures, and animated pictures, as videos."""

import os
import signal
from fractions import Fraction

import av
import numpy as np
import pytest

from fastvtp.data.sampling import CropWindow
from fastvtp.data.video.decoding import Video, VideoDecodeError, probe
from tests.data.clips import barcode_frames, decode_sequentially, frame_numbers

ENCODERS = {
    ".jpg": ("mjpeg", "yuvj420p"),
    ".png": ("png", "rgb24"),
    ".bmp": ("bmp", "bgr24"),
    ".tiff": ("tiff", "rgb24"),
}


def write_picture(path, pixels):
    codec, pix_fmt = ENCODERS[path.suffix.lower()]
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = *pixels.shape[:2], pix_fmt, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
    path.write_bytes(b"".join(bytes(packet) for f in (frame, None) for packet in encoder.encode(f)))


def write_folder(folder, count=12, suffix=".jpg", name="{}"):
    folder.mkdir()
    for number, pixels in enumerate(barcode_frames(count, 64, 96)):
        write_picture(folder / (name.format(number) + suffix), pixels)
    return folder


@pytest.mark.parametrize("suffix", ENCODERS)
def test_the_pictures_of_a_folder_are_frames_in_the_order_of_their_numbers(tmp_path, suffix):
    folder = write_folder(tmp_path / "frames", suffix=suffix, name="img_{}")  # 10 comes after 9
    (folder / "notes.txt").write_text("no picture")
    (folder / f"._img_3{suffix}").write_bytes(b"left by a Mac")
    with Video(folder) as video:
        assert (video.num_frames, video.size) == (12, (64, 96))
        assert frame_numbers(video.read([11, 0, 2, 2, 10])) == [11, 0, 2, 2, 10]
        np.testing.assert_allclose(video.seconds, np.arange(12) / 25)
        assert video.frames_within(0.04, 0.12) == range(1, 3)
        scaled = video.read([3], CropWindow(0, 0, 1, 1, flip=True), (32, 48))
        assert frame_numbers(scaled[:, :, ::-1]) == [3]
        assert video.decode_all() == 12
        assert frame_numbers(np.stack(list(video.stream(range(8, 12))))) == [8, 9, 10, 11]
        np.testing.assert_array_equal(video.keyframes, range(12))
    with Video(folder, fps=5) as video:
        assert video.duration == pytest.approx(12 / 5)


def test_a_folder_is_described(tmp_path):
    info = probe(write_folder(tmp_path / "frames", name="{:05}"))
    assert (info.frames, info.height, info.width, info.fps, info.codec) == (12, 64, 96, 25, "mjpeg")


def test_damaged_pictures_are_named(tmp_path):
    folder = write_folder(tmp_path / "frames", suffix=".png", name="{:05}")
    (folder / "00004.png").write_bytes(b"")
    (folder / "00007.png").write_bytes((folder / "00007.png").read_bytes()[:60])
    with Video(folder) as video:
        assert frame_numbers(video.read([3, 5])) == [3, 5]
        with pytest.raises(VideoDecodeError, match=r"frame 4 of 12, 00004\.png, cannot be decoded"):
            video.read([3, 4])
        with pytest.raises(VideoDecodeError, match=r"00007\.png"):
            video.read([7])
    with Video(folder, damaged="keep") as video:
        assert frame_numbers(video.read([3, 4, 5])) == [3, 3, 5]
        assert video.damaged_frames == {4}


@pytest.fixture
def impatience():
    """Fails a test that waits for long, in a call of the system too."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still waiting"))
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("place", [0, 4])
def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path, place, impatience):
    folder = write_folder(tmp_path / "frames", 6)
    (folder / f"{place}.jpg").unlink()
    os.mkfifo(folder / f"{place}.jpg")
    reason = rf"{place}\.jpg,? cannot be decoded \(not a regular file but a pipe\)"
    with pytest.raises(VideoDecodeError, match=reason), Video(folder) as video:
        video.read([3, 4])
    if place:
        with Video(folder, damaged="keep") as video:
            assert frame_numbers(video.read([4])) == [3]


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoDecodeError, match="a folder without pictures"):
        Video(tmp_path / "empty")
    folder = write_folder(tmp_path / "frames", 2, ".png")
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(VideoDecodeError, match=r"0\.png cannot be decoded"):
        Video(folder)


def test_a_gif_keeps_what_a_frame_leaves_out_and_how_long_it_is_shown(tmp_path):
    path, times = tmp_path / "a.gif", [0, 10, 50, 60, 100, 110, 200]  # hundredths of a second
    picture = np.full((64, 96, 3), 60, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=100)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "rgb8"
        for number, time in enumerate(times):
            picture[8 * number : 8 * number + 8, 20:40] = 255  # all else is as it was
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reference = decode_sequentially(path)
    for index in (6, 3, 0, 5):
        with Video(path) as video:
            np.testing.assert_array_equal(video.read([index])[0], reference[index])
            np.testing.assert_allclose(video.seconds, np.array(times) / 100)


def exif(orientation):
    """An APP1 segment of JPEG with an orientation (Exif 2.3, 4.6.4)."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + orientation.to_bytes(2, "big") + b"\0\0"
    body = b"Exif\0\0" + b"MM\x00*\x00\x00\x00\x08" + b"\x00\x01" + entry + b"\0\0\0\0"
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_pictures_of_cameras_are_turned_upright(tmp_path, orientation, turns):
    folder = write_folder(tmp_path / "frames", 3)
    straight = decode_sequentially(folder / "1.jpg")
    for path in folder.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:2] + exif(orientation) + data[2:])
    with Video(folder) as video:
        expected = np.rot90(straight, turns, (1, 2))
        assert video.size == expected.shape[1:3]
        np.testing.assert_array_equal(video.read([1]), expected)
    with Video(folder / "1.jpg") as video:
        np.testing.assert_array_equal(video.read([0]), expected)
