"""Frozen features on disk: extraction into shards that a kill cannot leave half-written.

Shape legend: n = clips of a shard, V = views of a clip, K = layers, L = tokens (after pooling), D = width.

A folder holds `features.json`, what the features are of; and for each group of `shard_size` videos a
`shard_00000.safetensors` with "features" [n, V, K, L, D] and, written last, a `shard_00000.json` with ids, videos,
spans ("start" and "end", of clips that are one) and labels of its clips. Where nothing of a group could be decoded
there is the second file alone.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastvtp import processes
from fastvtp.data.annotations import VideoRecord, annotations_digest
from fastvtp.data.classes import TargetSet
from fastvtp.data.reading import DEFAULT_FRAMING
from fastvtp.data.source import NoDecodableClipError
from fastvtp.errors import UserError
from fastvtp.evaluation.inference import inference
from fastvtp.files import json_digest, write_atomically
from fastvtp.frozen.towers import VideoTower, check_pool
from fastvtp.modules.positions import OnGrid
from fastvtp.settings import check_types

DESCRIPTION_NAME, TENSOR_NAME = "features.json", "features"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class FeatureSettings:
    """What is kept of a clip, and how. Raises UserError for a value out of range."""

    layers: tuple[int, ...] = ()
    """Blocks whose tokens are kept beside the tower's output, see `VideoTower.encode_layers`."""
    pool: str = "none"
    """How the tokens are pooled, see `VideoTower.encode_layers`."""
    dtype: str = "float32"
    """Dtype of the features on disk, one of `DTYPES`."""
    shard_size: int = 64
    """Videos in a file."""

    def __post_init__(self) -> None:
        check_types(self)
        check_pool(self.pool)
        if self.dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.shard_size < 1:
            raise UserError(f"shard_size must be positive, got {self.shard_size}")


@dataclass(frozen=True)
class ListedVideos:
    """Videos as a list names them.

    Attributes:
        records: the videos, in the order of the list.
        targets: the classes that each shows; None where the list does not say.
    """

    records: Sequence[VideoRecord]
    targets: TargetSet | None = None


def model_digest(model: nn.Module) -> str:
    """Return the fingerprint of a model's weights, by name, dtype and value, and of fixed positions that are
    interpolated: 16 hexadecimal digits of SHA-256."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    for name, module in model.named_modules():
        if isinstance(module, OnGrid) and module.table_grid != module.grid:
            digest.update(f"{name} {module.table_grid} {module.grid}".encode())
    return digest.hexdigest()[:16]


def describe(
    tower: VideoTower, videos: ListedVideos, settings: FeatureSettings, protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """Write down all that features depend on, the model and the videos by their digests: the content of
    `features.json`.

    protocol: how clips are read, with "views" (segments, crops); whatever JSON can hold.
    """
    targets = videos.targets
    labels = None if targets is None else hashlib.sha256(json.dumps(targets.labels).encode()).hexdigest()[:16]
    description = {
        "model": type(tower.model).__name__,
        "model_digest": model_digest(tower.model),
        "data_digest": annotations_digest(videos.records),
        "label_digest": labels,
        "num_videos": len(videos.records),
        "width": tower.width,
        "grid": tower.pooled_grid(settings.pool),
        **asdict(settings),
        **protocol,
        "class_names": None if targets is None else targets.class_names,
        "multi_label": targets is not None and targets.multi_label,
    }
    return json.loads(json.dumps(description))  # as it will be read


def extract_features(
    tower: VideoTower,
    videos: ListedVideos,
    make_loader: Callable[[Sequence[VideoRecord]], Any],
    folder: str | Path,
    settings: FeatureSettings,
    *,
    protocol: Mapping[str, Any],
    precision: str = "float32",
    progress: bool = True,
) -> None:
    """Write the features of all `videos` to `folder`; what a killed run left there is completed.

    The processes of a group, all of which must call this, take a file in turn, and each writes its own: `folder` must
    be one that all of them see. Whatever their number is, and was when an extraction was begun, the features are the
    same to the last bit, as long as no batch of the loader goes across two files.

    make_loader: gives an evaluation loader of some records (a context manager with `bad_files`), all views of a clip in
        a row; each process calls it for the records of its files, and has to get all of these. protocol: as in
        `describe`; "views" must be the loader's.
    precision: "float32" or "bfloat16" (autocast of the tower alone).

    A video that cannot be decoded is left out and named in its shard.

    Raises UserError where `folder` holds features of something else, and for features that are not finite in `dtype`.
    """
    folder, records, device = Path(folder), videos.records, next(tower.model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def claim() -> list[int]:
        """Make the folder that of these features; returns the numbers of the shards that it lacks."""
        tower.check_layers(settings.layers)
        _claim(folder, describe(tower, videos, settings, protocol))
        count = -(-len(records) // settings.shard_size)
        return [number for number in range(count) if not shard_path(folder, number, "json").exists()]

    def fill(shards: _Shards, bar: tqdm) -> None:
        left, done = shards.left, bar.n
        with inference(tower.model), make_loader([records[index] for index in left]) as loader:
            for batch in _decodable(loader):
                processes.check_others()
                video = batch.video.to(device, non_blocking=True)
                with autocast:  # the CPU's refuses to stack float16
                    tokens = tower.encode_layers(video, settings.layers, settings.pool)
                rows = tokens.to(DTYPES[settings.dtype]).cpu()
                if not rows.isfinite().all():
                    raise UserError(f"features are not finite in {settings.dtype}: choose another dtype")
                places = batch.sample_ids.tolist()
                shards.add([left[place] for place in places], rows)
                shards.write(before=left[places[-1]], reasons=loader.bad_files)
                bar.update(done + places[-1] + 1 - bar.n)
            shards.write(before=None, reasons=loader.bad_files)
            bar.update(done + len(left) - bar.n)

    def fill_own() -> None:
        shards, shown = _Shards(folder, videos, processes.share(missing)), progress and processes.is_first()
        total = len(records) if processes.size() == 1 else len(shards.left)  # of several processes the first's own
        with tqdm(
            total=total, initial=total - len(shards.left), desc="features", unit="clip", disable=not shown
        ) as bar:
            if shards.left:
                fill(shards, bar)

    missing = processes.first_decides(claim)
    with processes.patience():  # one may have longer videos than the others
        processes.all_or_none(fill_own)


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """Return the file of shard `number`, of its features ("safetensors") or of what they are of ("json")."""
    return folder / f"shard_{number:05d}.{suffix}"


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read the content of `features.json`. Raises UserError where there is none or it is not JSON."""
    path = Path(folder) / DESCRIPTION_NAME
    if not path.is_file():
        raise UserError(f"{folder} holds no features: it has no {DESCRIPTION_NAME}")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def framing_of(description: Mapping[str, Any]) -> str:
    """Tell how the frames of features came to the model's size. Earlier versions called it "fit", or did not say."""
    return description.get("framing") or description.get("fit") or DEFAULT_FRAMING


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Make `folder` that of these features, or see that it already is."""
    if (folder / DESCRIPTION_NAME).exists():
        before = read_description(folder)
        if "fit" in before:  # what earlier versions called it
            before = {**before, "framing": before["fit"]}
        if different := [name for name, value in description.items() if before.get(name) != value]:
            shown = ", ".join(f"{name} {before.get(name)!r}, expected {description[name]!r}" for name in different[:3])
            raise UserError(f"{folder} holds other features ({shown}): choose another folder, or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / DESCRIPTION_NAME, (json.dumps(description, indent=2) + "\n").encode())


def _decodable(loader: Any) -> Iterator[Any]:
    """Go through the batches of a loader, which are none where it raises that no clip can be decoded: others may be."""
    batches = iter(loader)
    try:
        first = next(batches, None)
    except NoDecodableClipError:
        return
    if first is not None:
        yield first
        yield from batches


class _Shards:
    """Shards of a folder that are not there yet, and the clips that have come in for them.

    pending: their numbers, ascending. left: places in the list of the videos still to be read, in order.
    """

    def __init__(self, folder: Path, videos: ListedVideos, pending: Sequence[int]):
        self._folder, self._records, self._targets = folder, videos.records, videos.targets
        description = read_description(folder)
        self._size, self._views = description["shard_size"], description["views"][0] * description["views"][1]
        self._digest = json_digest(description)
        self._pending = list(pending)
        self._rows: dict[int, list[Tensor]] = {}
        self.left = [index for number in self._pending for index in self._span(number)]

    def add(self, indices: Sequence[int], rows: Tensor) -> None:
        """Take in one view of the clip at each of these places, [n, K, L, D]."""
        for index, row in zip(indices, rows, strict=True):
            self._rows.setdefault(index, []).append(row)

    def write(self, *, before: int | None, reasons: Mapping[str, str]) -> None:
        """Write the shards that end before this video; None: all. reasons: why videos could not be decoded."""
        while self._pending and (before is None or self._span(self._pending[0]).stop <= before):
            number = self._pending.pop(0)
            rows = {index: self._rows.pop(index, []) for index in self._span(number)}
            # fewer views: damage that showed half-way
            kept = {index: torch.stack(views) for index, views in rows.items() if len(views) == self._views}
            gone = [self._records[index] for index in rows if index not in kept]
            why = {record.source: reasons.get(record.source, reasons.get(record.video, "damaged")) for record in gone}
            self._write(number, kept, why)

    def _span(self, number: int) -> range:
        return range(number * self._size, min((number + 1) * self._size, len(self._records)))

    def _write(self, number: int, kept: Mapping[int, Tensor], left_out: Mapping[str, str]) -> None:
        from safetensors.torch import save

        if kept:
            content = save({TENSOR_NAME: torch.stack(list(kept.values()))})
            write_atomically(shard_path(self._folder, number, "safetensors"), content)
        labels = {} if self._targets is None else {index: self._targets.labels[index] for index in kept}
        clips = [{**self._records[index].named(), "labels": labels.get(index, ())} for index in kept]
        shard = {"description": self._digest, "clips": clips, "left_out": left_out}
        write_atomically(shard_path(self._folder, number, "json"), json.dumps(shard, ensure_ascii=False).encode())
