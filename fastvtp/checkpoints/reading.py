"""Checkpoints of any origin as named tensors: .pth, .safetensors, .npz, folders, or tensors in memory."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvtp.errors import CheckpointError
from fastvtp.model_folder import CONFIG_NAME, WEIGHTS_NAME, WEIGHTS_SUFFIXES
from fastvtp.tensor_files import has_shards, read_model

_WRAPPERS = ("model", "module", "state_dict", "model_state_dict")
_INDEX_NAME, _PICKLE_NAME = "model.safetensors.index.json", "pytorch_model.bin"
# what training loops save beside the weights: their command line, and rates that numpy computed
_LEFT_OUT = (
    "argparse.Namespace",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.{name}" for name in ("dtype", "dtypes.Float64DType", "dtypes.Float32DType", "dtypes.Int64DType")),
)
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under the names they were saved with. name: how messages call it; config: a folder's config.json."""

    name: str
    weights: dict[str, Tensor]
    config: dict[str, Any] | None = None


class _LeftOut:
    """Stands for an object of `_LEFT_OUT`: the classes themselves would trust sizes and flags that the file states, and
    paths of another system cannot be made here."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_checkpoint(source: str | Path | Mapping[str, Tensor] | Checkpoint) -> Checkpoint:
    """Read `source`: a .pth, .pt or .bin file (never running code from it), a .safetensors or .npz file, a folder with
    model.safetensors (also in shards), pytorch_model.bin or a single .npz, a checkpoint of a run, or tensors by name.
    Tensors are on the CPU unless given.

    Raises CheckpointError with one line.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return Checkpoint("the state dict", _unwrap(source, "the state dict"))
    path = Path(source)
    if path.is_dir():
        return Checkpoint(str(path), _unwrap(_read_folder(path), str(path)), _read_json(path / CONFIG_NAME))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file or folder")
    return Checkpoint(str(path), _unwrap(_read_file(path), str(path)))


def _read_folder(folder: Path) -> dict[str, Any]:
    if (folder / WEIGHTS_NAME).is_file():
        return _read_file(folder / WEIGHTS_NAME)
    if has_shards(folder):
        return read_model(folder)
    if index := _read_json(folder / _INDEX_NAME):
        if not isinstance(index.get("weight_map"), dict):
            raise CheckpointError(f"{folder / _INDEX_NAME} has no weight_map")
        weights: dict[str, Any] = {}
        for shard in sorted(set(index["weight_map"].values())):
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise CheckpointError(f"{folder} lacks {shard}, which {_INDEX_NAME} names")
            weights |= _read_file(folder / shard)
        return weights
    if (folder / _PICKLE_NAME).is_file():
        return _read_file(folder / _PICKLE_NAME)
    if len(arrays := sorted(folder.glob("*.npz"))) == 1:
        return _read_file(arrays[0])
    held = f"neither {WEIGHTS_NAME}, {_INDEX_NAME} nor {_PICKLE_NAME}"
    instead = f", but {len(arrays)} .npz files: name one" if arrays else ""
    others = sorted(entry.name for entry in folder.iterdir() if entry.suffix in WEIGHTS_SUFFIXES)
    if others and not arrays:
        instead = f", but {others[0]}{' and others' * (len(others) > 1)}: give a file"
    raise CheckpointError(f"{folder} holds {held}{instead}")


def _read_file(path: Path) -> dict[str, Any]:
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise CheckpointError(f"{path} must end in {', '.join(WEIGHTS_SUFFIXES)}, or be a folder")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty: 0 bytes, expected weights")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # here, so that benchmarks run without it

        try:
            return load_file(path)
        except Exception as error:  # safetensors raises its own unexported type on malformed files
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
    if path.suffix == ".npz":
        return _read_npz(path)
    with torch.serialization.safe_globals([(_LeftOut, name) for name in _LEFT_OUT]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever damaged bytes make the unpickler raise
            raise CheckpointError(f"{path} cannot be read as plain tensors: {_refusal(path, error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    return dict(content)


def _read_npz(path: Path) -> dict[str, Any]:
    """Read arrays of numpy by name, as Flax's checkpoints are released; objects, which would be unpickled, are
    refused."""
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except Exception as error:  # whatever damaged bytes make numpy and zipfile raise
        reason = _printable(next(iter(str(error).splitlines()), "")) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as plain arrays: {reason}") from None
    if odd := [name for name, array in arrays.items() if array.dtype.kind not in "biuf"]:
        raise CheckpointError(f"{path}: {odd[0]} is of dtype {arrays[odd[0]].dtype}, expected numbers")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _refusal(path: Path, error: Exception) -> str:
    """Say why `path` was not read, in one line of printable characters, and what to do."""
    message = _ESCAPE.sub("", str(error))
    try:
        refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip file, or a damaged one
        refused = _REFUSED.findall(message)
    if refused:
        return _printable(
            f"it holds {', '.join(sorted(refused))}; if you trust it, open it with weights_only=False "
            "and save its state dict alone with torch.save, or as .safetensors"
        )
    _, _, told = message.rpartition("WeightsUnpickler error: ")
    reason = _printable(next((line for line in told.splitlines() if line.strip()), type(error).__name__))
    reason = type(error).__name__ if reason.isdigit() else reason  # of damaged bytes, the number of one
    return f"{reason}; is the file whole, and made by torch.save?"


def _printable(text: str) -> str:
    return "".join(character for character in _ESCAPE.sub("", text) if character.isprintable())


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def _unwrap(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Return the tensors inside what training loops put around them."""
    while wrapper := next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = content[wrapper]
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{name} holds no tensors by name")
    if all(key.startswith("module.") for key in weights):  # DistributedDataParallel
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights
