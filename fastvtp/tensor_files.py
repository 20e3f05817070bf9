"""Tensors of a folder in shards that any number of processes wrote, and the manifest by which damage is noticed.

    step_00000500/
        manifest.json    {"files": {"config.json": {"size": 812, "crc32": 1234567}, ...}}: every other file
        shards/          safetensors files of torch.distributed.checkpoint, one or more of each process

A shard holds whole tensors or parts of them, with the offsets of the parts in its header. They are read by one process
or by many, each of which takes what it holds itself, whatever the number of those that wrote them. Nothing here is
ever unpickled.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastvtp.errors import CheckpointError
from fastvtp.files import checksum, sync, write_atomically

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

MANIFEST_NAME, SHARDS_NAME = "manifest.json", "shards"
MODEL, AVERAGE, OPTIMIZER = "model.", "average.", "optimizer."
"""What the names of tensors begin with: the weights being trained, their average, and what the optimizer keeps."""

Seal = Mapping[str, int]
"""Size in bytes, and CRC-32, of a file."""


def seal(path: Path) -> Seal:
    """Bring a file to the disk and return its seal."""
    sync(path)
    return {"size": path.stat().st_size, "crc32": checksum(path)}


def write_manifest(folder: Path, seals: Mapping[str, Seal]) -> None:
    """Write the manifest of a folder, which makes it complete: the seals of all its files by their paths in it, which
    are on the disk, as are their names afterwards."""
    content = json.dumps({"files": dict(sorted(seals.items()))}, indent=2) + "\n"
    write_atomically(folder / MANIFEST_NAME, content.encode())
    for path in (folder / MANIFEST_NAME, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def has_shards(folder: Path) -> bool:
    """Tell whether the tensors of a folder are in shards."""
    return (folder / MANIFEST_NAME).is_file()


def read_manifest(folder: Path) -> dict[str, Seal]:
    """Read the seals of a folder's files, by their paths in it. Raises CheckpointError with one line."""
    path = folder / MANIFEST_NAME
    try:
        files = json.loads(path.read_bytes())["files"]
        return {str(name): {key: int(found[key]) for key in ("size", "crc32")} for name, found in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST_NAME}: it was never complete") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no readable manifest: {type(error).__name__}: {error}") from None


def check_files(folder: Path, seals: Mapping[str, Seal], names: Iterable[str], *, content: bool = True) -> None:
    """Raise CheckpointError for the first of the files `names` that is missing, of another size or, where `content` is
    set, of other bytes than its seal says."""
    for name in names:
        path, expected = folder / name, seals[name]
        try:
            size = path.stat().st_size
            if size != expected["size"]:
                raise CheckpointError(f"{path} has {size} bytes, expected {expected['size']}")
            if content and checksum(path) != expected["crc32"]:
                raise CheckpointError(f"{path} does not have the bytes that were written: its CRC-32 is another")
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None


def stored_tensors(folder: Path) -> "dict[str, TensorStorageMetadata]":
    """Tell what tensors the shards of a folder hold together: their `size` and `properties.dtype`, by name.

    Raises CheckpointError for a shard that is missing, cut short or of another checkpoint.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # here, as it takes long to import

    seals = read_manifest(folder)
    expected = {name for name in seals if name.startswith(f"{SHARDS_NAME}/")}
    check_files(folder, seals, sorted(expected), content=False)
    found = {f"{SHARDS_NAME}/{path.name}" for path in (folder / SHARDS_NAME).glob("*")}
    if strange := sorted(found - expected):  # the reader would take its tensors for those of the checkpoint
        raise CheckpointError(f"{folder / strange[0]} is not in {MANIFEST_NAME}: it belongs to another checkpoint")
    try:
        metadata: Any = HuggingFaceStorageReader(str(folder / SHARDS_NAME)).read_metadata()
    except Exception as error:  # safetensors raises its own unexported type on malformed files
        raise CheckpointError(f"{folder / SHARDS_NAME} holds no readable safetensors files: {error}") from None
    return metadata.state_dict_metadata


def check_readable(path: Path) -> None:
    """Raise CheckpointError, in one line, for what is no safetensors file or is cut short."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except Exception as error:  # safetensors raises its own unexported type on malformed files
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None


def load_tensors(folder: Path, targets: dict[str, Tensor]) -> None:
    """Fill `targets` in place from the shards of a folder; of a DTensor the part that this process holds. It waits for
    no other process.

    Raises CheckpointError with one line.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    quiet_about_one_process()
    try:
        load(targets, storage_reader=HuggingFaceStorageReader(str(folder / SHARDS_NAME)), no_dist=True)
    except CheckpointException as failed:
        reason = next(iter(failed.failures.values()))[0]
        raise CheckpointError(f"{folder / SHARDS_NAME} cannot be read: {reason}".splitlines()[0]) from None


def read_tensors(folder: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read whole tensors from the shards of a folder, on the CPU: those of these names, or all of them.

    Raises CheckpointError with one line.
    """
    stored = stored_tensors(folder)
    wanted = list(stored) if names is None else list(names)
    if absent := [name for name in wanted if name not in stored]:
        raise CheckpointError(f"{folder / SHARDS_NAME} has no tensor {absent[0]}")
    tensors = {name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype) for name in wanted}
    load_tensors(folder, tensors)
    return tensors


def read_model(folder: Path) -> dict[str, Tensor]:
    """Read the weights of the model in a checkpoint by the model's own names, on the CPU: their average where the
    checkpoint has one.

    Raises CheckpointError with one line.
    """
    stored = stored_tensors(folder)
    names = [name.removeprefix(MODEL) for name in stored if name.startswith(MODEL)]
    places = {name: f"{AVERAGE}{name}" if f"{AVERAGE}{name}" in stored else f"{MODEL}{name}" for name in names}
    tensors = read_tensors(folder, places.values())
    return {name: tensors[place] for name, place in places.items()}


def quiet_about_one_process() -> None:
    """Let torch.distributed.checkpoint not warn that a program of one process is one, nor of its own use of torch."""
    for message in ("torch.distributed is disabled, unavailable or uninitialized", "TypedStorage is deprecated"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
