"""The work on a shard, and what stands in the folder of shards of what is done of it: manifests and surveys."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastvtp.errors import UserError
from fastvtp.files import json_digest
from fastvtp.preparation.items import Item, digest_of
from fastvtp.preparation.settings import FORMAT_VERSION, Preparation
from fastvtp.preparation.work import Rejection, Sample

SURVEY_FOLDER = "survey"


@dataclass(frozen=True)
class ShardWork:
    """What a shard is made of. output: the folder of all shards. file_seconds: that a file may take."""

    number: int
    items: tuple[Item, ...]
    settings: Preparation
    output: Path
    file_seconds: float = 600.0

    @property
    def name(self) -> str:
        """The shard's number in six digits."""
        return f"{self.number:06d}"

    @property
    def tar(self) -> Path:
        """Where its clips are."""
        return self.output / f"{self.name}.tar"

    @property
    def manifest(self) -> Path:
        """Where stands what it holds."""
        return self.output / f"{self.name}.json"

    @property
    def survey(self) -> Path:
        """Where stands which samples its items have, if all must be known before the first is written."""
        return self.output / SURVEY_FOLDER / f"{self.name}.json"

    def model_file(self, what: str) -> Path:
        """Return where stands what a model said of its samples: "embeddings" or "similarity"."""
        return self.survey.with_suffix(f".{what}.safetensors")

    @cached_property
    def fingerprint(self) -> str:
        """What tells this work from another, of other videos or settings: 16 hexadecimal digits."""
        return json_digest([FORMAT_VERSION, self.settings.described(), digest_of(self.items)])


class Manifests:
    """The manifests of the shards in a folder. Each is parsed once, and again where its file has become another one,
    for other processes may be at work there."""

    def __init__(self) -> None:
        self._parsed: dict[Path, tuple[tuple[int, ...], dict[str, Any] | None]] = {}

    def of(self, work: ShardWork, decided: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the manifest of a shard that is finished, or None.

        decided: as of `write_shard`: where something else was decided when the shard was made, it is not finished.
        """
        try:
            status = os.stat(work.manifest)
        except FileNotFoundError:
            return None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._parsed.get(work.manifest)
        if known is None or known[0] != stamp:
            known = self._parsed[work.manifest] = (stamp, _read(work.manifest, work))
        manifest = known[1]
        if manifest is None or (decided is not None and manifest["decided"] != json_digest(decided)):
            return None
        if manifest["tar"] is None:
            return manifest
        return manifest if work.tar.is_file() and work.tar.stat().st_size == manifest["bytes"] else None


def surveyed(work: ShardWork) -> list[list[Sample]] | None:
    """Return the samples of each item of a shard that was surveyed, or None."""
    told = _read(work.survey, work)
    return None if told is None else [[_sample(fields) for fields in of_item] for of_item in told["items"]]


def is_surveyed(work: ShardWork) -> bool:
    """Tell whether all is known of a shard's samples that is decided by: what they are, and what models say of them."""
    filters = work.settings.filters
    asked = [what for what, folder in (("embeddings", filters.model), ("similarity", filters.similarity)) if folder]
    return surveyed(work) is not None and all(work.model_file(what).is_file() for what in asked)


def walk(work: ShardWork, samples: Iterable[Sequence[Sample]]) -> Iterator[tuple[int, list[tuple[str, Sample]]]]:
    """Go through the samples of the items of a shard, which are asked for one item after another.

    Yields:
        The number of each item within the shard, and its samples, each with its place: its key among all samples, of
        its shard, its item there, and its part of that.
    """
    for number, (_, of_item) in enumerate(zip(work.items, samples, strict=True)):
        yield number, [(f"{work.name}.{number}.{part}", sample) for part, sample in enumerate(of_item)]


def samples_left(work: ShardWork) -> list[tuple[str, Item, Sample]]:
    """Return the samples of a surveyed shard that the survey does not reject, each with its place and item.

    Raises UserError where it was not surveyed.
    """
    if (known := surveyed(work)) is None:
        raise UserError(f"{work.survey}: is not there: survey first")
    return [
        (place, work.items[number], sample)
        for number, samples in walk(work, known)
        for place, sample in samples
        if sample.rejected is None
    ]


def _sample(fields: dict[str, Any]) -> Sample:
    rejected = fields["rejected"]
    values = {**fields, "captions": tuple(fields["captions"])}
    return Sample(**{**values, "rejected": None if rejected is None else Rejection(**rejected)})


def _read(path: Path, work: ShardWork) -> dict[str, Any] | None:
    """Return the content of a file of JSON that this work wrote, or None."""
    try:
        told = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return told if isinstance(told, dict) and told.get("fingerprint") == work.fingerprint else None
