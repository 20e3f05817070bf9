import pytest

from fastvtp.errors import few, unknown_name

KNOWN = ["steps", "data.flip", "data.train", "optimizer.learning_rate"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("step", "steps"),
        ("data.flipp", "data.flip"),
        ("flip", "data.flip"),
        ("lerning_rate", "optimizer.learning_rate"),
    ],
)
def test_names_the_nearest(name, near):
    assert str(unknown_name("setting", name, KNOWN)) == f"no setting {name!r}; did you mean {near!r}?"


def test_lists_all_where_nothing_is_near():
    assert str(unknown_name("setting", "zzz", KNOWN)).endswith(
        "known: steps, data.flip, data.train, optimizer.learning_rate"
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b", "c"], "a, b, c"),
        (iter(["a", "b", "c", "d"]), "a, b, c, and 1 more"),
        ([f"{number}" for number in range(2003)], "0, 1, 2, and 2,000 more"),
    ],
)
def test_names_a_few_and_counts_the_others(names, said):
    assert few(names, 3) == said


def test_names_a_few_with_something_else_between():
    assert few(["x: was 1", "y: was 2"], 1, "; ") == "x: was 1; and 1 more"
