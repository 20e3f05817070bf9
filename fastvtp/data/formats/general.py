"""Our own lists, and whatever tables, JSON objects, parquet files and folders say in columns that can be told."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastvtp.data.formats.registry import (
    CAPTIONS,
    LABEL,
    LABELS,
    QUESTIONS,
    ListFormat,
    Row,
    caption,
    list_format,
    split_name,
    text_of,
)
from fastvtp.data.formats.source import FOLDER_METADATA, JSON_LINES, ListSource
from fastvtp.data.locations import in_archive
from fastvtp.data.video_files import without_suffix
from fastvtp.errors import UserError
from fastvtp.files import lines_of, read_text

ALL_OF_THEM = (CAPTIONS, QUESTIONS, LABEL, LABELS)

# what columns are usually called; the first is ours
USUAL = {
    "video": ("video", "image", "video_path", "path", "file_name", "filename", "filepath", "file_path", "file",
              "video_file_name", "clip", "location", "video_id"),
    "caption": ("caption", "captions", "text", "sentence", "description", "title", "desc"),
    "label": ("label", "class", "class_name", "label_name"),
    "labels": ("labels",),
    "question": ("question",),
    "answer": ("answer",),
    "options": ("options", "choices"),
    "type": ("type", "answer_type"),
    "id": ("id", "question_id"),
    "start": ("start", "start_time"),
    "start_frame": ("start_frame",),
    "end_frame": ("end_frame",),
    "end": ("end", "end_time"),
    "split": ("split",),
}  # fmt: skip
_WHOLE = re.compile(r"\d+(\.0+)?")
_SHARD = re.compile(r"(.+?)[-_.]\d+(?:-of-\d+)?\.parquet")


# --- Our own, and what is as ours


@list_format(
    "captions, questions or classes, one a line",
    *ALL_OF_THEM,
    own=True,
    splits=True,
    fits=lambda source: source.suffix in JSON_LINES and _is_own(source.first),
)
def jsonl(source: ListSource) -> Iterator[Row]:
    """Our own lines, see `load_annotations`, `load_questions`, `load_classes` and `load_targets`; also one array."""
    for place, fields in source.objects():
        yield Row(place, fields)


def _is_own(first: Mapping[str, Any]) -> bool:
    """Tell whether an object is as ours are: what it does not say of its video it does not say under another name."""
    if not {"video", "image"} & set(first):
        return False
    if {"caption", "label", "labels", "question"} & set(first):
        return True
    return not any(name in first for name in USUAL["caption"])


@list_format(
    "JSON of VindLU and UMT",
    *ALL_OF_THEM,
    splits=True,
    fits=lambda source: source.suffix == ".json" and _is_own(source.first),
)
def vindlu(source: ListSource) -> Iterator[Row]:
    """An array of objects of "video" or "image", "caption", and maybe "question" and "answer"."""
    for place, fields in source.objects():
        said = {name: value for name, value in fields.items() if name != "id"}
        if fields.get("question_id") is not None or isinstance(fields.get("id"), str | int):
            said["id"] = str(fields.get("question_id", fields.get("id")))
        yield Row(place, said)


# --- By the names of columns


@list_format(
    "Hugging Face metadata",
    *ALL_OF_THEM,
    splits=True,
    columns=(*USUAL,),
    fits=lambda source: "file_name" in source.first or "file_name" in source.cells or bool(_metadata_of(source)),
)
def huggingface(source: ListSource) -> Iterator[Row]:
    """metadata.jsonl or metadata.csv of a data set folder: file_name and further columns; or a folder of such folders,
    one a split."""
    inner = _metadata_of(source)
    for path in inner:
        folder = path.parent.relative_to(source.path)
        listed = ListSource(replace(source.listed, path=str(path)), faults=source.faults)
        if _begins_malformed(listed):
            deque(listed.objects(), 0)  # which says what is wrong
            continue
        for row in table.read(listed):
            moved = {"video": str(folder / row.fields["video"]), "split": folder.name}
            yield row._replace(fields=row.fields | moved)
    if not inner:
        yield from table.read(source)


def _metadata_of(source: ListSource) -> list[Path]:
    if not source.is_folder:
        return []
    found = (source.path.glob(f"{folders}/{name}") for folders in ("*", "data/*") for name in FOLDER_METADATA)
    listed = [ListSource(replace(source.listed, path=str(path))) for paths in found for path in paths]
    known = {each.path for each in listed if "file_name" in each.first or "file_name" in each.cells}
    # beside these, one whose first line cannot be read belongs to them, and the reader says what is wrong with it
    return sorted(each.path for each in listed if each.path in known or (known and _begins_malformed(each)))


def _begins_malformed(source: ListSource) -> bool:
    return source.suffix in JSON_LINES and not source.first


@list_format(
    "a table",
    *ALL_OF_THEM,
    general=True,
    splits=True,
    columns=(*USUAL,),
    fits=lambda source: bool(_columns(source, [*source.first] or source.cells, strict=False).keys() & {"video"}),
)
def table(source: ListSource) -> Iterator[Row]:
    """Any csv, tsv or JSON with a column for the video and one for what is said of it: by the usual names, or by those
    of `data.columns`."""
    objects = source.suffix in (*JSON_LINES, ".json")
    columns = _columns(source, [*source.first] if objects else source.cells)
    for place, row in source.objects() if objects else source.rows():
        yield Row(place, _named(row, columns, place))


def _named(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, column in columns.items():
        value = row.get(column)
        if name == "caption":
            fields[name] = caption(row, column, place)
        elif name == "label" and isinstance(value, str | float) and _WHOLE.fullmatch(str(value).strip()):
            fields[name] = int(float(value))  # of a table of texts, and as pandas writes a column with gaps
        elif name == "id" or (name == "video" and isinstance(value, int)):
            fields |= {} if value in (None, "") else {name: str(value)}
        elif name in ("start", "end", "start_frame", "end_frame", "split", "type"):
            fields |= {} if value in (None, "") else {name: value}
        elif name in ("video", "question", "answer"):
            fields[name] = text_of(value, f"{place}: field '{column}'")
        else:
            fields[name] = value
    return fields


def _columns(source: ListSource, names: list[str], *, strict: bool = True) -> dict[str, str]:
    """Return which column holds what. Raises UserError for one that was named and is not there, and, if strict, where
    several may hold the same."""
    found = dict(source.listed.columns.given())
    for holds, column in found.items():
        if strict and column not in names:
            has = ", ".join(map(repr, names)) or "none"
            raise UserError(f"{source.shown}: no column {column!r} (columns.{holds}) among {has}")
    for holds, usual in USUAL.items():
        if holds in found:
            continue
        candidates = [name for name in usual if name in names and name not in found.values()]
        if strict and len(candidates) > 1 and candidates[0] != usual[0]:
            several = " or ".join(map(repr, candidates))
            raise UserError(f"{source.shown}: the {holds} may be in the column {several}: say columns.{holds}=NAME")
        found |= {holds: candidates[0]} if candidates else {}
    if strict and "video" not in found:
        has = ", ".join(map(repr, names)) or "none"
        raise UserError(f"{source.shown}: no column for the video among {has}: say columns.video=NAME")
    return found


def columns_of(source: ListSource, entry: ListFormat) -> tuple[dict[str, str], list[str]]:
    """Return which column, or field, of a list that was read holds what, and those of any line that are not read."""
    names = [*source.names] or [*source.first] or source.cells
    if entry.columns:
        read = _columns(source, [*source.first] or source.cells, strict=False)
    else:
        read = {name: name for name in (*USUAL, "image") if name in names}
        read |= {"question_id": "question_id"} if entry is vindlu and "question_id" in names else {}
    return read, [name for name in names if name not in read.values()]


@list_format(
    "parquet",
    *ALL_OF_THEM,
    splits=True,
    columns=(*USUAL,),
    fits=lambda source: bool(_parquet_files(source)),
    own=True,
    class_names=lambda source: _parquet_class_names(source),
)
def parquet(source: ListSource) -> Iterator[Row]:
    """A parquet file or a folder of them, <split>-00000-of-00001.parquet: videos as bytes (struct of bytes and path, or
    binary) or as paths, and further columns by name."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet as arrow_parquet
    except ImportError:
        raise UserError(f"{source.shown}: parquet needs pyarrow: pip install 'fastvtp[shards]'") from None
    for path in _parquet_files(source):
        split = match[1] if (match := _SHARD.fullmatch(path.name)) is not None else None
        try:
            file = arrow_parquet.ParquetFile(path)
        except (arrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: no parquet file: {str(error).splitlines()[0]}") from None
        columns = _columns(source, file.schema_arrow.names)
        for place, (count, row) in source.faults.entries(_numbered(path, file, columns)):
            if row[columns["video"]] is None:  # its bytes are in the row
                row[columns["video"]] = in_archive(str(path), str(count))
                row.setdefault(columns.get("id", "id"), f"{path.name}::{count}")
            fields = _named(row, {"id": "id", **columns}, place)
            yield Row(place, ({"split": split} if split else {}) | fields)


def _numbered(path: Path, file: Any, columns: Mapping[str, str]) -> Iterator[tuple[str, tuple[int, dict[str, Any]]]]:
    """Return the rows of a parquet file behind their places and numbers."""
    groups = range(file.num_row_groups)
    for count, row in enumerate(row for group in groups for row in _rows_of(file, group, columns)):
        yield f"{path}, row {count}", (count, row)


def _rows_of(file: Any, group: int, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Return the rows of a row group of a parquet file without the bytes of videos: of each its path, or None where it
    has the bytes."""
    video = columns["video"]
    kind = file.schema_arrow.field(video).type
    read = [column for column in columns.values() if column != video]
    if str(kind) in ("string", "large_string", "string_view"):
        for batch in file.iter_batches(row_groups=[group], columns=[*read, video]):
            yield from ({**row, video: row[video] or ""} for row in batch.to_pylist())
        return
    has_bytes = _has_bytes(file, group, video)
    parts = [] if has_bytes is True else [f"{video}.path"]
    parts += [f"{video}.bytes"] if has_bytes is None else []
    for batch in file.iter_batches(row_groups=[group], columns=[*read, *parts]):
        for row in batch.to_pylist() if read or parts else [{} for _ in range(batch.num_rows)]:
            held = row.get(video) or {}
            inside = has_bytes or (has_bytes is None and held.get("bytes") is not None)
            yield {**row, video: None if inside else held.get("path") or ""}


def _has_bytes(file: Any, group: int, video: str) -> bool | None:
    """Tell whether the rows of a group have the bytes of their videos; None: some do, or the file does not say."""
    columns = file.metadata.row_group(group)
    named = {columns.column(place).path_in_schema: columns.column(place) for place in range(columns.num_columns)}
    if f"{video}.bytes" not in named or f"{video}.path" not in named:
        return True
    told = named[f"{video}.bytes"].statistics
    if told is None or not told.has_null_count:
        return None
    return True if not told.null_count else False if told.null_count == columns.num_rows else None


def _parquet_class_names(source: ListSource) -> tuple[str, ...] | None:
    """Return the names of the classes that Hugging Face's `datasets` writes into a parquet file."""
    from pyarrow import parquet as arrow_parquet

    schema = arrow_parquet.read_schema(_parquet_files(source)[0])
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    label = said.get("info", {}).get("features", {}).get(_columns(source, schema.names).get("label"), {})
    names = label.get("names") if isinstance(label, dict) else None
    return tuple(map(str, names)) if names else None


def _parquet_files(source: ListSource) -> list[Path]:
    if not source.is_folder:
        return [source.path] if source.suffix == ".parquet" else []
    return sorted(source.path.glob("*.parquet")) or sorted(source.path.glob("data/*.parquet"))


# --- Folders


@list_format(
    "a folder of videos",
    CAPTIONS,
    own=True,
    general=True,
    splits=True,
    holds_videos=True,
    fits=lambda source: source.is_folder,
)
def folder(source: ListSource) -> Iterator[Row]:
    """Videos anywhere in a folder, the captions of each in a .txt file of its name beside it, one a line; where there
    are none, folders of numbered pictures are the videos. Where all lie in train/, val/ and test/ these are splits."""
    names = _videos_of(source)
    splits = _split_folders(names, least=2)
    for name in names:
        sidecar = source.path / f"{without_suffix(name)}.txt"
        said = read_text(sidecar, field="caption") if sidecar.is_file() else ""
        captions = [line for line in map(str.strip, lines_of(said)) if line]
        fields = {"video": name, "id": without_suffix(name), "caption": captions}
        yield Row(_shown(source.path / name), fields | ({"split": name.split("/")[0]} if splits else {}))


@list_format(
    "a folder of folders, one a class",
    LABEL,
    own=True,
    general=True,
    splits=True,
    holds_videos=True,
    fits=lambda source: source.is_folder,
)
def class_folders(source: ListSource) -> Iterator[Row]:
    """One subfolder of videos, or of folders of frames, a class, of which it bears the name; where all of these lie in
    train/, val/ and test/ these are splits."""
    names = [name for name in _videos_of(source) if "/" in name]
    splits = _split_folders(names, least=3)
    for name in names:
        parts = name.split("/")
        fields = {"video": name, "id": without_suffix(name), "label": parts[1 if splits else 0]}
        yield Row(_shown(source.path / name), fields | ({"split": parts[0]} if splits else {}))


def _videos_of(source: ListSource) -> list[str]:
    content = source.content
    return content.videos or content.frame_folders


def _shown(path: Path) -> str:
    """Return a path as messages can show it, whose name may be no text."""
    name = str(path)
    return name if name.isascii() else os.fsencode(path).decode(errors="backslashreplace")


def _split_folders(names: list[str], least: int) -> bool:
    """Tell whether all paths of `least` parts or more are in folders that bear the names of splits."""
    parts = [name.split("/") for name in names]
    return all(len(each) >= least and split_name(each[0]) in ("train", "val", "test") for each in parts)
