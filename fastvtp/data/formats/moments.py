"""Published lists of captions of which several are of one video: its moments, or the sentences of a paragraph."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastvtp.data.formats.registry import (
    CAPTIONS,
    Row,
    caption,
    document,
    first_of,
    list_format,
    object_of,
    pairs,
    text,
    texts,
)
from fastvtp.data.formats.source import ListSource
from fastvtp.errors import UserError


@list_format(
    "DiDeMo",
    CAPTIONS,
    searched=True,
    remark="paragraphs; format=didemo_moments reads each moment",
    fits=lambda source: {"description", "times", "video"} <= set(source.first),
)
def didemo(source: ListSource) -> Iterator[Row]:
    """train_data.json and others: all descriptions of a video, in their order, as one paragraph."""
    paragraphs: dict[str, tuple[str, list[str]]] = {}
    for place, row in source.objects():
        said = caption(row, "description", place)
        paragraphs.setdefault(text(row, "video", place), (place, []))[1].append(str(said).strip())
    for name, (place, said) in paragraphs.items():
        yield Row(place, {"video": name, "caption": " ".join(filter(None, said))})


@list_format("DiDeMo", CAPTIONS, searched=True, remark="moments", fits=None)
def didemo_moments(source: ListSource) -> Iterator[Row]:
    """The same lists: each description with its moment, the one that most annotators marked, in parts of 5 seconds."""
    for place, row in source.objects():
        times = pairs(row, "times", place)
        if not times:
            raise UserError(f"{place}: field 'times': expected one [first, last] at least")
        (first, last), _ = Counter(times).most_common(1)[0]
        fields = {"video": text(row, "video", place), "caption": caption(row, "description", place)}
        yield Row(place, fields | {"start": 5.0 * first, "end": 5.0 * last + 5})


@list_format(
    "ActivityNet Captions",
    CAPTIONS,
    searched=True,
    remark="paragraphs; format=activitynet_moments reads each sentence with its span",
    fits=lambda source: source.is_document and {"timestamps", "sentences"} <= set(first_of(source.first)),
)
def activitynet(source: ListSource) -> Iterator[Row]:
    """train.json, val_1.json, val_2.json: all sentences of a video as one paragraph."""
    for place, name, video in _by_video(source):
        paragraph = " ".join(filter(None, map(str.strip, texts(video, "sentences", place))))
        yield Row(place, {"video": name, "caption": paragraph})


@list_format("ActivityNet Captions", CAPTIONS, searched=True, remark="moments", fits=None)
def activitynet_moments(source: ListSource) -> Iterator[Row]:
    """The same lists: each sentence with its span."""
    for place, name, video in _by_video(source):
        spans, said = pairs(video, "timestamps", place), texts(video, "sentences", place)
        if len(spans) != len(said):
            expected = f"as many as sentences, which are {len(said)}"
            raise UserError(f"{place}: field 'timestamps': expected {expected}, got {len(spans)}")
        for (start, end), sentence in zip(spans, said, strict=True):
            yield Row(place, {"video": name, "caption": sentence, "start": start, "end": end})


@list_format(
    "YouCook2",
    CAPTIONS,
    searched=True,
    splits=True,
    fits=lambda source: (
        source.is_document and "sentence" in first_of(first_of(source.first.get("database")).get("annotations"))
    ),
)
def youcook2(source: ListSource) -> Iterator[Row]:
    """youcookii_annotations_trainval.json: each sentence with its segment."""
    database = object_of(document(source, "database"), f"{source.shown}, database")
    videos = ((f"{source.shown}, {name!r}", (name, video)) for name, video in database.items())
    for place, (name, video) in source.faults.entries(videos):
        split = text(object_of(video, place), "subset", place)
        annotations = video.get("annotations", [])
        if not isinstance(annotations, list):
            raise UserError(f"{place}: field 'annotations': expected a list of objects, got {annotations!r}")
        rows: list[Row] = []  # given all at once: where one of them is malformed, the video is
        for said in annotations:
            ((start, end),) = pairs({"segment": [object_of(said, place).get("segment")]}, "segment", place)
            fields = {"video": name, "caption": caption(said, "sentence", place), "split": split}
            rows.append(Row(place, fields | {"start": start, "end": end}))
        yield from rows


@list_format(
    "HowTo100M",
    CAPTIONS,
    searched=True,
    fits=lambda source: source.is_document and {"start", "end", "text"} <= set(first_of(source.first)),
)
def howto100m(source: ListSource) -> Iterator[Row]:
    """caption.json, {video: {"start": [...], "end": [...], "text": [...]}}: each text with its span."""
    for place, name, video in _by_video(source):
        spans = pairs({"start, end": _zipped(video, "start", "end", place)}, "start, end", place)
        said = texts(video, "text", place)
        if len(spans) != len(said):
            expected = f"as many as spans, which are {len(spans)}"
            raise UserError(f"{place}: field 'text': expected {expected}, got {len(said)}")
        for (start, end), sentence in zip(spans, said, strict=True):
            yield Row(place, {"video": name, "caption": sentence, "start": start, "end": end})


@list_format(
    "InternVid",
    CAPTIONS,
    searched=True,
    fits=lambda source: {"YoutubeID", "Caption"} <= {*source.first, *source.cells},
)
def internvid(source: ListSource) -> Iterator[Row]:
    """Lines of YoutubeID, Start_timestamp, End_timestamp and Caption, JSON or a table; of files
    <id>_<start>_<end>.mp4, or of spans of <id>.mp4."""
    for place, row in source.objects() if source.first else source.rows():
        name, said = text(row, "YoutubeID", place), caption(row, "Caption", place)
        first, last = (text(row, key, place) for key in ("Start_timestamp", "End_timestamp"))
        start, end = _seconds(first, "Start_timestamp", place), _seconds(last, "End_timestamp", place)
        yield Row(place, {"video": f"{name}_{first}_{last}", "caption": said}, (name, start, end))


def _seconds(clock: str, field: str, place: str) -> float:
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", clock)
    if match is None:
        raise UserError(f"{place}: field '{field}': expected a time such as 00:01:02.500, got {clock!r}")
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])


def _zipped(video: dict[str, Any], first: str, second: str, place: str) -> list[list[Any]]:
    lists: list[list[Any]] = []
    for name in (first, second):
        if not isinstance(said := video.get(name), list):
            raise UserError(f"{place}: field '{name}': expected a list of numbers, got {said!r}")
        lists.append(said)
    if len(lists[0]) != len(lists[1]):
        expected = f"as many numbers as in '{first}', which are {len(lists[0])}"
        raise UserError(f"{place}: field '{second}': expected {expected}, got {len(lists[1])}")
    return [list(pair) for pair in zip(*lists, strict=True)]


def _by_video(source: ListSource) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return the videos of one object {name: what is said of it}, each behind its place."""
    if not source.first:
        document(source, "v_...")
    videos = ((f"{source.shown}, {name!r}", (name, video)) for name, video in source.first.items())
    for place, (name, video) in source.faults.entries(videos):
        yield place, name, object_of(video, place)
