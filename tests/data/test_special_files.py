"""What is no video file by itself: pipes, devices, and files that name other files or addresses."""

import os
import socket

import numpy as np
import pytest

from fastvtp.data.video.decoding import Video, VideoDecodeError
from tests.data.clips import decode_sequentially, write_clip


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def link_in_a_circle(path):
    path.symlink_to(path)


@pytest.mark.parametrize(("make", "reason"), [(pipe, "pipe"), (device, "device"), (link_in_a_circle, "symbolic links")])
def test_what_might_never_end_is_refused_by_name(tmp_path, make, reason):
    make(tmp_path / "a.mp4")
    with pytest.raises(VideoDecodeError, match=reason):
        Video(tmp_path / "a.mp4")


def test_a_socket_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.mp4")
        with pytest.raises(VideoDecodeError, match="not a regular file but a socket"):
            Video(tmp_path / "a.mp4")


def playlists_of(part):
    """Files that name `part`, by the demuxer that would follow them."""
    return {
        "hls": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{part}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {part}\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 50000 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    }


@pytest.mark.parametrize("kind", ["hls", "concat", "sdp"])
@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4"])
def test_playlists_are_refused_unless_asked_for(tmp_path, kind, name):
    write_clip(tmp_path / "part.ts", 12, fps=8)
    path = tmp_path / name
    path.write_text(playlists_of("part.ts")[kind])
    with pytest.raises(VideoDecodeError, match="a playlist, which names other files"):
        Video(path)
    with pytest.raises(VideoDecodeError, match="a playlist, which names other files"):
        Video(path.read_bytes())
    if kind == "concat":
        with Video(path, playlists=True) as video:
            np.testing.assert_array_equal(video.read([3, 9]), decode_sequentially(tmp_path / "part.ts")[[3, 9]])


def test_a_name_that_looks_like_a_pattern_of_pictures_opens_no_others(tmp_path):
    for number in range(3):
        write_clip(tmp_path / f"{number}.jpg", 1, codec="mjpeg", pix_fmt="yuvj420p", first=number)
    path = tmp_path / "%d.jpg"
    path.write_bytes((tmp_path / "2.jpg").read_bytes())
    with pytest.raises(VideoDecodeError, match="not a video"):
        Video(path)
    with Video(path.read_bytes()) as video:
        assert video.num_frames == 1


def test_only_demuxers_that_read_their_own_file_are_allowed():
    from fastvtp.data.video.packet_reader import _formats

    allowed = set(_formats().split(","))
    assert {"mov", "mp4", "matroska", "webm", "avi", "mpegts", "flv", "gif", "ogg"} <= allowed
    assert not {"hls", "concat", "dash", "sdp", "rtsp", "rtp", "lavfi", "image2", "imf"} & allowed
