"""Checks of the shape of the house: who may import whom, how long a file may be, what a room holds, what is nowhere
named.

Each check takes the root of a tree and returns its faults, one line each.
"""

import ast
import os
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.tree import arrows, called, imported_text, imports, imports_of, module_of, modules, room_of

SOURCES = ("fastvtp", "kernels", "benchmarks", "tests")
MOST_LINES, MOST_MEDIAN_LINES = 400, 180
MOST_PARAMETERS, MOST_WIDE_FUNCTIONS, MOST_UNFORMATTED = 8, 8, 60
OP_FILES = ("__init__.py", "reference.py", "kernels.py", "op.py")

# The law: a room of fastvtp imports itself, the rooms before it, and the kernels. Nothing else, and nobody excepted.
LAW = (
    *("errors", "files", "version", "processes", "tensor_files", "settings", "architecture"),
    *("modules", "visualization", "data", "model_folder", "model_lists", "checkpoints", "evaluation"),
    *("training", "frozen", "runs", "preparation", "ablation", "systems", "cli", "__main__", "__init__"),
)
# Within systems: a system imports itself, and one of these another; then come the files that list them.
MAY_IMPORT_SYSTEM = {"simvtp": {"videomae"}}
AFTER_SYSTEMS = ("catalogue", "conversion", "recipes", "captioning", "__init__")
# Models and weights are had without training.
WITHOUT_TRAINING = ("model", "weights", "hf_weights", "system")
# The drawers of benchmarks, in the same order of imports.
DRAWERS = ("harness", "peers", "ops", "steps", "report", "device", "test_benchmarks")
KERNELS_MAY_IMPORT = {"torch", "triton"}
# Triton's interpreter computes with numpy arrays, which the repair of its bfloat16 has to handle.
KERNELS_MAY_ALSO = {
    "fastvtp_kernels.interpreter": {"numpy"},
    # Backends for those who have them.
    "fastvtp_kernels.attention.flash": {"flash_attn", "flash_attn_interface"},
    "fastvtp_kernels.attention.memory_efficient": {"xformers"},
}

# What imports by a text that no check can read, and from where.
READS_FOLDERS = {
    "fastvtp_kernels.ops": "all folders of the package",
    "fastvtp_kernels.registration": "`kernels` beside a module: `launcher`, whose calls are arrows",
    "fastvtp_kernels.attention.limits": "libraries from elsewhere",
    "benchmarks.device.tune": "the benchmark that the command line names",
    "benchmarks.test_benchmarks": "all of benchmarks/ops",
}
# A system is named in its folder, in tests and in benchmarks, and else in texts for people: docstrings, comments, help
# texts of commands, and the texts of these files. Systems are called by their folders, and in short by these.
SHORT_NAMES = ("prism",)
TEXTS_NAMING_A_SYSTEM = {
    "fastvtp/cli/doctor.py": "the sizes of attention that users meet, by the models that have them",
    "fastvtp/data/sentencepiece.py": "the extra to install, which bears a system's name",
    "fastvtp/training/initialization.py": "whose vocabulary is which file",
}

# Written so that this file does not find itself.
FORBIDDEN = re.compile(r"\.\./shared\b|(?<![\w.])/(?:work|home|root|Users)/\w")
TEXT = {".py", ".md", ".toml", ".txt", ".html", ".yaml", ".yml", ".cfg", ""}
# Made by machines, for machines: what tools wrote into them is a record, not a reference.
NOT_READ = ("runs", "data", "build", "dist", "benchmarks/results")


# --- The checks


def wrong_directions(root: Path) -> list[str]:
    """Imports against the law, between rooms, within systems, between drawers, and out of a package."""
    faults = []
    for name, targets in arrows(root).items():
        package = name.split(".")[0]
        for target in sorted(targets):
            if target.split(".")[0] != package:
                # benchmarks import fastvtp and the kernels, fastvtp the kernels, the kernels nothing
                order = ("fastvtp_kernels", "fastvtp", "benchmarks")
                wrong = order.index(target.split(".")[0]) > order.index(package)
            elif package == "fastvtp":
                wrong = _against_the_law(name, target)
            else:
                wrong = package == "benchmarks" and not _in_order(name, target, package, ("__init__", *DRAWERS))
            if wrong:
                faults.append(f"{name} imports {target}")
    return faults


def _in_order(name: str, target: str, package: str, order: tuple[str, ...] | list[str]) -> bool:
    rooms = [room_of(each, package) for each in (name, target)]
    return all(room in order for room in rooms) and order.index(rooms[1]) <= order.index(rooms[0])


def _against_the_law(name: str, target: str) -> bool:
    if not _in_order(name, target, "fastvtp", LAW):
        return True
    if room_of(name, "fastvtp") != "systems":
        return False
    system, last = room_of(name, "fastvtp.systems"), name.rpartition(".")[2]
    if last in WITHOUT_TRAINING and room_of(target, "fastvtp") in ("training", "runs", "ablation"):
        return True
    if room_of(target, "fastvtp") != "systems":
        return False
    other = room_of(target, "fastvtp.systems")
    if system in AFTER_SYSTEMS:
        return other in AFTER_SYSTEMS and AFTER_SYSTEMS.index(other) > AFTER_SYSTEMS.index(system)
    return other not in {system, *MAY_IMPORT_SYSTEM.get(system, ())}


def unreadable_imports(root: Path) -> list[str]:
    """Return imports by a text that is put together, which no other check can follow."""
    return [
        f"{name} imports what a text says"
        for name, path in modules(root).items()
        if name not in READS_FOLDERS
        and any(imported_text(node) == "" for node in ast.walk(ast.parse(path.read_text())))
    ]


def models_that_need_training(root: Path) -> list[str]:
    """Return the ways from a system's description, and so from all models and weights, to what only training needs.

    Followed are imports that happen with the file's own; `system.py` has those for training in a function.
    """
    known = modules(root)
    needs = {name: _needed_at_once(name, path, known) for name, path in known.items()}
    faults = []
    for start in known:
        if not re.fullmatch(r"fastvtp\.systems\.\w+\.system", start):
            continue
        ways, seen = [[start]], {start}
        while ways:
            way = ways.pop()
            if room_of(way[-1], "fastvtp") in ("training", "evaluation", "runs", "ablation", "cli"):
                faults.append(" -> ".join(way))
                continue
            fresh = sorted(needs[way[-1]] - seen)
            seen |= {*fresh}
            ways += [[*way, name] for name in fresh]
    return faults


def _needed_at_once(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            node.body = []
    found = {module_of(other, known) for other in imports_of(tree, name, path)}
    return {other for other in found if other is not None and other.startswith("fastvtp.") and other != name}


def unknown_rooms(root: Path) -> list[str]:
    """Files and folders that the law does not know, and engines without a place in it."""
    rooms = {room_of(name, "fastvtp") for name in modules(root) if name.split(".")[0] == "fastvtp"}
    return [f"fastvtp/{room}: say in LAW where the new room stands" for room in sorted(rooms - set(LAW))]


def foreign_imports_of_kernels(root: Path) -> list[str]:
    """What the kernels import beside each other, torch, Triton and the standard library."""
    faults = []
    for name, path in modules(root).items():
        if name.startswith("fastvtp_kernels"):
            allowed = {
                "fastvtp_kernels", *KERNELS_MAY_IMPORT, *KERNELS_MAY_ALSO.get(name, ()), *sys.stdlib_module_names
            }  # fmt: skip
            found = sorted(set(imports(name, path)))
            faults += [f"{name} imports {other}" for other in found if other.split(".")[0] not in allowed]
    return faults


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
    """Files that need each other, and folders that do; a folder's own files are one with it."""
    files = arrows(root)
    faults = _circles(files)
    folders: dict[str, set[str]] = {}
    known = modules(root)
    for name, targets in files.items():
        own = _folder(name, known)
        others = {_folder(target, known) for target in targets}
        folders.setdefault(own, set()).update(
            other
            for other in others
            if not (other + ".").startswith(own + ".") and not (own + ".").startswith(other + ".")
        )
    return faults + [f"folders {circle}" for circle in _circles(folders)]


def _folder(name: str, known: Mapping[str, Path]) -> str:
    return name if known[name].name == "__init__.py" else name.rpartition(".")[0]


def _circles(needs: Mapping[str, set[str]]) -> list[str]:
    found: list[str] = []
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            found.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for other in sorted(needs.get(name, ())):
                follow(other, [*way, name])
            done.add(name)

    for name in needs:
        follow(name, [])
    return found


def systems_named_outside(root: Path) -> list[str]:
    """Names and texts of code that name a system, or are what a system calls something, beside what people read."""
    folders = {path.parent.name for path in (root / "fastvtp" / "systems").glob("*/*.py")}
    system = re.compile("|".join(sorted({*folders, *SHORT_NAMES})), re.IGNORECASE)
    own = registered_names(root)
    faults = []
    for path in sorted([*(root / "fastvtp").rglob("*.py"), *(root / "kernels").rglob("*.py")]):
        place = path.relative_to(root).as_posix()
        if place.startswith("fastvtp/systems/"):
            continue
        tree = ast.parse(path.read_text())
        for line, said, is_text in _said(tree, help_is_silent=place.startswith("fastvtp/cli/")):
            if is_text and place in TEXTS_NAMING_A_SYSTEM:
                continue
            if found := system.search(said):
                faults.append(f"{place}:{line} names {found.group()}")
            elif is_text and said in own:
                faults.append(f"{place}:{line} names {said}")
    return faults


def registered_names(root: Path) -> set[str]:
    """Return what the systems call their architectures, models, checkpoints and tasks."""
    found = set()
    for path in sorted((root / "fastvtp" / "systems").glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("name", "origin", "architecture"):
                found |= {getattr(node.value, "value", None)}
            elif isinstance(node, ast.ClassDef):
                found |= {
                    getattr(part.value, "value", None)
                    for part in node.body
                    if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "name"
                }
    return {name for name in found if isinstance(name, str)}


def _said(tree: ast.Module, *, help_is_silent: bool) -> Iterator[tuple[int, str, bool]]:
    """Line, content, and whether it is a text, of all names and texts but docstrings and help texts."""
    silent: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            silent |= {id(node.value)}
        elif isinstance(node, ast.keyword) and node.arg == "help" and help_is_silent:
            silent |= {id(part) for part in _texts_of(node.value)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value, True
        elif isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr, False
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name, False
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.lineno, node.arg or "", False
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported = " ".join(f"{alias.name} {alias.asname or ''}" for alias in node.names)
            yield node.lineno, f"{getattr(node, 'module', None) or ''} {imported}", False


def _texts_of(value: ast.expr) -> list[ast.expr]:
    """Return the texts that a help text is made of: itself, or the parts of a sum or of an f-string."""
    if isinstance(value, ast.BinOp):
        return [*_texts_of(value.left), *_texts_of(value.right)]
    return value.values if isinstance(value, ast.JoinedStr) else [value]


def guesses(root: Path) -> list[str]:
    """What engines guess of a model by looking for an attribute, in place of reading its architecture's record."""
    return [
        f"{path.relative_to(root)}:{node.lineno} asks {ast.unparse(node)}"
        for path in sorted((root / "fastvtp").rglob("*.py"))
        if "systems" not in path.relative_to(root).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (called(node) == "hasattr" or (called(node) == "getattr" and len(node.args) == 3))
        and re.search("model|config|opened", ast.unparse(node.args[0]))
    ]


def too_long(root: Path) -> list[str]:
    lengths = {
        path: len(path.read_text().splitlines()) for top in SOURCES for path in sorted((root / top).rglob("*.py"))
    }
    faults = [f"{path.relative_to(root)} has {count} lines" for path, count in lengths.items() if count > MOST_LINES]
    if (median := statistics.median(lengths.values())) > MOST_MEDIAN_LINES:
        faults.append(f"the median file has {median:g} lines")
    return faults


def too_many_parameters(root: Path) -> list[str]:
    """More functions than a handful with nine or more parameters; a kernel's are its pointers and strides."""
    wide = [
        f"{path.relative_to(root)}:{node.lineno} {node.name}"
        for top in SOURCES
        for path in sorted((root / top).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(_called_name(decorator) in ("jit", "triton.jit") for decorator in node.decorator_list)
        and len(_parameters(node)) > MOST_PARAMETERS
    ]
    return wide if len(wide) > MOST_WIDE_FUNCTIONS else []


def _called_name(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return [argument.arg for argument in given if argument.arg not in ("self", "cls")]


def left_unformatted(root: Path) -> list[str]:
    """Statements that the formatter is told to leave alone, where they are more than the tables that need it."""
    skip, off = "# fmt" + ": skip", "# fmt" + ": off"
    texts = {path: path.read_text() for top in SOURCES[:3] for path in sorted((root / top).rglob("*.py"))}
    faults = [f"{path.relative_to(root)} says {off}" for path, text in texts.items() if off in text]
    total = sum(text.count(skip) for text in texts.values())
    return faults + ([f"{total} statements say {skip}"] if total > MOST_UNFORMATTED else [])


def wrong_rooms(root: Path) -> list[str]:
    """Folders of the kernels that are no op, and ops that lack a file."""
    faults = ["kernels/__init__.py exists"] if (root / "kernels" / "__init__.py").exists() else []
    package = root / "kernels" / "fastvtp_kernels"
    folders = sorted(path.parent for path in package.glob("*/__init__.py"))
    return faults + [
        f"{folder.name} has no {name}" for folder in folders for name in OP_FILES if not (folder / name).exists()
    ]


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
            name
            for name in folders
            if (not name.startswith(".") or name == ".ci")
            and name != "__pycache__"
            and not name.endswith(".egg-info")
            and (place / name).relative_to(root).as_posix() not in NOT_READ
            and not (place / name / "pyvenv.cfg").exists()
        )
        yield from (place / name for name in sorted(names) if Path(name).suffix in TEXT and name != ".git")


CHECKS = (
    wrong_directions,
    unreadable_imports,
    models_that_need_training,
    unknown_rooms,
    foreign_imports_of_kernels,
    absolute_imports_of_itself,
    circles,
    systems_named_outside,
    guesses,
    too_long,
    too_many_parameters,
    left_unformatted,
    wrong_rooms,
    forbidden_references,
)
