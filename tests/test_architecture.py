"""The shape of the house: who may import whom, how long a file may be, what a room holds, what is nowhere named.

Each check returns its faults, one line each, and is shown to find them in a made-up tree.
"""

import ast
import os
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvtp_kernels.ops import OPS

ROOT = Path(__file__).parents[1]
SOURCES = ("fastvtp", "kernels", "benchmarks", "tests")
MOST_LINES, MOST_MEDIAN_LINES = 600, 200
OP_FOLDERS = tuple(OPS)
OP_FILES = ("__init__.py", "reference.py", "kernels.py", "op.py")

# What each room of fastvtp may import, beside itself and the kernels; None: everything.
BASE = {"errors", "files", "version"}
LIBRARY = BASE | {"objectives", "models", "data", "checkpoints"}
MAY_IMPORT = {
    "__init__": {"version", "models"},
    **dict.fromkeys((*BASE, "reports", "cli_options"), ()),
    "files": {"errors"},
    **dict.fromkeys(("data", "objectives", "checkpoints"), BASE),
    # A model computes its own losses.
    "models": BASE | {"objectives"},
    **dict.fromkeys(("training", "evaluation"), LIBRARY),
    "visualization": LIBRARY | {"evaluation"},
    # An ablation is made of whole runs, their scores and a picture.
    "ablation": LIBRARY | {"training", "evaluation", "visualization", "runs"},
    **dict.fromkeys(("cli", "__main__", "runs", "scoring", "doctor", "frozen", "captioning"), None),
    **dict.fromkeys(("cli_frozen", "cli_captioning", "cli_convert"), None),
}
# Files that may do what their room may not: `load_pretrained` reads weights; weights are read into models; a
# conversion takes settings from the command line and a tokenizer along; features are trained on that evaluation wrote.
MAY_ALSO = {
    "fastvtp.models.registry": {"checkpoints"},
    **{f"fastvtp.checkpoints.{name}": {"models"} for name in ("released", "sizes", "positions", "transfers")},
    **{f"fastvtp.checkpoints.{name}": {"models", "data", "training"} for name in ("conversion", "companions")},
    "fastvtp.training.captioning_features": {"evaluation"},
}
KERNELS_MAY_IMPORT = {"torch", "triton"}
# Triton's interpreter computes with numpy arrays, which the repair of its bfloat16 has to handle.
KERNELS_MAY_ALSO = {"fastvtp_kernels.interpreter": {"numpy"}}
# Written so that this file does not find itself.
FORBIDDEN = re.compile(r"\.\./shared\b|(?<![\w.])/(?:work|home|root|Users)/\w")
TEXT = {".py", ".md", ".toml", ".txt", ".html", ".yaml", ".yml", ".cfg", ""}
# Made by machines, for machines: what tools wrote into them is a record, not a reference.
NOT_READ = ("runs", "data", "build", "dist", "benchmarks/results")


# --- Reading imports


def modules(root: Path) -> dict[str, Path]:
    """Dotted names of all modules of the packages; a package is the name of its __init__.py."""
    found = {}
    for base, package in ((root, "fastvtp"), (root / "kernels", "fastvtp_kernels"), (root, "benchmarks")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, *, on_import: bool = False) -> Iterator[str]:
    """Absolute dotted names that a module imports, `from a import b` as a.b; `on_import`: only what runs with it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _nodes(ast.parse(path.read_text()), on_import):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _nodes(node: ast.AST, on_import: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        late = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if on_import and (late or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))):
            continue
        yield child
        yield from _nodes(child, on_import)


def module_of(imported: str, known: dict[str, Path]) -> str | None:
    """The module that an import's dotted name leads to: itself, or the one that defines it."""
    while imported and imported not in known:
        imported = imported.rpartition(".")[0]
    return imported or None


# --- The checks


def wrong_directions(root: Path) -> list[str]:
    known, faults = modules(root), []
    for name, path in known.items():
        found = sorted(set(imports(name, path)))
        if name.startswith("fastvtp_kernels"):
            allowed = {
                "fastvtp_kernels",
                *KERNELS_MAY_IMPORT,
                *KERNELS_MAY_ALSO.get(name, ()),
                *sys.stdlib_module_names,
            }
            faults += [f"{name} imports {other}" for other in found if other.split(".")[0] not in allowed]
        elif name.startswith("fastvtp"):
            faults += _wrong_rooms(name, path, found, known)
    return faults


def _wrong_rooms(name: str, path: Path, found: list[str], known: dict[str, Path]) -> Iterator[str]:
    room = name.split(".")[1] if "." in name else "__init__"
    if room not in MAY_IMPORT:
        yield f"{name}: say in MAY_IMPORT what the new room {room!r} may import"
        return
    allowed = MAY_IMPORT[room]
    for other in found:
        target = module_of(other, known)
        if other.split(".")[0] == "benchmarks":
            yield f"{name} imports {other}"
        if target is None or not target.startswith("fastvtp.") or allowed is None:
            continue
        if target.split(".")[1] not in {room, *allowed, *MAY_ALSO.get(name, ())}:
            yield f"{name} imports {target}"


def absolute_imports_of_itself(root: Path) -> list[str]:
    """fastvtp_kernels can be carried under another name only if it never says its own."""
    return [
        f"{path.relative_to(root)}:{node.lineno} imports fastvtp_kernels by name"
        for path in sorted((root / "kernels" / "fastvtp_kernels").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and not node.level and str(node.module).startswith("fastvtp_kernels"))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("fastvtp_kernels") for alias in node.names))
    ]


def circles(root: Path) -> list[str]:
    """Modules that need each other to be imported. A package's __init__ counts where it is imported by name."""
    known = modules(root)
    needs = {
        name: sorted({target for other in imports(name, path, on_import=True) if (target := module_of(other, known))})
        for name, path in known.items()
    }
    found: list[str] = []
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            found.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for other in needs[name]:
                if other != name:
                    follow(other, [*way, name])
            done.add(name)

    for name in needs:
        follow(name, [])
    return found


def too_long(root: Path) -> list[str]:
    lengths = {
        path: len(path.read_text().splitlines()) for top in SOURCES for path in sorted((root / top).rglob("*.py"))
    }
    faults = [f"{path.relative_to(root)} has {count} lines" for path, count in lengths.items() if count > MOST_LINES]
    if (median := statistics.median(lengths.values())) >= MOST_MEDIAN_LINES:
        faults.append(f"the median file has {median:g} lines")
    return faults


def wrong_rooms(root: Path) -> list[str]:
    faults = ["kernels/__init__.py exists"] if (root / "kernels" / "__init__.py").exists() else []
    package = root / "kernels" / "fastvtp_kernels"
    faults += [f"{op} has no {name}" for op in OP_FOLDERS for name in OP_FILES if not (package / op / name).exists()]
    folders = sorted(path.parent.name for path in package.glob("*/*.py") if path.name == "__init__.py")
    return faults + [f"{name} is no op folder" for name in folders if name not in OP_FOLDERS]


def forbidden_references(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}: {found.group()}"
        for path in _texts(root)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if (found := FORBIDDEN.search(line))
    ]


def _texts(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        place = Path(folder)
        folders[:] = sorted(
            name for name in folders
            if (not name.startswith(".") or name == ".ci") and name != "__pycache__" and not name.endswith(".egg-info")
            and (place / name).relative_to(root).as_posix() not in NOT_READ
            and not (place / name / "pyvenv.cfg").exists()
        )  # fmt: skip
        yield from (place / name for name in sorted(names) if Path(name).suffix in TEXT and name != ".git")


CHECKS = (wrong_directions, absolute_imports_of_itself, circles, too_long, wrong_rooms, forbidden_references)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_this_tree(check):
    assert check(ROOT) == []


# --- The checks can fail


@pytest.fixture
def tree(tmp_path) -> Path:
    """The least that passes every check."""
    for op in OP_FOLDERS:
        for name in OP_FILES:
            put(tmp_path, f"kernels/fastvtp_kernels/{op}/{name}", "import torch\n")
    put(tmp_path, "fastvtp/errors.py", "import difflib\n")
    put(tmp_path, "fastvtp/models/simvtp.py", "from fastvtp.objectives.pixels import loss\nfrom ..errors import Bad\n")
    put(tmp_path, "fastvtp/objectives/pixels.py", "from fastvtp_kernels import masked_pixel_loss\n")
    for check in CHECKS:
        assert check(tmp_path) == []
    return tmp_path


def put(tree: Path, name: str, text: str):
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


K, M = "kernels/fastvtp_kernels", "fastvtp/models"


@pytest.mark.parametrize(
    ("check", "name", "text", "fault"),
    [
        (wrong_directions, f"{M}/a.py", "def f():\n    from fastvtp.training import loop\n", "fastvtp.training"),
        (wrong_directions, f"{M}/a.py", "from .. import training\n", "fastvtp.models.a imports fastvtp.training"),
        (wrong_directions, f"{M}/a.py", "from ..checkpoints import native\n", "fastvtp.checkpoints"),
        (
            wrong_directions,
            f"{M}/a.py",
            "from benchmarks import harness\n",
            "fastvtp.models.a imports benchmarks.harness",
        ),
        (wrong_directions, "fastvtp/data/a.py", "import fastvtp.training.loop\n", "fastvtp.training.loop"),
        (wrong_directions, "fastvtp/novel/a.py", "", "new room 'novel'"),
        (wrong_directions, f"{K}/a.py", "import fastvtp\n", "fastvtp_kernels.a imports fastvtp"),
        (wrong_directions, f"{K}/masking/op.py", "import numpy\n", "fastvtp_kernels.masking.op imports numpy"),
        (wrong_directions, f"{K}/masking/op.py", "def f():\n    import einops\n", "imports einops"),
        (absolute_imports_of_itself, f"{K}/a.py", "from fastvtp_kernels import b\n", f"{K}/a.py:1 imports"),
        (absolute_imports_of_itself, f"{K}/a.py", "import fastvtp_kernels.b\n", f"{K}/a.py:1 imports"),
        (
            circles,
            f"{M}/simvtp.py",
            "from . import a\n",
            "fastvtp.models.a -> fastvtp.models.simvtp -> fastvtp.models.a",
        ),
        (circles, f"{M}/simvtp.py", "class C:\n    from .a import x\n", "fastvtp.models.simvtp"),
        (too_long, "tests/a.py", "\n" * 601, "tests/a.py has 601 lines"),
        (wrong_rooms, "kernels/__init__.py", "", "kernels/__init__.py exists"),
        (wrong_rooms, f"{K}/novel/__init__.py", "", "novel is no op folder"),
        (forbidden_references, "README.md", "see .." + "/shared/DESIGN.md", "README.md:1: .." + "/shared"),
        (forbidden_references, "fastvtp/a.py", "\npath = '/" + "home/me/data'", "fastvtp/a.py:2: /" + "home/m"),
        (forbidden_references, "Makefile", "cd /" + "work/main", "Makefile:1: /" + "work/m"),
    ],
)
def test_a_fault_is_found(check, name, text, fault, tree):
    put(tree, f"{M}/a.py", "from . import simvtp\n")
    for package in ("training", "checkpoints"):
        put(tree, f"fastvtp/{package}/__init__.py", "")
    put(tree, "fastvtp/training/loop.py", "")
    assert check(tree) == []
    put(tree, name, text)
    found = check(tree)
    assert len(found) == 1
    assert fault in found[0]


def test_what_runs_later_makes_no_circle(tree):
    put(tree, f"{M}/a.py", "from . import simvtp\n")
    later = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a\ndef f():\n    from . import a\n"
    put(tree, f"{M}/simvtp.py", later)
    assert circles(tree) == []


def test_a_missing_room_and_a_high_median_are_found(tree):
    (tree / K / "attention" / "reference.py").unlink()
    assert wrong_rooms(tree) == ["attention has no reference.py"]
    for number in range(100):
        put(tree, f"tests/{number}.py", "\n" * 200)
    assert too_long(tree) == ["the median file has 200 lines"]
