"""Damaged, joined and patchy videos: refused by name, or shown as a plain decoding loop shows them."""

import logging
import struct
from itertools import count

import av
import numpy as np
import pytest

from fastvtp.data.video import frame_reader
from fastvtp.data.video.decoding import Video, VideoDecodeError, probe
from fastvtp.data.video.frame_table import Memory
from tests.data.clips import damage_packet, decode_sequentially, frame_numbers, not_coded, remux, truncate, write_clip
from tests.data.test_decoding import X264_B_FRAMES


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(frame_reader, "_memory", Memory())


def plain_loop(path):
    """Every frame in order, decoded by one thread, on which the concealment of damage depends."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def moving(count, height=96, width=128):
    """Pictures whose damage shows: noise that wanders, under the number of each frame."""
    noise = np.random.default_rng(1).integers(0, 256, (height, width + count, 3), np.uint8)
    return np.stack([noise[:, t : t + width] for t in range(count)])


def blank(path, index):
    """Make zeros of the second half of a coded picture."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][index]
    data, half = bytearray(path.read_bytes()), packet.size // 2
    data[packet.pos + half : packet.pos + packet.size] = bytes(packet.size - half)
    path.write_bytes(data)


@pytest.fixture
def scratched(tmp_path):
    """24 frames of H.264 in groups of 8, of which a picture of the second that others depend on is damaged."""
    path = write_clip(tmp_path / "a.mp4", frames=moving(24), options=X264_B_FRAMES)
    clean = decode_sequentially(path)
    blank(path, 9)
    return path, clean


def test_frames_that_damage_reaches_are_refused_by_number(scratched):
    path, clean = scratched
    shown = plain_loop(path)
    harmed = [i for i in range(24) if np.abs(shown[i].astype(int) - clean[i]).mean() > 0.5]
    assert harmed
    assert set(harmed) <= set(range(8, 16))
    for index in range(24):
        with Video(path) as video:
            if index in harmed:
                with pytest.raises(VideoDecodeError, match=f"frame {index} of 24 is damaged"):
                    video.read([index])
            elif not 8 <= index < 16:
                np.testing.assert_array_equal(video.read([index])[0], clean[index])
    with Video(path) as video, pytest.raises(VideoDecodeError, match=f"frame {harmed[0]} of 24 is damaged"):
        video.read(range(24))


def test_damaged_frames_are_kept_as_a_plain_loop_shows_them(scratched, caplog):
    path, _ = scratched
    shown = plain_loop(path)
    with caplog.at_level(logging.WARNING), Video(path, damaged="keep") as video:
        np.testing.assert_array_equal(video.read([2, 10, 15, 20]), shown[[2, 10, 15, 20]])
        np.testing.assert_array_equal(video.read(range(24)), shown)
        assert 10 in video.damaged_frames
        assert video.damaged_frames <= set(range(8, 16))
    with caplog.at_level(logging.WARNING), Video(path, damaged="keep") as video:
        video.read([11])
    assert [record.getMessage() for record in caplog.records] == [f"{path}: has damaged frames, which are shown"]


def test_a_frame_that_does_not_come_out_is_kept_as_the_one_before(tmp_path):
    path = write_clip(tmp_path / "a.webm", 24, gop=8, codec="libvpx-vp9", options={"lag-in-frames": "0"})
    damage_packet(path, 12)
    with Video(path) as video, pytest.raises(VideoDecodeError, match="damaged"):
        video.read([13])
    with Video(path, damaged="keep") as video:
        numbers = frame_numbers(video.read([3, 11, 12, 20]))
        assert numbers == [3, 11, 11, 20]
        assert 12 in video.damaged_frames
        assert frame_numbers(np.stack(list(video.stream(range(10, 20)))))[:3] == [10, 11, 11]


FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"


def test_what_is_known_of_a_file_whose_damage_is_kept_does_not_count_where_damage_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    whole = write_clip(tmp_path / "a.mp4", frames=noise, gop=12, container_options={"movflags": FRAGMENTS})
    truncate(whole, tmp_path / "cut.mp4", 0.7)
    for _ in range(2):
        with pytest.raises(VideoDecodeError, match="truncated"):
            Video(tmp_path / "cut.mp4")
        with Video(tmp_path / "cut.mp4", damaged="keep") as video:
            assert 12 < video.num_frames < 60


ENCODERS = {
    "libx264": ("a.mkv", {"options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}}),
    "libx265": ("a.mp4", {"options": {"x265-params": "log-level=none:open-gop=1:pools=none:frame-threads=1"}}),
    "libvpx": ("a.webm", {}),
    "libvpx-vp9": ("a.webm", {"options": {"cpu-used": "8", "deadline": "realtime"}}),
    "libsvtav1": ("a.mp4", {"options": {"preset": "12"}}),
    "mpeg4": ("a.avi", {"options": {"bf": "2"}}),
    "msmpeg4": ("a.avi", {}),
    "mpeg2video": ("a.ts", {"options": {"bf": "2"}}),
    "mpeg1video": ("a.mpg", {"options": {"bf": "2"}}),
    "flv": ("a.flv", {}),
    "wmv2": ("a.asf", {}),
    "mjpeg": ("a.mov", {"pix_fmt": "yuvj420p"}),
    "prores": ("a.mov", {"pix_fmt": "yuv422p10le"}),
    "ffv1": ("a.mkv", {}),
    "huffyuv": ("a.avi", {"pix_fmt": "yuv422p"}),
    "gif": ("a.gif", {"pix_fmt": "rgb8"}),
    "apng": ("a.apng", {"pix_fmt": "rgb24"}),
    "png": ("a.mov", {"pix_fmt": "rgb24"}),
    "qtrle": ("a.mov", {"pix_fmt": "rgb24"}),
    "rpza": ("a.mov", {"pix_fmt": "rgb555le"}),
    "cinepak": ("a.mov", {"pix_fmt": "rgb24"}),
    "rawvideo": ("a.nut", {}),
    "snow": ("a.nut", {"options": {"strict": "-2"}}),
}


@pytest.mark.parametrize("codec", ENCODERS)
def test_no_sound_file_is_refused_and_every_draw_is_that_of_a_plain_loop(tmp_path, codec):
    if codec not in av.codecs_available:
        pytest.skip("this build of libav has no such encoder")
    name, settings = ENCODERS[codec]
    path = write_clip(tmp_path / name, 18, **{"gop": 6, "fps": 25, "codec": codec, **settings})
    reference, rng = decode_sequentially(path), np.random.default_rng(0)
    for _ in range(6):
        drawn = np.sort(rng.choice(len(reference), 3, replace=False))
        with Video(path) as video:
            assert video.num_frames == len(reference)
            np.testing.assert_array_equal(video.read(drawn), reference[drawn])
            some = range(drawn[0], drawn[0] + 3)
            np.testing.assert_array_equal(list(video.stream(some)), reference[some.start : some.stop])


def read_everything(path):
    """Compare every frame, opened anew, with a plain loop; returns the numbers that the loop shows."""
    reference = decode_sequentially(path)
    for index in np.random.default_rng(0).permutation(len(reference)).tolist():
        with Video(path) as video:
            assert video.num_frames == len(reference)
            np.testing.assert_array_equal(video.read([index])[0], reference[index], err_msg=f"frame {index}")
    with Video(path) as video:
        assert len(video.seconds) == len(reference)
        assert (np.diff(video.seconds) > 0).all()
    return frame_numbers(reference)


def test_a_lost_packet_of_a_transport_stream_is_no_truncation(tmp_path):
    path = write_clip(tmp_path / "a.ts", frames=moving(24), options=X264_B_FRAMES, fps=25)
    data = bytearray(path.read_bytes())
    places = range(0, len(data), 188)
    sound = [at for at in places if data[at + 1] & 0x1F == 1 and data[at + 2] == 0 and not data[at + 1] & 0x40]
    video = sound[len(sound) // 2]  # in the middle of a picture
    del data[video : video + 188]
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert any(packet.is_corrupt for packet in container.demux(video=0))
    with Video(path, damaged="keep") as kept:
        np.testing.assert_array_equal(kept.read(range(kept.num_frames)), plain_loop(path))


def test_transport_streams_joined_by_their_bytes_are_read_on(tmp_path):
    parts = []
    for first in (0, 24):
        part = write_clip(tmp_path / f"{first}.ts", 24, first=first, options=X264_B_FRAMES, fps=25)
        parts.append(part.read_bytes())
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    assert read_everything(path) == list(range(48))


def test_times_that_jump_back_do_not_mingle_two_recordings(tmp_path):
    """Each announces itself, the second half a second after the first began."""
    parts = []
    for first, late in ((0, 0), (100, 0.5)):
        whole, part = (
            write_clip(tmp_path / "whole.mp4", 24, first=first, options=X264_B_FRAMES, fps=25),
            tmp_path / "b.ts",
        )
        options = {"mpegts_flags": "+initial_discontinuity", "muxdelay": "0"}
        with av.open(str(whole)) as read, av.open(str(part), "w", options=options) as write:
            copy = write.add_stream_from_template(read.streams.video[0])
            for packet in read.demux(video=0):
                if packet.size:
                    ticks = round(late / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, copy
                    write.mux(packet)
        parts.append(part.read_bytes())
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    assert read_everything(path) == [*range(24), *range(100, 124)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_packets_without_a_picture_are_no_frames(tmp_path, name):
    whole = write_clip(tmp_path / "whole.mp4", 24, codec="mpeg4", gop=12, fps=24, options={"bf": "0"})
    path, left_out = tmp_path / name, {5, 6, 17}
    numbers = count()
    remux(path, [whole.read_bytes()], 24, lambda packet: not_coded(packet, 5) if next(numbers) in left_out else None)
    assert len(decode_sequentially(path)) == 21
    read_everything(path)


def test_a_clip_whose_picture_builds_up_is_read_everywhere(tmp_path):
    settings = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}
    path = write_clip(tmp_path / "a.mp4", 40, options=settings)
    assert read_everything(path) == list(range(40))
    assert probe(path).frames == 40


BROKEN_OFF = {
    "a.mkv": (0.6, {"options": X264_B_FRAMES}),
    "a.webm": (0.6, {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}}),
    "a.avi": (0.9, {"codec": "mpeg4", "options": {"bf": "0", "qmax": "2"}}),
    "b.avi": (0.8, {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
}


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_a_file_that_broke_off_is_said_to_be_shorter(tmp_path, name, caplog):
    share, settings = BROKEN_OFF[name]
    whole = write_clip(tmp_path / f"whole{name}", 24, fps=25, **settings)
    path = truncate(whole, tmp_path / name, share)
    assert probe(whole).cut is None
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        info = probe(path)
    assert 0 < info.frames < 24
    assert info.cut is not None
    assert info.cut.startswith(f"ends after {info.frames} of about 24 frames, {path.stat().st_size} of ")
    assert str(path) in caplog.text
    assert info.cut in caplog.text


def test_an_mp4_that_broke_off_is_shown_as_far_as_it_goes_where_damage_is_kept(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", 24, options=X264_B_FRAMES, container_options={"movflags": "faststart"})
    path = truncate(whole, tmp_path / "a.mp4", 0.7)
    with pytest.raises(VideoDecodeError, match="truncated"):
        Video(path)
    with Video(path, damaged="keep") as video:
        assert 0 < video.num_frames < 24
        np.testing.assert_array_equal(video.read(range(8)), decode_sequentially(whole)[:8])
        cut = video.info().cut
        assert cut is not None
        assert cut.startswith(f"ends after {video.num_frames} of about 24 frames")


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1], ids=hex)
def test_a_last_box_that_claims_more_than_any_file_holds_refuses_no_frames(tmp_path, size):
    movflags = {"movflags": "frag_keyframe+empty_moov"}
    path = write_clip(tmp_path / "a.mp4", 12, container_options=movflags)
    path.write_bytes(path.read_bytes() + struct.pack(">I4sQ", 1, b"free", size))
    for source in (path, path.read_bytes()):
        with Video(source) as video:
            assert video.num_frames == 12
            assert frame_numbers(video.read([0, 11])) == [0, 11]
