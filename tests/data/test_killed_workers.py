"""Decoding workers that are killed or stopped at random moments: a run goes on, says so, and makes the same batches."""

import signal

import pytest

from tests.data.clips import write_clip
from tests.data.trial import run_trial

STEPS = 40


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [str(write_clip(folder / f"{i}.mp4", 16, first=16 * i)) for i in range(12)]


@pytest.fixture(scope="module")
def undisturbed(paths, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    lines = run_trial("kills", folder, 120, paths=paths, steps=STEPS, workers=0, signal=0, times=0, seed=0)
    assert lines.ended == "0", lines.errors
    return lines.of("batch")


def check(paths, undisturbed, folder, number, times, seconds, seed=0):
    given = {"paths": paths, "steps": STEPS, "workers": 2, "signal": int(number), "times": times, "seed": seed}
    lines = run_trial("kills", folder, seconds, **given)
    assert lines.ended == "0", f"the run {lines.ended}: {lines.errors[-3000:]}"
    hit = lines.of("hit")
    assert len(hit) == times, "the run must last until all have been hit"
    assert lines.of("batch")[: len(undisturbed)] == undisturbed
    for pid in set(hit):
        assert f"worker {pid}" in lines.errors, f"{pid} is not named: {lines.errors[-3000:]}"
    assert lines.of("left") == [[]]
    assert lines.of("processes left") == [[]]
    assert lines.of("shared memory left") == [[]]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_workers_hit_at_random_change_nothing_but_the_log(paths, undisturbed, tmp_path, number):
    check(paths, undisturbed, tmp_path / "run", number, times=3, seconds=120)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_workers_hit_at_random_twenty_times_change_nothing_but_the_log(paths, undisturbed, tmp_path, number):
    check(paths, undisturbed, tmp_path / "run", number, times=20, seconds=400, seed=1)
