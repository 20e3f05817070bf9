import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.parity.made_folders import make_folder


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> dict[str, Path]:
    """A small folder of each system, within tolerance."""
    root = tmp_path_factory.mktemp("parity")
    for system in ("simvtp", "videomae", "alpro"):
        make_folder(system, root / system, seed=7)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def change(pristine, tmp_path) -> Callable[..., Path]:
    """Makes a copy of a pristine folder, one file of which is replaced by `edit` of its content."""

    def edited(system: str, file: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        for source in pristine[system].iterdir():
            (tmp_path / source.name).write_bytes(source.read_bytes())
        path = tmp_path / file
        if path.suffix == ".json":
            path.write_text(json.dumps(edit(json.loads(path.read_text()))))
        else:
            save_file(edit(load_file(path)), path)
        return tmp_path

    return edited
