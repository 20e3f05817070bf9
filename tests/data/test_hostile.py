"""Runs over files that are damaged, lie, never end or are no videos: each is named, or plays as a plain loop shows it.

What is tried runs in a process of its own, with a limit of time: a hang is a failed test.
"""

import os
import tarfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.data.clips import decode_sequentially, write_clip
from tests.data.hostile import HEIGHT, KINDS, PLAY, REFUSE, SOUND, WIDTH, Hostile, write_hostile, write_sound
from tests.data.plain_loop import Loop, is_of_loop, plain_loop, shown
from tests.data.trial import CLIP, Lines, run_trial

STRIDE = CLIP["frame_stride"]


def write_files(folder: Path, hostile: int, good: int, seed: int = 0) -> tuple[list[Hostile], list[str]]:
    folder.mkdir()
    films = [
        write_clip(folder / f"good_{i}.mp4", 12, HEIGHT, WIDTH, first=3 * i % 200, **SOUND["end.mp4"])
        for i in range(good)
    ]
    return write_hostile(folder, hostile, seed), [str(path) for path in films]


def mixed(hostile: list[Hostile], good: list[str]) -> list[str]:
    """The paths of both by turns; the last ones are good."""
    pairs = zip([file.path for file in hostile], good, strict=True)
    return [path for pair in pairs for path in pair]


def in_tar(hostile: list[Hostile], good: list[str], archive: Path) -> dict[str, str]:
    """Put the regular files into a tar; their paths by their locations there."""
    paths = [path for path in (*(file.path for file in hostile), *good) if "tar::" not in path]
    paths = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    with tarfile.open(archive, "w") as tar:
        for path in paths:
            tar.add(path, os.path.basename(path))
    return {f"{archive}::{os.path.basename(path)}": path for path in paths}


def loops_of(paths: list[str], folder: Path) -> dict[str, Loop]:
    lines = run_trial("loops", folder, 120, paths=paths)
    assert lines.ended == "0", lines.errors
    return {loop["path"]: Loop(loop["frames"], loop["sound"]) for loop in lines.of("loop")}


def faults_of_run(
    lines: Lines, hostile: list[Hostile], good: list[str], folder: Path, stored: Mapping[str, str] = {}
) -> list[str]:
    """What went wrong with which file in a run to its end, a line each. stored: paths of files by other locations."""
    assert lines.ended == "0", f"the run {lines.ended}, after {lines[-2:]}: {lines.errors[-2000:]}"
    reasons = {path: reason for bad in lines.of("bad files") for path, reason in bad.items()}
    clips = defaultdict(list)
    for clip in lines.of("clip"):
        clips[clip["path"]].append(clip["frames"])
    sources = write_sound(folder / "sound")
    loops = loops_of([*sorted(stored.get(name, name) for name in clips), *sources.values()], folder / "loops")
    faults = []
    for file in [*hostile, *(Hostile("good", path, PLAY) for path in good)]:
        said, delivered = reasons.get(file.path), clips[file.path]
        if said is None and not delivered:
            faults.append(f"{file.kind}: neither named nor delivered")
        if said == "" or "\n" in (said or ""):
            faults.append(f"{file.kind}: not one line of reason: {said!r}")
        if said is not None and said.startswith("took longer than"):
            faults.append(f"{file.kind}: {said}")
        if file.duty == REFUSE and (delivered or said is None):
            faults.append(f"{file.kind}: not refused")
        if file.duty == PLAY and said is not None:
            faults.append(f"{file.kind}: refused, {said}")
        upright, source = file.duty == PLAY, loops.get(sources.get(file.source or "", ""))
        if not all(
            is_of_loop(clip, loops[stored.get(file.path, file.path)], STRIDE, upright, source) for clip in delivered
        ):
            faults.append(f"{file.kind}: delivered otherwise than by a plain loop, {file.path}")
    return faults


def left_behind(lines: Lines) -> list[object]:
    """Whatever a run should have taken with it."""
    found = [*lines.of("shared memory left"), *lines.of("processes left"), *lines.of("files left")]
    for left in lines.of("left"):
        found += [left["children"], left["descriptors"]]
    return [left for left in found if left]


def test_a_run_over_files_of_every_kind_names_or_plays_each_and_leaves_nothing(tmp_path):
    hostile, good = write_files(tmp_path / "files", len(KINDS), len(KINDS))
    lines = run_trial("loader", tmp_path / "run", 240, paths=mixed(hostile, good), epochs=1, workers=2)
    assert faults_of_run(lines, hostile, good, tmp_path) == []
    assert left_behind(lines) == []


def check_tar(tmp_path, count, seed, epochs, seconds):
    """Run over a tar, and check all but memory."""
    hostile, good = write_files(tmp_path / "files", count, count, seed)
    stored = in_tar(hostile, good, tmp_path / "shard.tar")
    locations = {path: location for location, path in stored.items()}
    hostile = [replace(file, path=locations[file.path]) for file in hostile if file.path in locations]
    good = [locations[path] for path in good]
    paths = [location for pair in zip_longest([file.path for file in hostile], good) for location in pair if location]
    lines = run_trial("loader", tmp_path / "run", seconds, paths=paths, epochs=epochs, workers=2)
    assert faults_of_run(lines, hostile, good, tmp_path, stored) == []
    assert left_behind(lines) == []
    return lines


def test_members_of_a_tar_are_named_or_played_like_files(tmp_path):
    check_tar(tmp_path, len(KINDS), seed=3, epochs=1, seconds=240)


def check_memory(lines):
    """Less than a megabyte more an epoch, of each process, and no more descriptors."""
    for name in ("whole epoch", "cropped epoch"):
        first, *_, last = lines.of(name)
        assert first.keys() == last.keys(), f"processes were lost and started again: {lines.errors[-3000:]}"
        for pid, (memory, descriptors) in first.items():
            growth = (last[pid][0] - memory) / (len(lines.of(name)) - 1)
            assert growth < 1000, f"{name}: kB and descriptors by process {first}, then {last}"
            assert last[pid][1] <= descriptors + 2  # a file that happened to be open


@pytest.mark.long
def test_three_epochs_over_a_tar_of_300_such_files_hold_no_more_at_their_end(tmp_path):
    check_memory(check_tar(tmp_path, 300, seed=4, epochs=3, seconds=900))


def test_a_file_of_every_kind_ends_in_a_reason_or_in_the_frames_of_a_plain_loop(tmp_path):
    (tmp_path / "files").mkdir()
    hostile = write_hostile(tmp_path / "files", len(KINDS), seed=1)
    sources = write_sound(tmp_path / "sound")
    made_from = [sources.get(file.source or "") for file in hostile]
    lines = run_trial("files", tmp_path / "run", 120, paths=[file.path for file in hostile], sources=made_from)
    faults = []
    for file, said in zip(hostile, lines.of("said"), strict=True):
        if not isinstance(said, dict):
            faults.append(f"{file.kind}: {said}")
        elif said["differs"] or (file.duty == PLAY and said["refused"]) or (file.duty == REFUSE and said["shown"]):
            faults.append(f"{file.kind}, {file.path}: {said}")
    assert faults == []


@pytest.mark.long
def test_three_epochs_over_300_such_files_among_300_others_hold_no_more_at_their_end(tmp_path):
    hostile, good = write_files(tmp_path / "files", 300, 300, seed=2)
    lines = run_trial("loader", tmp_path / "run", 900, paths=mixed(hostile, good), epochs=3, workers=2)
    assert faults_of_run(lines, hostile, good, tmp_path) == []
    assert left_behind(lines) == []
    check_memory(lines)


def test_the_yardstick_tells_another_frame_order_and_picture(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 16, HEIGHT, WIDTH)
    loop = plain_loop(str(path))
    frames = [shown(picture) for picture in decode_sequentially(path)]
    assert loop.sound
    assert is_of_loop(frames[3:10:2], loop, 2, upright=True)
    assert not is_of_loop(frames[3:7], loop, 2), "another distance"
    assert not is_of_loop(frames[9:2:-2], loop, 2), "backwards"
    assert not is_of_loop([*frames[3:8:2], shown(decode_sequentially(path)[9] ^ 1)], loop, 2), "other pixels"
    mirrored = [shown(picture[:, ::-1]) for picture in decode_sequentially(path)]
    assert is_of_loop(mirrored[3:10:2], loop, 2)
    assert not is_of_loop(mirrored[3:10:2], loop, 2, upright=True)
