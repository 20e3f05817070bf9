"""Why a run ends early: a scheduler or a person asks for it, or a loss is no number."""

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from fastvtp import processes
from fastvtp.data.loader import VideoTextBatch
from fastvtp.files import write_atomically

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send to all processes of a job before they take its machine away."""


_ONE_PRESS = 0.5
"""Seconds in which signals behind a Ctrl-C belong to it: the terminal sends it to a launcher and to its processes, and
the launcher passes it on."""
_HEARD = b"\nCtrl-C: the run ends after this step, with a checkpoint; press it again to end at once\n"


class StopSignals:
    """A context in which `STOP_SIGNALS` are noted in place of ending the process, so that a run can save itself first.

    interrupts: whether Ctrl-C (SIGINT) is to be so from `heed_interrupts` on. The first one is then noted, and said;
    whatever signal comes after it, of `STOP_SIGNALS` or once more Ctrl-C, raises KeyboardInterrupt at once. Until then,
    and without it, Ctrl-C does what it always does.

    Only in the main thread can a program look out for signals; elsewhere they do what they always do.
    """

    def __init__(self, *, interrupts: bool = False) -> None:
        self._interrupts = interrupts
        self._received: signal.Signals | None = None
        self._interrupted: float | None = None  # when, by time.monotonic
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def heed_interrupts(self) -> None:
        """Note Ctrl-C from here on, where that is wanted: there is something to save now.

        A process that ignores it, as those do that a shell starts in the background, goes on to ignore it.
        """
        if self._interrupts and self._before and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._interrupted is not None and now - self._interrupted > _ONE_PRESS:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if number == signal.SIGINT and self._interrupted is None:
            self._interrupted = now
            if processes.is_first():
                os.write(2, _HEARD)  # a log may be in the middle of a line here, and takes no other one then

    def asked(self) -> str | None:
        """Return the name of a signal that any process of the run has received, or None; all of them must ask."""
        number = processes.largest(0 if self._received is None else int(self._received))
        return signal.Signals(number).name if number else None


@dataclass(frozen=True)
class Seen:
    """A micro-batch that was computed: the step of the run and the loss [], on its device."""

    step: int
    batch: VideoTextBatch
    loss: Tensor


def check_finite(seen: Sequence[Seen], step: int, grad_norm: float, run_dir: Path) -> None:
    """Raise FloatingPointError on every process where a loss of these micro-batches, or the norm of the gradients at
    `step`, is no finite number; which clips the first such micro-batch had is written to `run_dir` before.

    seen: those of this process since the last check, without their pixels. All processes must call this.
    """
    losses = torch.stack([micro_batch.loss for micro_batch in seen]).tolist() if seen else []
    own = next((_describe(seen[place]) for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
    found = [told for told in processes.gather(own) if told is not None]
    if not found:
        if not math.isfinite(grad_norm):
            raise FloatingPointError(f"grad_norm is {grad_norm} at step {step} of {run_dir}, of losses that are finite")
        return
    first = min(found, key=lambda told: (told["step"], told["micro_batch"]))
    path = run_dir / f"not_finite_step_{first['step']:08d}.json"
    if processes.is_first():
        write_atomically(path, (json.dumps(first, indent=2) + "\n").encode())
    raise FloatingPointError(
        f"loss is {first['loss']} at step {first['step']} of {run_dir}, in micro-batch {first['micro_batch']}, "
        f"whose clips are listed in {path}"
    )


def _describe(seen: Seen) -> dict[str, Any]:
    batch = seen.batch
    return {
        "step": seen.step,
        "micro_batch": batch.step,
        "loss": str(seen.loss.item()),
        "kind": batch.kind,
        "sample_ids": batch.sample_ids.tolist(),
        "videos": list(batch.sources),
        "captions": batch.captions,
    }
