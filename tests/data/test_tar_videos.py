"""Videos within tars are those of plain files, whatever the container and wherever in the tar they lie."""

import io
import tarfile

import numpy as np
import pytest

from fastvtp.data.storage.finding import find_file
from fastvtp.data.video.decoding import Video, VideoDecodeError
from tests.data.clips import frame_numbers, truncate, write_clip
from tests.data.object_store import patch_storage
from tests.data.tars import write_tar

CONTAINERS = {
    "mp4": {},
    "fast.mp4": {"container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "turned.mp4": {"rotation": 90},
    "mov": {},
    "mkv": {},
    "webm": {"codec": "libvpx-vp9"},
    "avi": {"codec": "mpeg4"},
    "ts": {"codec": "mpeg2video", "fps": 25},
    "mpg": {"codec": "mpeg2video", "fps": 25},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache")


def test_every_container_is_read_as_from_a_file(tmp_path):
    files = [("junk.bin", bytes(100_001))]
    for name, how in CONTAINERS.items():
        path = write_clip(tmp_path / f"x.{name}", 20, **{"gop": 6, **how})
        files += [(f"{name.replace('.', '_')}.{name.rpartition('.')[2]}", path), ("more.bin", bytes(777))]
    tar = write_tar(tmp_path / "0.tar", files)
    for member, path in files[1::2]:
        with Video(f"{tar}::{member}") as inside, Video(path) as plain:
            assert inside.num_frames == plain.num_frames == 20
            assert np.array_equal(inside.seconds, plain.seconds)
            for indices in ([19, 0, 7, 7], range(20), [12]):
                assert np.array_equal(inside.read(indices), plain.read(indices)), member


def test_pictures_in_tars(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    files = []
    for suffix in ("png", "jpg", "webp"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
        files.append((f"a.{suffix}", tmp_path / f"a.{suffix}"))
    tar = write_tar(tmp_path / "0.tar", files)
    for member, path in files:
        with Video(f"{tar}::{member}") as inside, Video(path) as plain:
            assert np.array_equal(inside.read([0]), plain.read([0]))
    with Video(f"{tar}::a.png") as inside:
        assert np.array_equal(inside.read([0])[0], pixels)


@pytest.mark.parametrize("folder", ["a b", "a,b", "a:b", "a::b", "50%d", "dåta", "x.tar", "a'b", "#?*"])
def test_any_name_of_a_folder_will_do(tmp_path, folder):
    (tmp_path / folder).mkdir()
    clip = write_clip(tmp_path / "a.mp4", 8, first=40)
    tar = write_tar(tmp_path / folder / "0.tar", [("é a,b:c.mp4", clip)])
    with Video(f"{tar}::é a,b:c.mp4") as video:
        assert frame_numbers(video.read([0, 7])) == [40, 47]


def test_members_beyond_4_gb(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 8, first=40).read_bytes()
    hole, last = tarfile.TarInfo("hole.bin"), tarfile.TarInfo("a.mp4")
    hole.size, last.size = 5 << 30, len(clip)
    with open(tmp_path / "0.tar", "wb") as file:
        file.write(hole.tobuf(tarfile.GNU_FORMAT))
        file.seek(hole.size, io.SEEK_CUR)  # takes no room
        file.write(last.tobuf(tarfile.GNU_FORMAT) + clip)
        file.write(bytes(-len(clip) % 512 + 1024))
    assert find_file(f"{tmp_path}/0.tar::a.mp4").key[3] == (5 << 30) + 1024  # pyright: ignore[reportOptionalSubscript]
    with Video(f"{tmp_path}/0.tar::a.mp4") as video:
        assert frame_numbers(video.read([3])) == [43]


def test_bad_members_are_refused_with_the_reasons_of_files(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4")
    truncate(whole, tmp_path / "moov.mp4", 0.6)
    moov_first = write_clip(tmp_path / "first.mp4", container_options={"movflags": "faststart"})
    truncate(moov_first, tmp_path / "cut.mp4", 0.8)
    (tmp_path / "text.mp4").write_text("not a film, a letter\n" * 100)
    (tmp_path / "zero.mp4").touch()
    names = ["moov.mp4", "cut.mp4", "text.mp4", "zero.mp4"]
    tar = write_tar(tmp_path / "0.tar", [*((name, tmp_path / name) for name in names), ("whole.mp4", whole)])
    for name in names:
        reasons = []
        for place in (f"{tmp_path}/{name}", f"{tar}::{name}"):
            with pytest.raises(VideoDecodeError) as caught, Video(place) as video:
                video.read([0])
            assert caught.value.path == place
            reasons.append(caught.value.reason)
        assert reasons[0] == reasons[1]
    with Video(f"{tar}::whole.mp4") as video:
        assert video.num_frames == 16
