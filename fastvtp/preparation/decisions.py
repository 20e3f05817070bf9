"""What is decided over all samples, once each has been surveyed: which are duplicates, and which texts do not fit.

The decision follows from the surveys alone, in the order of the samples, so that whoever makes it comes to the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastvtp.files import write_atomically
from fastvtp.preparation.looks import LookAlikes
from fastvtp.preparation.settings import ClipFilters
from fastvtp.preparation.shard_work import SURVEY_FOLDER, ShardWork, samples_left
from fastvtp.preparation.work import Sample

DECISIONS_NAME = "decisions.json"

_UNSEEN = ["unreadable", "the model was shown none of it: it cannot be decoded"]


def decide(works: Sequence[ShardWork]) -> dict[str, dict[str, Any]]:
    """Return, and write beside the surveys, what is decided of each sample, by shard and place: the scores that it was
    given and, where it goes, the rule and the reason. Nothing is computed where that is done."""
    path = works[0].survey.with_name(DECISIONS_NAME)
    if path.is_file():
        return json.loads(path.read_bytes())
    filters = works[0].settings.filters
    decided: dict[str, dict[str, Any]] = {work.name: {} for work in works}
    if filters.similarity:
        _by_similarity(works, filters, decided)
    if filters.duplicates:
        find = _alike_by_hash if filters.duplicates == "hash" else _alike_by_embedding
        find(works, filters, decided)
    write_atomically(path, json.dumps(decided, indent=0).encode())
    return decided


def undecided(output: Path) -> bool:
    """Tell whether nothing is decided yet of the samples in a folder of shards."""
    return not (output / SURVEY_FOLDER / DECISIONS_NAME).is_file()


def undo_decisions(output: Path) -> None:
    """Let it be decided anew, once all shards are surveyed."""
    (output / SURVEY_FOLDER / DECISIONS_NAME).unlink(missing_ok=True)


def _samples(work: ShardWork, decided: dict[str, dict[str, Any]]) -> list[tuple[str, Sample]]:
    """Return the samples of a shard that nothing has rejected so far, with their places."""
    told = decided[work.name]
    return [(place, sample) for place, _, sample in samples_left(work) if not told.get(place, {}).get("rejected")]


def _by_similarity(works: Sequence[ShardWork], filters: ClipFilters, decided: dict[str, dict[str, Any]]) -> None:
    from fastvtp.preparation.embeddings import read_similarities  # here: it imports torch

    for work in works:
        found = read_similarities(work)
        for place, sample in _samples(work, decided):
            if (cosine := found.get(place)) is None:
                if sample.captions:
                    decided[work.name][place] = {"rejected": _UNSEEN}
                continue
            told: dict[str, Any] = {"scores": {"similarity": round(cosine, 4)}}
            decided[work.name][place] = told
            if filters.min_similarity is not None and cosine < filters.min_similarity:
                reason = f"similarity {cosine:.4f}, expected at least {filters.min_similarity:g}"
                told["rejected"] = ["similarity", reason]


def _alike_by_hash(works: Sequence[ShardWork], filters: ClipFilters, decided: dict[str, dict[str, Any]]) -> None:
    alike = LookAlikes(filters.duplicate_bits)
    for work in works:
        for place, sample in _samples(work, decided):
            if (found := alike.find(sample.id, sample.scores["look"])) is not None:
                reason = f"looks like {found[0]} ({found[1]} of 256 bits differ)"
                decided[work.name].setdefault(place, {})["rejected"] = ["duplicate", reason]


def _alike_by_embedding(works: Sequence[ShardWork], filters: ClipFilters, decided: dict[str, dict[str, Any]]) -> None:
    from fastvtp.preparation.embeddings import read_embeddings  # here: it imports torch

    kept, names = np.empty((0, 0), np.float32), list[str]()
    for work in works:
        vectors = read_embeddings(work)
        for place, sample in _samples(work, decided):
            if place not in vectors:
                decided[work.name].setdefault(place, {})["rejected"] = _UNSEEN
                continue
            vector = vectors[place].numpy()
            if len(names) >= len(kept):  # room for twice as many
                kept = np.concatenate([kept.reshape(-1, len(vector)), np.empty((max(64, len(kept)), len(vector)), "f")])
            cosines = kept[: len(names)] @ vector
            if len(names) and cosines.max() >= filters.duplicate_cosine:
                first = int(np.argmax(cosines >= filters.duplicate_cosine))
                reason = f"its embedding is that of {names[first]} (cosine {cosines[first]:.4f})"
                decided[work.name].setdefault(place, {})["rejected"] = ["duplicate", reason]
            else:
                kept[len(names)] = vector
                names.append(sample.id)
