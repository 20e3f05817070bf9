"""The `fastvtp` command. Importing this loads no torch, so that `fastvtp --help` is quick."""

import logging
import os
import sys
import time
from typing import NoReturn

from fastvtp.errors import FailedElsewhereError, UserError

try:
    import typer

    from fastvtp.cli import (
        captioning,
        convert,
        data,
        frozen,
        indexing,
        launching,
        planning,
        preparing,
        recipes,
        scoring,
        training,
    )
    from fastvtp.cli.logs import log_to_stderr
    from fastvtp.cli.options import add_commands
    from fastvtp.cli.together import by_first
except ImportError:
    sys.exit("fastvtp: the command needs its extras: pip install 'fastvtp[train,dali]'")

FORMER_NAMES = {"fit": "framing"}
"""Options that were renamed, by the names that are understood still."""

# seconds that a process holds its message back, so that the one that says why comes first
_FIRST_FIRST, _OTHERS_FIRST = 1.0, 5.0

_INTERRUPTED = "interrupted; what was written so far is kept"

app = typer.Typer(
    help="Pretrain, fine-tune, probe and score masked video-text models.",
    context_settings={"token_normalize_func": lambda name: FORMER_NAMES.get(name, name)},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@by_first
def doctor() -> None:
    """Show versions, devices, and the backend that each op will use on this machine, with the reason."""
    from fastvtp.cli.doctor import print_findings  # here, because it imports torch

    print_findings()


for register in (
    preparing.register,
    training.register,
    launching.register,
    planning.register,
    recipes.register,
    scoring.register,
    captioning.register,
    frozen.register,
    convert.register,
    indexing.register,
    data.register,
):
    register(app)
add_commands(app, "Checkpoints and machine", doctor)


def main() -> None:
    """Entry point: user errors become one line on stderr and exit status 2. Of several processes the first logs, and
    each says what went wrong with itself, before others say that they lost it."""
    rank = os.environ.get("RANK", "0")
    level = logging.INFO if rank == "0" else logging.WARNING
    who = "" if rank == "0" else f" (process {rank})"
    log_to_stderr(level, f"%(levelname)s %(name)s{who}: %(message)s")
    for name in ("aiobotocore", "botocore"):  # they tell of every credential that they find
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    try:
        app()
    except FailedElsewhereError:
        time.sleep(_OTHERS_FIRST)  # the process that failed says why; torchrun ends all once one of them has gone
        sys.exit(2)
    except (UserError, FloatingPointError, OSError) as error:
        _stop(error, 2)
    except (RuntimeError, ValueError) as error:
        from fastvtp.processes import lost_others  # here: it imports torch

        if (lost := lost_others(error)) is not None:
            time.sleep(_OTHERS_FIRST)
            _stop(lost, 3)
        from fastvtp_kernels.dispatch import BackendUnavailableError, UnknownBackendError  # here: it imports torch

        if not isinstance(error, (BackendUnavailableError, UnknownBackendError)):
            raise
        _stop(error, 2)
    except KeyboardInterrupt:
        _stop(_INTERRUPTED, 130)
    except SystemExit as ended:
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):  # which typer makes an exit of
            _stop(_INTERRUPTED, 130)
        raise


def _stop(message: object, status: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_FIRST_FIRST)  # of a mistake that all processes find the first one tells
    if isinstance(message, OSError) and message.filename is not None and message.strerror:
        message = f"{message.filename}: {message.strerror}"
    print(f"fastvtp{'' if rank == '0' else f', process {rank}'}: {message}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(status)


if __name__ == "__main__":
    main()
