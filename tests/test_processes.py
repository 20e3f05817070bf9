"""What the processes of a run say to each other."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from fastvtp import processes
from fastvtp.errors import ConfigError, FailedElsewhereError, UserError
from tests.forking import forking_context
from tests.ranks import free_port, run_ranks


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
        "any": (processes.largest(rank == 2), processes.largest(False)),
        "share": list(processes.share(range(7))),
        "all do": _fails_on(()),
        "one fails": _fails_on((1,)),
        "two fail": _fails_on((1, 2)),
        "all fail alike": _fails_on((0, 1, 2), "bad setting"),
        "first": processes.first_decides(lambda: f"of {processes.rank()}, {processes.gather(processes.size())}"),
        "first fails": _said(lambda: processes.first_decides(lambda: int("x"))),
    }


def _one_fails_early(rank: int) -> tuple[str, int, str]:
    done = []

    def work() -> None:
        for step in range(600):
            processes.check_others()
            if rank == 2 and step == 1:
                raise UserError("no such file")
            done.append(step)
            time.sleep(0.05)

    return _said(lambda: processes.all_or_none(work)), len(done), _said(lambda: processes.all_or_none(lambda: "again"))


def test_long_work_ends_where_another_process_has_failed(tmp_path):
    found = run_ranks(_one_fails_early, tmp_path, processes=3)
    elsewhere = "FailedElsewhereError: process 2: no such file"
    assert [said for said, _, _ in found] == [elsewhere, elsewhere, "UserError: no such file"]
    assert max(done for _, done, _ in found) < 300
    assert {again for _, _, again in found} == {"returned again"}


def _groups(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ["MASTER_PORT"] = str(port)
    found = []
    for number in range(3):
        time.sleep(0.5 * ((number + rank) % 2))  # one comes later than the other
        with processes.process_group(torch.device("cpu"), timeout=20):
            found.append(processes.gather(rank))
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_a_program_may_make_one_group_after_another(tmp_path):
    """In the store of the first group the processes of the second would find the addresses of the first."""
    forking_context()
    start_processes(_groups, (free_port(), tmp_path), nprocs=2, start_method="forkserver")
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[[0, 1]] * 3] * 2


def _by_itself(rank: int) -> dict:
    sent = [torch.full((rank + 1, 2), rank, dtype=torch.bfloat16), torch.zeros(0, 3), torch.tensor(rank)][: 3 - rank]
    with torch.inference_mode():
        made = torch.full((2,), float(rank))
    with processes.alone():
        with processes.process_group(torch.device("cpu")), processes.alone():
            among = (processes.rank(), processes.size(), processes.has_group(), processes.gather(rank))
        seen = []
        thread = threading.Thread(target=lambda: seen.append(processes.is_first()))
        thread.start()
        thread.join()
        sharded = _said(lambda: processes.process_group(torch.device("cpu"), alone=True).__enter__())
    with processes.patience():
        patient = processes.gather(rank), processes.largest(rank == 0)
    return {
        "alone": among,
        "threads": seen,
        "sharded": sharded,
        "launched": processes.launched(),
        "patient": patient,
        "afterwards": (processes.rank(), processes.size(), processes.has_group()),
        "collected": processes.collect(f"of {rank}"),
        "tensors": processes.gather_tensors(sent, "cpu"),
        "inference": processes.gather_tensors([made], "cpu"),
        "first alone": processes.first_alone(lambda: (processes.size(), processes.gather("me"))),
        "first fails": _said(lambda: processes.first_alone(lambda: int("x"))),
    }


def test_a_process_may_work_by_itself_within_its_group(tmp_path, monkeypatch):
    found = run_ranks(_by_itself, tmp_path, processes=2)
    for number, rank in enumerate(found):
        assert rank["alone"] == (0, 1, False, [number])
        assert rank["threads"] == [True]
        assert rank["sharded"].startswith("ConfigError: one of several processes that works by itself has no group")
        assert rank["afterwards"] == (number, 2, True)
        assert rank["patient"] == ([0, 1], True)
        assert rank["collected"] == ([] if number else ["of 0", "of 1"])
        first, second = rank["tensors"]
        assert [tensor.tolist() for tensor in first] == [[[0, 0]], [], 0]
        assert [tensor.tolist() for tensor in second] == [[[1, 1], [1, 1]], []]
        assert [tensor.dtype for tensor in first] == [torch.bfloat16, torch.float32, torch.int64]
        assert [tensor.tolist() for (tensor,) in rank["inference"]] == [[0, 0], [1, 1]]
        assert rank["first alone"] == (1, ["me"])
    assert [rank["first fails"].partition(":")[0] for rank in found] == ["ValueError", "FailedElsewhereError"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes.launched() == (1, 4, 1)
    with processes.alone():
        assert processes.launched() == (0, 1, 1)
        with processes.process_group(torch.device("cpu"), alone=True):
            assert (processes.has_group(), processes.size()) == (True, 1)


def test_processes_agree(tmp_path):
    found = run_ranks(_exchange, tmp_path, processes=3)
    assert [rank["who"] for rank in found] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    for rank in found:
        assert rank["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert rank["any"] == (True, False)
        assert rank["all do"] == "returned done"
        assert rank["first"] == "of 0, [1]"
    assert [rank["share"] for rank in found] == [[0, 3, 6], [1, 4], [2, 5]]
    elsewhere = "FailedElsewhereError: process 1: no such file 1"
    assert [rank["one fails"] for rank in found] == [elsewhere, "UserError: no such file 1", elsewhere]
    assert [rank["two fail"] for rank in found] == [elsewhere, "UserError: no such file 1", "UserError: no such file 2"]
    alike = "FailedElsewhereError: process 0: bad setting"
    assert [rank["all fail alike"] for rank in found] == ["UserError: bad setting", alike, alike]
    assert found[0]["first fails"].startswith("ValueError: invalid literal")
    assert found[1]["first fails"].startswith("FailedElsewhereError: process 0: invalid literal")


def test_one_process_needs_no_group():
    assert (processes.rank(), processes.size(), processes.gather(3), processes.largest(True)) == (0, 1, [3], True)
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
