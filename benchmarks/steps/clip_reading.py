"""Measures what it costs a CPU to read a clip from a video: user and system time of all processes, in one thread each.

clip_decoding     whole frames at given places, from a file that is opened for it
clip_loading      the whole loader in one worker: decoding, a random crop, the resize to the model's size, batches
clip_storage      our loader from a plain file, from a tar of it, and from a shard that `fastvtp prepare` made of it

fastvtp           `Video`, and `VideoTextLoader`
others            see `benchmarks.peers.video_readers`; their loader is torch's `DataLoader` around the reader, with
                  the crop and resize that users of it have at hand

A case is a size of picture, a distance of keyframes, a length of video and a way to choose 16 frames: "uniform", one
from each 16th of the video, or "strided", every fourth from a random place on. Videos are of 25 frames a second.
Every variant has a process of its own; these take turns, a few clips each, and a turn ends when everything is quiet, so
that what a loader makes ahead is counted. Times are of the processor, not the clock, for the machine may be shared;
`wall` is the clock's. A reader whose frames are not those of a plain decoding loop is called wrong and gets no time.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..harness.case import Options
from ..harness.command import command_line, given_options
from ..harness.record import NOT_REACHED, Row, markdown_table, write_json
from ..harness.running import failed, measured_environment, options_timer
from ..peers.video_readers import READERS
from .clip_files import FPS, encode, repeat
from .clip_programs import OURS, PROGRAMS, Program

ENCODED, LONG = 10, 3600  # seconds
ROUNDS, SMOKE_ROUNDS, WARM_UP = 7, 2, 1
TOLERANCE = 4 / 255  # of the mean difference: the readers turn YUV into RGB by different arithmetic
OPS = ("clip_decoding", "clip_loading")
BASELINE = "torchcodec"
# What all processes need, imported once.
IMPORTS = ["torch", "av", "nvidia.dali.fn", "benchmarks.steps.clip_programs", "fastvtp.data.loader"]


@dataclass(frozen=True)
class Footage:
    """A kind of video, how the frames of a clip are chosen from it, and the clips of a turn."""

    height: int
    width: int
    gop: int
    seconds: int
    sampling: str
    clips: int
    frames: int = 16
    pixels: int = 224

    @property
    def name(self) -> str:
        """The name of the case."""
        length = f"{self.seconds} s" if self.seconds < 3600 else f"{self.seconds // 3600} h"
        return f"{self.width}x{self.height}, GOP {self.gop}, {length}, {self.sampling}"


def footages(smoke: bool) -> list[Footage]:
    """Return the cases."""
    if smoke:
        return [Footage(64, 96, 12, 2, "uniform", 2, 4, 32), Footage(64, 96, 12, 8, "strided", 2, 4, 32)]
    lengths = ((ENCODED, "uniform"), (LONG, "strided"))
    sizes = ((256, 340, 8), (1080, 1920, 4))
    return [
        Footage(height, width, gop, seconds, sampling, clips)
        for height, width, clips in sizes
        for gop in (12, 250)
        for seconds, sampling in lengths
    ]


class Files:
    """The videos of the cases, each made when it is first asked for and kept in a folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def of(self, footage: Footage) -> Path:
        """Return the video of a case."""
        encoded = min(footage.seconds, ENCODED if footage.height > 64 else 2)
        name = f"{footage.width}x{footage.height}_{footage.gop}"
        short = self._folder / f"{name}_{encoded}.mp4"
        if not short.exists():
            encode(short, height=footage.height, width=footage.width, gop=footage.gop, seconds=encoded)
        if footage.seconds == encoded:
            return short
        path = self._folder / f"{name}_{footage.seconds}.mp4"
        return path if path.exists() else repeat(short, path, footage.seconds // encoded)


class Variant:
    """A program in a process of its own, which makes clips when told to and says what they cost."""

    def __init__(self, program: type[Program], name: str, footage: Footage, path: str):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTS)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, program, name, footage, path))
        self._process.start()
        theirs.close()
        self.note = ""

    def tell(self, *message: Any) -> Any:
        """Send a message and wait for the answer; None, and a note, where the process failed."""
        if self.note:
            return None
        try:
            self._connection.send(message)
            answer = self._connection.recv()
        except (EOFError, OSError):
            answer = "failed: its process ended"
        if isinstance(answer, str):
            self.note = answer
            return None
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)
        self._process.kill()


def _serve(connection: Connection, program: type[Program], name: str, footage: Footage, path: str) -> None:
    import torch

    torch.set_num_threads(1)
    made: Program | None = None
    while True:
        try:
            _, *arguments = message = connection.recv()
        except (EOFError, OSError):
            break
        try:
            made = made or program(name, footage, path)
            connection.send(getattr(made, message[0])(*arguments))
        except ModuleNotFoundError as error:
            connection.send(f"missing: {error}")
        except Exception as failure:
            connection.send(failed(failure))
    if made is not None:
        made.close()


def rows_of(op: str, footage: Footage, names: Sequence[str], baseline: str) -> dict[str, Row]:
    """Return the rows of a case, not measured yet, by variant."""
    shape = {"frames": footage.frames, "height": footage.height, "width": footage.width}
    return {
        name: Row(op, footage.name, name, shape, "uint8", "forward", 0, 0, 0.0, baseline, note=NOT_REACHED)
        for name in names
    }


def measure(rows: dict[str, Row], variants: dict[str, Variant], clips: int, rounds: int) -> None:
    """Let the variants take turns, and enter what a clip costs each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for name, variant in variants.items():
        rows[name].error = variant.tell("error")
        if (error := rows[name].error) is not None and not error <= TOLERANCE:
            variant.note = f"wrong: frames differ by {255 * error:.0f} of 255 in the mean from a plain loop's"
    for turn in range(WARM_UP + rounds):
        for name, variant in variants.items():
            spent = variant.tell("spent", turn * clips, clips)
            if spent and turn >= WARM_UP:
                times[name].append((spent[0] / clips, spent[1] / clips))
    for name, row in rows.items():
        row.note = variants[name].note
        if times[name] and not row.note:
            _enter(row, times[name])
    for row in rows.values():
        baseline = rows[row.baseline].median_s if row.baseline in rows else None
        row.speedup = baseline / row.median_s if baseline and row.median_s else None


def _enter(row: Row, times: list[tuple[float, float]]) -> None:
    spent = [cpu for cpu, _ in times]
    row.median_s, row.calls = statistics.median(spent), len(spent)
    deciles = statistics.quantiles(spent, n=10, method="inclusive") if len(spent) > 1 else spent * 9
    row.p20_s, row.p80_s, row.wall_s = deciles[1], deciles[7], statistics.fmean(wall for _, wall in times)


def measured(folder: Path, cases: Sequence[Footage], ops: Sequence[str], rounds: int) -> Iterator[list[Row]]:
    """Yield all rows, again after each case."""
    files, everything = Files(folder), []
    for footage in cases:
        path = str(files.of(footage))
        for op in ops:
            started = time.monotonic()
            names = PROGRAMS[op].names(READERS, footage.seconds)
            rows = rows_of(
                op, footage, names, next((name for name in (BASELINE, "fastvtp, files") if name in names), names[0])
            )
            variants = {name: Variant(PROGRAMS[op], name, footage, path) for name in names}
            try:
                measure(rows, variants, footage.clips, rounds)
            finally:
                for variant in variants.values():
                    variant.close()
            everything += rows.values()
            ours = next((row for row in rows.values() if row.variant.startswith(OURS)), None)
            cost = f"{1e3 * ours.median_s:.1f} ms" if ours and ours.median_s else "no time"
            print(f"{op}, {footage.name}: {cost}, {time.monotonic() - started:.0f} s", file=sys.stderr)
            yield everything


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases one after the other, and save the rows after each."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, help=f"turns of each variant; default: {ROUNDS}")
    parser.add_argument("--ops", nargs="+", choices=tuple(PROGRAMS), default=tuple(PROGRAMS), help="leave others out")
    parser.add_argument(
        "--cases", nargs="+", default=(), metavar="WORD", help="leave out cases without all these words"
    )
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="keep the videos there, 2 GB; default: nowhere")
    given: argparse.Namespace = parser.parse_args(arguments)
    options: Options = given_options(given)
    about, _ = measured_environment(options, options_timer(options))
    cases = [footage for footage in footages(given.smoke) if all(word in footage.name for word in given.cases)]
    rounds = given.rounds or (SMOKE_ROUNDS if given.smoke else ROUNDS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.videos or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for rows in measured(folder, cases, given.ops, rounds):
            if given.json:
                write_json(given.json, rows, about)
    print(f"CPU time of a clip. Videos of {FPS} frames a second.\n\n{markdown_table(rows)}")


if __name__ == "__main__":
    main()
