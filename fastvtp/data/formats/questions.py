"""Published lists of questions about videos."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvtp.data.formats.registry import QUESTIONS, Row, list_format, text, whole_number
from fastvtp.data.formats.source import ListSource
from fastvtp.errors import UserError
from fastvtp.files import lines_of, read_text

_QUESTION_FILE = re.compile(r"(.*)_q(\.json)")


def _asked(row: dict[str, Any], place: str) -> dict[str, Any]:
    return {name: text(row, name, place) for name in ("question", "answer")}


def _numbered_video(source: ListSource, *, category: bool) -> bool:
    fields = set(source.first)
    return {"question", "answer", "video_id", "id"} <= fields and ("category_id" in fields) == category


@list_format("MSRVTT-QA", QUESTIONS, searched=True, fits=lambda source: _numbered_video(source, category=True))
def msrvtt_qa(source: ListSource) -> Iterator[Row]:
    """train_qa.json and others: a question of video_id 7 is about the file video7."""
    for place, row in source.objects():
        name = f"video{whole_number(row, 'video_id', place)}"
        yield Row(place, {"video": name, **_asked(row, place), "id": f"question{row.get('id')}"})


@list_format("MSVD-QA", QUESTIONS, searched=True, fits=lambda source: _numbered_video(source, category=False))
def msvd_qa(source: ListSource) -> Iterator[Row]:
    """train_qa.json and others: video_id 7 is vid7, whose file youtube_mapping.txt beside the list names, a line
    "name vid7" each; without that file it is called vid7."""
    mapping = source.beside("youtube_mapping.txt")
    names: dict[str, str] = {}
    for number, line in enumerate(lines_of(read_text(mapping)) if mapping else (), start=1):
        words = line.split()
        if words and len(words) != 2:
            expected = "a name and its vid number"
            raise UserError(f"{mapping}, line {number}: field 'vid': expected {expected}, got {line!r}")
        names |= {words[1]: words[0]} if words else {}
    for place, row in source.objects():
        vid = f"vid{whole_number(row, 'video_id', place)}"
        if names and vid not in names:
            raise UserError(f"{place}: field 'video_id': {mapping} has no {vid}")
        yield Row(place, {"video": names.get(vid, vid), **_asked(row, place), "id": f"question{row.get('id')}"})


@list_format(
    "ActivityNet-QA",
    QUESTIONS,
    searched=True,
    fits=lambda source: {"video_name", "question", "question_id"} <= set(source.first) and "answer" not in source.first,
)
def activitynet_qa(source: ListSource) -> Iterator[Row]:
    """train_q.json and others, whose answers are in train_a.json beside; of files v_<name>."""
    match = _QUESTION_FILE.fullmatch(source.path.name)
    answers = None if match is None else source.beside(f"{match[1]}_a{match[2]}")
    if answers is None:
        raise UserError(f"{source.shown}: expected its answers beside it, <split>_a.json for <split>_q.json")
    known = {text(row, "question_id", place): (place, row) for place, row in source.other(answers).objects()}
    for place, row in source.objects():
        name = text(row, "question_id", place)
        if name not in known:
            raise UserError(f"{place}: field 'question_id': {answers} has no answer to {name!r}")
        where, answer = known[name]
        fields = {"question": text(row, "question", place), "answer": text(answer, "answer", where)}
        fields |= {"type": str(answer["type"])} if "type" in answer else {}
        video = text(row, "video_name", place)
        is_file = video.startswith("v_") and not name.startswith(f"v_{video}_")  # ids of videos may begin so as well
        yield Row(place, {"video": video if is_file else f"v_{video}", **fields, "id": name})


@list_format(
    "TGIF-QA", QUESTIONS, searched=True, fits=lambda source: source.has_columns("gif_name", "question", "answer")
)
def tgif_qa(source: ListSource) -> Iterator[Row]:
    """{Train,Test}_{frameqa,count,action,transition}_question.csv, tabs between columns; of a1 ... a5 the answer is the
    number, from 0 on."""
    kinds = {"0": "object", "1": "number", "2": "colour", "3": "location"}
    task = next((name for name in ("frameqa", "count", "action", "transition") if name in source.path.name), "")
    for place, row in source.rows():
        fields = _asked(row, place)
        if "a1" in row:
            fields |= _chosen(row, [f"a{number}" for number in range(1, 6)], place)
        kind = kinds.get(row.get("type", "").strip(), "") or task
        key = row.get("key") or row.get("vid_id") or ""
        name = {"id": key.strip()} if key.strip() else {}
        yield Row(place, {"video": text(row, "gif_name", place), **fields, "type": kind, **name})


@list_format("NExT-QA", QUESTIONS, searched=True, fits=lambda source: source.has_columns("video", "question", "qid"))
def nextqa(source: ListSource) -> Iterator[Row]:
    """train.csv and others: the answer is a number of a0 ... a4, or open; of files by the video's number, wherever they
    lie, or as map_vid_vidorID.json beside the list has it."""
    mapping = source.beside("map_vid_vidorID.json")
    places = _mapping(mapping) if mapping else {}
    for place, row in source.rows():
        fields, video = _asked(row, place), text(row, "video", place)
        if "a0" in row:
            fields |= _chosen(row, [f"a{number}" for number in range(5)], place)
        fields |= {"type": row.get("type", "").strip(), "id": f"{video} {text(row, 'qid', place)}"}
        yield Row(place, {"video": places.get(video, video), **fields})


@list_format(
    "ClipBERT QA",
    QUESTIONS,
    searched=True,
    fits=lambda source: {"question", "answer", "video_id"} <= set(source.first) and "id" not in source.first,
)
def clipbert_qa(source: ListSource) -> Iterator[Row]:
    """The jsonl of questions of ClipBERT and ALPRO: question, answer, video_id, answer_type."""
    for place, row in source.objects():
        kind = {"type": text(row, "answer_type", place)} if "answer_type" in row else {}
        yield Row(place, {"video": text(row, "video_id", place), **_asked(row, place), **kind})


def _chosen(row: dict[str, str], columns: list[str], place: str) -> dict[str, Any]:
    """Return the options of a multiple choice and the right one, of which a column has the number."""
    options, number = [text(row, column, place) for column in columns], whole_number(row, "answer", place)
    if not 0 <= number < len(options):
        raise UserError(f"{place}: field 'answer': expected a number from 0 to {len(options) - 1}, got {number}")
    return {"options": options, "answer": options[number]}


def _mapping(path: Path) -> dict[str, str]:
    try:
        mapping = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(mapping, dict) or not all(isinstance(value, str) for value in mapping.values()):
        raise UserError(f"{path}: expected an object {{video: path}}")
    return mapping
