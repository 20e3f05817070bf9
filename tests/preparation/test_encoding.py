"""What clips look like once they are written: which frames, when, how large, how upright, how near to the source."""

from fractions import Fraction

import av
import numpy as np
import pytest

from fastvtp.data.video.decoding import Video
from fastvtp.errors import UserError
from fastvtp.preparation.encoding import check_codec, fitted, write_clip
from fastvtp.preparation.settings import QUALITIES, ClipEncoding
from tests.data import clips
from tests.data.clips import barcode_frames, decode_sequentially, frame_numbers
from tests.preparation.sets import pictures, run

# mean difference, of 255 levels, that the default quality may make on the barcode clips, whose edges are harder than
# those of footage
MOST_ERROR = 4.0


def written(source, target, start=None, end=None, **encoding):
    with Video(str(source)) as video:
        return write_clip(video, video.frames_within(start, end), target, ClipEncoding(**encoding))


def packets_of(path):
    """Keyframes by their number, and the time of each packet in presentation order."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    return keys, sorted(float(packet.pts * packet.time_base) for packet in packets)


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((720, 1280), 224, (224, 398)),
        ((1280, 720), 224, (398, 224)),
        ((100, 60), 224, (100, 60)),  # never enlarged
        ((101, 61), 224, (100, 60)),  # even, by a line less
        ((1080, 1080), 112, (112, 112)),
        ((480, 641), 240, (240, 320)),
    ],
)
def test_sizes(size, short_side, expected):
    assert fitted(size, short_side) == expected


def test_a_span_holds_its_frames_and_no_others(tmp_path):
    """Frames of 12.5 to 37.5 are shown within the span: 13 to 37, whatever group of pictures they are in."""
    source = clips.write_clip(tmp_path / "a.mp4", 80, fps=10, gop=30)
    told = written(source, tmp_path / "b.mp4", 1.25, 3.75)
    assert frame_numbers(decode_sequentially(tmp_path / "b.mp4")) == list(range(13, 38))
    assert (told.frames, told.fps, told.seconds) == (25, 10.0, 2.5)
    keys, times = packets_of(tmp_path / "b.mp4")
    assert keys == list(range(0, 25, 3))
    np.testing.assert_allclose(times, np.arange(25) / 10, atol=1e-6)


@pytest.mark.parametrize("codec", QUALITIES)
def test_codecs_give_the_picture_of_the_source(tmp_path, codec):
    """Equal bytes each time, the index in front, keyframes as by default, and nearly the picture of the source."""
    check_codec(codec)
    source = clips.write_clip(tmp_path / "a.mp4", 20, 96, 128)
    for name in ("b", "c"):
        told = written(source, tmp_path / f"{name}.mp4", codec=codec)
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()
    assert (told.height, told.width, told.codec) == (96, 128, codec)
    content = (tmp_path / "b.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert packets_of(tmp_path / "b.mp4")[0] == list(range(0, 20, 3 if codec == "h264" else 8))
    got, want = (decode_sequentially(path).astype(int) for path in (tmp_path / "b.mp4", source))
    assert frame_numbers(got) == list(range(20))
    assert np.abs(got - want).mean() < MOST_ERROR


def test_h264_is_made_to_be_decoded_quickly(tmp_path):
    """Frames are stored in the order in which they are shown, and the encoder says what it was told."""
    source = clips.write_clip(tmp_path / "a.mp4", 20, 96, 128)
    written(source, tmp_path / "b.mp4", gop=10)
    with av.open(str(tmp_path / "b.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
    content = (tmp_path / "b.mp4").read_bytes()
    for said in (b"cabac=0", b"deblock=0", b"ref=1", b"bframes=0", b"weightp=0", b"crf=22.0"):
        assert said in content


@pytest.mark.parametrize("codec", QUALITIES)
def test_equal_pictures_give_equal_bytes_wherever_they_lie(tmp_path, codec):
    """Encoders whose vector code reads beyond what it was given are found by memory that is never the same."""
    source = clips.write_clip(tmp_path / "a.mp4", frames=pictures(1, 8, 128, 192))
    rng, kept, found = np.random.default_rng(0), [], set()
    for number in range(12):
        kept = [*kept[-5:], np.full(rng.integers(1, 400_000), number, np.uint8)]
        written(source, tmp_path / "b.mp4", codec=codec)
        found.add((tmp_path / "b.mp4").read_bytes())
    assert len(found) == 1


def test_smaller_pictures_are_those_of_the_source_made_small(tmp_path):
    source = clips.write_clip(tmp_path / "a.mp4", 6, 240, 320, gop=6)
    written(source, tmp_path / "b.mp4", short_side=120)
    got = decode_sequentially(tmp_path / "b.mp4").astype(float)
    want = decode_sequentially(source).reshape(6, 120, 2, 160, 2, 3).mean(axis=(2, 4))
    assert got.shape == want.shape
    assert np.abs(got - want).mean() < MOST_ERROR


def test_a_variable_rate_keeps_the_times(tmp_path):
    """Frames shown at odd times are shown at these times still, from the span's first on."""
    pts = [0, 700, 1000, 4000, 4100, 9000, 9500, 12000]  # of 1/8000 s
    source = clips.write_clip(tmp_path / "a.mp4", 8, pts=pts)
    written(source, tmp_path / "b.mp4", 0.05)
    _, times = packets_of(tmp_path / "b.mp4")
    np.testing.assert_allclose(times, [(each - 700) / 8000 for each in pts[1:]], atol=1e-4)


def test_another_rate_shows_what_was_shown(tmp_path):
    """At 4 frames a second of a variable rate: the frame that was on at 0, 0.25, 0.5 ... s, repeated where it was on
    for longer."""
    pts = [0, 700, 1000, 4000, 4100, 9000, 9500, 12000]
    source = clips.write_clip(tmp_path / "a.mp4", 8, pts=pts)
    told = written(source, tmp_path / "b.mp4", fps=4)
    shown = [int(np.searchsorted(pts, 2000 * k, side="right")) - 1 for k in range(told.frames)]
    assert frame_numbers(decode_sequentially(tmp_path / "b.mp4")) == shown
    assert told.frames in (6, 7)
    np.testing.assert_allclose(packets_of(tmp_path / "b.mp4")[1], np.arange(told.frames) / 4, atol=1e-6)


def test_a_constant_rate_is_halved(tmp_path):
    source = clips.write_clip(tmp_path / "a.mp4", 30, fps=30)
    told = written(source, tmp_path / "b.mp4", fps=15)
    assert frame_numbers(decode_sequentially(tmp_path / "b.mp4")) == list(range(0, 30, 2))
    assert (told.frames, told.fps) == (15, 15.0)


def test_portraits_by_rotation_are_written_upright(tmp_path):
    """A phone's portrait is coded as a landscape and a rotation; afterwards it is a portrait with none."""
    source = clips.write_clip(tmp_path / "a.mp4", 8, 64, 96, rotation=90)
    told = written(source, tmp_path / "b.mp4")
    got, want = decode_sequentially(tmp_path / "b.mp4"), clips.decode_upright(source)
    assert (told.height, told.width) == got.shape[1:3] == (96, 64)
    assert np.abs(got.astype(int) - want).mean() < MOST_ERROR
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_pixels_become_square(tmp_path):
    """64 x 96 pixels that are twice as wide as high are shown as 64 x 192."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for pixels in barcode_frames(8, 64, 96):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    told = written(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert (told.height, told.width) == (64, 192)
    assert frame_numbers(decode_sequentially(tmp_path / "b.mp4")) == list(range(8))
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 1)


def test_a_single_frame_is_a_clip(tmp_path):
    source = clips.write_clip(tmp_path / "a.mp4", 16, fps=8)
    told = written(source, tmp_path / "b.mp4", 0.5, 0.6)
    assert frame_numbers(decode_sequentially(tmp_path / "b.mp4")) == [4]
    assert told.frames == 1


def test_sound_is_left_out(tmp_path):
    source = clips.write_clip(tmp_path / "a.mp4", 8)
    written(source, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_codecs_that_this_machine_lacks_are_refused(monkeypatch):
    monkeypatch.setattr("fastvtp.preparation.encoding.ENCODERS", {"av1": ("no_such_encoder", {})})
    with pytest.raises(UserError, match=r"codec 'av1' needs the encoder no_such_encoder, which this PyAV lacks"):
        check_codec("av1")


def test_frames_are_not_repeated_where_the_source_is_slower(tmp_path):
    source = clips.write_clip(tmp_path / "a.mp4", 16, fps=8)
    told = written(source, tmp_path / "b.mp4", fps=60)
    assert (told.frames, told.fps, told.seconds, told.capped) == (16, 8.0, 2.0, True)
    assert not written(source, tmp_path / "c.mp4", fps=8).capped
    report = run(clips.write_lines(tmp_path / "in.jsonl", {"video": "a.mp4"}), tmp_path / "out", fps=60)
    assert report is not None
    assert (report["frames"], report["slower_sources"]) == (16, 1)
