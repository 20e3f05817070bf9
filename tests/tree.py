"""Reading a tree of sources: its modules, and which of them each imports.

Imports inside functions, those for type checkers alone, and those by a text that is written out count as all others.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path


def modules(root: Path) -> dict[str, Path]:
    """Dotted names of all modules of the packages; a package is the name of its __init__.py."""
    found = {}
    for base, package in ((root, "fastvtp"), (root / "kernels", "fastvtp_kernels"), (root, "benchmarks")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> Iterator[str]:
    """Absolute dotted names that a module imports anywhere in it, `from a import b` as a.b."""
    yield from imports_of(ast.parse(path.read_text()), name, path)


def imports_of(tree: ast.AST, name: str, path: Path) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) == "launcher":
            yield f"{package}.kernels"
        elif (text := imported_text(node)) and text.startswith("."):
            yield package + text
        elif text:
            yield text


def called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def imported_text(node: ast.AST) -> str | None:
    """Return what a call imports by a text: the text, "" where it is none that can be read, None for other nodes."""
    if not isinstance(node, ast.Call) or called(node) not in ("import_module", "__import__"):
        return None
    given = node.args[0] if node.args else None
    return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else ""


def module_of(imported: str, known: Mapping[str, Path]) -> str | None:
    """The module that an import's dotted name leads to: itself, or the one that defines it."""
    while imported and imported not in known:
        imported = imported.rpartition(".")[0]
    return imported or None


def arrows(root: Path) -> dict[str, set[str]]:
    """Which other modules of the tree each module imports."""
    known = modules(root)
    return {
        name: {target for other in imports(name, path) if (target := module_of(other, known)) not in (None, name)}
        for name, path in known.items()
    }


def room_of(name: str, package: str) -> str:
    """The part of a package that a module belongs to: a file or a folder directly in it."""
    inner = name.removeprefix(package).lstrip(".")
    return inner.split(".")[0] or "__init__"
