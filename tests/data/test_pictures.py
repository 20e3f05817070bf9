"""Pictures as they are to be seen: turned, mirrored, in their proportions, and cropped and scaled in one pass."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from fastvtp.data.sampling import CropWindow
from fastvtp.data.video.decoding import Video, decode_frames, probe
from tests.data.clips import decode_sequentially, frame_numbers, write_clip

MATRICES = {  # a, b, c, d: a point x, y comes to a x + c y, b x + d y
    "upright": ((1, 0, 0, 1), lambda p: p),
    "all zero": ((0, 0, 0, 0), lambda p: p),
    "a slant": ((0.7071, 0.7071, -0.7071, 0.7071), lambda p: p),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, :, ::-1]),
    "upside down, mirrored": ((1, 0, 0, -1), lambda p: p[:, ::-1]),
    "upside down": ((-1, 0, 0, -1), lambda p: p[:, ::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1, (1, 2))),
    "counterclockwise": ((0, -1, 1, 0), lambda p: np.rot90(p, 1, (1, 2))),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(1, 2)),
    "transposed the other way": ((0, -1, -1, 0), lambda p: np.rot90(p, 2, (1, 2)).swapaxes(1, 2)),
}


def set_matrix(path, numbers, box=b"tkhd"):
    data = bytearray(path.read_bytes())
    at = data.index(box) + 4 + {b"tkhd": 40, b"mvhd": 36}[box]
    a, b, c, d = (round(65536 * number) for number in numbers)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_is_applied_to_the_whole_clip(tmp_path, name):
    path = write_clip(tmp_path / "a.mp4", 6, 64, 96)
    matrix, shown = MATRICES[name]
    set_matrix(path, matrix)
    expected = shown(decode_sequentially(path))
    with Video(path) as video:
        assert video.size == expected.shape[1:3]
        np.testing.assert_array_equal(video.read([4, 0, 4]), expected[[4, 0, 4]])
        window = CropWindow(0.25, 0.125, 0.75, 0.625)
        height, width = video.size
        part = expected[:, height // 4 : height * 3 // 4, width // 8 : width * 5 // 8]
        np.testing.assert_array_equal(video.read([2], window), part[[2]])
        mirror = CropWindow(0.25, 0.125, 0.75, 0.625, flip=True)
        np.testing.assert_array_equal(video.read([2], mirror), part[[2], :, ::-1])
        scaled = video.read([2], mirror, (40, 44)).astype(int)
        straight = video.read([2], window, (40, 44))[:, :, ::-1]
        assert np.abs(scaled - straight).max() <= 1
    info = probe(path)
    again = np.rot90(decode_sequentially(path), info.rotation // 90, (1, 2))
    np.testing.assert_array_equal(again[:, :, :: -1 if info.mirrored else 1], expected)


def test_the_matrix_of_the_movie_counts_as_well(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 3, 64, 96)
    set_matrix(path, MATRICES["clockwise"][0], b"mvhd")
    set_matrix(path, MATRICES["mirrored"][0])
    with av.open(str(path)) as container:
        (matrix,) = (bytes(data) for data in next(container.decode(video=0)).side_data if "MATRIX" in data.type.name)
    a, b, _, c, d, *_ = (number >> 16 for number in struct.unpack("=9i", matrix))
    (shown,) = (see for numbers, see in MATRICES.values() if numbers == (a, b, c, d))
    np.testing.assert_array_equal(decode_frames(path, range(3)), shown(decode_sequentially(path)))


def display_orientation(quarters):
    """A unit of H.264 with a message that asks for counterclockwise quarter turns (ITU-T H.264, D.1.27)."""
    bits = f"0{0:01b}{0:01b}{quarters << 14:016b}" + "1" + "0"  # not cancelled, no flips, turn, repetition 0, no more
    bits += "1" + "0" * (-(len(bits) + 1) % 8)
    return bytes([6, 47, len(bits) // 8, *int(bits, 2).to_bytes(len(bits) // 8, "big"), 0x80])


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
def test_a_turn_asked_for_inside_the_stream_does_not_depend_on_the_first_frame_drawn(tmp_path, name):
    whole = write_clip(tmp_path / "whole.mp4", 16, 64, 96, gop=8, options={"bf": "0"})
    path, message = tmp_path / name, display_orientation(1)
    with av.open(str(whole)) as read, av.open(str(path), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            changed = av.Packet((len(message).to_bytes(4, "big") + message if number == 0 else b"") + bytes(packet))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copy
            write.mux(changed)
    with av.open(str(path)) as container:
        turns = [frame.rotation for frame in container.decode(video=0)]
    assert turns[0] == 90
    expected = np.rot90(decode_sequentially(path), 1, (1, 2))
    for first in ([0, 1], [1, 2], [12, 13]):
        with Video(path) as video:
            assert video.size == (96, 64)
            np.testing.assert_array_equal(video.read(first), expected[first])


@pytest.mark.parametrize("name", ["a.mkv", "a.mov"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turns_that_containers_ask_for(tmp_path, name, degrees):
    whole, path = write_clip(tmp_path / "whole.mp4", 6), tmp_path / name
    with av.open(str(whole)) as read, av.open(str(path), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        copy.set_display_rotation(degrees)
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = copy
                write.mux(packet)
    expected = np.rot90(decode_sequentially(path), degrees // 90, (1, 2))
    with Video(path) as video:
        assert video.size == expected.shape[1:3]
        np.testing.assert_array_equal(video.read([4, 1]), expected[[4, 1]])


def test_interlaced_video_is_flagged(tmp_path):
    flags = {"x264-params": "tff=1:bframes=0"}
    assert probe(write_clip(tmp_path / "a.mp4", 4, options=flags)).interlaced
    assert not probe(write_clip(tmp_path / "b.mp4", 4)).interlaced


@pytest.mark.parametrize(("ratio", "width"), [(Fraction(16, 11), 140), (Fraction(2, 3), 64), (Fraction(99, 1), 96)])
def test_pixels_that_are_not_square_are_shown_in_their_proportions(tmp_path, ratio, width):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.qmax = 64, 96, "yuv420p", 4
        stream.codec_context.sample_aspect_ratio = ratio
        for _ in range(4):
            picture = np.full((64, 96, 3), 40, np.uint8)
            picture[16:48, 24:72] = 220  # a box in the middle half
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with Video(path, aspect="coded") as video:
        assert video.size == (64, 96)
        np.testing.assert_array_equal(video.read([1, 3]), decode_sequentially(path)[[1, 3]])
    with Video(path) as video:
        assert video.size == (64, width)
        clip = video.read([1, 3])
        assert clip.shape == (2, 64, width, 3)
        assert clip[:, 32, width // 2].min() > 200
        assert (clip[0, 32, :, 0] > 130).sum() == pytest.approx(width / 2, abs=2)
        middle = video.read([1], CropWindow(0.25, 0.25, 0.75, 0.75), (32, width // 2))
        assert middle[:, 2:-2, 2:-2].min() > 190
    assert probe(path).stretch == pytest.approx(float(ratio) if ratio < 10 else 1, rel=1e-3)


def triangle(length, count):
    """Rows of weights `[count, length]` of a triangle as wide as two pixels of the smaller picture."""
    scale = length / count
    distance = np.abs(np.arange(length) + 0.5 - (np.arange(count)[:, None] + 0.5) * scale)
    weights = np.clip(1 - distance / max(scale, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


def smooth_pictures(count, height, width):
    """Coloured waves, which subsampled chroma can hold."""
    y, x = np.mgrid[:height, :width] / 16
    waves = [np.stack([np.sin(x + t) + np.cos(y / k + t) for k in (1, 2, 3)], -1) for t in range(count)]
    return np.round(127.5 + 60 * np.stack(waves)).astype(np.uint8)


@pytest.mark.parametrize("size", [(56, 56), (112, 80), (100, 200)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_scaling_is_that_of_a_triangle_to_a_level(tmp_path, size, pix_fmt):
    """Mean distance from a float64 computation 0.5 of 255 levels at most, 5 for single pixels."""
    path = write_clip(tmp_path / "a.mp4", frames=smooth_pictures(3, 128, 192), pix_fmt=pix_fmt, options={"crf": "4"})
    window = CropWindow(0.25, 0.125, 0.875, 0.625)  # whole pixels, even ones
    with Video(path) as video:
        whole = video.read([2])[0].astype(float)
        got = video.read([2], window, size)[0]
    part = whole[32:112, 24:120]
    expected = np.einsum("ah,hwc,bw->abc", triangle(80, size[0]), part, triangle(96, size[1]), optimize=True)
    distance = np.abs(got - expected)
    assert distance.mean() < 0.5 + (1 if pix_fmt != "yuv444p" else 0)
    assert distance.max() < 5


def test_a_window_moves_by_a_pixel_at_most(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=smooth_pictures(1, 128, 192))
    with Video(path) as video:
        for left in np.linspace(0, 0.4, 23):
            window = CropWindow(0, left, 1, left + 0.5)
            got = video.read([0], window, (128, 192))[0].astype(float)
            first = left * 192
            shifts = np.arange(-2, 2.01, 0.25)
            whole = video.read([0])[0].astype(float)
            columns = first + (np.arange(192) + 0.5) / 2 - 0.5
            errors = []
            for shift in shifts:
                x = np.clip(columns + shift, 0, 191)
                low = np.floor(x).astype(int)
                high = np.minimum(low + 1, 191)
                shifted = whole[:, low] + (x - low)[:, None] * (whole[:, high] - whole[:, low])
                errors.append(np.abs(shifted - got)[:, 8:-8].mean())
            assert abs(shifts[int(np.argmin(errors))]) <= 1.25


def test_frames_with_other_sizes_are_resized(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        for number, (height, width) in enumerate([(64, 96), (32, 64)]):
            part = write_clip(tmp_path / f"{number}.webm", 4, height, width, first=10 * number, codec="libvpx-vp9")
            with av.open(str(part)) as read:
                if not number:
                    stream = container.add_stream_from_template(read.streams.video[0])
                for packet in read.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = packet.pts + 500 * number
                        packet.stream = stream
                        container.mux(packet)
    with Video(path) as video:
        assert video.size == (64, 96)
        clip = video.read(range(8))
        assert clip.shape == (8, 64, 96, 3)
        assert frame_numbers(clip) == [0, 1, 2, 3, 10, 11, 12, 13]
        assert video.read([6], size=(64, 96)).shape == (1, 64, 96, 3)
        np.testing.assert_array_equal(clip[[6]], video.read([6]))
