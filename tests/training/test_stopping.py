"""Why a run ends early, on one process and on several."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from fastvtp.data.loader import VideoTextBatch
from fastvtp.training.stopping import Seen, StopSignals, check_finite
from tests.ranks import run_ranks


def seen(step: int, number: int, loss: float, *sources: str) -> Seen:
    empty = torch.empty(0, dtype=torch.int64)
    batch = VideoTextBatch(
        video=torch.empty(0, 1, 1, 1, 3, dtype=torch.uint8),
        input_ids=empty,
        cu_seqlens=torch.zeros(len(sources) + 1, dtype=torch.int32),
        text_lengths=(0,) * len(sources),
        max_text_length=0,
        sample_ids=torch.arange(len(sources)) + 10 * number,
        captions=[f"of {source}" for source in sources],
        step=number,
        sources=sources,
    )
    return Seen(step, batch, torch.tensor(loss))


def told(micro_batches: list[Seen], norm: float, folder: Path) -> str:
    try:
        check_finite(micro_batches, 7, norm, folder)
    except FloatingPointError as error:
        return str(error)
    return ""


def on_a_rank(rank: int, folder: str) -> dict:
    root = Path(folder)
    nan, inf = float("nan"), float("inf")
    good = [seen(6, rank, 1.5, "a.mp4", "b.mp4"), seen(7, 2 + rank, 1.25, "c.mp4", "d.mp4")]
    bad = [seen(6, rank, inf if rank else 1.5, "a.mp4", "b.mp4"), seen(7, 2 + rank, nan, "c.mp4", "d.mp4")]
    with StopSignals() as signals:
        before = signals.asked()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        after = signals.asked()
    return {
        "good": told(good, 2.0, root),
        "norm": told(good, inf, root),
        "bad": told(bad, nan, root),
        "signals": (before or "", after or ""),
    }


def test_the_first_bad_micro_batch_of_all_processes_is_named_on_each(tmp_path):
    found = run_ranks(on_a_rank, tmp_path, str(tmp_path), processes=2)
    path = tmp_path / "not_finite_step_00000006.json"
    for rank in found:
        assert rank["good"] == ""
        assert rank["norm"] == f"grad_norm is inf at step 7 of {tmp_path}, of losses that are finite"
        assert rank["bad"] == (
            f"loss is inf at step 6 of {tmp_path}, in micro-batch 1, whose clips are listed in {path}"
        )
        assert rank["signals"] == ("", "SIGUSR1")
    assert json.loads(path.read_text()) == {
        "step": 6, "micro_batch": 1, "loss": "inf", "kind": "video", "sample_ids": [10, 11],
        "videos": ["a.mp4", "b.mp4"], "captions": ["of a.mp4", "of b.mp4"],
    }  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_noted_and_handlers_given_back(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.asked() is None
        os.kill(os.getpid(), number)
        assert signals.asked() == number.name
    assert signal.getsignal(number) is before
