"""decoder="torchcodec": the frames that PyAV has by the same index; and its place in the loader, by a stand-in."""

import io
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.sampling import CropWindow
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.data.video.torchcodec_video import TorchCodecVideo, require_torchcodec
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from tests.data.clips import frame_numbers, write_clip
from tests.data.loaders import make_loader

VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
UNEVEN = {"pts": [0, 100, 1000, 1100, 2000, 3000, 3100, 5000, 5100, 6000, 7000, 9000, 9100, 9500, 9800, 11000]}
CLIPS = {
    "even.mp4": {},
    "b_frames.mp4": {"options": {"bf": "3", "preset": "medium"}, "gop": 12},
    "uneven.mp4": UNEVEN,
    "uneven.webm": {**VP9, **UNEVEN},
    "upright.mp4": {"rotation": 90},
    "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "broadcast.ts": {},  # torchcodec takes its second half for the first: PyAV reads it
}
INDICES = [1, 3, 15, 2, 7]


class StandIn:
    """torchcodec's VideoDecoder in what is used of it, made of PyAV; `late` frames too far, as with MPEG-TS."""

    late, damaged = 0, frozenset()

    def __init__(self, source, *, dimension_order, seek_mode, num_ffmpeg_threads, device):
        assert (dimension_order, seek_mode, num_ffmpeg_threads, device) == ("NHWC", "exact", 1, "cpu")
        data = source if isinstance(source, bytes) else source.read()
        if b"unheard of" in data:
            raise RuntimeError("could not find\nstream info")
        with Video(data) as video:
            self._frames = video.read(range(video.num_frames))
        with av.open(io.BytesIO(data)) as container:
            times = sorted(frame.time for frame in container.decode(video=0))
        self._seconds, self.metadata = torch.tensor(times), SimpleNamespace(begin_stream_seconds=times[0])

    def __len__(self):
        return len(self._frames)

    def get_frames_at(self, indices):
        if self.damaged.intersection(indices):
            raise RuntimeError("Could not push packet to decoder: Invalid data\nmore")
        places = [min(index + self.late, len(self) - 1) for index in indices]
        return SimpleNamespace(data=torch.from_numpy(self._frames[places]), pts_seconds=self._seconds[places])


@pytest.fixture
def stand_in(monkeypatch):
    package: Any = ModuleType("torchcodec")
    decoders: Any = ModuleType("torchcodec.decoders")
    package.__version__, decoders.VideoDecoder = "0", type("VideoDecoder", (StandIn,), {})
    package.decoders = decoders
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return decoders.VideoDecoder


def works():
    try:
        return find_spec("torchcodec") is not None and bool(require_torchcodec())
    except UserError:
        return False


needs_torchcodec = pytest.mark.skipif(not works(), reason="torchcodec is not installed, or finds no FFmpeg libraries")


@needs_torchcodec
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_frames_are_those_of_pyav(tmp_path, name, as_bytes):
    path = write_clip(tmp_path / name, **CLIPS[name])
    source = path.read_bytes() if as_bytes else path
    with Video(source) as video, TorchCodecVideo(source) as other:
        expected, got = video.read(INDICES), other.read(INDICES)
        assert video.num_frames == other.num_frames
        assert ("mpegts" in other.left_to_pyav) == (name == "broadcast.ts")
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 2


def clips_of(paths, **settings):
    records = [VideoRecord(path.name, str(path), ("x",)) for path in paths]
    defaults = {"num_frames": 3, "max_text_length": 8, "batch_size": len(paths), "image_size": 32, "num_workers": 0}
    tokenizer = CaptionTokenizer.train(["x"], 50)
    with make_loader(records, tokenizer, **{**defaults, "train": False, **settings}) as loader:
        return list(loader), loader.bad_files


@needs_torchcodec
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_those_of_pyav(tmp_path, num_workers):
    paths = [write_clip(tmp_path / name, **how) for name, how in CLIPS.items() if "rotation" not in how]
    settings = {"train": True, "num_steps": 2, "num_workers": num_workers, "image_size": None}
    (by_pyav, _), (others, _) = (clips_of(paths, decoder=decoder, **settings) for decoder in ("pyav", "torchcodec"))
    for batch, other in zip(by_pyav, others, strict=True):
        assert batch.sample_ids.tolist() == other.sample_ids.tolist()
        assert (batch.video.int() - other.video.int()).abs().max() <= 2


def test_the_loader_decodes_with_torchcodec(tmp_path, stand_in, monkeypatch):
    read = []
    monkeypatch.setattr(stand_in, "get_frames_at", lambda self, at: read.append(at) or StandIn.get_frames_at(self, at))
    paths = [write_clip(tmp_path / f"{i}.mp4") for i in range(2)]
    whole = {"image_size": None}
    ((batch,), bad), ((other,), _) = (clips_of(paths, decoder=decoder, **whole) for decoder in ("torchcodec", "pyav"))
    assert (len(read), bad) == (2, {})
    assert torch.equal(batch.video, other.video)


def test_windows_are_shown_as_pyav_shows_them(tmp_path, stand_in):
    """Whole pictures pixel by pixel, parts and scaled ones but for chroma, which PyAV scales before it is RGB."""
    path = write_clip(tmp_path / "a.mp4", rotation=90)
    window = CropWindow(0.25, 0.125, 0.75, 0.875, flip=True)
    with Video(path) as video, TorchCodecVideo(path) as other:
        assert np.array_equal(video.read(INDICES, window), other.read(INDICES, window))
        for part in (None, window):
            pictures, others = (one.read(INDICES, part, (40, 30)) for one in (video, other))
            assert np.abs(pictures.astype(int) - others).mean() < 2


def test_files_of_which_it_hands_out_other_frames_are_pyavs(tmp_path, stand_in, monkeypatch, caplog):
    monkeypatch.setattr(stand_in, "late", 8)
    path = write_clip(tmp_path / "a.mp4")
    (batch,), _ = clips_of([path], decoder="torchcodec", num_frames=16, image_size=None)
    assert frame_numbers(batch.video[0].numpy()) == list(range(16))
    assert [line.partition(": ")[2] for line in caplog.messages] == [
        "files of the format mov,mp4,m4a,3gp,3g2,mj2, of which torchcodec hands out other frames"
    ]


def test_other_counts_and_files_it_does_not_open_are_pyavs(tmp_path, stand_in, monkeypatch):
    path = write_clip(tmp_path / "a.mp4")
    monkeypatch.setattr(stand_in, "__len__", lambda self: 15)
    with TorchCodecVideo(path) as video:
        assert "other frames" in video.left_to_pyav
        assert frame_numbers(video.read(INDICES)) == INDICES
    path.write_bytes(path.read_bytes() + b"\0\0\0\x12freeunheard of")
    with TorchCodecVideo(path) as video:
        assert video.left_to_pyav == "files that torchcodec does not open (could not find)"
        assert frame_numbers(video.read(INDICES)) == INDICES


def test_damage_is_named_and_indices_are_checked(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "damaged", {13})
    path = write_clip(tmp_path / "a.mp4")
    with TorchCodecVideo(path) as video:
        with pytest.raises(VideoDecodeError, match=r"damaged .Could not push packet to decoder: Invalid data.$"):
            video.read([13])
        with pytest.raises(IndexError, match="expected frame indices in"):
            video.read([16])


def test_its_absence_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(UserError, match="pip install torchcodec") as caught:
        clips_of([write_clip(tmp_path / "a.mp4")], decoder="torchcodec")
    assert "\n" not in str(caught.value)
