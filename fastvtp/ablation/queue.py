"""A folder from which the processes of an ablation take its runs, and to which they bring what came of them."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvtp import processes
from fastvtp.ablation.studies import Run
from fastvtp.files import write_atomically


def folder_name(run: Run) -> str:
    """Return the name of a run as files and folders bear it."""
    return run.name.replace(" ", "_").replace(",", "").replace("%", "pc")


class Queue:
    """Hands out each run once: to the process that is the first to make a file of its name. Files of results stay until
    somebody clears them, so that none is lost where the processes are ended before the first has taken it in."""

    def __init__(self, folder: Path):
        self._folder = folder

    def take(self, runs: Sequence[Run]) -> Iterator[Run]:
        """Take from `runs`, which are the same on all processes, one after another that nobody has; none more where
        another process has failed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for run in runs:
            processes.check_others()
            try:
                (self._folder / f"{folder_name(run)}.taken").touch(exist_ok=False)
            except FileExistsError:
                continue
            yield run

    def put(self, run: Run, result: Mapping[str, Any]) -> None:
        """Bring what came of a run."""
        content = json.dumps({"run": run.name, "result": result}).encode()
        write_atomically(self._folder / f"{folder_name(run)}.json", content)

    def results(self) -> dict[str, Any]:
        """Return what came of runs so far, by their names."""
        records = [json.loads(path.read_bytes()) for path in sorted(self._folder.glob("*.json"))]
        return {record["run"]: record["result"] for record in records}

    def clear(self) -> None:
        """Forget who has which run and what came of them. One process does this, while no other uses the queue."""
        shutil.rmtree(self._folder, ignore_errors=True)
