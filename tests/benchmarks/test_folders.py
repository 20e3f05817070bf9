"""The folders of the benchmarks stand in one order, and no file needs another that needs it, late imports included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# What the files of each folder may import, beside those of their own.
MAY_IMPORT = {
    "harness": set(),
    "peers": {"harness"},
    "ops": {"harness", "peers"},
    "steps": {"harness", "peers"},
    "report": {"harness"},
    "device": {"harness", "ops", "report"},
}
FILES = sorted(path for path in BENCHMARKS.glob("*/*.py"))


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Folder and file of every import of another benchmark, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.level or str(node.module).startswith("benchmarks")):
            continue
        if node.level:
            place = [path.parent.name] if node.level == 1 else []
            parts = [*place, *(node.module or "").split(".")]
        else:
            parts = str(node.module).split(".")[1:]
        parts = [part for part in parts if part]
        # `from ..report import tables` names a file behind the word import.
        files = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        yield from ((parts[0] if parts else file, file) for file in files)


def test_every_folder_is_known_and_described():
    assert {path.parent.name for path in FILES} == set(MAY_IMPORT)
    for folder in MAY_IMPORT:
        assert ast.get_docstring(ast.parse((BENCHMARKS / folder / "__init__.py").read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_imports_from_folders_before_its_own(path):
    folder = path.parent.name
    assert {place for place, _ in imported(path)} <= {folder, *MAY_IMPORT[folder]}


def test_the_folders_make_no_circle():
    before = []
    while left := [folder for folder in MAY_IMPORT if folder not in before]:
        ready = [folder for folder in left if MAY_IMPORT[folder] <= set(before)]
        assert ready, f"a circle among {left}"
        before += ready


def test_the_files_make_no_circle():
    needs = {(path.parent.name, path.stem): set(imported(path)) for path in FILES}
    assert ("harness", "environment") in needs[("harness", "running")]
    while needs:
        ready = [name for name, others in needs.items() if not others & needs.keys()]
        assert ready, f"a circle among {sorted(needs)}"
        for name in ready:
            del needs[name]
