"""Why a run ends early, on one process and on several."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from fastvtp.data.loader import VideoTextBatch
from fastvtp.training import stopping
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


@pytest.fixture
def of_a_terminal():
    """SIGINT as Python has it in the foreground, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_is_noted_and_said_once_there_is_something_to_save(of_a_terminal, capfd):
    with StopSignals(interrupts=True) as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked() is None
        signals.heed_interrupts()
        for _ in range(2):  # the terminal's, and the same one passed on by a launcher
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked() == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    said = capfd.readouterr().err
    assert said.strip().splitlines() == [
        "Ctrl-C: the run ends after this step, with a checkpoint; press it again to end at once"
    ]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])  # what torchrun makes of a second Ctrl-C
def test_whatever_comes_after_an_interrupt_ends_at_once(of_a_terminal, monkeypatch, second):
    monkeypatch.setattr(stopping, "_ONE_PRESS", -1.0)
    with StopSignals(interrupts=True) as signals:
        signals.heed_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupts_are_the_callers_unless_it_asks(of_a_terminal):
    with StopSignals() as signals:
        signals.heed_interrupts()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_process_in_the_background_goes_on_to_ignore_interrupts(of_a_terminal):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals(interrupts=True) as signals:
        signals.heed_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked() is None
