"""Rows that processes (gloo, CPU) gather from each other, and those that each asks for."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastvtp.training.exchange import exchange_rows, gather_rows
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
DTYPES = (torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.bool)
ROWS = 3
# what each process asks for, by how many there are: rows again and again, of itself, of all others, and none at all
WANTED = {
    1: [[[2, 0, 0]], [[]]],
    2: [[[5, 0, 5, 3], [1]], [[], [0, 4]], [[], []]],
    3: [[[8, 8, 1], [], [3, 0, 6, 4]], [[0], [0], [0]], [[], [], [7]]],
}


def rows_of(rank: int, dtype: torch.dtype) -> Tensor:
    """Rows [2, 2] of which each is another on each process, in any dtype but bool."""
    return (torch.arange(ROWS * 4).view(ROWS, 2, 2) * 7 + 20 * rank).remainder(251).to(dtype)


def on_a_process(rank: int) -> dict[str, Any]:
    world, gathered, exchanged = dist.get_world_size() if dist.is_initialized() else 1, {}, {}
    for dtype in DTYPES:
        own = rows_of(rank, dtype)
        gathered[str(dtype)] = gather_rows(own.mT)  # laid out otherwise in memory
        exchanged[str(dtype)] = [
            exchange_rows(lambda rows, own=own: own[list(rows)], ROWS, wanted) for wanted in WANTED[world]
        ]
    return {"gathered": gathered, "exchanged": exchanged}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_rows_come_from_where_they_are(processes, tmp_path):
    found = [on_a_process(0)] if processes == 1 else run_ranks(on_a_process, tmp_path, processes=processes)
    for dtype in DTYPES:
        everyone = torch.stack([rows_of(rank, dtype) for rank in range(processes)])
        for rank, of_rank in enumerate(found):
            assert torch.equal(of_rank["gathered"][str(dtype)], everyone.mT)
            for wanted, rows in zip(WANTED[processes], of_rank["exchanged"][str(dtype)], strict=True):
                assert rows.dtype == dtype
                assert torch.equal(rows, everyone.flatten(0, 1)[wanted[rank]])
