"""Locations as people write them: what odd ones become, and that no odd one ends a run."""

import pytest

from fastvtp.data.locations import located, suffix_of, without_secrets
from fastvtp.data.video.decoding import Video, VideoDecodeError


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/films/a?b#c@d.mp4", "/films/a?b#c@d.mp4"),
        ("https://h/a.mp4", "https://h/a.mp4"),
        ("https://me:word@h:80/x@y/a.mp4?sig=1#part", "https://h:80/x@y/a.mp4"),
        ("https://me:word@h/a.tar?sig=1::b c.mp4", "https://h/a.tar::b c.mp4"),
        ("https://me:word@h?sig=1", "https://h"),
        ("http://me:word@[bad/b.mp4?sig=1", "http://[bad/b.mp4"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_locations_are_shown_without_secrets(location, shown):
    assert without_secrets(location) == shown


@pytest.mark.parametrize(
    ("location", "suffix"),
    [("https://h/a.MP4?x=.png", ".mp4"), ("http://[bad/b.webm#t", ".webm"), ("s3://a.b", ""), ("/a.b/c.mov", ".mov")],
)
def test_suffixes_are_those_of_paths(location, suffix):
    assert suffix_of(location) == suffix


def test_a_file_url_is_a_path():
    assert located("file:///films/a%20b.mp4", "/elsewhere") == "/films/a b.mp4"


@pytest.mark.parametrize(
    "location",
    ["http://[bad/b.mp4", "github://a/b.mp4", "zip://a.mp4::/no/x.zip", "memory://", "data://x", "/x/a\0b.mp4"],
)
def test_an_odd_location_is_a_bad_file_and_not_the_end(location):
    pytest.importorskip("aiohttp")
    with pytest.raises(VideoDecodeError) as caught:
        Video(location)
    assert caught.value.path == location
    assert str(caught.value).startswith(f"{location}: ")
