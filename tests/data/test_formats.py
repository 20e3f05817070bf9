"""Published lists in miniature, each recognised, read and, where damaged, refused in one line."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.data.classes import load_classes, load_targets
from fastvtp.data.formats.catalogue import FORMATS, recognise
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.formats.source import ListSource
from fastvtp.data.questions import load_questions
from fastvtp.errors import UserError
from tests.data.miniatures import MINIATURES
from tests.data.tars import write_tar

ALL = [(name, miniature) for name, listed in MINIATURES.items() for miniature in listed]
CASES = [pytest.param(name, miniature, id=f"{name}-{miniature.name}-{miniature.wanted}") for name, miniature in ALL]
# behind the file: a line, entry or row, a record by its name, a file of a folder or a sample of a tar; and the field
NAMED = re.compile(r"(, line \d+(, entry \d+)?|, \w+, entry \d+|, row \d+|, '[^']+'|::\S+|\S*/\S+)+: field '\w[^']*': ")


def read(wanted, path):
    """What a list says, as miniatures have it."""
    if wanted == "captions":
        records = load_annotations(path)
        said = [record.captions for record in records]
    elif wanted == "questions":
        made = load_questions(path)
        records, texts = made.records, [record.captions[0] for record in made.records]
        said = list(zip(texts, made.answers, made.options, strict=True))
    elif wanted == "label":
        made = load_classes(path)
        records, said = made.records, [made.class_names[label] for label in made.labels]
    elif wanted == "labels":
        made = load_targets(path)
        records, said = made.records, [tuple(made.class_names[label] for label in row) for row in made.labels]
    else:
        records = load_videos(path)
        said = [None] * len(records)
    return [(record.video, words, record.start, record.end) for record, words in zip(records, said, strict=True)]


def expected(miniature, folder):
    return [
        (str(miniature.place(video, folder, folder / "videos")), said, start, end)
        for video, said, start, end in miniature.read
    ]


@pytest.mark.parametrize(("name", "miniature"), CASES)
def test_a_miniature_is_recognised_and_read(tmp_path, name, miniature):
    path = miniature.write(tmp_path, videos=tmp_path / "videos")
    (tmp_path / "videos").mkdir(exist_ok=True)
    if FORMATS[name].fits is not None:
        entry = recognise(ListSource(VideoList(str(path))), None if miniature.wanted == "videos" else miniature.wanted)
        assert entry.name == name
    found = read(miniature.wanted, VideoList(str(path), videos=str(tmp_path / "videos"), **miniature.more))
    wanted = expected(miniature, tmp_path)
    assert [(video, said, start or 0, end) for video, said, start, end in found] == [
        (video, said, start or 0, end) for video, said, start, end in wanted
    ]
    # the videos alone, by the same list
    alone = load_videos(VideoList(str(path), videos=str(tmp_path / "videos"), **miniature.more))
    assert {record.video for record in alone} >= {video for video, *_ in wanted}


@pytest.mark.parametrize(("name", "miniature"), CASES)
def test_a_damaged_twin_is_refused_in_one_line_that_names_file_place_and_field(tmp_path, name, miniature):
    path = miniature.write(tmp_path, damaged=True, videos=tmp_path / "videos")
    (tmp_path / "videos").mkdir(exist_ok=True)
    with pytest.raises(UserError) as caught:
        read(miniature.wanted, VideoList(str(path), videos=str(tmp_path / "videos"), **miniature.more))
    file = tmp_path / miniature.damages if miniature.damages else path
    assert_names(str(caught.value), file, miniature.complaint)


def assert_names(message, file, complaint):
    assert message.startswith(f"{file}{complaint}")
    assert NAMED.match(message, len(str(file)))
    assert "\n" not in message
    message.encode()


def parquet_twin(folder):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"video": "0.mp4", "caption": ["a cat"]}, {"video": None, "caption": ["a dog"]}]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "train.parquet")
    return folder / "train.parquet", ", row 1: field 'video': expected non-empty text, got ''"


def tar_twin(folder):
    rows = [{"caption": "a cat"}, {"caption": "a dog", "start": "soon"}]
    files = [(f"{n}.{suffix}", what) for n, row in enumerate(rows) for suffix, what in (("mp4", b""), ("json", row))]
    return write_tar(folder / "0.tar", files), "::1.json: field 'start': expected seconds from 0 on"


IN_ARCHIVES = {"parquet": parquet_twin, "webdataset": tar_twin}


@pytest.mark.parametrize("name", IN_ARCHIVES)
def test_a_damaged_archive_is_refused_in_one_line_that_names_file_place_and_field(tmp_path, name):
    path, complaint = IN_ARCHIVES[name](tmp_path)
    with pytest.raises(UserError) as caught:
        load_annotations(path)
    assert_names(str(caught.value), path, complaint)


def test_every_format_has_a_miniature_and_a_damaged_twin():
    assert {*MINIATURES} | {*IN_ARCHIVES} == {*FORMATS}
    assert [miniature.name for _, miniature in ALL if not miniature.complaint or miniature.damage[0] == ""] == []


def test_the_page_of_lists_names_every_format():
    page = (Path(__file__).parents[2] / "docs" / "lists.md").read_text()
    assert {name for name in FORMATS if f"`{name}`" not in page} == set()
    named = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| ", page, flags=re.MULTILINE))
    assert {name for pair in named for name in pair if name} - {"format"} == set(FORMATS)


@pytest.mark.parametrize(("name", "miniature"), CASES)
def test_videos_of_published_lists_that_are_not_there_are_dropped_kept_or_refused(tmp_path, caplog, name, miniature):
    entry = FORMATS[name]
    if not entry.searched:
        pytest.skip("gives paths, which are not looked at")
    gone = miniature.read[-1][0]
    rest = [row for row in miniature.read if row[0] != gone]
    kept = replace(miniature, videos=tuple(video for video in miniature.videos if video != gone))
    (tmp_path / "videos").mkdir()
    path = kept.write(tmp_path, videos=tmp_path / "videos")
    listed = VideoList(str(path), videos=str(tmp_path / "videos"), **miniature.more)
    with caplog.at_level(logging.WARNING):
        if rest:
            assert [video for video, *_ in read(miniature.wanted, listed)] == [
                str(miniature.place(row[0], tmp_path, tmp_path / "videos")) for row in rest
            ]
            assert " % missing, 1 of " in caplog.text
        else:
            with pytest.raises(UserError, match=r"(\d) of \1 videos? (is|are) not in"):
                read(miniature.wanted, listed)
    with pytest.raises(UserError, match=r"\d of \d videos? (is|are) not in"):
        read(miniature.wanted, replace(listed, missing="refuse"))
    assert len(read(miniature.wanted, replace(listed, missing="keep"))) == len(miniature.read)
