"""What the processes of a run say to each other."""

import pytest
import torch

from fastvtp import processes
from fastvtp.errors import ConfigError, FailedElsewhereError, UserError
from tests.ranks import run_ranks


def _said(work) -> str:
    try:
        return f"returned {work()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _fails_on(failing: tuple[int, ...], message: str = "no such file {}") -> str:
    def work() -> str:
        if processes.rank() in failing:
            raise UserError(message.format(processes.rank()))
        return "done"

    return _said(lambda: processes.all_or_none(work))


def _exchange(rank: int) -> dict:
    return {
        "who": (processes.rank(), processes.size(), processes.is_first()),
        "gathered": processes.gather({"rank": rank}),
        "any": (processes.any_of(rank == 2), processes.any_of(False)),
        "share": list(processes.share(range(7))),
        "all do": _fails_on(()),
        "one fails": _fails_on((1,)),
        "two fail": _fails_on((1, 2)),
        "all fail alike": _fails_on((0, 1, 2), "bad setting"),
        "first": processes.first_decides(lambda: f"of {processes.rank()}"),
        "first fails": _said(lambda: processes.first_decides(lambda: int("x"))),
    }


def test_processes_agree(tmp_path):
    found = run_ranks(_exchange, tmp_path, processes=3)
    assert [rank["who"] for rank in found] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    for rank in found:
        assert rank["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert rank["any"] == (True, False)
        assert rank["all do"] == "returned done"
        assert rank["first"] == "of 0"
    assert [rank["share"] for rank in found] == [[0, 3, 6], [1, 4], [2, 5]]
    elsewhere = "FailedElsewhereError: process 1: no such file 1"
    assert [rank["one fails"] for rank in found] == [elsewhere, "UserError: no such file 1", elsewhere]
    assert [rank["two fail"] for rank in found] == [elsewhere, "UserError: no such file 1", "UserError: no such file 2"]
    alike = "FailedElsewhereError: process 0: bad setting"
    assert [rank["all fail alike"] for rank in found] == ["UserError: bad setting", alike, alike]
    assert found[0]["first fails"].startswith("ValueError: invalid literal")
    assert found[1]["first fails"].startswith("FailedElsewhereError: process 0: invalid literal")


def test_one_process_needs_no_group():
    assert (processes.rank(), processes.size(), processes.gather(3), processes.any_of(True)) == (0, 1, [3], True)
    assert processes.first_decides(lambda: 5) == processes.all_or_none(lambda: 5) == 5
    with pytest.raises(UserError, match="as it was") as raised:
        processes.all_or_none(lambda: (_ for _ in ()).throw(UserError("as it was")))
    assert not isinstance(raised.value, FailedElsewhereError)
    with processes.process_group(torch.device("cpu")):
        assert not processes.has_group()
    with processes.process_group(torch.device("cpu"), alone=True):
        assert (processes.has_group(), processes.size()) == (True, 1)
    assert not processes.has_group()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two', expected a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2, expected 0 <= rank < world"),
    ],
)
def test_an_environment_that_is_none_is_named(environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        processes.launched()
