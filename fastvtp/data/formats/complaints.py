"""What is said of lists that tell something else, or more, than is asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from fastvtp.data.formats import general
from fastvtp.data.formats.registry import CAPTIONS, LABEL, LABELS, QUESTIONS, TELLINGS, ListFormat, Row
from fastvtp.data.formats.source import ListSource
from fastvtp.data.locations import to_be_unpacked
from fastvtp.errors import UserError, counted, few

logger = logging.getLogger(__name__)

_LIKE_A_SPAN = re.compile(
    r"(?:^|_)(?:start|end|begin|stop|timestamps?)(?:_|$)|^(?:start|end|begin|stop)[A-Z]", re.ASCII
)
# texts, tables, features and the like that lie beside videos
_BESIDE_VIDEOS = frozenset(
    {
        *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".vtt", ".srt", ".wav", ".mp3", ".npy", ".npz", ".pt"),
        *(".pkl", ".xml", ".yaml", ".yml", ".log", ".html", ".py", ".sh", ".pdf"),
    }
)
_MOST_SPLITS = 12
_TOLD_BY = {"question": QUESTIONS, "caption": CAPTIONS, "label": LABEL, "labels": LABELS}  # by the field
_READ_BY = {
    CAPTIONS: "pretraining, retrieval and captioning",
    QUESTIONS: "`fastvtp finetune` with a recipe of question answering, and the scores of its models",
    LABEL: "`fastvtp finetune` with a recipe of classification, `fastvtp probe` and `fastvtp zeroshot`",
    LABELS: "`fastvtp probe`",
}


def no_field(field: str, row: Row, source: ListSource, entry: ListFormat) -> UserError:
    """Return the error for a row that says nothing in a field that is to be read: what the list tells instead, and how
    a field of another name is given."""
    columns = [] if entry.own else [*source.first] or source.cells
    among = ", ".join(map(repr, columns or row.fields))
    kind = next((kind for name, kind in _TOLD_BY.items() if name in row.fields), None)
    told = "" if kind is None else f"; it tells {TELLINGS[kind]}, for {_READ_BY[kind]}"
    own = f"a field of another name is given by data.columns.{field}=NAME or --column {field}=NAME"
    return UserError(f"{row.place}: field '{field}': there is none among {among}{told}; {own}")


def nothing_listed(path: str, what: str, others: Mapping[str, int]) -> UserError:
    """Return the error for a list without any of what was looked for; others: how many files of other suffixes a folder
    has."""
    held = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(others.items(), key=lambda each: -each[1]))
    packed = next((how for suffix in others if (how := to_be_unpacked(suffix))), "")
    said = [f"{path}: lists no {what}", *([f"it holds files of other suffixes: {held}"] if held else [])]
    return UserError("; ".join([*said, *([packed] if packed else [])]))


def several_splits(path: str, splits: Iterable[str], every: str) -> UserError:
    """Return the error for a list of several splits of which none was chosen; every: the word that takes them all."""
    *first, last = map(repr, splits)
    if len(first) > _MOST_SPLITS:
        first, last = first[:_MOST_SPLITS], f"{len(first) + 1 - _MOST_SPLITS} more"
    how = f"data.split=NAME or --split NAME; {every!r} takes every one"
    return UserError(f"{path}: holds the splits {', '.join(first)} and {last}: say which with {how}")


def say_unread(path: str, source: ListSource, entry: ListFormat) -> None:
    """Say which columns and fields of a list that was read are not read, and which files of a folder are not.

    path: the list as messages name it.
    """
    if entry in (general.jsonl, general.vindlu, general.table, general.huggingface):
        read, unread = general.columns_of(source, entry)
        if spans := [name for name in unread if _LIKE_A_SPAN.search(name)]:
            named = "start, end, start_frame or end_frame"
            logger.warning("%s: no span is read from %s: expected %s", path, ", ".join(spans), named)
        if unread and not source.prepared:
            said = ", ".join(f"{name}={column}" for name, column in read.items())
            logger.info("%s: %snot read: %s", source.path.name, f"{said}; " if entry.columns else "", few(unread))
    if entry in (general.folder, general.class_folders):
        content = source.content
        others = {suffix: count for suffix, count in content.others.items() if suffix not in _BESIDE_VIDEOS}
        if others:
            held = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(others.items()))
            logger.warning("%s: files of other suffixes than videos are passed over: %s", path, held)
        top = [name for name in content.videos if "/" not in name]
        if top and entry is general.class_folders:
            number = counted(len(top), "video", "are")
            logger.warning("%s: %s in no folder of a class and passed over: %s", path, number, few(top))
