"""Frames handed out one after another are those of a plain decoding loop, from wherever they begin."""

import numpy as np
import pytest

from fastvtp.data.video import frame_reader
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.data.video.frame_table import Memory
from fastvtp.data.video.packet_reader import PacketReader
from tests.data.clips import damage_packet, decode_sequentially, frame_numbers, write_clip
from tests.data.test_decoding import VP9, X264_B_FRAMES
from tests.data.test_seeking import AWKWARD


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(frame_reader, "_memory", Memory())


def streamed(path, first, stop):
    with Video(str(path)) as video:
        return np.stack(list(video.stream(range(first, stop))))


@pytest.mark.parametrize("name", AWKWARD)
def test_streams_of_awkward_files(tmp_path, name):
    file_name, arguments = AWKWARD[name]
    size = {"height": 64, "width": 96} if "codec" not in arguments else {"height": 72, "width": 104}
    path = write_clip(tmp_path / file_name, 20, **{**size, **arguments})
    reference = decode_sequentially(path)
    for first, stop in ((0, len(reference)), (9, 17), (len(reference) - 1, len(reference))):
        np.testing.assert_array_equal(streamed(path, first, stop), reference[first:stop])


@pytest.mark.parametrize("landing", [16, None])
def test_a_seek_that_lands_elsewhere_costs_no_frame(tmp_path, monkeypatch, landing):
    path = write_clip(tmp_path / "a.mp4", 24, options=X264_B_FRAMES)
    reference, targets = decode_sequentially(path), PacketReader._seek_targets
    monkeypatch.setattr(
        PacketReader, "_seek_targets", lambda self, number: [] if landing is None else targets(self, landing)
    )
    np.testing.assert_array_equal(streamed(path, 9, 24), reference[9:])


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_small_pictures_that_share_packs_of_a_program_stream(tmp_path, codec):
    """Packets are put together otherwise after a seek than in a plain reading, which the stream then goes on with."""
    options = {"bf": "2", "b": "200k"}
    path = write_clip(tmp_path / "a.mpg", 60, codec=codec, fps=25, gop=12, options=options)
    reference = decode_sequentially(path)
    for first in (0, 13, 41):
        np.testing.assert_array_equal(streamed(path, first, len(reference)), reference[first:])


def test_several_streams_of_one_video(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 30, gop=12)
    with Video(str(path)) as video:
        assert frame_numbers(np.stack(list(video.stream(range(20, 30))))) == list(range(20, 30))
        assert frame_numbers(video.read([3, 25])) == [3, 25]
        halves = video.stream(range(5, 9))
        assert frame_numbers(np.stack([next(halves)])) == [5]
        assert frame_numbers(np.stack(list(video.stream(range(14, 18))))) == list(range(14, 18))
        assert list(video.stream(range(4, 4))) == []


def test_scaled_streams_are_what_read_gives(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 12, 64, 96, rotation=90)
    with Video(str(path)) as video:
        np.testing.assert_array_equal(
            np.stack(list(video.stream(range(2, 9), (48, 32)))), video.read(range(2, 9), size=(48, 32))
        )


def test_damage_ends_a_stream_after_the_frames_before_it(tmp_path):
    path = write_clip(tmp_path / "a.webm", 24, codec="libvpx-vp9", options=VP9)
    damage_packet(path, 13)
    seen: list[np.ndarray] = []
    with Video(str(path)) as video, pytest.raises(VideoDecodeError):
        seen.extend(video.stream(range(6, 24)))
    assert frame_numbers(np.stack(seen)) == list(range(6, 6 + len(seen)))
    assert len(seen) <= 7


def test_frames_outside_are_refused(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 8)
    with Video(str(path)) as video, pytest.raises(IndexError, match=r"expected consecutive frames in \[0, 8\)"):
        list(video.stream(range(4, 9)))
