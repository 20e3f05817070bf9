"""Long videos: the packets of an mp4 read by its own table, which takes no longer for hours than for seconds."""

import time
from typing import Any

import av
import numpy as np
import pytest

from fastvtp.data.video import frame_reader, sample_reader
from fastvtp.data.video.decoding import Video, VideoDecodeError, probe
from fastvtp.data.video.frame_table import Memory
from fastvtp.data.video.sample_reader import SampleReader
from tests.data.clips import decode_upright, truncate, write_audio, write_clip
from tests.data.test_decoding import IRREGULAR, X264_B_FRAMES, X265, shifted_copy

FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "h264": ("a.mp4", {"options": X264_B_FRAMES}),
    "h264, header first": ("a.mp4", {"options": X264_B_FRAMES, "container_options": {"movflags": "faststart"}}),
    "h264, variable rate": ("a.mp4", {"options": X264_B_FRAMES, "pts": IRREGULAR}),
    "h264, open groups": ("a.mov", {"options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}}),
    "h264, negative offsets": (
        "a.mov",
        {"options": X264_B_FRAMES, "container_options": {"movflags": "negative_cts_offsets"}},
    ),
    "h264, picture built up": ("a.mp4", {"options": {"x264-params": "intra-refresh=1:keyint=8:bframes=0"}}),
    "h264, sideways": ("a.mp4", {"rotation": 90}),
    "h264, 10 bits": ("a.mp4", {"pix_fmt": "yuv420p10le"}),
    "h264, keyframes alone": ("a.mp4", {"gop": 1}),
    "hevc": ("a.mp4", {"codec": "libx265", "options": X265}),
    "vp9": ("a.mp4", {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "12"}}),
    "av1": ("a.mp4", {"codec": "libsvtav1", "options": {"preset": "12"}}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "mjpeg": ("a.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
}


@pytest.fixture
def all_are_long(monkeypatch):
    monkeypatch.setattr(frame_reader, "_memory", Memory())
    monkeypatch.setattr(sample_reader, "_LONG_HEADER", 1)


def reader_of(video):
    return video._source.reader


@pytest.mark.parametrize("name", FILES)
def test_frames_by_the_table_alone_are_those_of_a_plain_loop(tmp_path, name, all_are_long, monkeypatch):
    file_name, settings = FILES[name]
    path = write_clip(tmp_path / file_name, 16, **{"height": 72, "width": 104, **settings})
    reference, rng = decode_upright(path), np.random.default_rng(0)
    for drawn in ([0], [15], range(16), *(rng.integers(0, 16, 4) for _ in range(6))):
        with Video(path) as video:
            assert isinstance(reader_of(video), SampleReader)
            np.testing.assert_array_equal(video.read(drawn), reference[list(drawn)])
            seconds, size = video.seconds, video.size
    info = probe(path)
    monkeypatch.setattr(sample_reader, "_LONG_HEADER", 1 << 30)
    with Video(path) as video:
        assert not isinstance(reader_of(video), SampleReader)
        np.testing.assert_array_equal(video.seconds, seconds)
        assert video.size == size
        assert video.info() == info


def test_sound_beside_the_video_is_left_out(tmp_path, all_are_long):
    sound, silent = write_audio(tmp_path / "sound.mp4"), write_clip(tmp_path / "video.mp4", 25, fps=25)
    path = tmp_path / "both.mp4"
    with av.open(str(path), "w") as both, av.open(str(sound)) as one, av.open(str(silent)) as two:
        streams = [(source, both.add_stream_from_template(source.streams[0])) for source in (one, two)]
        packets = [(p, copy) for source, copy in streams for p in source.demux() if p.dts is not None]
        for packet, copy in sorted(packets, key=lambda pair: pair[0].dts * pair[0].time_base):
            packet.stream = copy
            both.mux(packet)
    with Video(path) as video:
        assert isinstance(reader_of(video), SampleReader)
        np.testing.assert_array_equal(video.read([3, 20]), decode_upright(path)[[3, 20]])


def test_what_the_table_does_not_say_plainly_is_left_to_libav(tmp_path, all_are_long):
    whole = write_clip(tmp_path / "whole.mp4", 24, gop=12, options=X264_B_FRAMES)
    edited = shifted_copy(whole, tmp_path / "edited.mp4", 5)
    fragments = write_clip(tmp_path / "f.mp4", container_options={"movflags": "frag_keyframe+empty_moov"})
    other = write_clip(tmp_path / "p.mov", codec="prores", pix_fmt="yuv422p10le")
    for path in (edited, fragments, other):
        with Video(path) as video:
            assert not isinstance(reader_of(video), SampleReader)
            np.testing.assert_array_equal(video.read([1, 7]), decode_upright(path)[[1, 7]])


def test_a_long_file_that_broke_off_is_refused(tmp_path, all_are_long):
    whole = write_clip(tmp_path / "whole.mp4", container_options={"movflags": "faststart"})
    with pytest.raises(VideoDecodeError, match="truncated: the last"):
        Video(truncate(whole, tmp_path / "cut.mp4", 0.8))


def repeated(path, times, height=64, width=96):
    """A video of `times` times 16 frames, of which no frame was encoded twice."""
    short = write_clip(path.with_name("short.mp4"), 16, height, width, options=X264_B_FRAMES, gop=8)
    with av.open(str(short)) as read, av.open(str(path), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        length = round(2 / packets[0].time_base)
        for repeat in range(times):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts, again.dts = packet.pts + repeat * length, packet.dts + repeat * length
                again.duration, again.time_base = packet.duration, packet.time_base
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                write.mux(again)
    return path


def cost_of_a_clip(path, monkeypatch):
    times = []
    for _ in range(5):
        monkeypatch.setattr(frame_reader, "_memory", Memory())
        began = time.process_time()
        with Video(path) as video:
            clip = video.read(video.num_frames // 2 + np.arange(12))
        times.append(time.process_time() - began)
    return min(times), clip


def test_libav_is_not_given_the_long_header(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_reader, "_memory", Memory())
    path, opened, whole_open = repeated(tmp_path / "long.mp4", 4000), [], av.open
    expected = decode_upright(tmp_path / "short.mp4")

    def recorded(file, *args, **kwargs):
        opened.append(file)
        return whole_open(file, *args, **kwargs)

    monkeypatch.setattr(av, "open", recorded)
    with Video(path) as video:
        assert video.num_frames == 64_000
        assert video.duration == pytest.approx(8000)
        for first in (0, 31_998, 63_984):
            drawn = first + np.arange(16)
            np.testing.assert_array_equal(video.read(drawn), expected[drawn % 16])
    assert [isinstance(file, str) for file in opened] == [False]


@pytest.mark.long
def test_a_clip_of_hours_costs_twice_that_of_seconds_at_most(tmp_path, monkeypatch):
    long, clip = cost_of_a_clip(repeated(tmp_path / "long.mp4", 3600 * 2 * 25 // 16, 256, 340), monkeypatch)
    short, same = cost_of_a_clip(repeated(tmp_path / "few.mp4", 250 // 16, 256, 340), monkeypatch)
    assert long < 2 * short + 0.005
    assert clip.shape == same.shape
