"""The same list of clips in every storage, and what loaders make of it on whatever ranks."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import av
import pytest

from fastvtp import processes
from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.mixing import BatchSource, MixedLoader
from fastvtp.data.storage import remote_files
from fastvtp.data.stream import Batches
from tests.data.clips import truncate, write_clip, write_lines
from tests.data.loaders import make_loader
from tests.data.object_store import Store, patch_storage, s3_environment, serve
from tests.data.tars import write_tar

PER_TAR = 3
BUCKET = "stream"
CLIPS = 3  # of a micro-batch
TURN = 12  # micro-batches of an optimizer step, of one data set each; any number of ranks that is tested divides it


@dataclass(frozen=True)
class Clip:
    """A line of the list; `span` are its fields "start" and "end", or "start_frame" and "end_frame"."""

    key: str
    path: Path
    captions: list[str]
    span: Mapping[str, Any] = field(default_factory=dict)


def write_clips(folder: Path) -> list[Clip]:
    """Seven videos of both kinds of colour range, one of which is cut short and one damaged, and two spans of others.

    Those in .mov are Motion JPEG at 25 frames a second, whose packets are pictures that can lie in a folder as well.
    """
    folder.mkdir(parents=True)
    jpeg = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "fps": 25}
    paths = [write_clip(folder / f"{i}.mp4", 10 + 4 * (i % 2), 32, 48, first=16 * i) for i in range(5)]
    paths += [write_clip(folder / f"{i}.mov", 8 + i, 32, 48, first=20 * i, **jpeg) for i in (5, 6)]
    paths[2] = truncate(paths[2], folder / "cut.mp4", 0.6)
    content = bytearray(paths[3].read_bytes())
    middle = content.index(b"mdat") + 4 + (len(content) - content.index(b"mdat")) // 3
    content[middle : middle + 200] = b"\xff" * 200
    paths[3].write_bytes(content)
    clips = [Clip(f"c{i}", path, [f"clip {i}", f"number {i} of all"]) for i, path in enumerate(paths)]
    clips[4] = replace(clips[4], captions=["it moves to the left"])  # is never mirrored
    clips.insert(3, Clip("seconds", paths[1], ["a part"], {"start": 0.5, "end": 1.4}))
    return [*clips, Clip("frames", paths[6], ["another part", "some of it"], {"start_frame": 3, "end_frame": 9})]


# --- Where they may lie


def files(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    return _listed(folder, [(clip, str(clip.path)) for clip in clips])


def folders_of_frames(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    """Where a video is Motion JPEG, its pictures in a folder."""
    places = []
    for clip in clips:
        if clip.path.suffix != ".mov":
            places.append((clip, str(clip.path)))
            continue
        (pictures := folder / "frames" / clip.path.stem).mkdir(parents=True, exist_ok=True)
        with av.open(str(clip.path)) as container:
            packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            (pictures / f"img_{number}.jpg").write_bytes(packet)
        places.append((clip, str(pictures)))
    return _listed(folder, places)


def tars(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    return load_annotations(write_set(clips, folder))


def energon_set(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    notes = write_set(clips, folder) / ".nv-meta"
    notes.mkdir()
    last = -(-len(clips) // PER_TAR) - 1
    (notes / "split.yaml").write_text(f"split_parts:\n  train: ['part_{{00..{last:02d}}}.tar']\n")
    (notes / "dataset.yaml").write_text("field_map: {video: mp4;mov, caption: 'json[captions]'}\n")
    return load_annotations(folder)


def tars_over_http(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    write_set(clips, store.folder / BUCKET / folder.name)
    last = -(-len(clips) // PER_TAR) - 1
    return load_annotations(f"{store.url}/{BUCKET}/{folder.name}/part_{{00..{last:02d}}}.tar")


def tars_over_s3(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    write_set(clips, store.folder / BUCKET / folder.name)
    return load_annotations(f"s3://{BUCKET}/{folder.name}")


def objects_over_http(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    (there := store.folder / BUCKET / folder.name).mkdir(parents=True)
    for path in {clip.path for clip in clips}:
        shutil.copy(path, there)
    url = f"{store.url}/{BUCKET}/{folder.name}"
    return _listed(folder, [(clip, f"{url}/{clip.path.name}") for clip in clips])


def parquet(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    return load_annotations(write_parquet(clips, folder / "list.parquet"))


def parquet_over_http(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    (store.folder / BUCKET / folder.name).mkdir(parents=True)
    path = write_parquet(clips, store.folder / BUCKET / folder.name / "list.parquet")
    url = f"{store.url}/{BUCKET}/{folder.name}/list.parquet"
    return [replace(record, video=record.video.replace(str(path), url)) for record in load_annotations(path)]


def tars_in_memory(clips: Sequence[Clip], folder: Path, store: Store) -> list[VideoRecord]:
    """In fsspec's memory, which no other process sees."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for tar in sorted(write_set(clips, folder).iterdir()):
        memory.pipe_file(f"/{folder.name}/{tar.name}", tar.read_bytes())
    return load_annotations(f"memory://{folder.name}")


OF_THIS_PROCESS = ("tars_in_memory",)
STORAGES: dict[str, Callable[[Sequence[Clip], Path, Store], list[VideoRecord]]] = {
    make.__name__: make
    for make in (
        *(files, folders_of_frames, tars, energon_set, tars_over_http, tars_over_s3),
        *(objects_over_http, parquet, parquet_over_http, tars_in_memory),
    )
}


def _listed(folder: Path, places: Sequence[tuple[Clip, str]]) -> list[VideoRecord]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"video": place, "id": clip.key, "caption": clip.captions, **clip.span} for clip, place in places]
    return load_annotations(write_lines(folder / "list.jsonl", *rows))


def write_set(clips: Sequence[Clip], folder: Path) -> Path:
    """Tars of `PER_TAR` samples, a .json beside each video, of which no two share one."""
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, len(clips), PER_TAR)):
        members = []
        for clip in clips[first : first + PER_TAR]:
            members += [(f"{clip.key}{clip.path.suffix}", clip.path)]
            members += [(f"{clip.key}.json", {"captions": clip.captions, **clip.span})]
        write_tar(folder / f"part_{number:02d}.tar", members)
    return folder


def write_parquet(clips: Sequence[Clip], path: Path) -> Path:
    """Bytes as Hugging Face's data sets have them, in several row groups."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as written

    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[Any]] = {
        "video": [{"bytes": clip.path.read_bytes(), "path": clip.path.name} for clip in clips],
        "caption": [clip.captions for clip in clips],
        "id": [clip.key for clip in clips],
    }
    for bound in ("start", "end", "start_frame", "end_frame"):
        columns[bound] = [clip.span.get(bound) for clip in clips]
    written.write_table(arrow.table(columns), path, row_group_size=2)
    return path


@contextmanager
def served(folder: Path) -> Iterator[Store]:
    """A store of HTTP and S3 with its cache, for this process and those that it starts."""
    pytest.importorskip("aiohttp")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    (folder / "store" / BUCKET).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, serve(folder / "store") as store:
        patch_storage(patch, cache_dir=folder / "cache", request_seconds=10, object_seconds=20)
        patch.setattr(remote_files, "_BLOCK", 1 << 11)  # so that videos are of several, in this process at least
        for name, value in s3_environment(store).items():
            patch.setenv(name, value)
        yield store


KEEPING = {
    "whole": {},
    "blocks": {"whole_mb": 0},
    "nothing": {"cache_gb": 0},
}
"""Of what is fetched from a store: copies of whole objects, blocks in memory, or whole objects anew each time."""


def variables() -> dict[str, str]:
    """The environment in which another process finds that store."""
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "FASTVTP_"))}


# --- What loaders make of them

Held = dict[int, tuple[Any, ...]]
"""What batches hold, by their number in the run."""
READINGS = (
    {"sampling": "random_sorted", "crop_scale": (0.3, 1.0)},
    {"sampling": "strided", "fps": 5.0},
    {"sampling": "strided", "frame_stride": 2, "framing": "squash"},
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run, of micro-batches `start` to `stop` - 1, on `ranks` ranks of `workers` workers each.

    sets: the records of each data set; with several, batches are of each its share. known_bad: of the part before.
    """

    sets: Sequence[Sequence[VideoRecord]]
    start: int
    stop: int
    ranks: int = 1
    workers: int = 0
    seed: int = 0
    shares: tuple[float, ...] = (1.0,)
    reading: int = 0
    known_bad: Mapping[str, str] = field(default_factory=dict)


def held_by_rank(part: Part, rank: int) -> tuple[Held, dict[str, str]]:
    """What the batches of one rank hold, and the files found undecodable."""
    batches = Batches(
        batch_size=CLIPS,
        train=True,
        seed=part.seed,
        start_step=part.start // part.ranks,
        num_steps=(part.stop - part.start) // part.ranks,
        rank=rank,
        world_size=part.ranks,
    )
    same = {entry.name: getattr(batches, entry.name) for entry in fields(Batches)}

    def source(records: Sequence[VideoRecord], share: float) -> BatchSource:
        def loader(start_step: int, num_steps: int):
            given = {**same, "start_step": start_step, "num_steps": num_steps, **READINGS[part.reading]}
            given |= {"num_frames": 3, "image_size": (24, 32), "num_workers": part.workers}
            return make_loader(records, None, decoder="pyav", known_bad=part.known_bad, **given)

        return BatchSource(loader, share)

    sources = [source(records, share) for records, share in zip(part.sets, part.shares, strict=True)]
    if len(sources) == 1:
        made = sources[0].loader(batches.start_step, batches.num_steps or 0)
    else:
        made = MixedLoader(sources, batches, run=TURN // part.ranks)
    found = {}
    with made:
        for batch in made:
            assert batch.step not in found
            found[batch.step] = batch.sample_ids.tolist(), batch.captions, _digest(batch)
        return found, made.bad_files


def shown(records: Sequence[VideoRecord], **settings: Any) -> list[tuple[Any, ...]]:
    """What a pass over the records in evaluation holds."""
    given = {"num_frames": 3, "image_size": (24, 32), "batch_size": 4, "train": False, "num_workers": 0, **settings}
    with make_loader(records, None, decoder="pyav", **given) as loader:
        return [(batch.sample_ids.tolist(), batch.captions, _digest(batch)) for batch in loader]


def held(part: Part) -> tuple[Held, dict[str, str]]:
    """What the batches of all ranks hold, one rank after the other."""
    made: Held = {}
    bad: dict[str, str] = {}
    for rank in range(part.ranks):
        ours, theirs = held_by_rank(part, rank)
        assert not made.keys() & ours.keys()
        made |= ours
        bad |= theirs
    return made, bad


def held_by_this_process(rank: int, part: Part, environment: Mapping[str, str]) -> tuple[Held, dict[str, str]]:
    """What the batches of this process hold, one of a group: where the run itself takes its rank from."""
    os.environ.update(environment)
    assert (processes.rank(), processes.size()) == (rank, part.ranks)
    return held_by_rank(part, processes.rank())


def _digest(batch: VideoTextBatch) -> str:
    return hashlib.sha1(batch.video.numpy().tobytes()).hexdigest()
