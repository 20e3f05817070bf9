"""Published lists of videos with classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvtp.data.formats.registry import (
    CAPTIONS,
    LABEL,
    LABELS,
    Row,
    list_format,
    number,
    text,
    text_of,
    whole_number,
)
from fastvtp.data.formats.source import ListSource
from fastvtp.data.locations import located, unquoted
from fastvtp.data.video_files import known_suffix
from fastvtp.errors import UserError
from fastvtp.files import read_text

_MAX_CLASSES = 1_000_000
_TEXT = (".txt", ".csv", ".lst", "")
_LABELLED = re.compile(r"(.+?)[\s,]+(\d+)")
_COUNTED = re.compile(r"(.+?)[\s,]+(\d+)[\s,]+(-?\d+)")
_UCF_LIST = re.compile(r"(train|test)list\d*\.txt")
_HMDB_LIST = re.compile(r"(.+)_test_split([123])\.txt")
_AVA_COLUMNS = ("video_id", "timestamp", "left", "top", "right", "bottom", "action_id", "person_id")
_AVA_NAME = re.compile(r'name:\s*"([^"]+)"\s*(?:label_)?id:\s*(\d+)')


def _counts(line: str) -> bool:
    """Tell whether a line has three columns, the last two of them numbers, and not two whose path holds a number."""
    match = _COUNTED.fullmatch(line)
    return match is not None and not known_suffix(f"{match[1]} {match[2]}")


@list_format(
    "a list of `path label`",
    LABEL,
    own=True,
    general=True,
    fits=lambda source: (
        source.suffix in _TEXT
        and _LABELLED.fullmatch(source.first_line) is not None
        and not _counts(source.first_line)
        and not _UCF_LIST.fullmatch(source.path.name)
        and not _HMDB_LIST.fullmatch(source.path.name)
        and "\t" not in source.first_line
    ),
)
def path_label(source: ListSource) -> Iterator[Row]:
    """VideoMAE's train.csv and others: a path and a whole number, behind spaces or a comma, no header."""
    for place, line in source.lines():
        match = _LABELLED.fullmatch(line.strip())
        if match is None or int(match[2]) >= _MAX_CLASSES:
            expected = f"a whole number below {_MAX_CLASSES} behind the path"
            raise UserError(f"{place}: field 'label': expected {expected}, got {line.strip()!r}")
        yield Row(place, {"video": unquoted(match[1]), "label": int(match[2])})


@list_format(
    "a list of `path number number`",
    LABEL,
    own=True,
    general=True,
    fits=lambda source: source.suffix in _TEXT and _counts(source.first_line),
)
def path_frames_label(source: ListSource) -> Iterator[Row]:
    """VideoMAE V2's lists: `path 0 -1` of a whole video; `folder first total` of a folder of frames, for pretraining;
    `folder total label`, with its class. Folders are read as a whole."""
    for place, line in source.lines():
        match = _COUNTED.fullmatch(line.strip())
        if match is None:
            words = re.split(r"[\s,]+", line.strip())
            field = "label" if len(words) > 2 and words[-2].isdecimal() else "frames"
            expected = "'path 0 -1' or 'folder frames label'"
            raise UserError(f"{place}: field '{field}': expected {expected}, got {line.strip()!r}")
        path, first, last = unquoted(match[1]), int(match[2]), int(match[3])
        if known_suffix(path) and (first, last) != (0, -1):
            expected = "0 -1, all frames, behind a video file"
            raise UserError(f"{place}: field 'frames': expected {expected}, got {first} {last}")
        yield Row(place, {"video": path} | ({} if last < 0 else {"label": last}))


@list_format(
    "Kinetics",
    LABEL,
    searched=True,
    splits=True,
    fits=lambda source: source.has_columns("youtube_id", "time_start", "time_end"),
)
def kinetics(source: ListSource) -> Iterator[Row]:
    """train.csv and others with the header label,youtube_id,time_start,time_end,split: of files
    <id>_<start>_<end>.mp4, or of spans of <id>.mp4. The test set may have no label."""
    for place, row in source.rows():
        name = text(row, "youtube_id", place)
        start, end = (whole_number(row, key, place) for key in ("time_start", "time_end"))
        fields: dict[str, Any] = {"video": f"{name}_{start:06d}_{end:06d}"}
        fields |= {"label": text(row, "label", place)} if "label" in row else {}
        fields |= {"split": row["split"]} if row.get("split") else {}
        yield Row(place, fields, (name, float(start), float(end)))


@list_format("UCF101", LABEL, searched=True, fits=lambda source: _UCF_LIST.fullmatch(source.path.name) is not None)
def ucf101(source: ListSource) -> Iterator[Row]:
    """trainlist01.txt, testlist01.txt and others: `Class/video.avi`, behind which training lists number the class."""
    for place, line in source.lines():
        path = line.split()[0]
        if "/" not in path or len(line.split()) > 2:
            expected = "'Class/video.avi', maybe with a number behind it"
            raise UserError(f"{place}: field 'video': expected {expected}, got {line.strip()!r}")
        yield Row(place, {"video": path, "label": path.split("/")[0]})


@list_format(
    "HMDB51",
    LABEL,
    searched=True,
    splits=True,
    fits=lambda source: bool(_hmdb_lists(source)) or _HMDB_LIST.fullmatch(source.path.name) is not None,
)
def hmdb51(source: ListSource) -> Iterator[Row]:
    """The folder of <class>_test_split<1,2,3>.txt, or one of these files: `video.avi flag`. Splits are train1, test1,
    ... of the folder, train and test of one file; flag 0 is in neither."""
    lists = _hmdb_lists(source)
    for path in lists or [source.path]:
        match = _HMDB_LIST.fullmatch(path.name)
        assert match is not None  # the files were found by it
        for place, line in source.other(path).lines():
            video, _, flag = line.strip().rpartition(" ")
            if not video or flag not in ("0", "1", "2"):
                expected = "0, 1 or 2 behind the name of a video"
                raise UserError(f"{place}: field 'flag': expected {expected}, got {line.strip()!r}")
            split = {"1": "train", "2": "test"}.get(flag)
            if split is not None:
                split += match[2] if lists else ""
                yield Row(place, {"video": f"{match[1]}/{video.strip()}", "label": match[1], "split": split})


def _hmdb_lists(source: ListSource) -> list[Path]:
    return sorted(source.path.glob("*_test_split[123].txt")) if source.is_folder else []


@list_format(
    "Something-Something V2",
    LABEL,
    CAPTIONS,
    searched=True,
    fits=lambda source: (
        {"id", "template"} <= set(source.first) or (set(source.first) == {"id"} and _is_of_ssv2(source))
    ),
    class_names=lambda source: _ssv2_names(source),
)
def ssv2(source: ListSource) -> Iterator[Row]:
    """something-something-v2-train.json or labels/train.json, and others: the class is the template without its
    brackets, numbered by labels.json beside the list; the caption is the label."""
    for place, row in source.objects():
        fields: dict[str, Any] = {"video": text(row, "id", place)}
        if "template" in row:
            label = text(row, "template", place).replace("[", "").replace("]", "")
            fields |= {"label": label, "caption": text(row, "label", place)}
        yield Row(place, fields)


def _is_of_ssv2(source: ListSource) -> bool:
    """Tell whether a list of ids alone, as test sets are, bears the name of one or lies beside the names of classes."""
    alone = source.path.name == "test.json" and source.beside("labels.json") is not None
    return alone or source.path.name.startswith("something-something")


def _ssv2_names(source: ListSource) -> tuple[str, ...] | None:
    path = source.beside("labels.json", "something-something-v2-labels.json")
    if path is None:
        return None
    numbers = {
        name: whole_number({name: place}, name, str(path)) for name, place in _object(source.other(path)).items()
    }
    return tuple(sorted(numbers, key=numbers.__getitem__))


def _object(source: ListSource) -> dict[str, Any]:
    first = source.first
    if not first:
        raise UserError(f"{source.shown}: expected an object {{class: number}}")
    return first


@list_format(
    "AVA",
    LABELS,
    searched=True,
    remark="the classes of 3 seconds around each marked frame",
    fits=lambda source: (
        source.delimiter == ","
        and len(source.cells) == len(_AVA_COLUMNS)
        and all(re.fullmatch(r"[\d.]+", cell) for cell in source.cells[1:])
    ),
    class_names=lambda source: tuple(_ava_names(source).values()) or None,
)
def ava(source: ListSource) -> Iterator[Row]:
    """ava_train_v2.2.csv and others: a person in a marked frame a line. A frame is a span of 1.5 seconds to each side,
    with the actions of all persons in it; these are named by ava_action_list_v2.2.pbtxt beside the list, or are
    numbers."""
    names, frames = _ava_names(source), {}
    for place, row in source.rows(columns=_AVA_COLUMNS):
        time, action = number(row, "timestamp", place), whole_number(row, "action_id", place)
        if names and action not in names:
            raise UserError(f"{place}: field 'action_id': no action {action} among the {len(names)} of the list beside")
        _, shown = frames.setdefault((text(row, "video_id", place), time), (place, []))
        shown.append(names.get(action, str(action)))
    for (video, time), (place, shown) in frames.items():
        yield Row(place, {"video": video, "start": max(0.0, time - 1.5), "end": time + 1.5, "labels": shown})


def _ava_names(source: ListSource) -> dict[int, str]:
    found = sorted(path for path in source.folder.glob("ava_action_list*.pbtxt"))
    names = {int(action): name for name, action in _AVA_NAME.findall(read_text(found[0]))} if found else {}
    return dict(sorted(names.items()))


@list_format(
    "a list of paths",
    own=True,
    general=True,
    fits=lambda source: source.suffix in _TEXT and not source.is_folder and _is_path(source, source.first_line),
)
def paths(source: ListSource) -> Iterator[Row]:
    """A path, URL or folder of frames a line."""
    for place, line in source.lines():
        yield Row(place, {"video": text_of(unquoted(line.strip()), f"{place}: field 'video'")})


def _is_path(source: ListSource, line: str) -> bool:
    if not line:
        return False
    location = located(line, source.listed.videos or source.home)
    return bool(known_suffix(location)) or Path(location).is_dir()
