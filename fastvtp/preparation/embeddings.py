"""What a model says of clips before they are written: an embedding of each, and how well its texts fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastvtp.architecture import architecture_of
from fastvtp.data.records import VideoRecord
from fastvtp.errors import UserError
from fastvtp.evaluation.inference import inference
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.retrieval import encode_retrieval
from fastvtp.evaluation.scoring import evaluation_loader
from fastvtp.files import write_atomically
from fastvtp.frozen.towers import video_tower
from fastvtp.model_folder import OpenedModel
from fastvtp.preparation.shard_work import ShardWork, samples_left
from fastvtp.preparation.work import Sample

Opener = Callable[[str], OpenedModel]
"""Opens the model of a folder, on the device that it is to run on."""

_PROTOCOL = EvaluationProtocol(num_workers=1, batch_size=16)  # a worker, because it can be ended where a file hangs


def embed_shard(work: ShardWork, opened: OpenedModel) -> None:
    """Write the embedding of each sample of a surveyed shard, of unit length, float32; nothing where that is done."""
    path = work.model_file("embeddings")
    if not path.is_file():
        places, records, _ = _samples(work)
        _write(path, places, _embed(records, opened) if records else {}, work)


def compare_shard(work: ShardWork, opened: OpenedModel) -> None:
    """Write for each sample of a surveyed shard that has texts the cosine of the clip and the one that fits best."""
    if not architecture_of(opened.model).has_embeddings:
        name = architecture_of(opened.model).name
        raise UserError(f"{opened.folder}: similarity needs a model that compares clips with texts, not {name}")
    path = work.model_file("similarity")
    if not path.is_file():
        places, records, samples = _samples(work)
        told = [place for place, sample in enumerate(samples) if sample.captions]
        cosines: dict[int, Tensor] = {}
        if told:
            found = _encode([records[place] for place in told], opened)
            best = torch.full((len(found.ids),), -1.0)
            cosine = (found.text * found.video[found.video_of_text.to(found.video.device)]).sum(dim=1).cpu()
            best.scatter_reduce_(0, found.video_of_text, cosine, "amax")
            cosines = {told[index]: value[None] for index, value in zip(found.ids, best, strict=True)}
        _write(path, places, cosines, work)


def read_embeddings(work: ShardWork) -> dict[str, Tensor]:
    """Return what `embed_shard` wrote, by the place of each sample; those that could not be decoded are absent."""
    return _read(work.model_file("embeddings"))


def read_similarities(work: ShardWork) -> dict[str, float]:
    """Return what `compare_shard` wrote, by the place of each sample that has one."""
    return {place: float(value) for place, value in _read(work.model_file("similarity")).items()}


def _samples(work: ShardWork) -> tuple[list[str], list[VideoRecord], list[Sample]]:
    kept = samples_left(work)
    records = [
        VideoRecord(sample.id, item.video, sample.captions or ("",), None, sample.start, sample.end)
        for _, item, sample in kept
    ]
    return [place for place, _, _ in kept], records, [sample for _, _, sample in kept]


def _encode(records: Sequence[VideoRecord], opened: OpenedModel) -> Any:
    with evaluation_loader(opened, records, _PROTOCOL, dealt=False) as loader:
        return encode_retrieval(opened.model, loader, device=opened.model.device, progress=False)


def _embed(records: Sequence[VideoRecord], opened: OpenedModel) -> dict[int, Tensor]:
    if architecture_of(opened.model).has_embeddings:
        found = _encode([VideoRecord(r.id, r.video, ("",), None, r.start, r.end) for r in records], opened)
        return dict(zip(found.ids, found.video.cpu(), strict=True))
    tower, embedded = video_tower(opened.model), {}
    with evaluation_loader(opened, records, _PROTOCOL, texts=False, dealt=False) as loader, inference(opened.model):
        for batch in loader:
            vectors = tower.encode_layers(batch.video.to(opened.model.device), pool="mean")[:, 0, 0].float()
            embedded |= dict(zip(batch.sample_ids.tolist(), normalize(vectors, dim=1).cpu(), strict=True))
    return embedded


def _write(path: Path, places: Sequence[str], values: dict[int, Tensor], work: ShardWork) -> None:
    from safetensors.torch import save

    tensors = {places[index]: value.contiguous() for index, value in sorted(values.items())}
    write_atomically(path, save(tensors, {"fingerprint": work.fingerprint}))


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
