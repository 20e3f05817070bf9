"""A list is opened and parsed once, however many readers ask what it is before one of them reads it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fastvtp.data.classes import load_classes, load_targets
from fastvtp.data.formats import catalogue
from fastvtp.data.formats.catalogue import FORMATS
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.formats.source import ListSource
from fastvtp.data.questions import lists_questions, load_questions
from fastvtp.data.survey import read_any
from fastvtp.frozen.runs import read_videos
from fastvtp.preparation.reading import read_items
from tests.data.miniatures import MINIATURES


class Seen:
    """How often each file was opened, and how many rows each format was asked for."""

    def __init__(self, monkeypatch):
        self.opened, self.rows, self.asked = Counter[str](), Counter[str](), Counter[str]()
        opens = Path.open

        def open_noted(path, mode="r", *args, **kwargs):
            self.opened[path.name] += "r" in mode
            return opens(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", open_noted)
        # a fresh table: entries of a copy are told apart from those that messages compare with
        for name, entry in FORMATS.items():
            monkeypatch.setitem(FORMATS, name, replace(entry, read=self._counted(name, entry.read),
                                                       fits=self._noted(name, entry.fits)))  # fmt: skip

    def _counted(self, name, read):
        def counting(source):
            for row in read(source):
                self.rows[name] += 1
                yield row

        return counting

    def _noted(self, name, fits):
        if fits is None:
            return None

        def asking(source):
            self.asked[name] += 1
            return fits(source)

        return asking


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


ROWS = {
    "captions": {"video": "0.mp4", "caption": "a cat"},
    "label": {"video": "0.mp4", "label": "run"},
    "labels": {"video": "0.mp4", "labels": ["run", "sit"]},
    "question": {"video": "0.mp4", "question": "who?", "answer": "she"},
}
READERS = {
    "read_videos": (read_videos, ("captions", "label", "labels", "question")),
    "load_targets": (load_targets, ("label", "labels")),
    "read_any": (read_any, ("captions", "label", "labels", "question")),
    "read_items": (read_items, ("captions", "label", "labels", "question")),
}
CASES = [(name, kind) for name, (_, kinds) in READERS.items() for kind in kinds]


@pytest.mark.parametrize("layout", ["jsonl", "array", "csv"])
@pytest.mark.parametrize(("reader", "kind"), CASES)
def test_a_list_of_any_kind_is_opened_once_and_each_row_read_once(tmp_path, seen, reader, kind, layout):
    rows = [ROWS[kind] | {"video": f"{number}.mp4"} for number in range(5)]
    path = tmp_path / ("list.jsonl" if layout == "jsonl" else "list.json")
    text = "".join(f"{json.dumps(row)}\n" for row in rows) if layout == "jsonl" else json.dumps(rows)
    if layout == "csv":
        if kind == "labels":
            pytest.skip("a cell holds one class")
        path = tmp_path / "list.csv"
        text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    path.write_text(text)
    READERS[reader][0](path)
    assert seen.opened[path.name] == 1
    assert seen.rows.total() == 5
    assert set(seen.asked.values()) == {1}


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "kinetics", "ssv2", "activitynet", "nextqa", "ava"])
def test_a_published_list_is_opened_once_and_each_row_read_once(tmp_path, seen, name):
    miniature = MINIATURES[name][0]
    path = miniature.write(tmp_path)
    read_any(VideoList(str(path), **miniature.more))
    once = seen.rows.copy()
    assert seen.opened[path.name] == 1
    seen.rows.clear()
    list(FORMATS[name].read(ListSource(VideoList(str(path), **miniature.more))))
    assert once == seen.rows


def test_who_asks_for_questions_and_reads_others_reads_once(tmp_path, seen):
    for kind, load in (("question", load_questions), ("label", load_classes)):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text(json.dumps(ROWS[kind]) + "\n")
        source = ListSource.of(path)
        assert lists_questions(source) == (kind == "question")
        load(source)
        assert seen.opened[path.name] == 1
    assert seen.rows.total() == 2


def test_a_list_longer_than_its_head_is_opened_twice_and_parsed_once(tmp_path, seen):
    path = tmp_path / "list.jsonl"
    rows = 40_000
    path.write_text("".join(json.dumps(ROWS["label"] | {"video": f"{n}.mp4"}) + "\n" for n in range(rows)))
    assert path.stat().st_size > 1 << 20
    assert len(read_videos(path).records) == rows
    assert (seen.opened[path.name], seen.rows.total()) == (2, rows)


def test_a_folder_is_asked_once_what_it_is_unless_its_list_says_nothing_of_classes(tmp_path, seen):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4", "label": "run"}) + "\n")
    assert read_videos(tmp_path).targets is not None
    assert seen.opened["metadata.jsonl"] == 1
    assert set(seen.asked.values()) == {1}


def test_an_error_in_the_first_row_is_raised_by_each_reader(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"video": 7, "label": "x"}\n')
    source = ListSource.of(path)
    for _ in range(2):
        with pytest.raises(ValueError, match="line 1: field 'video': expected non-empty text, got 7"):
            load_classes(source)


def test_a_source_is_the_path_of_its_list(tmp_path):
    listed = VideoList(str(tmp_path / "list.jsonl"), split="val")
    source = ListSource.of(listed)
    assert (str(source), Path(source), source.listed) == (listed.path, Path(listed.path), listed)
    assert ListSource.of(source) is source
    assert catalogue.FORMATS is FORMATS
