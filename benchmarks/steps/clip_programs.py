"""What runs in the processes of `clip_reading`: readers and loaders, ours and others', told to make some clips."""

import json
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..harness.cpu_time import cpu_seconds, settled_cpu_seconds
from ..peers.video_readers import READERS, Read

OURS = "fastvtp"
_STRIDE = 4
_CROP_SCALE = (0.5, 1.0)


class Program(Protocol):
    """A variant of a case; `footage` is its `clip_reading.Footage`."""

    def __init__(self, name: str, footage: Any, path: str): ...

    @staticmethod
    def names(readers: Iterable[str], seconds: int) -> list[str]:
        """The variants of the op."""
        ...

    def error(self) -> float:
        """Compare some frames with those of a plain loop: the mean difference, as a share of the largest value."""
        ...

    def spent(self, first: int, count: int) -> tuple[float, float]:
        """Make clips `first` to `first + count` - 1; CPU and clock seconds."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def chosen_frames(footage: Any, number: int) -> list[int]:
    """Choose the frames of a clip, the same for every reader."""
    from fastvtp.data.sampling import FrameSampling

    from .clip_files import FPS

    sampling = FrameSampling(footage.sampling, footage.frames, _STRIDE)
    return sampling.indices(footage.seconds * FPS, np.random.default_rng((1, number))).tolist()


def our_reader() -> Read:
    """Return the library's reader of whole frames."""
    from fastvtp.data.video.decoding import Video

    def read(path: str, indices: Any) -> np.ndarray:
        with Video(path) as video:
            return video.read(indices)

    return read


def difference(read: Read, footage: Any, path: str) -> float:
    """Compare a clip early in the video with a plain loop's."""
    import av

    wanted = [index % 100 for index in chosen_frames(footage, 0)][: footage.frames // 2]
    wanted = sorted(set(wanted))
    with av.open(path) as container:
        container.streams.video[0].thread_count = 1
        first = list(islice(container.decode(video=0), wanted[-1] + 1))
        truth = np.stack([first[index].to_ndarray(format="rgb24") for index in wanted])
    clip: Any = read(path, wanted)
    if isinstance(clip, torch.Tensor):
        clip = clip.permute(0, 2, 3, 1).numpy()
    return float(np.abs(clip.astype(np.float32) - truth).mean() / 255)


class Decoding:
    """Whole frames at given places."""

    def __init__(self, name: str, footage: Any, path: str):
        self._read = our_reader() if name == OURS else READERS[name]()[0]
        self._footage, self._path = footage, path

    @staticmethod
    def names(readers: Iterable[str], seconds: int) -> list[str]:
        return [OURS, *(name for name in readers if "," not in name)]

    def error(self) -> float:
        return difference(self._read, self._footage, self._path)

    def spent(self, first: int, count: int) -> tuple[float, float]:
        clock, before = time.perf_counter(), cpu_seconds()
        for number in range(first, first + count):
            self._read(self._path, chosen_frames(self._footage, number))
        return cpu_seconds() - before, time.perf_counter() - clock

    def close(self) -> None: ...


class Loading:
    """Batches of cropped and resized clips, in one worker."""

    def __init__(self, name: str, footage: Any, path: str):
        self._name, self._footage, self._path = name, footage, path
        self._loader: Any = our_loader(footage, path) if name == OURS else peer_loader(name, footage, path)
        self._batches: Iterator[Any] = iter(self._loader)
        self._counted = 0.0

    @staticmethod
    def names(readers: Iterable[str], seconds: int) -> list[str]:
        return [OURS, *readers]

    def error(self) -> float:
        batch = next(self._batches)
        clips = batch.video if self._name == OURS else batch
        about = self._footage
        expected = (about.clips, about.frames, about.pixels, about.pixels, 3)
        if tuple(clips.shape) != expected or clips.dtype != torch.uint8:
            raise ValueError(f"{clips.dtype} {tuple(clips.shape)}, expected uint8 {expected}")
        self._counted = settled_cpu_seconds()
        return 0.0

    def spent(self, first: int, count: int) -> tuple[float, float]:
        clock, before = time.perf_counter(), self._counted
        batch = next(self._batches)
        del batch
        self._counted = settled_cpu_seconds()
        return self._counted - before, time.perf_counter() - clock

    def close(self) -> None:
        if self._name == OURS:
            self._loader.close()


def our_loader(footage: Any, *locations: str) -> Any:
    """Return the library's loader of training clips of the locations."""
    from fastvtp.data.annotations import VideoRecord
    from fastvtp.data.loader import Decoding as How
    from fastvtp.data.loader import VideoTextLoader
    from fastvtp.data.reading import ClipReading, ClipShape
    from fastvtp.data.stream import Batches

    return VideoTextLoader(
        [VideoRecord(str(number), location, ("a clip",)) for number, location in enumerate(locations)],
        None,
        shape=ClipShape(num_frames=footage.frames, image_size=footage.pixels),
        reading=ClipReading(sampling=footage.sampling, frame_stride=_STRIDE, crop_scale=_CROP_SCALE),
        batches=Batches(batch_size=footage.clips, train=True),
        decoding=How(decoder="pyav", num_workers=1),
    )


def peer_loader(name: str, footage: Any, path: str) -> Any:
    """Return torch's loader around another library's reader."""
    READERS[name]()  # an absent library is noticed here, not in the worker
    clips = PeerClips(name, footage, path)
    return DataLoader(clips, batch_size=footage.clips, num_workers=1, multiprocessing_context="fork")


class PeerClips(Dataset[torch.Tensor]):
    """Clips without end, cropped at random and resized."""

    def __init__(self, name: str, footage: Any, path: str):
        self._name, self._footage, self._path = name, footage, path
        self._reader: Any = None

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, number: int) -> torch.Tensor:
        from fastvtp.data.sampling import CropSampling

        if self._reader is None:
            torch.set_num_threads(1)
            self._reader = READERS[self._name]()
        about, (read, finish) = self._footage, self._reader
        rng = np.random.default_rng((2, number))
        window = CropSampling(1.0, _CROP_SCALE).window(about.height, about.width, rng)
        clip = read(self._path, chosen_frames(about, number))
        return finish(clip, (window.y0, window.x0, window.y1, window.x1, window.flip), about.pixels)


class Storage(Loading):
    """Our loader from a plain file, from a tar of it, and from a shard that `fastvtp prepare` made of it."""

    def __init__(self, name: str, footage: Any, path: str):
        self._name, self._footage, self._path = OURS, footage, path
        location = {"fastvtp, files": str, "fastvtp, tar": _in_tar, "fastvtp, prepared": _prepared}[name](path)
        self._loader = our_loader(footage, location)
        self._batches, self._counted = iter(self._loader), 0.0

    @staticmethod
    def names(readers: Iterable[str], seconds: int) -> list[str]:
        # an hour would be encoded for an hour
        return ["fastvtp, files", "fastvtp, tar", *(["fastvtp, prepared"] if seconds < 60 else [])]


def _in_tar(path: str) -> str:
    archive = Path(f"{path}.tar")
    if not archive.exists():
        _write_tar(archive, Path(path))
    return f"{archive}::2.mp4"


def _prepared(path: str) -> str:
    from fastvtp.data.annotations import load_annotations
    from fastvtp.preparation.preparing import Running, prepare
    from fastvtp.preparation.settings import Preparation

    folder, listed = Path(f"{path}.prepared"), Path(f"{path}.jsonl")
    listed.write_text(json.dumps({"video": path, "caption": "a clip"}) + "\n")
    prepare(listed, folder, Preparation(), Running(progress=False))
    (record,) = load_annotations(folder / "000000.tar")
    return record.video


def _write_tar(archive: Path, video: Path) -> None:
    import tarfile

    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for number in range(4):
            tar.add(video, f"{number}.mp4")
    partial.rename(archive)


PROGRAMS: dict[str, Any] = {"clip_decoding": Decoding, "clip_loading": Loading, "clip_storage": Storage}
