"""Data sets in tars, as webdataset reads them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from fastvtp.data.formats.registry import CAPTIONS, LABEL, QUESTIONS, Row, list_format
from fastvtp.data.formats.source import ListSource
from fastvtp.data.locations import is_pattern, is_remote, without_query
from fastvtp.data.storage.shard_names import ENERGON, energon_fields
from fastvtp.data.storage.tar_samples import CAPTION_FIELDS, VIDEO_FIELDS, tar_samples
from fastvtp.errors import UserError, counted

logger = logging.getLogger(__name__)

_SAID = ("question", "answer", "options", "type", "start", "end", "start_frame", "end_frame")


def are_tars(source: ListSource) -> bool:
    """Tell whether a list is a tar, a pattern or URL of several, or a folder of them, with no videos beside them."""
    path = source.listed.path
    name, pattern = without_query(path), is_pattern(path)
    if name.endswith(".tar"):
        return is_remote(path) or pattern or os.path.isfile(path)
    if is_remote(path):
        return not PurePosixPath(name).suffix
    if source.is_folder:
        content = source.content
        return (source.path / ENERGON).is_dir() or (bool(content.others.get(".tar")) and not content.videos)
    return pattern and not os.path.exists(path)


@list_format(
    "webdataset tars",
    CAPTIONS,
    LABEL,
    QUESTIONS,
    fits=are_tars,
    own=True,
    splits=True,
    holds_videos=True,
    columns=("caption",),
)
def webdataset(source: ListSource) -> Iterator[Row]:
    """Tars as video2dataset, Energon and open_clip write them: a video or picture a sample, its captions in .txt or
    .json, its class in .cls. The split is of an Energon data set."""
    path, count, seen, without = source.listed.path, 0, set[str](), list[str]()
    energon = energon_fields(path)
    video = next((energon[name] for name in VIDEO_FIELDS if name in energon), None)
    mapped = next((energon[name] for name in CAPTION_FIELDS if name in energon), None)
    captions = source.listed.columns.caption or mapped
    split = source.listed.split or "train"
    has_splits = is_remote(path) or (source.path / ENERGON).is_dir()
    for sample in tar_samples(path, split=split, video=video):
        count += 1
        if sample.video is None:
            without.append(sample.place)
            continue
        name = sample.key
        if name in seen:
            name = f"{sample.archive.rpartition('/')[2].removesuffix('.tar')}/{name}"
        seen.add(name)
        try:
            said, texts = sample.fields(), list(sample.captions(captions))
        except UserError as error:
            source.faults.note(error)
            continue
        fields: dict[str, Any] = {each: said[each] for each in _SAID if said.get(each) is not None}
        fields |= {"video": sample.video, "id": name, "caption": texts}
        if sample.label is not None:
            fields["label"] = int(sample.label) if sample.label.isdecimal() else sample.label
        fields |= {"split": split} if has_splits else {}
        further = {each: value for each, value in said.items() if each != "id"}
        yield Row(f"{sample.place}.json", fields, further=further)
    if without:
        lacking = f"{len(without)} of {counted(count, 'sample')}"
        logger.warning("%s: %s have no video or picture, the first %s", source, lacking, without[0])
