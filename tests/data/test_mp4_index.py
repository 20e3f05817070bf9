"""The sample table of made files against the packets that PyAV's demuxer hands out."""

import struct
from typing import Any

import av
import numpy as np
import pytest

from fastvtp.data.video.mp4_index import read_movie, sample_table
from tests.data.clips import write_audio, write_clip
from tests.data.test_decoding import IRREGULAR, X264_B_FRAMES, shifted_copy

B_FRAMES: dict[str, Any] = {"options": X264_B_FRAMES}
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "b frames": ("a.mp4", B_FRAMES),
    "no b frames": ("a.mp4", {"options": {"bf": "0"}}),
    "variable rate": ("a.mp4", {**B_FRAMES, "pts": [7 * time // 3 for time in IRREGULAR[:13]]}),
    "negative offsets": ("a.mov", {**B_FRAMES, "container_options": {"movflags": "negative_cts_offsets"}}),
    "header first": ("a.mp4", {"container_options": {"movflags": "faststart"}}),
    "all keyframes": ("a.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
}


def packets_of(path):
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def table_of(path, track=1) -> Any:
    with open(path, "rb") as file:
        movie = read_movie(file)
    return None if movie is None else sample_table(movie, track)


@pytest.mark.parametrize("name", FILES)
def test_the_table_is_what_the_demuxer_hands_out(tmp_path, name):
    file_name, arguments = FILES[name]
    path = write_clip(tmp_path / file_name, 13, gop=5, **arguments)
    packets, table = packets_of(path), table_of(path)
    assert table.is_whole
    assert table.pos.tolist() == [packet.pos for packet in packets]
    assert table.size.tolist() == [packet.size for packet in packets]
    assert table.is_keyframe.tolist() == [packet.is_keyframe for packet in packets]
    for column, times in ((table.dts, [p.dts for p in packets]), (table.dts + table.offset, [p.pts for p in packets])):
        np.testing.assert_array_equal(column - column[0], np.array(times) - times[0])


def test_the_track_with_the_number_asked_for_is_read(tmp_path):
    """Sound comes first in this file: the video is track 2, its samples in chunks between those of the sound."""
    sound, video = write_audio(tmp_path / "sound.mp4"), write_clip(tmp_path / "video.mp4", 25, fps=25)
    with av.open(str(tmp_path / "both.mp4"), "w") as both, av.open(str(sound)) as one, av.open(str(video)) as two:
        streams = [(source, both.add_stream_from_template(source.streams[0])) for source in (one, two)]
        packets = [(p, copy) for source, copy in streams for p in source.demux() if p.dts is not None]
        for packet, copy in sorted(packets, key=lambda pair: pair[0].dts * pair[0].time_base):
            packet.stream = copy
            both.mux(packet)
    table = table_of(tmp_path / "both.mp4", track=2)
    assert table.pos.tolist() == [packet.pos for packet in packets_of(tmp_path / "both.mp4")]
    assert np.any(np.diff(table.pos) != table.size[:-1])
    assert table_of(tmp_path / "both.mp4", track=3) is None


def test_an_edit_list_that_hides_frames_is_noticed(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", 24, gop=12, options=X264_B_FRAMES)
    assert table_of(whole).is_whole
    assert not table_of(shifted_copy(whole, tmp_path / "edited.mp4", 5)).is_whole


def test_fragments_are_left_to_the_demuxer(tmp_path):
    path = write_clip(tmp_path / "a.mp4", container_options={"movflags": "frag_keyframe+empty_moov"})
    assert table_of(path) is None


@pytest.mark.parametrize("box", [b"stsz", b"stsc", b"stco", b"ctts"])
@pytest.mark.parametrize("count", [0, 15, 0x7FFFFFFF, 0xFFFFFFFF])
def test_damaged_counts_are_refused_and_fill_no_memory(tmp_path, box, count):
    path = write_clip(tmp_path / "a.mp4", options=X264_B_FRAMES)
    data = bytearray(path.read_bytes())
    at = data.index(box) + (12 if box == b"stsz" else 8)
    data[at : at + 4] = struct.pack(">I", count)
    path.write_bytes(data)
    assert table_of(path) is None


def test_a_damaged_number_of_samples_of_one_size_fills_no_memory(tmp_path):
    path = write_clip(tmp_path / "a.mov", codec="rawvideo", pix_fmt="uyvy422")
    data = bytearray(path.read_bytes())
    at = data.index(b"stsz") + 8
    data[at : at + 8] = struct.pack(">II", 12288, 0xFFFFFFF0)
    path.write_bytes(data)
    assert table_of(path) is None


def test_a_header_cut_anywhere_is_refused(tmp_path):
    data = write_clip(tmp_path / "a.mp4", container_options={"movflags": "faststart"}).read_bytes()
    moov = data.index(b"moov") - 4
    end = moov + int.from_bytes(data[moov : moov + 4], "big")
    for cut in range(0, end, 7):
        (tmp_path / "cut.mp4").write_bytes(data[:cut])
        assert table_of(tmp_path / "cut.mp4") is None
