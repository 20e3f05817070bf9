"""What commands do on several processes, as torchrun starts them: their group, what is said once, who works alone.

Nothing here imports torch before a command runs, so that `fastvtp --help` is quick.
"""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer

from fastvtp.errors import FailedElsewhereError, UserError

T = TypeVar("T")


@contextmanager
def together(device: str) -> Iterator[Any]:
    """Make the group of the processes that torchrun started, if it did, for the time of a command; gives the
    torch.device of this one. Raises ConfigError for a device that is not there."""
    from fastvtp import processes
    from fastvtp.settings import choose_device

    own = processes.own_device(alike(lambda: choose_device(device)))
    with processes.process_group(own):
        yield own


def alike(work: Callable[[], T]) -> T:
    """Do what is the same on all processes of a machine, before they have a group; where it fails the first of them
    alone says why."""
    from fastvtp import processes

    try:
        return work()
    except (UserError, OSError) as error:
        if processes.launched()[2]:
            raise FailedElsewhereError(f"{error}") from None
        raise


def by_first(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that has nothing to share out run on the first process alone; the others end at once."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        from fastvtp import processes

        if processes.launched()[0] == 0:
            command(*arguments, **options)

    return run


def say(*lines: object) -> None:
    """Print lines, on the first process."""
    from fastvtp import processes

    if processes.launched()[0] == 0:
        for line in lines:
            typer.echo(line)


def show(report: dict[str, Any], folder: Path | None = None) -> None:
    """Write a report to report.json in `folder`, if there is one, and print it, on the first process."""
    from fastvtp import processes
    from fastvtp.evaluation.report import REPORT_NAME, write_report

    if folder is not None:
        processes.first_decides(lambda: write_report(folder / REPORT_NAME, report))
    say(json.dumps(report, indent=2))
