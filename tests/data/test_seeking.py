"""What is read of a file for a clip, and that seeking never hands out another frame than a plain decoding loop."""

import os
import subprocess
import sys
from typing import Any

import av
import numpy as np
import pytest

from fastvtp.data.video import frame_reader, packets
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.data.video.frame_table import Memory, frames_by_decoding
from fastvtp.data.video.packet_reader import PacketReader
from tests.data.clips import barcode_frames, decode_sequentially, frame_numbers, write_clip
from tests.data.test_decoding import VP9, X264_B_FRAMES, shifted_copy

ENCODER = {"options": {**X264_B_FRAMES, "preset": "ultrafast", "crf": "35"}, "gop": 10}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(frame_reader, "_memory", Memory())


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def bytes_of_a_clip(path, first):
    before = bytes_read()
    with Video(path) as video:
        clip = video.read(range(first, first + 12))
    return bytes_read() - before, frame_numbers(clip)


def long_clip(path, count, **encoding):
    """Noise under the number of each frame: 19 kB a frame in a small picture."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, 128, 160, 3), np.uint8)
    pictures[:, :32] = barcode_frames(count, 128, 160)[:, :32]
    settings = {"codec": "mpeg4", "gop": 10, "fps": 25, "options": {"qmin": "1", "qmax": "2", "b": "90M"}}
    return write_clip(path, frames=pictures, **{**settings, **encoding})


def test_what_is_read_of_an_mp4_does_not_grow_with_its_length(tmp_path):
    read = {}
    for count in (25, 250):
        path = long_clip(tmp_path / f"{count}.mp4", count)
        read[count], numbers = bytes_of_a_clip(path, count - 14)
        assert numbers == list(range(count - 14, count - 2))
    assert read[250] < read[25] + 200_000  # the header of the longer one, and where buffers happen to end
    assert read[250] < 0.15 * os.path.getsize(tmp_path / "250.mp4")


def test_an_edit_list_does_not_make_the_file_be_read(tmp_path):
    options = {"qmin": "1", "qmax": "2", "b": "90M", "bf": "2"}
    path = shifted_copy(long_clip(tmp_path / "whole.mp4", 300, options=options), tmp_path / "a.mp4", 7)
    read, numbers = bytes_of_a_clip(path, 120)
    assert numbers == list(range(127, 139))
    assert read < 0.3 * os.path.getsize(path)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.avi", "a.mpg", "fragmented.mp4"])
def test_a_file_without_such_an_index_is_read_once(tmp_path, name):
    options = {"movflags": "frag_keyframe+empty_moov"} if "fragmented" in name else {}
    codec = {"codec": "mpeg2video"} if name in ("a.ts", "a.mpg") else {}
    path = long_clip(tmp_path / name, 200, container_options=options, **codec)
    first, _ = bytes_of_a_clip(path, 0)
    again, numbers = bytes_of_a_clip(path, 177)
    assert numbers == list(range(177, 189))
    assert first > os.path.getsize(path)
    assert again < 0.4 * first


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_small_pictures_that_share_packs_of_a_program_stream_are_found(tmp_path, codec):
    """Several of them in one pack: libav makes their times up, and others after a seek than in a plain reading."""
    options = {"bf": "2", "b": "200k"}
    path = write_clip(tmp_path / "a.mpg", 60, codec=codec, fps=25, gop=12, options=options)
    reference = decode_sequentially(path)
    for frame in range(0, len(reference), 7):
        with Video(path) as video:
            np.testing.assert_array_equal(video.read([frame])[0], reference[frame], err_msg=f"frame {frame}")


def test_an_avi_of_keyframes_is_read_where_its_index_says(tmp_path):
    path = long_clip(tmp_path / "a.avi", 150, codec="mjpeg", pix_fmt="yuvj420p", options={"qmin": "1", "qmax": "1"})
    read, numbers = bytes_of_a_clip(path, 131)
    assert numbers == list(range(131, 143))
    assert read < 0.2 * os.path.getsize(path)


def test_memory_does_not_grow_by_the_size_of_a_file(tmp_path):
    """39 MB each, of which one group of pictures is a fiftieth."""
    raw = {"codec": "rawvideo", "pix_fmt": "uyvy422", "height": 512, "width": 768}
    small = write_clip(tmp_path / "small.mov", 2, **raw)
    paths = [small, *(write_clip(tmp_path / name, 50, **raw) for name in ("a.mov", "a.mkv", "a.avi"))]
    program = """
import resource, sys
from fastvtp.data.video.decoding import Video
for path in sys.argv[1:]:
    with Video(path) as video:
        video.read([video.num_frames - 2])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    run = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=True)
    before, *after = map(int, run.stdout.split())
    assert max(after) - before < 12


@pytest.mark.parametrize(("codec", "b_frames"), [("mpeg4", "0"), ("mpeg4", "2"), ("msmpeg4", "0"), ("flv", "0")])
def test_an_avi_whose_codec_tells_the_order_is_not_decoded_to_count_its_frames(tmp_path, monkeypatch, codec, b_frames):
    monkeypatch.setattr(frame_reader, "frames_by_decoding", None)
    options = {"bf": b_frames} if b_frames != "0" else {}
    path = write_clip(tmp_path / "a.avi", 40, codec=codec, gop=12, fps=25, options=options)
    reference = decode_sequentially(path)
    for index in (39, 0, 13, 24, 7, 12):
        with Video(path) as video:
            assert video.num_frames == len(reference) == 40
            np.testing.assert_array_equal(video.read([index])[0], reference[index])
            np.testing.assert_allclose(video.seconds, np.arange(40) / 25)


def test_packets_of_two_pictures_are_counted(tmp_path):
    """What DivX called a packed bitstream: a picture predicted both ways rides with the one it is predicted from, and
    an empty one follows in its place."""
    whole = write_clip(
        tmp_path / "whole.avi", 24, codec="mpeg4", gop=24, fps=25, options={"bf": "1", "b_strategy": "0"}
    )
    path, kept = tmp_path / "a.avi", []
    with av.open(str(whole)) as read, av.open(str(path), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        for packet in packets:
            data = bytes(packet)
            is_between = data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 2
            if is_between:
                kept[-1] += data
                kept.append(b"\0\0\1\xb6\x50\x4f")  # of a kind that is not coded
            else:
                kept.append(data if kept else data.replace(b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p\0\0\1\xb6"))
        for number, data in enumerate(kept):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = packets[0].time_base, copy, number == 0
            write.mux(packet)
    reference = decode_sequentially(path)
    with Video(path) as video:
        assert video.num_frames == len(reference)
        for indices in ([5], [9, 2], range(len(reference))):
            np.testing.assert_array_equal(video.read(indices), reference[list(indices)])


AWKWARD = {
    "groups shorter than the delay": ("a.mp4", {"gop": 2, "options": X264_B_FRAMES}),
    "every frame a keyframe": ("a.mp4", {"gop": 1}),
    "no index": ("a.mkv", {"container_options": {"live": "1"}, "options": X264_B_FRAMES}),
    "open groups, transport stream": (
        "a.ts",
        {"options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}},
    ),
    "picture built up over a second": ("a.mp4", {"options": {"x264-params": "intra-refresh=1:keyint=8:bframes=0"}}),
    "av1": ("a.mp4", {"codec": "libsvtav1", "options": {"preset": "12", "crf": "50"}}),
    "av1 webm": ("a.webm", {"codec": "libsvtav1", "options": {"preset": "12", "crf": "50"}}),
    "hidden frames": ("a.webm", {"codec": "libvpx", "options": {**VP9, "arnr-maxframes": "5"}}),
    "hidden frames, avi": ("a.avi", {"codec": "libvpx", "options": {**VP9, "arnr-maxframes": "5"}}),
    "raw": ("a.h264", {"options": X264_B_FRAMES}),
    "flv": ("a.flv", {"options": X264_B_FRAMES}),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_every_frame_opened_anew_equals_the_plain_decode(tmp_path, name):
    file_name, arguments = AWKWARD[name]
    size = {"height": 64, "width": 96} if "codec" not in arguments else {"height": 72, "width": 104}
    path = write_clip(tmp_path / file_name, 20, **{**size, **arguments})
    reference = decode_sequentially(path)
    for index in np.random.default_rng(3).permutation(len(reference)).tolist():
        with Video(path) as video:
            assert video.num_frames == len(reference)
            np.testing.assert_array_equal(video.read([index])[0], reference[index], err_msg=f"frame {index}")
    for seed in range(4):
        drawn = np.random.default_rng(seed).integers(0, len(reference), 5)
        with Video(path) as video:
            np.testing.assert_array_equal(video.read(drawn), reference[drawn])


def copy_with(source, target, change):
    """Copy a video packet by packet; `change` makes the new bytes of one from its number and its bytes."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            changed = av.Packet(change(number, bytearray(packet)))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copy
            write.mux(changed)
    return target


@pytest.mark.parametrize("name", ["a.webm", "a.avi"])
def test_frames_that_vp8_hides_are_no_frames(tmp_path, monkeypatch, name):
    """The encoder's alternate references are such: a bit of the frame's header says that it is not shown."""
    hidden = {3, 4, 11, 22}
    whole = write_clip(tmp_path / "whole.webm", 24, codec="libvpx", options={"deadline": "good", "cpu-used": "5"})
    path = copy_with(
        whole,
        tmp_path / name,
        lambda number, data: bytes([data[0] & (0xEF if number in hidden else 0xFF)]) + data[1:],
    )
    reference = decode_sequentially(path)
    assert frame_numbers(reference) == [number for number in range(24) if number not in hidden]
    if name == "a.webm":
        monkeypatch.setattr(frame_reader, "frames_by_decoding", None)  # it says when frames are shown
    for indices in (range(20), [19], [9, 4], [2, 3, 10]):
        with Video(path) as video:
            assert video.num_frames == 20
            np.testing.assert_array_equal(video.read(indices), reference[list(indices)])


def times_of_decoding_as_times_of_presentation(source, target):
    """What copying an old AVI or a raw stream into an mp4 makes."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        first = read.streams.video[0].index_entries[0].timestamp
        for packet in read.demux(video=0):
            if packet.size:
                packet.dts -= first
                packet.pts, packet.stream = packet.dts, copy
                write.mux(packet)
    return target


def test_a_palette_is_not_lost(tmp_path):
    """It comes with the first packet alone."""
    path, palette = tmp_path / "a.avi", np.random.default_rng(0).integers(0, 256, (256, 4), np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("rawvideo", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "pal8"
        for t in range(9):
            indices: Any = np.full((32, 48), 20 * t, np.uint8), palette
            frame = av.VideoFrame.from_ndarray(indices, format="pal8")
            container.mux(stream.encode(frame))
    reference = decode_sequentially(path)
    assert len({picture[0, 0].tobytes() for picture in reference}) == 9
    with Video(path) as video:
        for indices in ([4], [7, 2], [0], [8, 3]):
            np.testing.assert_array_equal(video.read(indices), reference[indices])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_come_in_order_where_times_of_decoding_stand_for_those_of_presentation(tmp_path, codec):
    options = X264_B_FRAMES if codec == "libx264" else {"bf": "2"}
    whole = write_clip(tmp_path / "whole.mp4", 20, codec=codec, options=options)
    path = times_of_decoding_as_times_of_presentation(whole, tmp_path / "a.mp4")
    with Video(path) as video:
        assert frame_numbers(video.read(range(20))) == list(range(20))
        assert list(video.frames_within(0.5, 1.0)) == [4, 5, 6, 7]


def test_a_wrong_table_costs_time_and_no_frame(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 24, options=X264_B_FRAMES)
    reference, true_table = decode_sequentially(path), packets.sample_table

    def wrong(movie, track):
        table: Any = true_table(movie, track)
        table.offset[:] = 0
        return table

    monkeypatch.setattr(packets, "sample_table", wrong)
    with Video(path) as video:
        np.testing.assert_array_equal(video.read([5, 13, 22]), reference[[5, 13, 22]])


def test_a_table_that_is_wrong_further_on_is_found_out(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 24, options=X264_B_FRAMES)
    reference, true_table = decode_sequentially(path), packets.sample_table

    def wrong(movie, track):
        table: Any = true_table(movie, track)
        shown = table.dts + table.offset
        table.offset[[18, 19]] = shown[[19, 18]] - table.dts[[18, 19]]
        return table

    monkeypatch.setattr(packets, "sample_table", wrong)
    refused = []
    for index in range(24):
        try:
            with Video(path) as video:
                np.testing.assert_array_equal(video.read([index])[0], reference[index])
        except VideoDecodeError:
            refused.append(index)
    assert refused
    assert min(refused) >= 16
    with Video(path) as video, pytest.raises(VideoDecodeError, match="contradict"):
        video.decode_all()


@pytest.mark.parametrize("landing", [0, 7, 16, 10**9, None])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_seek_that_lands_elsewhere_costs_time_and_no_frame(tmp_path, monkeypatch, name, landing):
    path = write_clip(tmp_path / name, 24, options=X264_B_FRAMES)
    reference, targets = decode_sequentially(path), PacketReader._seek_targets

    def elsewhere(self, number):
        return [] if landing is None else targets(self, landing) if landing < 24 else [landing]

    monkeypatch.setattr(PacketReader, "_seek_targets", elsewhere)
    with Video(path) as video:
        for indices in ([23, 2], [9], [17, 16, 1]):
            np.testing.assert_array_equal(video.read(indices), reference[indices])


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = write_clip(tmp_path / "a.mkv", 12, first=10)
    with Video(path) as video:
        assert frame_numbers(video.read([11])) == [21]
    write_clip(path, 9, first=60, gop=3)
    with Video(path) as video:
        assert video.num_frames == 9
        assert frame_numbers(video.read([8])) == [68]


def test_the_memory_of_files_is_bounded():
    table = packets.Packets(*(np.zeros(40, np.int64),) * 4, *(np.zeros(40, bool),) * 2, cut=0, from_index=False)
    memory, frames = Memory(most_packets=100), frames_by_decoding(table, [])
    for key in ("a", "b", "a", "c"):
        memory.keep((key,), frames)
    assert [memory.recall((key,)) is frames for key in "abc"] == [True, False, True]
    assert memory.recall(None) is None
