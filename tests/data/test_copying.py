"""Frames cut out of a video by copying its packets: those asked for, at their times, exactly as they were."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from fastvtp.data.video import copying, frame_reader, sample_reader
from fastvtp.data.video.copying import NotCopiedError, copy_frames
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.data.video.frame_table import Memory
from tests.data.clips import barcode_frames, damage_packet, decode_upright, frame_numbers, write_clip
from tests.data.test_decoding import shifted_copy

FRAMES = 48
B_FRAMES = {"bf": "3", "x264-params": "cpu-independent=1:bframes=3:b-adapt=0:b-pyramid=normal:scenecut=0:keyint=12"}
OPEN = {"x264-params": B_FRAMES["x264-params"] + ":open-gop=1"}
X265 = "keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0:log-level=error:pools=none:frame-threads=1"
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "h264": ("a.mp4", {}),
    "B frames": ("a.mp4", {"options": B_FRAMES}),
    "open groups": ("a.mp4", {"options": OPEN}),
    "hevc, open groups": ("a.mp4", {"codec": "libx265", "options": {"x265-params": f"{X265}:open-gop=1"}}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "12"}}),
    "av1": ("a.mkv", {"codec": "libsvtav1", "options": {"preset": "12"}}),
    "mpeg4 of AVI, no times of its own": ("a.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "h264 of AVI, no times of its own": ("a.avi", {"options": B_FRAMES}),
    "times that begin late": ("a.ts", {"options": B_FRAMES}),
    "matroska": ("a.mkv", {"options": B_FRAMES}),
    "a variable rate": ("a.mp4", {"options": B_FRAMES, "pts": [1000 * t + 37 * (t % 5) ** 2 for t in range(FRAMES)]}),
    "sideways": ("a.mp4", {"options": B_FRAMES, "rotation": 90}),
    "4:4:4 of 10 bits": ("a.mp4", {"pix_fmt": "yuv444p10le"}),
    "pictures built up": ("a.mp4", {"options": {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}}),
    "keyframes alone": ("a.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
}
SPANS = [range(FRAMES), range(17, 30), range(5, 7), range(12, 24), range(40, FRAMES), range(23, 24)]


def made(folder, name):
    file_name, settings = FILES[name]
    return write_clip(folder / file_name, FRAMES, **{"gop": 12, "fps": 24, **settings})


def check(source, target, frames):
    """Copy; the copy, as a plain loop of libav decodes it, and at which times."""
    with Video(source) as video:
        copied = copy_frames(video, frames, target)
        times, ends = video.seconds[frames.start : frames.stop], [*video.seconds[1:], video.duration]
    want, got = decode_upright(source)[frames.start : frames.stop], decode_upright(target)
    assert len(got) == copied.frames
    np.testing.assert_array_equal(got[copied.first : copied.stop], want)
    with Video(target) as copy:
        own = copy.seconds
        np.testing.assert_allclose(own[copied.first : copied.stop] + copied.start, times, atol=2e-6)
        assert min(np.abs(np.array(ends) - copied.end)) < 2e-6
        assert copied.start + own[-1] < copied.end
        assert times[-1] < copied.end
    content = target.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    return copied


@pytest.mark.parametrize("name", FILES)
def test_a_copy_shows_the_frames_of_its_source(tmp_path, name):
    source = made(tmp_path, name)
    for number, frames in enumerate(SPANS):
        check(source, tmp_path / f"{number}.mp4", frames)


def keys_of(path):
    """Which packets the container calls keyframes."""
    with av.open(str(path)) as container:
        return [place for place, packet in enumerate(container.demux(video=0)) if packet.size and packet.is_keyframe]


def test_a_copy_begins_at_the_keyframe_before_and_says_so(tmp_path):
    source = made(tmp_path, "h264")
    copied = check(source, tmp_path / "copy.mp4", range(17, 30))
    # and frame 30, so that 29 is shown for as long as in the source
    assert (copied.first, copied.stop, copied.frames) == (5, 18, 19)
    assert (copied.start, copied.end) == (0.5, pytest.approx(31 / 24, abs=1e-5))
    assert copied.span() == {"start_frame": 5, "end_frame": 18}
    assert frame_numbers(decode_upright(tmp_path / "copy.mp4")) == list(range(12, 31))
    assert check(source, tmp_path / "whole.mp4", range(12, 24)).span() == {}
    assert check(source, tmp_path / "tail.mp4", range(40, FRAMES)).span() == {"start_frame": 4}
    assert check(source, tmp_path / "again.mp4", range(17, 30)) == copied
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "copy.mp4").read_bytes()


def test_open_groups_lose_what_is_shown_before_their_keyframe(tmp_path):
    for name in ("open groups", "hevc, open groups"):
        source = made(tmp_path, name)
        with av.open(str(source)) as container:
            pts = [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
        key = next(place for place, (_, is_key) in enumerate(pts) if is_key and place)
        assert pts[key + 1][0] < pts[key][0]  # else the group is a closed one
        with Video(source) as video:
            first = int(video.keyframes[1])
        assert check(source, tmp_path / "copy.mp4", range(first + 2, 40)).first == 2


def test_a_picture_that_only_builds_up_is_copied_from_before(tmp_path):
    """The container calls keyframes what shows nothing whole yet."""
    source = made(tmp_path, "pictures built up")
    keys = keys_of(source)
    assert keys == [0, 12, 24, 36]
    assert check(source, tmp_path / "copy.mp4", range(30, 40)).first == 30


@pytest.mark.parametrize("hidden", [5, 14])
def test_what_an_edit_list_hides_lies_before_the_span(tmp_path, hidden):
    source = shifted_copy(made(tmp_path, "B frames"), tmp_path / "edited.mp4", hidden)
    assert check(source, tmp_path / "whole.mp4", range(FRAMES - hidden)).first == hidden % 12
    for frames in (range(3, 9), range(26, 30)):
        copied = check(source, tmp_path / "part.mp4", frames)
        assert copied.start == pytest.approx(((frames.start + hidden) // 12 * 12 - hidden) / 24, abs=1e-5)


def test_a_long_file_is_copied_by_its_own_table(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_reader, "_memory", Memory())
    for name in ("B frames", "sideways"):
        source = made(tmp_path, name)
        plain = check(source, tmp_path / "plain.mp4", range(17, 30))
        with monkeypatch.context() as context:
            context.setattr(sample_reader, "_LONG_HEADER", 1)
            with Video(source) as video:
                assert isinstance(video._source.reader, sample_reader.SampleReader)  # pyright: ignore
            assert check(source, tmp_path / "table.mp4", range(17, 30)) == plain
        assert keys_of(tmp_path / "table.mp4") == keys_of(tmp_path / "plain.mp4") == [0, 12]


def test_colours_pixels_and_turns_are_those_of_the_source(tmp_path):
    from av.video.reformatter import ColorRange

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        context = stream.codec_context
        context.gop_size, context.colorspace, context.color_range = 12, 9, ColorRange.JPEG
        context.color_primaries, context.color_trc = 9, 16  # BT.2020, PQ
        context.sample_aspect_ratio = Fraction(4, 3)
        for pixels in barcode_frames(FRAMES, 64, 96):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    check(path, tmp_path / "copy.mp4", range(17, 30))

    def tags(of):
        with av.open(str(of)) as opened:
            stream = opened.streams.video[0]
            context = stream.codec_context
            named = [getattr(context, name) for name in ("color_primaries", "color_trc", "colorspace", "color_range")]
            return *named, stream.sample_aspect_ratio, stream.average_rate

    assert tags(tmp_path / "copy.mp4") == tags(path)
    assert tags(path)[:4] == (9, 16, 9, 2)
    with Video(path) as video, Video(tmp_path / "copy.mp4") as copy:
        assert copy.size == video.size == (64, 128)
    turned = made(tmp_path, "sideways")
    check(turned, tmp_path / "copy.mp4", range(17, 30))
    with Video(tmp_path / "copy.mp4") as copy:
        assert (copy.info().rotation, copy.size) == (90, (96, 64))


def test_what_cannot_be_copied_is_refused_by_what_it_is(tmp_path):
    def refused(source):
        with Video(source) as video, pytest.raises(NotCopiedError) as error:
            copy_frames(video, range(2, 5), tmp_path / "copy.mp4")
        return str(error.value)

    vp8 = write_clip(tmp_path / "a.webm", codec="libvpx")
    assert refused(vp8) == "mp4 cannot hold its codec, vp8"
    prores = write_clip(tmp_path / "a.mov", codec="prores", pix_fmt="yuv422p10le")
    assert refused(prores) == "mp4 cannot hold its codec, prores"
    (tmp_path / "frames").mkdir()
    from PIL import Image

    for number, pixels in enumerate(barcode_frames(6, 64, 96)):
        Image.fromarray(pixels).save(tmp_path / "frames" / f"{number}.png")
    assert "a folder of pictures" in refused(tmp_path / "frames")


def test_a_copy_that_shows_something_else_is_refused(tmp_path, monkeypatch):
    """As where what is left out of a group of pictures was needed."""
    source = made(tmp_path, "vp9")
    write = copying._write_once

    def spoilt(reader, part, path):
        write(reader, part, path)
        damage_packet(path, part.before)

    monkeypatch.setattr(copying, "_write_once", spoilt)
    with Video(source) as video, pytest.raises(NotCopiedError, match=r"shows other frames: "):
        copy_frames(video, range(17, 40), tmp_path / "copy.mp4")


def test_a_source_that_is_damaged_where_it_is_looked_at_is_named(tmp_path):
    source = made(tmp_path, "vp9")
    damage_packet(source, 18)
    with Video(source) as video, pytest.raises(VideoDecodeError, match=r"a\.webm: "):
        copy_frames(video, range(18, 30), tmp_path / "copy.mp4")
