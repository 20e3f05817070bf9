import os
import pickle

import av
import numpy as np
import pytest

from fastvtp.data.video.decoding import (
    Video,
    VideoDecodeError,
    decode_frames,
    probe,
)
from tests.data.clips import (
    barcode_frames,
    damage_packet,
    decode_sequentially,
    frame_numbers,
    truncate,
    write_audio,
    write_clip,
)

X264_B_FRAMES = {"x264-params": "bframes=3:b-adapt=0:scenecut=0"}
X265 = {"x265-params": "log-level=none:open-gop=1:bframes=3:b-adapt=0:scenecut=0:pools=none:frame-threads=1"}
VP9 = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "12"}
IRREGULAR = [0, 700, 1500, 1600, 4000, 4200, 7000, 7300, 9000, 9100, 9200, 12000, 12700, 13000, 15500, 16000]

CLIPS = {
    "h264_mp4": ("a.mp4", {"options": X264_B_FRAMES}),
    "h264_without_b_frames": ("a.mp4", {"options": {"bf": "0"}}),
    "h264_open_gop": ("a.mp4", {"options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}}),
    "h264_one_gop": ("a.mp4", {"gop": 250, "options": X264_B_FRAMES}),
    "h264_variable_rate": ("a.mp4", {"options": X264_B_FRAMES, "pts": IRREGULAR}),
    "h264_10_bit": ("a.mp4", {"pix_fmt": "yuv420p10le"}),
    "h264_faststart": ("a.mp4", {"container_options": {"movflags": "faststart"}}),
    "h264_fragmented": ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264_mkv": ("a.mkv", {"options": X264_B_FRAMES}),
    "h264_ts": ("a.ts", {"options": X264_B_FRAMES}),
    "h264_avi": ("a.avi", {"options": X264_B_FRAMES}),  # no presentation times: frames are counted
    "mpeg4_avi": ("a.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "mpeg2_ps": ("a.mpg", {"codec": "mpeg2video", "fps": 25, "options": {"bf": "2"}}),
    "hevc_open_gop": ("a.mp4", {"codec": "libx265", "options": X265}),
    "vp9_webm": ("a.webm", {"codec": "libvpx-vp9", "options": VP9}),
    "vp8_webm": ("a.webm", {"codec": "libvpx", "options": {**VP9, "arnr-maxframes": "5"}}),
    "h264_odd_size": ("a.mp4", {"height": 65, "width": 99, "pix_fmt": "yuv444p"}),
    "mjpeg_avi": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
}


def shifted_copy(source, target, frames):
    """Copy packets with times moved back by `frames`, so that the mp4 gets an edit list which hides the first ones."""
    with av.open(str(source)) as read, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        shift = int(frames / stream.average_rate / stream.time_base)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                write.mux(packet)
    return target


@pytest.mark.parametrize("name", CLIPS)
def test_any_frames_equal_the_plain_sequential_decode(tmp_path, name):
    file_name, arguments = CLIPS[name]
    path = write_clip(tmp_path / file_name, first=40, **arguments)
    reference = decode_sequentially(path)
    assert frame_numbers(reference) == list(range(40, 56))
    rng = np.random.default_rng(0)
    index_sets = [[0], [15], [0, 15], [7, 8], [9, 9, 2, 2], range(16), *(rng.integers(0, 16, 6) for _ in range(4))]
    with Video(path) as video:
        assert video.num_frames == 16
        for indices in index_sets:
            np.testing.assert_array_equal(video.read(indices), reference[list(indices)])
    np.testing.assert_array_equal(decode_frames(path.read_bytes(), [3, 12]), reference[[3, 12]])


@pytest.mark.parametrize("hidden", [5, 14])
def test_an_edit_list_hides_frames(tmp_path, hidden):
    whole = write_clip(tmp_path / "whole.mp4", 24, gop=12, options=X264_B_FRAMES)
    path = shifted_copy(whole, tmp_path / "edited.mp4", hidden)
    video = decode_frames(path, range(24 - hidden))
    assert frame_numbers(video) == list(range(hidden, 24))
    np.testing.assert_array_equal(decode_frames(path, [1, 7]), decode_sequentially(path)[[1, 7]])
    assert probe(path).frames == 24 - hidden


def test_only_the_groups_of_pictures_asked_for_are_decoded(tmp_path):
    path = write_clip(tmp_path / "a.webm", 24, gop=8, codec="libvpx-vp9", options={"lag-in-frames": "0"})
    reference = decode_sequentially(path)
    damage_packet(path, 9)
    with pytest.raises(VideoDecodeError, match="damaged"):
        decode_frames(path, [12])
    np.testing.assert_array_equal(decode_frames(path, [3, 8, 20]), reference[[3, 8, 20]])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_turns_frames_upright(tmp_path, degrees):
    path = write_clip(tmp_path / "a.mp4", height=64, width=96, rotation=degrees)
    coded = decode_sequentially(path)
    np.testing.assert_array_equal(decode_frames(path, [2, 9]), np.rot90(coded, degrees // 90, (1, 2))[[2, 9]])
    info = probe(path)
    assert info.rotation == degrees
    assert (info.height, info.width) == ((64, 96) if degrees == 180 else (96, 64))


def test_an_upright_picture_filmed_sideways_comes_out_upright(tmp_path):
    coded_clockwise = np.rot90(barcode_frames(8, 96, 128, first=30), -1, (1, 2))
    path = write_clip(tmp_path / "a.mp4", frames=coded_clockwise, rotation=90)
    video = decode_frames(path, range(8))
    assert video.shape == (8, 96, 128, 3)
    assert frame_numbers(video) == list(range(30, 38))


def test_probe_describes_the_file(tmp_path):
    path = write_clip(tmp_path / "a.mkv", 10, 48, 80, fps=25)
    info = probe(path)
    assert (info.frames, info.height, info.width, info.fps) == (10, 48, 80, 25.0)
    assert (info.codec, info.pix_fmt, info.rotation) == ("h264", "yuv420p", 0)


@pytest.mark.parametrize("indices", [[-1], [16], [3, 99], []])
def test_indices_outside_the_video_are_refused(tmp_path, indices):
    path = write_clip(tmp_path / "a.mp4")
    with pytest.raises(IndexError, match=r"a\.mp4: expected frame indices in \[0, 16\)"):
        decode_frames(path, indices)


def cut_faststart(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", container_options={"movflags": "faststart"})
    return truncate(whole, tmp_path / "bad.mp4", 0.7)


def cut_between_frames(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", container_options={"movflags": "faststart"})
    with av.open(str(whole)) as container:
        end = container.streams.video[0].index_entries[11].pos
    (tmp_path / "bad.mp4").write_bytes(whole.read_bytes()[:end])
    return tmp_path / "bad.mp4"


def text(tmp_path):
    (tmp_path / "bad.mp4").write_text("this is not a video\n" * 50)
    return tmp_path / "bad.mp4"


def empty(tmp_path):
    (tmp_path / "bad.mp4").touch()
    return tmp_path / "bad.mp4"


BAD_FILES = {
    "zero bytes": empty,
    "not a video": text,
    "no video stream": lambda folder: write_audio(folder / "bad.mp4"),
    "truncated: the index (moov) of the mp4 is missing": lambda folder: truncate(
        write_clip(folder / "whole.mp4"), folder / "bad.mp4", 0.7
    ),
    "truncated: the last": cut_faststart,
    "truncated: the last 5 frames are cut off": cut_between_frames,
    "No such file": lambda folder: folder / "bad.mp4",
    "a folder without pictures": lambda folder: folder,
}


@pytest.mark.parametrize("reason", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_with_its_reason(tmp_path, capfd, reason):
    path = BAD_FILES[reason](tmp_path)
    open_before = len(os.listdir("/proc/self/fd"))
    for use in (probe, lambda bad: decode_frames(bad, [0])):
        with pytest.raises(VideoDecodeError) as caught:
            use(path)
        assert caught.value.path == str(path)
        assert caught.value.reason.startswith(reason)
        assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert capfd.readouterr().err == ""


def test_no_file_stays_open_after_decoding(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        decode_frames(path, [0, 5])
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(VideoDecodeError("/a/b.mp4", "zero bytes")))
    assert (error.path, error.reason, str(error)) == ("/a/b.mp4", "zero bytes", "/a/b.mp4: zero bytes")
