"""`python -m tests.parity SYSTEM DIR`: a model of fastvtp against arrays that the released system gave.

The public model is built from DIR/config.json and takes DIR/state_dict.safetensors through the public checkpoint
loader; every array of DIR/outputs.safetensors is then compared. Exit status: 0 all within tolerance, 1 one is not or
was not compared, 2 the folder cannot be run.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from tests.parity.compare import compare, table
from tests.parity.folder import read_folder

# system -> module with `compute(folder) -> arrays by name` and `EXCUSED`, arrays without a counterpart and why;
# None: yet to come
SYSTEMS: dict[str, str | None] = {
    "simvtp": "tests.parity.systems.simvtp",
    "videomae": "tests.parity.systems.videomae",
    "alpro": "tests.parity.systems.alpro",
    "videoprism": None,
}

# what a folder's content can make the code raise: UserError is a ValueError
_FROM_THE_FOLDER = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison, print its table, return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity", description="Compare a model with the released one."
    )
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative error (default: 1e-5)")
    parser.add_argument("--traceback", action="store_true", help="where a folder cannot be run, say where in the code")
    options = parser.parse_args(arguments)
    module = SYSTEMS[options.system]
    if module is None:
        print(f"{options.system}: not there yet", file=sys.stderr)
        return 2
    system = import_module(module)
    try:
        folder = read_folder(options.folder)
        rows = compare(system.compute(folder), folder.outputs, system.EXCUSED, folder.cases())
    except _FROM_THE_FOLDER as error:
        if options.traceback:
            raise
        said = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        print(f"cannot run {options.folder}: {kind}{said}", file=sys.stderr)
        return 2
    print(table(rows, options.tolerance))
    return 0 if rows and all(row.ok(options.tolerance) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
