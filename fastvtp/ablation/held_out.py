"""Scores of an ablation's runs that all systems share, on clips that no run trained on."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fastvtp.ablation.readout import (
    majority,
    probe,
    scene_labels,
)
from fastvtp.architecture import architecture_of
from fastvtp.data.annotations import load_annotations
from fastvtp.data.loader import Decoding, VideoTextBatch, VideoTextLoader
from fastvtp.data.reading import ClipShape
from fastvtp.data.stream import Batches
from fastvtp.data.text import MIN_TEXT_LENGTH, Tokenizer

MASK_SEED = 1000  # of the masks that all runs are scored with; no run trains with them


@dataclass(frozen=True)
class Clips:
    """Decoded clips in batches, their true attributes, bool [N, values] by name, and what they were made of: the
    "scene" fields of the synthetic list."""

    batches: list[VideoTextBatch]
    labels: dict[str, Tensor]
    scenes: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class HeldOut:
    """probe_train: training clips on which the probes are fitted. test: the clips that are scored.

    masks: the configuration of the model whose mask ratios all runs are scored with.
    """

    probe_train: Clips
    test: Clips
    masks: Any


def load_clips(
    path: Path,
    tokenizer: Tokenizer,
    model: Any,
    *,
    limit: int,
    num_workers: int,
    device: torch.device,
    batch_size: int = 32,
) -> Clips:
    """Load the first `limit` clips of a synthetic list, uniform frames and centre crop, in memory; model: a
    configuration, for the sizes that it reads."""
    with path.open() as file:
        scenes = [json.loads(line)["scene"] for line in file][:limit]
    with VideoTextLoader(
        load_annotations(path)[:limit],
        tokenizer,
        shape=ClipShape(model.num_frames, model.image_size),
        batches=Batches(batch_size=min(batch_size, len(scenes)), train=False),
        decoding=Decoding(num_workers=num_workers, device=device),
        max_text_length=model.max_text_length if architecture_of(model).reads_text else MIN_TEXT_LENGTH,
    ) as loader:
        batches = [batch.to("cpu") for batch in loader]
    kept = [index for batch in batches for index in batch.sample_ids.tolist()]
    shown = [scenes[index] for index in kept]
    return Clips(batches, scene_labels(shown), shown)


def chance_scores(held_out: HeldOut) -> dict[str, float]:
    """Return what `score` gives for a model that knows nothing: attributes by their frequency, ranks at random."""
    train, test = held_out.probe_train.labels, held_out.test.labels
    scores = {f"probe/{name}": majority(train[name], labels) for name, labels in test.items()}
    scores["transfer"] = fmean(scores.values())
    clips = sum(len(batch.captions) for batch in held_out.test.batches)
    chance = {f"{way}/R{k}": 100.0 * min(k, clips) / clips for way in ("t2v", "v2t") for k in (1, 5)}
    return {**scores, **chance, "retrieval/R1": 100.0 / clips}


def retrieval_scores(ways: dict[str, dict[str, float]]) -> dict[str, float]:
    """Compute t2v/R1 ... v2t/R5 of `retrieval_metrics`, and the mean R@1 of both directions, retrieval/R1."""
    scores = {f"{way}/{name}": ways[way][name] for way in ("t2v", "v2t") for name in ("R1", "R5")}
    return {**scores, "retrieval/R1": fmean(ways[way]["R1"] for way in ("t2v", "v2t"))}


def probe_scores(encode: Callable[[Tensor], Tensor], held_out: HeldOut) -> dict[str, float]:
    """Return the accuracy in percent of each attribute's linear probe, probe/<attribute>, and their mean, transfer.

    encode: whole clips on the CPU to frozen tokens, uint8 [B, T, H, W, 3] -> [B, K, D], of which the mean is read.
    """
    train, test = (
        torch.cat([encode(batch.video).mean(1).float().cpu() for batch in clips.batches])
        for clips in (held_out.probe_train, held_out.test)
    )
    scores = {
        f"probe/{name}": probe(train, labels, test, held_out.test.labels[name])
        for name, labels in held_out.probe_train.labels.items()
    }
    return {**scores, "transfer": fmean(scores.values())}
