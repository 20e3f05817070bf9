"""Pickles of plain values, read without the module that can run them."""

import collections
import pickle

import pytest

from fastvtp.data.formats.plain_pickle import plain_pickle
from fastvtp.errors import UserError

SHARED = ["a", "ä"]
PLAIN = {
    "clip": [["a", "man"], [], SHARED, SHARED, ("x",), (1, 2), (1, 2, 3), (1, 2, 3, 4), ()],
    "numbers": [0, 255, 65535, -7, 1 << 40, -(1 << 400), 0.25, True, False, None],
    "long": "x" * 300,
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [PLAIN, [], {}, {"one": 1}, ["one"]])
def test_plain_values_of_every_protocol_come_back(protocol, value):
    assert plain_pickle(pickle.dumps(value, protocol)) == value


def test_texts_of_python_2_are_utf_8():
    assert plain_pickle(b"(dp0\nS'clip'\np1\n(lp2\nS'a man'\np3\nas.") == {"clip": ["a man"]}
    assert plain_pickle(b"\x80\x02U\x02\xc3\xa4q\x00.") == "ä"


@pytest.mark.parametrize(
    ("value", "named"),
    [(collections.OrderedDict(a=1), "collections.OrderedDict"), (print, "print"), (b"x" * 9, "BINBYTES"), ({1}, "SET")],
)
def test_anything_else_is_refused_by_name(value, named):
    with pytest.raises(UserError, match=named):
        plain_pickle(pickle.dumps(value, 4))
    with pytest.raises(UserError, match=r"posix\.system"):
        plain_pickle(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"posix\.system"):
        plain_pickle(b"(S'true'\niposix\nsystem\n.")


@pytest.mark.parametrize("content", [b"", b"x", b"0.", b"a.", b"e.", b"]Na", b"h\x01.", b"Ns.", b"NNa."])
def test_damaged_ones_are_refused(content):
    with pytest.raises((ValueError, LookupError, TypeError)):
        plain_pickle(content)
