"""Folders of VideoPrism's parity arrays: a sub-folder for each model, `grads` with gradients, one of operations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvtp.errors import UserError
from tests.parity.compare import Row, relative_error
from tests.parity.folder import read_arrays, read_config

TOKENS, UNIT_LENGTH, GRADIENTS = 2e-5, 2e-6, 1e-4  # largest relative errors, by kind of array

_OUTPUTS, _GRADIENTS, _OPS = "io.safetensors", "grads.safetensors", "ops.safetensors"


@dataclass(frozen=True)
class Part:
    """One sub-folder. config: config.json. weights: by released name. outputs: what the model was given and gave.
    gradients: those of a scalar made of outputs. ops: single operations, instead of a model. Absent files are empty."""

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    ops: dict[str, Tensor]

    def setting(self, name: str) -> Any:
        """A setting that config.json must have."""
        if name not in self.config:
            raise UserError(f"{self.path / 'config.json'} has no {name!r}")
        return self.config[name]

    def given(self, case: str, name: str) -> Tensor:
        """An input of a case, or else the one that all cases share."""
        for full in (case + name, name):
            if full in self.outputs:
                return self.outputs[full]
        raise UserError(f"{self.path / _OUTPUTS} has no {case + name!r}")

    def cases(self, *inputs: str) -> list[str]:
        """Prefixes of the cases that have one of these inputs of their own, in order; that with `stage/` first."""
        prefixes = {name.removesuffix(end) for name in self.outputs for end in inputs if _ends(name, end)}
        staged = {name.partition("stage/")[0] for name in self.outputs if "stage/" in name}
        return sorted(prefixes, key=lambda case: (case not in staged, case))


def read_parts(path: Path) -> list[Part]:
    """All parts of a folder, or of one sub-folder alone. Raises UserError with one line for what is absent or
    unreadable."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder of parity arrays")
    parts = list(_find(path.resolve()))
    if not parts:
        raise UserError(f"{path} holds no parity arrays: expected {_OUTPUTS}, {_GRADIENTS} or {_OPS} below it")
    return parts


def _find(path: Path) -> Iterator[Part]:
    if (path / _OPS).is_file():
        yield Part(path, read_config(path), {}, {}, {}, read_arrays(path / _OPS))
    elif (path / _OUTPUTS).is_file():
        gradients = path.parent / "grads" / path.name / _GRADIENTS
        yield _model(path, path / _OUTPUTS, gradients if gradients.is_file() else None)
    elif (path / _GRADIENTS).is_file():
        model = path.parent.parent / path.name
        yield _model(model, model / _OUTPUTS, path / _GRADIENTS)
    else:
        for folder in sorted(folder for folder in path.iterdir() if folder.is_dir()):
            if folder.name != "grads":
                yield from _find(folder)
            else:
                for orphan in sorted(f for f in folder.iterdir() if not (path / f.name / _OUTPUTS).is_file()):
                    yield from _find(orphan)


def _model(path: Path, outputs: Path, gradients: Path | None) -> Part:
    weights = read_arrays(path / "params.safetensors")
    return Part(
        path, read_config(path), weights, read_arrays(outputs), {} if gradients is None else read_arrays(gradients), {}
    )


def _ends(name: str, last: str) -> bool:
    return name == last or name.endswith(f"/{last}")


def rows_of(
    name: str,
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    limits: Mapping[str, float],
    notes: Mapping[str, str] | None = None,
    scales: Mapping[str, float] | None = None,
) -> list[Row]:
    """A row for each expected array, called `name`/array. limits: by a part of a name, the first that is in it; else
    that of tokens. notes: what to say of an array. scales: by what to divide an array's error; else by its norm."""
    notes, scales, rows = notes or {}, scales or {}, []
    for array, value in sorted(expected.items()):
        limit = next((limit for part, limit in limits.items() if part in array), TOKENS)
        found, shape, full = actual.get(array), tuple(value.shape), f"{name}/{array}"
        if found is None:
            rows.append(Row(full, shape, None, "not compared"))
        elif found.shape != value.shape:
            rows.append(Row(full, shape, None, f"computed as {list(found.shape)}"))
        else:
            error = relative_error(found, value)
            if array in scales:
                error = relative_error(found - value, torch.zeros_like(value)) / scales[array]
            rows.append(Row(full, shape, error, notes.get(array, ""), limit=limit))
    return rows
