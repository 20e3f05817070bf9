"""Measures what a list of captioned videos takes in memory, and how fast its records are read.

The list has a line a video: a path of about 50 characters, a caption of 14 words, and with `--spans` the bounds of a
span. Memory is that of the whole process (resident set) beyond what it had before the list was read, with the memory
that nobody uses given back to the system; "with the source" adds what a loader's source of clips keeps. Times are CPU
seconds; "one" is a caption at a random place.
"""

import argparse
import ctypes
import gc
import json
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WORDS = (
    *("a", "man", "woman", "dog", "running", "walking", "on", "the", "beach", "street", "city", "at", "sunset", "with"),
    *("his", "her", "friends", "while", "holding", "camera", "slow", "motion", "aerial", "view", "of", "mountains"),
)
_DRAWN = 50_000


def write_list(path: Path, count: int, *, spans: bool) -> Path:
    """Write a list of `count` videos, which are not there."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            video = f"videos/train/{number % 4000:06d}/{1_012_345_678 + number}.mp4"
            row: dict[str, Any] = {"video": video, "caption": " ".join(rng.choices(_WORDS, k=14))}
            if spans:
                start = rng.randrange(600_000) / 1000
                row |= {"start": start, "end": round(start + rng.randrange(2000, 12_000) / 1000, 3)}
            file.write(json.dumps(row) + "\n")
    return path


def measure(path: Path) -> dict[str, float]:
    """Read a list; MB, seconds and microseconds by what they are of."""
    from fastvtp.data.annotations import annotations_digest, load_annotations
    from fastvtp.data.reading import ClipReading, ClipShape
    from fastvtp.data.source import ClipSource
    from fastvtp.data.stream import Batches, SampleStream

    empty = write_list(path.with_name("first.jsonl"), 10, spans=False)
    load_annotations(empty)  # what is imported once
    before, began = _resident(), time.process_time()
    records = load_annotations(path)
    told = {"load, s": time.process_time() - began, "records, MB": _resident() - before}
    told["peak, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    began = time.process_time()
    annotations_digest(records)
    told["digest, s"], began = time.process_time() - began, time.process_time()
    stream = SampleStream(len(records), Batches(batch_size=1, train=True))
    source = ClipSource(records, stream, reading=ClipReading(), shape=ClipShape(2, 32))
    told["source, s"], told["with the source, MB"] = time.process_time() - began, _resident() - before
    del source
    places = random.Random(1).choices(range(len(records)), k=_DRAWN)
    began = time.process_time()
    for place in places:
        _ = records[place].captions[0]
    told["one, us"] = (time.process_time() - began) / _DRAWN * 1e6
    return told


def _resident() -> float:
    """Return the MB that this process has in memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--spans", action="store_true", help="each line is of a span")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        told = measure(write_list(Path(folder) / "list.jsonl", given.records, spans=given.spans))
    print(f"{given.records} records:", "; ".join(f"{name} {value:.4g}" for name, value in told.items()))


if __name__ == "__main__":
    main()
