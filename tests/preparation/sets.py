"""Small sets of videos, and what their shards hold."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from fastvtp.preparation.engines import Engine
from fastvtp.preparation.preparing import Running, prepare
from fastvtp.preparation.settings import ClipEncoding, ClipFilters, Preparation, SceneCuts
from tests.data.clips import write_clip, write_lines


def captioned(folder: Path, count: int, frames: int = 8, height: int = 32, width: int = 48) -> Path:
    """A list of `count` videos that differ, each with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_clip(folder / f"{number}.mp4", frames=pictures(number, frames, height, width))
    rows = [
        {"video": f"{number}.mp4", "caption": f"video number {number}", "id": f"v{number}"} for number in range(count)
    ]
    return write_lines(folder / "train.jsonl", *rows)


def pictures(number: int, frames: int, height: int, width: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: a coarse pattern of its own for each number, the same at every size, that moves slowly."""
    coarse = np.random.default_rng(number).integers(0, 256, (9, 10, 3)).astype(np.float32)
    y, x = np.linspace(0, 8, height)[:, None], np.linspace(0, 9, width)[None]
    moved = [coarse + 4 * frame for frame in range(frames)]
    return np.stack([bilinear(each, y, x) for each in moved]).clip(0, 255).astype(np.uint8)


def bilinear(coarse: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    top, left = np.minimum(y.astype(int), 7), np.minimum(x.astype(int), 8)
    down, right = (y - top)[..., None], (x - left)[..., None]
    above = coarse[top, left] * (1 - right) + coarse[top, left + 1] * right
    below = coarse[top + 1, left] * (1 - right) + coarse[top + 1, left + 1] * right
    return above * (1 - down) + below * down


def run(source: Path, output: Path, per_shard: int = 4, running: Running | None = None, **settings: Any) -> dict | None:
    """Prepare with settings by their names, whatever part they belong to."""
    parts = {kind: {k: settings.pop(k) for k in kind.__dataclass_fields__ if k in settings}
             for kind in (ClipEncoding, ClipFilters, SceneCuts)}  # fmt: skip
    assert not settings
    encoding, filters, cuts = (kind(**values) for kind, values in parts.items())
    whole = Preparation(encoding=encoding, filters=filters, cuts=cuts, samples_per_shard=per_shard)
    return prepare(source, output, whole, running or quietly())


def quietly(**given: Any) -> Running:
    return Running(**{"engine": Engine(), "progress": False, "file_seconds": 600.0, **given})


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # pyright: ignore


def described(tar: Path) -> list[dict[str, Any]]:
    """What stands beside the clips of a shard, in order."""
    return [json.loads(content) for name, content in members(tar).items() if name.endswith(".json")]


def digests(folder: Path) -> dict[str, str]:
    """Of shards and their manifests, which are the same whoever made them and whenever."""
    names = [path for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json") and path.name[0].isdigit()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def decoded(content: bytes) -> Any:
    import av

    with av.open(io.BytesIO(content)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
