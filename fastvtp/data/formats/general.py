"""Our own lists, and whatever tables, JSON objects, parquet files and folders say in columns that can be told."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastvtp.data.formats.registry import CAPTIONS, LABEL, LABELS, QUESTIONS, Row, caption, list_format, text_of
from fastvtp.data.formats.source import JSON_LINES, ListSource
from fastvtp.data.locations import in_archive
from fastvtp.data.video_files import content_of, without_suffix
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
    CAPTIONS,
    QUESTIONS,
    LABEL,
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
    fits=lambda source: "file_name" in source.first or "file_name" in source.cells,
)
def huggingface(source: ListSource) -> Iterator[Row]:
    """metadata.jsonl or metadata.csv of a data set folder: file_name and further columns."""
    yield from table.read(source)


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
        elif name == "label" and isinstance(value, str) and value.strip().isdecimal():
            fields[name] = int(value)  # of a table of texts
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
            raise UserError(f"{source.path}: no column {column!r} (columns.{holds}) among {has}")
    for holds, usual in USUAL.items():
        if holds in found:
            continue
        candidates = [name for name in usual if name in names and name not in found.values()]
        if strict and len(candidates) > 1 and candidates[0] != usual[0]:
            several = " or ".join(map(repr, candidates))
            raise UserError(f"{source.path}: the {holds} may be in the column {several}: say columns.{holds}=NAME")
        found |= {holds: candidates[0]} if candidates else {}
    if strict and "video" not in found:
        has = ", ".join(map(repr, names)) or "none"
        raise UserError(f"{source.path}: no column for the video among {has}: say columns.video=NAME")
    return found


@list_format(
    "parquet",
    *ALL_OF_THEM,
    splits=True,
    columns=(*USUAL,),
    fits=lambda source: bool(_parquet_files(source)),
    own=True,
)
def parquet(source: ListSource) -> Iterator[Row]:
    """A parquet file or a folder of them, <split>-00000-of-00001.parquet: videos as bytes (struct of bytes and path, or
    binary) or as paths, and further columns by name."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet as arrow_parquet
    except ImportError:
        raise UserError(f"{source.path}: parquet needs pyarrow: pip install 'fastvtp[shards]'") from None
    for path in _parquet_files(source):
        split = match[1] if (match := _SHARD.fullmatch(path.name)) is not None else None
        try:
            file = arrow_parquet.ParquetFile(path)
        except (arrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: no parquet file: {str(error).splitlines()[0]}") from None
        schema = file.schema_arrow
        columns = _columns(source, schema.names)
        kind = schema.field(columns["video"]).type
        in_rows = not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind))
        read = [column for holds, column in columns.items() if holds != "video" or not in_rows]
        count = 0
        for batch in file.iter_batches(columns=read):
            for row in batch.to_pylist() if read else [{}] * batch.num_rows:
                if in_rows:
                    row[columns["video"]] = in_archive(str(path), str(count))
                fields = _named(row, columns, f"{path}, row {count}")
                yield Row(f"{path}, row {count}", ({"split": split} if split else {}) | fields)
                count += 1


def _parquet_files(source: ListSource) -> list[Path]:
    if not source.is_folder:
        return [source.path] if source.suffix == ".parquet" else []
    return sorted(source.path.glob("*.parquet")) or sorted(source.path.glob("data/*.parquet"))


# --- Folders


@list_format(
    "a folder of videos", CAPTIONS, own=True, general=True, holds_videos=True, fits=lambda source: source.is_folder
)
def folder(source: ListSource) -> Iterator[Row]:
    """Videos anywhere in a folder, the captions of each in a .txt file of its name beside it, one a line; where there
    are none, folders of numbered pictures are the videos."""
    content = content_of(source.path)
    for name in content.videos or content.frame_folders:
        sidecar = source.path / f"{without_suffix(name)}.txt"
        said = read_text(sidecar) if sidecar.is_file() else ""
        captions = [line for line in map(str.strip, lines_of(said)) if line]
        place = str(source.path / name)
        yield Row(place, {"video": name, "id": without_suffix(name), "caption": captions})


@list_format(
    "a folder of folders, one a class",
    LABEL,
    own=True,
    general=True,
    holds_videos=True,
    fits=lambda source: source.is_folder,
)
def class_folders(source: ListSource) -> Iterator[Row]:
    """One subfolder of videos, or of folders of frames, a class, of which it bears the name."""
    content = content_of(source.path)
    for name in content.videos or content.frame_folders:
        if "/" in name:
            fields = {"video": name, "id": without_suffix(name), "label": name.split("/")[0]}
            yield Row(str(source.path / name), fields)
