"""The benchmark of clip readers: its videos, its clock, and what it says of readers that fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.peers import video_readers
from benchmarks.peers.video_readers import pyav
from benchmarks.steps import clip_reading
from benchmarks.steps.clip_files import encode, repeat
from benchmarks.steps.clip_programs import chosen_frames
from benchmarks.steps.clip_reading import Footage, footages, main, measure, rows_of
from tests.data.clips import decode_sequentially


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("video") / "a.mp4", height=48, width=64, gop=12, seconds=2)


def test_a_long_video_shows_the_short_one_again_and_again(video, tmp_path):
    path, short = repeat(video, tmp_path / "long.mp4", 3), decode_sequentially(video)
    assert len(short) == 50
    np.testing.assert_array_equal(decode_sequentially(path), np.concatenate([short] * 3))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.dts is not None]
    np.testing.assert_allclose(np.diff(sorted(times)), 1 / 25, atol=1e-4)


def test_keyframes_are_as_far_apart_as_asked_for(video):
    with av.open(str(video)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == [0, 12, 24, 36, 48]


def test_the_plain_reader_of_pyav_finds_the_frames(video):
    read, finish = pyav_or_skip()
    indices = [3, 3, 17, 49]
    clip = read(str(video), indices)
    np.testing.assert_array_equal(clip, decode_sequentially(video)[indices])
    if finish is not None:
        assert finish(clip, (0.1, 0.2, 0.9, 1.0, True), 24).shape == (4, 24, 24, 3)


def pyav_or_skip():
    """The reader; without OpenCV it has nothing to resize with."""
    try:
        return pyav()
    except ModuleNotFoundError:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(video_readers, "resized_by_opencv", lambda interpolation: None)
            return pyav()


CLOCK = """
import subprocess, sys, time
from benchmarks.harness.cpu_time import cpu_seconds, settled_cpu_seconds

busy = "import time\\nwhile time.process_time() < 0.7: pass\\nprint(time.process_time(), flush=True)\\ntime.sleep(60)"
before, own = cpu_seconds(), time.process_time()
with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE, text=True) as child:
    time.sleep(0.3)
    counted = settled_cpu_seconds() - before
    print(counted, time.process_time() - own, float(child.stdout.readline()))
    child.kill()
"""


def test_the_clock_counts_children_and_waits_for_them():
    # In a process of its own: this one has threads and children of other tests, whose time would be counted too.
    told = subprocess.run([sys.executable, "-c", CLOCK], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    counted, own, of_the_child = map(float, told.stdout.split())
    assert counted == pytest.approx(own + of_the_child, abs=0.1)


def test_frames_are_the_same_for_all_and_within_the_video():
    for footage in footages(smoke=False):
        frames = chosen_frames(footage, 5)
        assert frames == chosen_frames(footage, 5)
        assert len(frames) == 16
        assert 0 <= min(frames) <= max(frames) < 25 * footage.seconds
        spread = max(frames) - min(frames)
        assert spread == 60 if footage.sampling == "strided" else spread > 0.8 * 25 * footage.seconds


class Told:
    """A variant that answers what it is given."""

    def __init__(self, error: float | None, cpu: list[float], note: str = ""):
        self.error, self.cpu, self.note = error, cpu, note

    def tell(self, what: str, *arguments: int):
        if self.note:
            return None
        return self.error if what == "error" else (self.cpu.pop(0), 9.0)


def test_the_first_turn_is_no_time_and_wrong_and_missing_readers_have_none():
    rows = rows_of("clip_decoding", Footage(48, 64, 12, 2, "uniform", 2), ["fastvtp", "b", "c"], "b")
    variants = {
        "fastvtp": Told(0.0, [9.0, 2.0, 4.0, 3.0]),
        "b": Told(0.01, [9.0, 6.0, 6.0, 6.0]),
        "c": Told(0.5, [9.0] * 4),
    }
    measure(rows, variants, 2, 3)
    assert [row.median_s for row in rows.values()] == [1.5, 3.0, None]
    assert rows["fastvtp"].speedup == 2.0
    assert rows["c"].note.startswith("wrong: frames differ by 128 of 255")
    rows = rows_of("clip_decoding", Footage(48, 64, 12, 2, "uniform", 2), ["fastvtp"], "fastvtp")
    measure(rows, {"fastvtp": Told(None, [], "missing: No module named 'x'")}, 2, 3)
    assert (rows["fastvtp"].median_s, rows["fastvtp"].note) == (None, "missing: No module named 'x'")


def test_a_smoke_run_measures_ours_and_says_of_the_others_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, [".", "kernels"])))
    monkeypatch.setattr(clip_reading, "measured_environment", lambda *_: ({}, None))
    monkeypatch.setattr(clip_reading, "READERS", {"no such reader": None, "pyav": pyav})
    output = tmp_path / "clip_reading.json"
    main(["--smoke", "--device", "cpu", "--cases", "uniform", "--ops", "clip_decoding", "--json", str(output)])
    rows = {row["variant"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows["fastvtp"]["median_s"] > 0
    assert rows["fastvtp"]["error"] == 0
    assert rows["no such reader"]["note"].startswith("failed: KeyError")
    assert Path(output).stat().st_size > 0
