import sys
import types

import pytest

from fastvtp.data.entities import (
    build_entities,
    read_entities,
    write_entities,
)
from fastvtp.errors import UserError

CAPTIONS = ["A Dog chases a ball", "the dog's ball rolls, a dog watches", "Two cats watch. The ball!"]
TAGS = {"dog": "NN", "ball": "NN", "cats": "NNS", "chases": "VBZ", "watches": "VBZ"}


def tag(words: list[str]) -> list[tuple[str, str]]:
    return [(word, TAGS.get(word.lower(), "DT")) for word in words]


def test_nouns_by_frequency_and_then_by_name():
    assert build_entities(CAPTIONS, 10, tagger=tag) == ["ball", "dog", "cats"]
    assert build_entities(CAPTIONS, 2, tagger=tag) == ["ball", "dog"]
    assert build_entities(["cats dog", "dog cats"], 2, tagger=tag) == ["cats", "dog"]


def test_a_word_list_decides_without_a_tagger():
    assert build_entities(CAPTIONS, 10, words=["Dog", "two", "bird"]) == ["dog", "two"]
    with pytest.raises(UserError, match="no noun of the word list"):
        build_entities(CAPTIONS, 10, words=["bird"])


def test_the_tagger_reads_words_in_their_sentence():
    seen = []
    with pytest.raises(UserError, match=r"the captions hold no noun$"):
        build_entities(["A Well-known dog's ball, №1!", "..."], 3, tagger=lambda words: seen.append(words) or [])
    assert seen == [["A", "Well-known", "dog's", "ball"]]
    with pytest.raises(UserError, match="size must be positive, got 0"):
        build_entities(CAPTIONS, 0, tagger=tag)


def test_nltk_is_the_default_and_its_absence_one_line(monkeypatch):
    def install(tagger: type | None) -> None:
        names = ("nltk", "nltk.tag", "nltk.tag.perceptron")
        for name in names:
            monkeypatch.setitem(sys.modules, name, None if tagger is None else types.ModuleType(name))
        if tagger is not None:
            monkeypatch.setattr(sys.modules[names[-1]], "PerceptronTagger", tagger, raising=False)

    class Tagger:
        def tag(self, words: list[str]) -> list[tuple[str, str]]:
            return tag(words)

    class WithoutWeights:
        def __init__(self) -> None:
            raise LookupError("a page\nof text")

    install(Tagger)
    assert build_entities(CAPTIONS, 1) == ["ball"]
    for tagger, message in (
        (None, r"pip install 'fastvtp\[entities\]'"),
        (WithoutWeights, "python -m nltk.downloader"),
    ):
        install(tagger)
        with pytest.raises(UserError, match=message) as raised:
            build_entities(CAPTIONS, 1)
        assert "\n" not in str(raised.value)


def test_lists_are_read_by_the_first_word_of_each_line(tmp_path):
    path = tmp_path / "unigrams.txt"
    path.write_text("man 1273\n\nwoman\t88\n view 7 9\nt-shirt\n4k\n")
    assert read_entities(path) == ["man", "woman", "view", "t-shirt", "4k"]
    assert read_entities(path, limit=2) == ["man", "woman"]
    write_entities(path, ["b", "a"])
    assert read_entities(path) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n", "lists no entities"),
        (b"a\nb\na 3", "'a' more than once"),
        (b"\xff", "UTF-8"),
        (b"man\n\n1273 man\n", r"list.txt, line 3: expected a word, got '1273'"),
        (b'{"man":', r"list.txt, line 1: expected a word, got '{\"man\":'"),
        (b"man,woman", r"line 1: expected a word, got 'man,woman'"),
    ],
)
def test_malformed_lists(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_entities(tmp_path / "list.txt")
    with pytest.raises(FileNotFoundError, match=r"absent.txt: no such file"):
        read_entities(tmp_path / "absent.txt")
