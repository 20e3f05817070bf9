import pytest

from fastvtp.errors import unknown_name

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
