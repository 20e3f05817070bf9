"""Flat sections, fields with an earlier name, and the way to JSON and back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fastvtp.errors import ConfigError, UserError
from fastvtp.settings import (
    FLAT,
    check_types,
    earlier_names,
    from_json,
    parse_value,
    rebuild,
    renamed_from,
    setting_names,
    setting_types,
    split_settings,
    to_json,
)


@dataclass(frozen=True)
class Inner:
    share: float = 0.5
    pair: tuple[int, int] | None = None

    def __post_init__(self):
        if self.share < 0:
            raise ValueError(f"share must not be negative, got {self.share}")


@dataclass(frozen=True)
class Lent:
    """A section without a prefix, which holds one with a prefix."""

    colour: str = field(default="red", metadata=renamed_from("tint"))
    nested: Inner = field(default_factory=Inner)

    def __post_init__(self):
        if self.colour == "none":
            raise UserError(f"colour must be one, got {self.colour!r}")


@dataclass(frozen=True)
class Section:
    path: str
    names: tuple[str, ...] = ()
    lent: Lent = field(default_factory=Lent, metadata=FLAT)
    last: int | None = None


@dataclass(frozen=True)
class Whole:
    task: Any
    section: Section
    inner: Inner = field(default_factory=Inner)
    steps: int = field(default=3, metadata=renamed_from("count"))


@dataclass(frozen=True)
class OfTask:
    mixup: float = 0.0
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class WithTask:
    """As a training's configuration: the section that belongs to the task, whose class is not known beforehand."""

    own: Any = field(metadata=FLAT)
    seed: int = 0


CONFIG = Whole("pretrain", Section("a"))
NAMES = [
    *("task", "section.path", "section.names", "section.colour", "section.nested.share", "section.nested.pair"),
    *("section.last", "inner.share", "inner.pair", "steps"),
]


def test_a_flat_section_lends_its_settings_without_a_prefix():
    assert setting_names(CONFIG) == NAMES
    types = setting_types(CONFIG)
    assert types["section.colour"] is str
    assert types["section.names"] == tuple[str, ...]
    assert types["section.nested.pair"] == tuple[int, int] | None
    assert setting_names(CONFIG.section)[:3] == ["path", "names", "colour"]


def test_a_flat_section_may_be_of_any_class():
    assert setting_types(WithTask(OfTask())) == {"mixup": float, "sizes": tuple[tuple[int, int], ...], "seed": int}
    assert setting_names(WithTask(Inner())) == ["share", "pair", "seed"]
    changed = rebuild(WithTask(OfTask(), seed=1), {"mixup": 0.5, "seed": 2})
    assert changed == WithTask(OfTask(mixup=0.5), seed=2)
    assert to_json(changed) == {"mixup": 0.5, "sizes": [], "seed": 2}


def test_two_settings_of_one_name_are_a_fault():
    @dataclass(frozen=True)
    class Clashing:
        share: int = 1
        lent: Inner = field(default_factory=Inner, metadata=FLAT)

    with pytest.raises(TypeError, match="Clashing has two settings of the name 'share'"):
        setting_names(Clashing())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("section.colour", "blue"),
        ("section.nested.share", 0.25),
        ("section.nested.pair", (1, 2)),
        ("section.last", 4),
        ("inner.share", 1.0),
        ("steps", 9),
    ],
)
def test_one_value_is_replaced_and_no_other(name, value):
    changed = rebuild(CONFIG, {name: value})
    before, after = (dict(_leaves(to_json(config))) for config in (CONFIG, changed))
    assert {key for key in NAMES if before[key] != after[key]} == {name}
    assert after[name] == json.loads(json.dumps(value))
    assert rebuild(CONFIG, {"nested.share": 1.0, "section.lent.colour": "blue"}) == CONFIG


def test_values_of_one_section_come_in_together():
    changed = rebuild(CONFIG, {"section.colour": "blue", "section.path": "b", "section.nested.share": 0.0})
    assert changed.section == Section("b", lent=Lent("blue", Inner(0.0)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("section.colour", "none", "section.colour must be one, got 'none'"),
        ("section.nested.share", -1.0, "section.nested.share must not be negative, got -1.0"),
        ("inner.share", -1.0, "inner.share must not be negative, got -1.0"),
    ],
)
def test_what_a_section_refuses_is_named_as_the_user_knows_it(name, value, message):
    with pytest.raises(ConfigError) as caught:
        rebuild(CONFIG, {name: value})
    assert str(caught.value) == message


def test_json_merges_flat_sections_and_comes_back():
    config = rebuild(CONFIG, {"section.nested.pair": (3, 4), "section.names": ("a", "b")})
    values = to_json(config)
    assert values == {
        "task": "pretrain",
        "section": {
            "path": "a",
            "names": ["a", "b"],
            "colour": "red",
            "nested": {"share": 0.5, "pair": [3, 4]},
            "last": None,
        },
        "inner": {"share": 0.5, "pair": None},
        "steps": 3,
    }
    assert list(values["section"]) == ["path", "names", "colour", "nested", "last"]  # in the order of the fields
    assert from_json(Whole, json.loads(json.dumps(values))) == config
    assert from_json(Section, {"path": "a"}) == CONFIG.section


def test_lists_become_tuples_at_any_depth():
    assert from_json(OfTask, {"sizes": [[1, 2], [3, 4]]}).sizes == ((1, 2), (3, 4))
    assert from_json(Inner, {"pair": [1, 2]}).pair == (1, 2)
    assert from_json(Inner, {"pair": None}).pair is None
    assert from_json(Inner, {"pair": [1]}).pair == (1,)  # whose length is for the class to judge
    assert from_json(Whole, {"task": [1], "section": {"path": "a"}}).task == [1]  # no hint asks for a tuple


def test_unknown_values_are_named():
    with pytest.raises(TypeError, match=r"^unknown Inner fields: pairs, sharp$"):
        from_json(Inner, {"sharp": 1, "pairs": 2, "share": 0.5})
    with pytest.raises(TypeError, match=r"^unknown Section fields: lent$"):
        from_json(Section, {"path": "a", "lent": {"colour": "blue"}})


def test_earlier_names():
    assert earlier_names(CONFIG) == {"section.tint": "section.colour", "count": "steps"}
    assert from_json(Section, {"path": "a", "tint": "blue"}).lent.colour == "blue"
    assert from_json(Whole, {"task": 0, "section": {"path": "a"}, "count": 8}).steps == 8
    with pytest.raises(TypeError, match="unknown Lent fields: tint"):  # the same setting twice
        from_json(Section, {"path": "a", "tint": "blue", "colour": "red"})


def test_texts_are_split_between_classes():
    assert split_settings(["mixup=0.5", "share=1"], OfTask, Inner) == [{"mixup": 0.5}, {"share": 1.0}]
    with pytest.raises(UserError, match="no setting 'pair'"):
        split_settings(["pair=1,2"], OfTask, Inner, without=("pair",))
    with pytest.raises(UserError, match="no setting 'mixp'; did you mean 'mixup'"):
        split_settings(["mixp=1"], OfTask)
    with pytest.raises(UserError, match="expected key=value, got 'mixup'"):
        split_settings(["mixup"], OfTask)
    assert parse_value("3x4", tuple[int, int] | None, "pair") == (3, 4)


def _leaves(values: dict[str, Any], prefix: str = ""):
    """Dotted names and values of JSON's nested objects."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@dataclass(frozen=True)
class Hinted:
    count: int = 1
    least: int | None = None
    rate: float = 0.5
    on: bool = True
    name: str = "a"
    pair: tuple[int, int] = (1, 2)
    either: int | tuple[int, int] | None = None
    shares: tuple[float, ...] = ()
    kind: Literal["x", "y"] = "x"
    table: Mapping[str, int] = field(default_factory=dict)
    anything: Any = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        check_types(self, pair="height and width")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", (224, 398), "an integer"), ("count", "8", "an integer"), ("count", 8.0, "an integer"),
        ("count", None, "an integer"), ("count", True, "an integer"), ("count", [8], "an integer"),
        ("least", "8", "an integer or none"), ("rate", "0.1", "a number"), ("rate", False, "a number"),
        ("rate", None, "a number"), ("on", 1, "true or false"), ("on", "no", "true or false"), ("name", 3, "a text"),
        ("pair", 3, "height and width"), ("pair", (1, 2, 3), "height and width"),
        ("pair", (1, 2.5), "height and width"), ("pair", "12", "height and width"),
        ("either", (1,), "an integer or two integers or none"), ("either", 1.5, "an integer or two integers or none"),
        ("shares", 0.5, "a list of numbers"), ("shares", [0.5, "a"], "a list of numbers"),
        ("kind", "z", "one of 'x', 'y'"), ("table", 3, "a Mapping"), ("inner", 0.5, "a Inner"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_one_line(name, value, expected):
    with pytest.raises(UserError) as raised:
        Hinted(**{name: value})
    assert str(raised.value) == f"{name} must be {expected}, got {value!r}"


def test_values_become_what_hints_say():
    made = Hinted(
        count=np.int64(3), least=4, rate=np.float32(0.25), name=Path("a/b"), pair=[np.int32(5), 6], either=[7, 8],
        shares=[1, 0.5], anything=object,
    )  # fmt: skip
    assert (made.count, made.rate, made.name, made.pair, made.either) == (3, 0.25, "a/b", (5, 6), (7, 8))
    assert [type(value) for value in (made.count, made.rate, *made.pair)] == [int, float, int, int]
    assert made.shares == (1, 0.5)
    assert type(made.shares[0]) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.count": "x"}, "model.count must be an integer, got 'x'"),
        ({"model.inner.share": -1}, "model.inner.share must not be negative"),
    ],
)
def test_rebuilding_says_where(values, message):
    @dataclass(frozen=True)
    class Whole:
        model: Hinted = field(default_factory=Hinted)

    with pytest.raises(ConfigError, match=message):
        rebuild(Whole(), values)
