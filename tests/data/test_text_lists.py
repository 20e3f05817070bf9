"""What all readers of lists, one a line, have in common."""

import pytest

from fastvtp.data.annotations import load_annotations
from fastvtp.data.classes import load_classes, read_class_names
from fastvtp.data.entities import read_entities
from fastvtp.data.formats.source import read_lines
from fastvtp.data.questions import AnswerVocabulary, read_answers
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import SPECIAL_TOKENS
from fastvtp.errors import UserError
from fastvtp.evaluation.zero_shot import read_templates

READERS = {
    "answers": (lambda path: read_answers(path).answers, ("two red", "b\u2028c\x85d")),
    "classes": (read_class_names, ("two red", "b\u2028c\x85d")),
    "templates": (lambda path: read_templates(str(path)), ("two {}", "b\u2028c {}")),
    "entities": (read_entities, ("two", "red\u2028other")),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_mark_and_line_ends_are_no_part_of_a_line(tmp_path, reader, end):
    """Windows' editors begin UTF-8 with a mark; U+2028 and U+0085 end lines of `str.splitlines` alone."""
    read, lines = READERS[reader]
    expected = tuple(line.split()[0] for line in lines) if reader == "entities" else lines
    for last in ("", end):
        (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + (end.join(lines) + last).encode())
        assert tuple(read(tmp_path / "list.txt")) == expected


def test_so_it_is_with_lists_of_videos_captions_and_words(tmp_path):
    mark = "\ufeff"
    (tmp_path / "list.csv").write_text(f"{mark}a\u2028b.mp4 1\nc.mp4 0\n", encoding="utf-8")
    assert [record.id for record in load_classes(tmp_path / "list.csv").records] == ["a\u2028b.mp4", "c.mp4"]
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_text(f"{mark}one\u2028caption\r\nanother\n", encoding="utf-8")
    assert load_annotations(tmp_path)[0].captions == ("one\u2028caption", "another")
    words = ["\n".join([*SPECIAL_TOKENS, word, "last"]) for word in ("first", "\u2028")]
    for content in words:
        (tmp_path / "vocab.txt").write_text(mark + content, encoding="utf-8")
        assert load_tokenizer(tmp_path / "vocab.txt").vocab_size == len(SPECIAL_TOKENS) + 2


@pytest.mark.parametrize(
    "read", [read_answers, read_entities, read_class_names, AnswerVocabulary.load, lambda path: list(read_lines(path))]
)
def test_a_folder_is_called_one(tmp_path, read):
    with pytest.raises(UserError, match=f"^{tmp_path}: is a folder, expected a file$"):
        read(tmp_path)


def test_another_encoding_is_one_line(tmp_path):
    (tmp_path / "list.txt").write_bytes("größer {}".encode("latin-1"))
    for read, _ in READERS.values():
        with pytest.raises(UserError, match=r"list\.txt, line 1: expected UTF-8 text") as caught:
            read(tmp_path / "list.txt")
        assert "\n" not in str(caught.value)
