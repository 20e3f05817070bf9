"""A program that reads files or runs a loader, in a process of its own that may hang, crash or leave things behind.

`run_trial` starts it with a limit of time; what it learned up to then is in the lines of JSON that it wrote.
"""

import gc
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.plain_loop import is_of_loop, plain_loop, shown

ROOT = Path(__file__).parents[2]
CLIP = {"num_frames": 4, "sampling": "strided", "frame_stride": 2}
FILE_SECONDS = 20
# Give back what is freed: the memory of a process is then what it holds, not what it keeps at hand for later.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Lines(list):
    """What a trial wrote, a dictionary a line; `ended` says how it ended: "0", another status, or "hangs"."""

    ended: str
    errors: str

    def of(self, name: str) -> list[Any]:
        """What lines of this name say, in their order."""
        return [line[name] for line in self if name in line]


def run_trial(work: str, folder: Path, seconds: float, **given: Any) -> Lines:
    """Run `work` of this module in a process of its own, in a folder for its files, for at most so many seconds."""
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    (folder / "given.json").write_text(json.dumps(given))
    variables = {**os.environ, **MALLOC, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "TMPDIR": str(temporary)}
    before = os.listdir("/dev/shm")
    command = [sys.executable, "-m", "tests.data.trial", work, str(folder)]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=errors, start_new_session=True)
        try:
            ended = str(process.wait(seconds))
        except subprocess.TimeoutExpired:
            ended = "hangs"
        left = _left_of_session(process.pid)
        for pid in (*left, process.pid):
            _kill(pid)
        process.wait()
    found = Lines(map(json.loads, (folder / "lines").read_text().splitlines()))
    found.ended, found.errors = ended, (folder / "errors").read_text()
    shared = _shared_memory_left(before)
    found.append({"processes left": left, "files left": sorted(os.listdir(temporary)), "shared memory left": shared})
    return found


def _left_of_session(session: int) -> list[int]:
    """The processes that still live soon after the first of their session: its helpers end once they see it gone."""
    deadline = time.monotonic() + 3
    while left := [pid for pid in _processes() if _session(pid) == session != pid]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _session(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[3]) if fields and fields[0] != "Z" else -1


def children() -> list[int]:
    """The processes that this one started and that live, but for the helper that the standard library keeps."""
    found = [pid for pid in _processes() if (fields := _stat(pid)) and int(fields[1]) == os.getpid()]
    return [pid for pid in found if _stat(pid)[:1] != ["Z"] and b"resource_tracker" not in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _shared_memory_left(before: Iterable[str]) -> list[str]:
    """Files of /dev/shm that were not there before, that stay, and that no process has mapped who might remove them.

    But for semaphores of the standard library, which this one does not use and tests that run meanwhile do.
    """
    left = {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")} - set(before)
    for _ in range(20 if left else 0):
        time.sleep(0.1)
        maps = "".join(map(_maps, _processes()))
        left = {name for name in left & set(os.listdir("/dev/shm")) if f"/dev/shm/{name}" not in maps}
    return sorted(left)


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


# --- what runs in the process of its own


def held() -> dict[str, list[int]]:
    """By process, this one and its children: kilobytes of memory of its own, and open descriptors."""
    return {str(pid): [_own_memory(pid), len(os.listdir(f"/proc/{pid}/fd"))] for pid in (os.getpid(), *children())}


def _own_memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0])


def files(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Read each file several times as a loader does, in a process of its own, and compare with the plain loop.

    sources: of each the sound file that it was made from, or none.
    """
    context = multiprocessing.get_context("fork")
    for path, source in zip(given["paths"], given["sources"], strict=True):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_file, args=(path, source, sender), daemon=True)
        child.start()
        said: Any = "hangs"
        if receiver.poll(FILE_SECONDS):
            try:
                said = receiver.recv()
            except EOFError:
                child.join()
                said = f"ends the process with {child.exitcode}"
        child.kill()
        child.join()
        yield {"file": path, "said": said}


def _file(path: str, source: str | None, sender: Any) -> None:
    from fastvtp.data.sampling import FrameSampling
    from fastvtp.data.video.decoding import Video, VideoDecodeError

    rng, counts, reasons, loops = np.random.default_rng(0), {"shown": 0, "refused": 0, "differs": 0}, {}, []
    sampling = FrameSampling(CLIP["sampling"], CLIP["num_frames"], CLIP["frame_stride"])
    for _ in range(8):
        try:
            with Video(path) as video:
                clip = video.read(sampling.indices(video.num_frames, rng))
        except VideoDecodeError as error:
            counts["refused"] += 1
            reasons[error.reason] = None
            continue
        loops = loops or [name and plain_loop(name) for name in (path, source)]
        right = is_of_loop([shown(frame) for frame in clip], loops[0], CLIP["frame_stride"], source=loops[1])
        counts["shown" if right else "differs"] += 1
    sender.send({**counts, "reasons": list(reasons)})


def loader(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Run epochs of training over the paths, first of whole pictures, of which all is told, then of cropped ones.

    Says after each epoch what is held, and at the end what is left once the loader is closed.
    """
    from fastvtp.data.annotations import VideoRecord
    from tests.data.loaders import make_loader

    epochs = given["epochs"]
    records = [VideoRecord(str(number), path, ("a clip",)) for number, path in enumerate(given["paths"])]
    settings = {**CLIP, "train": True, "num_workers": given["workers"], "seed": 1, "file_seconds": FILE_SECONDS}
    with make_loader(records[-3:], None, image_size=32, batch_size=2, num_steps=2, **settings) as warm:
        list(warm)
    del warm
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    for name, batch_size, size in (("whole", 1, None), ("cropped", 6, (32, 48))):
        steps = -(-len(records) // batch_size)
        settings |= {"batch_size": batch_size, "image_size": size, "num_steps": epochs * steps}
        with make_loader(records, None, **settings) as clips:
            yield from _epochs(name, clips, steps)
        gc.collect()
        yield {"left": {"children": children(), "descriptors": len(os.listdir("/proc/self/fd")) - files}}


def _epochs(name: str, clips: Any, steps: int) -> Iterator[dict[str, Any]]:
    """Keeps no batch, which would keep the loader's memory, to its end."""
    for number, batch in enumerate(clips, 1):
        if name == "whole":
            frames = [shown(frame) for frame in batch.video[0].numpy()]
            yield {"clip": {"path": batch.sources[0], "frames": frames}}
        if number % steps == 0:
            yield {f"{name} epoch": held()}
    yield {"bad files": clips.bad_files}


def loops(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Tell of each file what a plain loop shows of it."""
    for path in given["paths"]:
        loop = plain_loop(path)
        yield {"loop": {"path": path, "frames": loop.frames, "sound": loop.sound}}


def kills(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Tell what the batches of a run hold while a thread sends a signal to one of its workers, now and then.

    At least `steps` are made, and as many more as it takes until all signals are sent.
    """
    from fastvtp.data.annotations import VideoRecord
    from tests.data.loaders import make_loader

    records = [VideoRecord(str(number), path, ("a clip",)) for number, path in enumerate(given["paths"])]
    settings = {"train": True, "num_workers": given["workers"], "num_frames": 4, "image_size": 32, "batch_size": 4}
    hit: list[int] = []
    with make_loader(records, None, seed=3, **settings, **given.get("settings", {})) as clips:
        thread = threading.Thread(target=_hit, args=(clips, given, hit), daemon=True)
        for number, batch in enumerate(clips):
            if number == 0:
                thread.start()
            yield {"batch": [batch.sample_ids.tolist(), hashlib.sha1(batch.video.numpy().tobytes()).hexdigest()]}
            if number + 1 >= given["steps"] and not thread.is_alive():
                break
    for pid in hit:
        yield {"hit": pid}
    yield {"left": children()}


def _hit(clips: Any, given: Mapping[str, Any], hit: list[int]) -> None:
    rng = np.random.default_rng(given["seed"])
    while len(hit) < given["times"]:
        time.sleep(rng.exponential(0.2))
        if pids := [pid for pid in clips.worker_pids if pid not in hit]:
            pid = int(rng.choice(pids))
            try:
                os.kill(pid, given["signal"])
            except ProcessLookupError:
                continue
            hit.append(pid)


def _main(arguments: Sequence[str]) -> None:
    logging.basicConfig(level=logging.INFO)
    os.environ["PYTHONUNBUFFERED"] = "1"
    work, folder = WORKS[arguments[0]], Path(arguments[1])
    with (folder / "lines").open("w") as lines:
        for line in work(json.loads((folder / "given.json").read_text())):
            print(json.dumps(line), file=lines, flush=True)


WORKS = {work.__name__: work for work in (files, loader, loops, kills)}

if __name__ == "__main__":
    _main(sys.argv[1:])
