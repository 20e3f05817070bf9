"""`python -m tests.parity SYSTEM DIR`: a model of fastvtp against arrays that the released system gave.

The public model is built from DIR/config.json and takes DIR/state_dict.safetensors through the public checkpoint
loader; every array of DIR/outputs.safetensors is then compared. VideoPrism's folders hold one such folder for each
model. Exit status: 0 all within tolerance, 1 one is not or was not compared, 2 the folder cannot be run.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tests.parity.compare import (
    TOLERANCE,
    Row,
    compare,
    table,
)
from tests.parity.folder import read_folder

# system -> module with `compute(folder) -> arrays by name` and `EXCUSED`, arrays without a counterpart and why; or,
# where folders have a form of their own, with `rows(path) -> a row for each expected array`
SYSTEMS = {
    "simvtp": "tests.parity.systems.simvtp",
    "videomae": "tests.parity.systems.videomae",
    "alpro": "tests.parity.systems.alpro",
    "videoprism": "tests.parity.systems.videoprism",
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
    parser.add_argument(
        "--tolerance", type=float,
        help=f"largest relative error (default: {TOLERANCE:g}; videoprism: by kind of array, 2e-6 to 1e-3)",
    )  # fmt: skip
    parser.add_argument("--traceback", action="store_true", help="where a folder cannot be run, say where in the code")
    options = parser.parse_args(arguments)
    try:
        rows = _rows(import_module(SYSTEMS[options.system]), options.folder)
    except _FROM_THE_FOLDER as error:
        if options.traceback:
            raise
        said = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        print(f"cannot run {options.folder}: {kind}{said}", file=sys.stderr)
        return 2
    print(table(rows, options.tolerance))
    return 0 if rows and all(row.ok(options.tolerance) for row in rows) else 1


def _rows(system: ModuleType, path: Path) -> list[Row]:
    if hasattr(system, "rows"):
        return system.rows(path)
    folder = read_folder(path)
    return compare(system.compute(folder), folder.outputs, system.EXCUSED, folder.cases())


if __name__ == "__main__":
    sys.exit(main())
