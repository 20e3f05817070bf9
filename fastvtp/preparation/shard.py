"""One shard: the unit of work, which gives the same tar whenever and wherever it is done.

A shard is finished when its manifest, `NNNNNN.json`, is there; it is written last, in one step. Whatever else an
interrupted run left of a shard is made anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastvtp.data.storage.shard_indexing import index_tars
from fastvtp.data.storage.stored_file import UnreadableError
from fastvtp.data.storage.tar_index import SUFFIX
from fastvtp.data.video.decoding import VideoDecodeError
from fastvtp.data.workers.helper_process import Helper, LostOnFileError, lent_helper
from fastvtp.errors import UserError
from fastvtp.files import json_digest, sync, write_atomically
from fastvtp.preparation.encoding import WrittenClip
from fastvtp.preparation.items import Item
from fastvtp.preparation.locks import shard_lock
from fastvtp.preparation.settings import FORMAT_VERSION
from fastvtp.preparation.shard_work import Manifests, ShardWork, surveyed, walk
from fastvtp.preparation.staleness import stamp_of
from fastvtp.preparation.work import Rejection, Sample, survey, write_sample

OF_THE_SOURCE = (VideoDecodeError, UnreadableError, LostOnFileError)
"""Errors by which a sample is rejected; any other one ends the run."""

_BLOCK = 1 << 20


def survey_shard(work: ShardWork, seen: Callable[[int], Any] = lambda items: None) -> None:
    """Write which samples the items of a shard have, with what is measured of each; nothing where that is done.

    seen: is told of each item that is done.
    """
    if surveyed(work) is not None:
        seen(len(work.items))
        return
    items = []
    with lent_helper(work.file_seconds) as helper:
        for item in work.items:
            items.append([dataclasses.asdict(sample) for sample in _surveyed(item, work, helper)])
            seen(1)
    work.survey.parent.mkdir(parents=True, exist_ok=True)
    told = {"fingerprint": work.fingerprint, "items": items}
    write_atomically(work.survey, json.dumps(told).encode())


def write_shard(
    work: ShardWork, decided: Mapping[str, Any] | None = None, seen: Callable[[int], Any] = lambda items: None
) -> dict[str, Any]:
    """Write the tar of a shard, its index and its manifest, and return the manifest; nothing is written where that is
    done.

    decided: by the place of a sample, see `walk`, the "scores" that it was given and, if it goes, by which rule and why
    ("rejected"), of what was decided over all samples. seen: is told of each item that is done.
    """
    with shard_lock(work.output, work.name) as locked:
        if (manifest := Manifests().of(work, decided)) is not None:
            seen(len(work.items))
            return manifest
        clean(work, scratch=locked)
        # of this process alone: without locks another one may be at the same shard
        scratch = work.output / f".{work.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        scratch.mkdir()
        try:
            return _write_shard(work, scratch, decided, seen)
        except OSError as error:
            if error.filename is None:  # writing to an open file does not tell which
                raise OSError(error.errno or 0, error.strerror or str(error), str(work.tar)) from error
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_shard(
    work: ShardWork, scratch: Path, decided: Mapping[str, Any] | None, seen: Callable[[int], Any]
) -> dict[str, Any]:
    partial = scratch / work.tar.name
    writer, rejected = _ShardWriter(work, scratch / "clip.mp4"), []
    stamps = [stamp_of(item) for item in work.items]  # before any is read: what changes meanwhile is another one
    with lent_helper(work.file_seconds) as helper, partial.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            samples_of_items = surveyed(work) or (_surveyed(item, work, helper) for item in work.items)
            for number, samples in walk(work, samples_of_items):
                item = work.items[number]
                for place, sample in samples:
                    if told := (decided or {}).get(place):
                        sample = _decided(sample, told)
                    if sample.rejected is None:
                        sample = writer.add(tar, item, sample, helper, number)
                    if sample.rejected is not None:
                        rejected.append(_told(item, sample))
                seen(1)
        file.flush()
        os.fsync(file.fileno())
    manifest = {
        "format": FORMAT_VERSION,
        "fingerprint": work.fingerprint,
        "tar": work.tar.name if writer.clips else None,
        "bytes": partial.stat().st_size if writer.clips else 0,
        "sha256": _sha256(partial) if writer.clips else None,
        "samples": len(writer.clips),
        "clips": writer.clips,
        "sources": stamps,
        "decided": None if decided is None else json_digest(decided),
        "rejected": rejected,
    }
    if writer.clips:
        os.replace(partial, work.tar)
        sync(work.output)
        list(index_tars([str(work.tar)], again=True))
    write_atomically(work.manifest, (json.dumps(manifest, ensure_ascii=False, indent=0) + "\n").encode())
    return manifest


def forget(work: ShardWork) -> None:
    """Make a shard unfinished, so that it is surveyed and written anew."""
    with shard_lock(work.output, work.name):
        for path in (work.survey, work.model_file("embeddings"), work.model_file("similarity"), work.manifest):
            path.unlink(missing_ok=True)


def clean(work: ShardWork, *, scratch: bool) -> None:
    """Delete what an interrupted run left of a shard; scratch: what has temporary names, too, which nobody else uses as
    long as the shard is locked."""
    for path in (work.manifest, work.tar, work.tar.with_name(work.tar.name + SUFFIX)):
        path.unlink(missing_ok=True)
    for left in work.output.glob(f".{work.name}.*tmp") if scratch else ():
        delete(left)


def delete(path: Path) -> None:
    """Delete a file or a folder, or nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class _ShardWriter:
    """Writes samples into a tar, and remembers what it wrote."""

    def __init__(self, work: ShardWork, path: Path):
        self._work, self._path = work, path  # where a clip is written before it goes into the tar
        self.clips: list[dict[str, Any]] = []

    def add(self, tar: tarfile.TarFile, item: Item, sample: Sample, helper: Helper, place: int) -> Sample:
        """Add a sample, or return it rejected."""
        key, path = f"{self._work.name}{len(self.clips):04d}", self._path
        path.unlink(missing_ok=True)
        try:
            clip, sample = helper.call(write_sample, item, sample, self._work.settings, path)
        except OF_THE_SOURCE as error:
            return dataclasses.replace(sample, rejected=_rejection(error))
        if clip is None or sample.rejected is not None:
            return sample
        size, offset = path.stat().st_size, tar.offset + tarfile.BLOCKSIZE
        with path.open("rb") as file:
            _add(tar, f"{key}.mp4", file, size)
        if sample.captions:
            _add_bytes(tar, f"{key}.txt", sample.captions[0].encode())
        _add_bytes(tar, f"{key}.json", json.dumps(_described(item, sample, clip), ensure_ascii=False).encode())
        where = {"offset": offset, "bytes": size}
        holds = {"seconds": clip.seconds, "frames": clip.frames, "source": sample.source, "scores": sample.scores}
        told: dict[str, Any] = {"capped": True} if clip.capped else {}
        if clip.copied is not None:
            told |= {"copied": dataclasses.asdict(clip.copied), "span": clip.copied.span()}
        self.clips.append({"key": key, "item": place, **_told(item, sample), **where, **holds, **told})
        return sample


def _decided(sample: Sample, told: Mapping[str, Any]) -> Sample:
    rejected = Rejection(*told["rejected"]) if told.get("rejected") else sample.rejected
    return dataclasses.replace(sample, scores={**sample.scores, **told.get("scores", {})}, rejected=rejected)


def _surveyed(item: Item, work: ShardWork, helper: Helper) -> list[Sample]:
    """Return the samples of an item; of one that cannot be read a rejected one."""
    try:
        return helper.call(survey, item, work.settings)
    except OF_THE_SOURCE as error:
        nothing = Sample(item.id, item.start or 0.0, item.end, 0, 0, item.captions, {})
        return [dataclasses.replace(nothing, rejected=_rejection(error))]


def _rejection(error: UserError) -> Rejection:
    rule = "lost" if isinstance(error, LostOnFileError) else "unreadable"
    return Rejection(rule, getattr(error, "reason", None) or str(error))


def _told(item: Item, sample: Sample) -> dict[str, Any]:
    """Return what names a sample, and why it was rejected if it was."""
    named = {"id": sample.id, "video": item.video, "start": sample.start, "end": sample.end}
    rejected = {} if sample.rejected is None else dataclasses.asdict(sample.rejected)
    return named | rejected


def _described(item: Item, sample: Sample, clip: WrittenClip) -> dict[str, Any]:
    """Return what stands beside a clip: the fields of the list, and what we know; of the same name, ours."""
    fields = lines_left(item, sample.captions)
    said = [{name: value for name, value in line.items() if name not in ("id", "caption")} for line in fields]
    several = any(line != said[0] for line in said)
    source = {"video": item.video, "start": sample.start, "end": sample.end, **sample.source}
    about = {name: value for name, value in dataclasses.asdict(clip).items() if name != "capped" and value is not None}
    return {
        **({"lines": fields} if several else said[0] if said else {}),
        "id": sample.id,
        **({"caption": list(sample.captions)} if sample.captions else {}),
        **({} if clip.copied is None else clip.copied.span()),
        "source": source,
        "clip": about,
        "scores": sample.scores,
    }


def lines_left(item: Item, captions: Collection[str]) -> list[dict[str, Any]]:
    """Return the lines of a list about an item with those of their captions that the filters left; lines that had some
    and have none left are gone."""
    lines = []
    for line in item.lines:
        said = line.get("caption")
        texts = [text.strip() for text in (said if isinstance(said, list) else [said]) if isinstance(text, str)]
        kept = [text for text in texts if text in captions]
        if kept:
            line = {**line, "caption": kept if isinstance(said, list) else kept[0]}
        if kept or not any(texts):
            lines.append(line)
    return lines


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    _add(tar, name, io.BytesIO(content), len(content))


def _add(tar: tarfile.TarFile, name: str, file: BinaryIO, size: int) -> None:
    info = tarfile.TarInfo(name)  # of nobody, of no time: equal samples make equal tars
    info.size, info.mode = size, 0o644
    tar.addfile(info, file)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()
