"""Runs cases: checks the variants, times the right ones together, and writes down at every step what there is.

Whatever fails takes down no more than itself: a variant, or a case that cannot be built. Only a lost device (after an
illegal access every later call of the process fails) ends the run, for it would blame the innocent.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from fastvtp_kernels.dispatch import BackendUnavailableError

from .case import Case, CaseFactory, Missing, Options
from .environment import environment
from .memory import peak_bytes
from .record import LEFT_OUT, NOT_REACHED, Record, Row
from .timing import SMOKE_ROUNDS, Ceilings, Function, HostSide, Timer, Timing, measure_ceilings, timer_for

# A check (with its compilation) that took longer than this and than the timing will is followed by a first timing of
# what is there: the next check may be one that the run does not live to see the end of.
SLOW_CHECK_S = 5.0
# The op of a row that stands for a case that could not be built.
NOT_BUILT = "not built"


class DeviceLostError(Exception):
    """Raised when the device answers no call of this process any more."""


class VariantError(Exception):
    """Raised when the variant `name` failed while it was timed; __cause__ says how."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Choice:
    """A choice says which variants of a case run.

    Where `only` names some, no others are looked at. Of these, names that contain a word of `without` are left out, and
    where `having` has words, so are names that contain none of them, except the baseline. What the words leave out gets
    a row that says so.
    """

    only: Sequence[str] = ()
    without: Sequence[str] = ()
    having: Sequence[str] = ()

    def of(self, case: Case) -> Case:
        """Return the case with the chosen variants alone."""
        chosen = {
            name: self._kept(name, variant, case.baseline)
            for name, variant in case.variants.items()
            if not self.only or name in self.only
        }
        return replace(case, variants=chosen)

    def _kept(self, name: str, variant: Function | Missing, baseline: str) -> Function | Missing:
        if word := next((word for word in self.without if word in name), None):
            return Missing(f"{LEFT_OUT} (--without {word})")
        if self.having and name != baseline and not any(word in name for word in self.having):
            return Missing(f"{LEFT_OUT} (--with {' '.join(self.having)})")
        return variant


def run_case(
    case: Case,
    ceilings: Ceilings,
    timer: Timer,
    seconds: float,
    save: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Check every variant once, time the right ones together, then measure each one's peak memory.

    `save` is called with the rows of the case after every step.

    Raises:
        DeviceLostError: with the last words of the device.
    """
    torch.compiler.reset()
    rows = {name: _row(case, name, ceilings) for name in case.variants}
    everything = list(rows.values())
    save(everything)
    right: dict[str, Function] = {}
    slow = False
    for name, variant in case.variants.items():
        row = rows[name]
        if isinstance(variant, Missing):
            row.note = f"missing: {variant.reason}"
            continue
        if slow:
            _time(case, rows, right, timer, seconds)
            save(everything)
        started = time.monotonic()
        row.error, row.note = _check(case, variant)
        if row.note:
            _refuse_a_lost_device(case.device)
        else:
            right[name], row.note = variant, NOT_REACHED
        slow = time.monotonic() - started > max(seconds, SLOW_CHECK_S)
        save(everything)
    _time(case, rows, right, timer, seconds)
    save(everything)
    for name, function in right.items():
        _measure_memory(rows[name], function, case.device)
    save(everything)
    return everything


def _row(case: Case, variant: str, ceilings: Ceilings) -> Row:
    return Row(
        case.op,
        case.name,
        variant,
        case.shape,
        str(case.dtype).removeprefix("torch."),
        case.direction,
        case.cost.bytes,
        case.cost.flops,
        ceilings.floor_s(case.cost.bytes, case.cost.flops),
        case.baseline,
        note=NOT_REACHED,
    )


def _check(case: Case, variant: Function) -> tuple[float | None, str]:
    """Return the variant's error, and why it gets no time (empty if it does)."""
    try:
        error = case.error(variant())
    except BackendUnavailableError as reason:
        return None, f"missing: {reason}"
    except Exception as failure:
        # Whatever it is, one variant's failure must not take the others down.
        return None, failed(failure)
    if error <= case.tolerance:
        return error, ""
    # JSON knows no infinity.
    finite = error if error < float("inf") else None
    return finite, f"wrong: error {error:.2g}, at most {case.tolerance:.2g} allowed"


def failed(failure: BaseException | None) -> str:
    """Return the note of a row whose measurement raised."""
    return f"failed: {type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"


def _time(case: Case, rows: dict[str, Row], right: dict[str, Function], timer: Timer, seconds: float) -> None:
    """Enter times into the rows; a variant that raises is taken out of `right`, and the others start again."""
    while right:
        try:
            times = timer.time({name: _named(name, function) for name, function in right.items()}, seconds)
        except VariantError as failure:
            del right[failure.name]
            _withdraw(rows[failure.name], failed(failure.__cause__))
        except Exception as failure:
            # Of no call in particular: an error that the device tells late, say.
            for name in right:
                _withdraw(rows[name], failed(failure))
            right.clear()
        else:
            for name, function in right.items():
                _enter(rows[name], times[name], times.get(case.baseline))
                if isinstance(function, HostSide) and case.device.type == "cuda":
                    rows[name].note = "wall time: the host does the work"
            return
        _refuse_a_lost_device(case.device)


def _named(name: str, function: Function) -> Function:
    def call() -> object:
        try:
            return function()
        except Exception as failure:
            raise VariantError(name) from failure

    return HostSide(call) if isinstance(function, HostSide) else call


def _withdraw(row: Row, note: str) -> None:
    row.median_s = row.p20_s = row.p80_s = row.wall_s = row.fraction_of_floor = row.speedup = None
    row.calls, row.note = 0, note


def _enter(row: Row, timing: Timing, baseline: Timing | None) -> None:
    row.median_s, row.p20_s, row.p80_s = timing.median, timing.p20, timing.p80
    row.wall_s, row.calls = timing.wall, timing.calls
    row.fraction_of_floor = row.floor_s / timing.median
    row.speedup = baseline.median / timing.median if baseline else None
    row.note = f"the host was not ahead in {timing.late} of {timing.calls} calls" if timing.late else ""


def _measure_memory(row: Row, function: Function, device: torch.device) -> None:
    try:
        row.peak_bytes = peak_bytes(function, device)
    except Exception as failure:
        row.note = f"no peak memory: {failed(failure)}"
        _refuse_a_lost_device(device)


def _refuse_a_lost_device(device: torch.device) -> None:
    """Hand back, after a failure, what it held, and raise DeviceLostError where the device answers no more."""
    if device.type != "cuda":
        return
    try:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize(device)
    except Exception as failure:
        raise DeviceLostError(failed(failure)) from None


def measured_environment(options: Options, timer: Timer) -> tuple[dict[str, Any], Ceilings]:
    """Measure the ceilings, and return them in the environment and by themselves."""
    ceilings = measure_ceilings(options.device, options.dtype, timer, smoke=options.smoke)
    return {**environment(options.device), "ceilings": asdict(ceilings), "smoke": options.smoke}, ceilings


def options_timer(options: Options) -> Timer:
    """Return the timer of a run's device; a smoke run is content with few calls."""
    return timer_for(options.device, SMOKE_ROUNDS if options.smoke else None)


def run(
    factories: Sequence[CaseFactory],
    options: Options,
    seconds: float | None = None,
    choice: Choice = Choice(),
    save: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Build and run one case after the other, and return the record of all.

    Args:
        factories: each builds a case; its inputs live until the next one's turn.
        options: device, dtype and size of the run.
        seconds: how long a case is timed; by default 10 on the CPU, 2 on CUDA, in smoke the least number of calls.
        choice: which variants run.
        save: called before the first case and after every step, so that a run that is stopped leaves what it has
            measured. The record's environment counts `cases` and `cases_done`.
    """
    if seconds is None:
        seconds = 0.0 if options.smoke else 2.0 if options.device.type == "cuda" else 10.0
    timer = options_timer(options)
    about, ceilings = measured_environment(options, timer)
    record = Record({**about, "cases": len(factories), "cases_done": 0})
    save(record)
    for factory in _with_progress(factories):
        before = record.rows

        def keep(rows: list[Row], before: list[Row] = before) -> None:
            record.rows = [*before, *rows]
            save(record)

        torch.manual_seed(0)
        try:
            case = _built(factory, options, keep)
            if case is not None:
                record.offered.update(case.variants)
                run_case(choice.of(case), ceilings, timer, seconds, keep)
        except DeviceLostError as failure:
            record.stopped = f"the device is lost: {failure}"
            save(record)
            break
        record.environment["cases_done"] += 1
        save(record)
    return record


def _built(factory: CaseFactory, options: Options, keep: Callable[[list[Row]], None]) -> Case | None:
    try:
        return factory()
    except Exception as failure:
        dtype = str(options.dtype).removeprefix("torch.")
        row = Row(NOT_BUILT, _described(factory), "the case", {}, dtype, "forward", 0, 0, 0.0, "")
        row.note = failed(failure)
        keep([row])
    _refuse_a_lost_device(options.device)
    return None


def _described(factory: CaseFactory) -> str:
    """Name a case that was not built: `partial(loss_case, "sigmoid", 64, options)` is "loss_case(sigmoid, 64)"."""
    if not isinstance(factory, partial):
        return getattr(factory, "__name__", "case")
    return f"{factory.func.__name__}({', '.join(str(x) for x in factory.args if isinstance(x, str | int))})"


def _with_progress(factories: Sequence[CaseFactory]) -> Iterable[CaseFactory]:
    try:
        from tqdm import tqdm
    except ImportError:
        return _with_lines(factories)
    return tqdm(factories, unit="case", file=sys.stderr)


def _with_lines(factories: Sequence[CaseFactory]) -> Iterator[CaseFactory]:
    for number, factory in enumerate(factories, 1):
        print(f"case {number} of {len(factories)}", file=sys.stderr)
        yield factory
