"""What a run draws is one stream wherever its videos lie: on any ranks and workers, and after a resume on others, from
another storage of the same list.

Compared is all that a batch holds: its number, the records, their captions, and a digest of the pixels, by which
frames, window and mirroring are compared as well. The stream that the others have to match is that of one process that
reads plain files by itself.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastvtp.data.annotations import VideoRecord
from tests.data.object_store import patch_storage
from tests.data.storages import (
    KEEPING,
    OF_THIS_PROCESS,
    READINGS,
    STORAGES,
    Part,
    held,
    held_by_this_process,
    served,
    shown,
    variables,
    write_clips,
)
from tests.ranks import run_ranks

LENGTH = 24  # micro-batches of the stream that are looked at
RANKS = (1, 2, 3, 4)
SHARES = ((1.0,), (0.7, 0.3), (1.0, 2.0, 1.0))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips") / "all")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served")) as store:
        yield store


Sets = Callable[[str, int], list[list[VideoRecord]]]


@pytest.fixture(scope="module")
def sets_in(clips, store, tmp_path_factory) -> Sets:
    """The list in a storage, whole or dealt out to several data sets."""

    @lru_cache
    def sets_in(storage: str, count: int) -> list[list[VideoRecord]]:
        folder = tmp_path_factory.mktemp(storage)
        made = [STORAGES[storage](clips[n::count], folder / f"{folder.name}_{n}", store) for n in range(count)]
        assert [[record.id for record in records] for records in made] == [
            [clip.key for clip in clips[n::count]] for n in range(count)
        ]
        return made

    return sets_in


@pytest.fixture(scope="module")
def stream(sets_in):
    """The whole stream, as one rank makes it of plain files in its own process."""

    @lru_cache
    def made(about: tuple[tuple[str, Any], ...]) -> dict[int, Any]:
        sets = sets_in("files", len(dict(about)["shares"]))
        return held(Part(sets=sets, start=0, stop=LENGTH, **dict(about)))[0]

    return lambda **about: made(tuple(sorted(about.items())))


@st.composite
def runs(draw, *, workers: tuple[int, ...], most: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw what a run is about, and its parts, of which up to `most` follow on each other at steps that both have."""
    about = {"seed": draw(st.integers(0, 1)), "shares": draw(st.sampled_from(SHARES))}
    about["reading"] = draw(st.integers(0, len(READINGS) - 1))
    parts, start = [], 0
    while start < LENGTH:
        ranks = draw(st.sampled_from([ranks for ranks in RANKS if start % ranks == 0]))
        bounds = range(start + ranks, LENGTH + 1, ranks) if len(parts) + 1 < most else [LENGTH]
        number = draw(st.sampled_from(workers))
        storages = [name for name in STORAGES if not (number and name in OF_THIS_PROCESS)]
        part = {"start": start, "stop": draw(st.sampled_from(bounds)), "ranks": ranks, "workers": number}
        storage, keeping = draw(st.sampled_from(storages)), draw(st.sampled_from([*KEEPING]))
        parts.append({**part, "storage": storage, "keeping": keeping})
        start = part["stop"]
    return about, parts


def follow(sets_in: Sets, about: dict[str, Any], parts: list[dict[str, Any]]) -> tuple[dict[int, Any], dict[str, str]]:
    """What the parts of a run hold together; each is told the bad files of those before, as a resumed run is."""
    made, bad = {}, {}
    for part in parts:
        part = dict(part)
        sets = sets_in(part.pop("storage"), len(about["shares"]))
        with pytest.MonkeyPatch.context() as patch:
            patch_storage(patch, **KEEPING[part.pop("keeping", "whole")])
            ours, bad = held(Part(sets=sets, known_bad=bad, **about, **part))
        assert not made.keys() & ours.keys()
        made |= ours
    return made, bad


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_gives_the_stream_of_plain_files(sets_in, stream, storage):
    about = {"seed": 0, "shares": (1.0,), "reading": 0}
    made, bad = follow(sets_in, about, [{"start": 0, "stop": LENGTH, "storage": storage}])
    assert made == stream(**about)
    assert len(bad) == 2  # the one that is cut short, and the damaged one
    for views in ((1, 1), (2, 2)):
        (records,), (plain,) = (sets_in(name, 1) for name in (storage, "files"))
        given = {"views": views, "sampling": "strided", "frame_stride": 2}
        assert shown(records, **given) == shown(plain, **given)


@settings(max_examples=12, **QUIET)
@given(run=runs(workers=(0,), most=3))
def test_a_run_goes_on_on_other_ranks_and_from_another_storage(sets_in, stream, run):
    about, parts = run
    assert follow(sets_in, about, parts)[0] == stream(**about)


@settings(max_examples=2, **QUIET)
@given(run=runs(workers=(1, 2), most=2))
def test_workers_of_ranks_make_the_same(sets_in, stream, run):
    about, parts = run
    assert follow(sets_in, about, parts)[0] == stream(**about)


@pytest.mark.long
@settings(max_examples=300, **QUIET)
@given(run=runs(workers=(0,), most=6))
def test_many_runs_go_on_on_other_ranks_and_from_another_storage(sets_in, stream, run):
    about, parts = run
    assert follow(sets_in, about, parts)[0] == stream(**about)


@pytest.mark.long
@settings(max_examples=60, **QUIET)
@given(run=runs(workers=(0, 1, 2, 4), most=4))
def test_workers_of_ranks_make_the_same_in_many_runs(sets_in, stream, run):
    about, parts = run
    assert follow(sets_in, about, parts)[0] == stream(**about)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_of_a_group_make_the_same(sets_in, stream, tmp_path, ranks):
    """After a part on three ranks, from another storage."""
    about = {"seed": 1, "shares": (0.7, 0.3), "reading": 1}
    made, bad = follow(sets_in, about, [{"start": 0, "stop": 12, "ranks": 3, "storage": "energon_set"}])
    last = Part(sets=sets_in("tars_over_s3", 2), start=12, stop=LENGTH, ranks=ranks, known_bad=bad, **about)
    for ours, _ in run_ranks(held_by_this_process, tmp_path, replace(last, workers=1), variables(), processes=ranks):
        assert not made.keys() & ours.keys()
        made |= ours
    assert made == stream(**about)
