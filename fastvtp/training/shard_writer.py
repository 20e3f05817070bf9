"""How torch.distributed.checkpoint writes a checkpoint's shards here: sealed, published once, and agreed on by all.

A disk that is full is no accident that may end a run, nor may one process take it for written and another not: an
OSError is an answer like any other, which travels with the library's own exchange of results to all processes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.futures import Future

from fastvtp.files import remove_partial
from fastvtp.tensor_files import SHARDS_NAME, Seal, seal

_LARGEST_FILE = 1 << 29  # bytes that a process puts into one file: it is written from one more copy in memory


@dataclass(frozen=True)
class _Written:
    """What a process wrote, or why it could not."""

    seals: Mapping[str, Seal]
    failure: str | None = None


class ShardWriter(HuggingFaceStorageWriter):
    """Writes the shards of one checkpoint, with what the first process puts beside them.

    The result of the save, a `Metadata`, says in `storage_data` why nothing was published; None: all is well.
    """

    def __init__(
        self,
        partial: Path,
        tensors: Mapping[str, Tensor],
        write_beside: Callable[[Path], None],
        publish: Callable[[Mapping[str, Seal]], None],
        failed: Callable[[str], None],
    ):
        """Write `tensors`, the same on all processes, to `partial`, which becomes a folder with nothing else in it.

        write_beside: fills it with the other files, on the first process alone. publish: is given the seals of all
        files when they are on the disk, on the first process alone. Both may raise OSError. failed: is told, there too
        and at once, why there will be no checkpoint.
        """
        super().__init__(str(partial / SHARDS_NAME), fqn_to_index_mapping=_files(tensors), save_distributed=True)
        self._partial, self._first = partial, False
        self._write_beside, self._publish, self._failed = write_beside, publish, failed

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        self._first = is_coordinator

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        if self._first:  # nobody writes before all plans are made
            remove_partial(self._partial)
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[Any]]:
        answer: Future[list[Any]] = Future()
        try:
            answer.set_result([_Written(self._write(plan, planner))])
        except OSError as error:
            answer.set_result([_Written({}, f"{error}")])
        return answer

    def _write(self, plan: SavePlan, planner: SavePlanner) -> dict[str, Seal]:
        shards = self._partial / SHARDS_NAME
        shards.mkdir(parents=True, exist_ok=True)
        results = super().write_data(plan, planner).value()
        files = {shards / result.storage_data.relative_path for result in results}
        if self._first:
            self._write_beside(self._partial)
            files |= {path for path in self._partial.rglob("*") if path.is_file() and path.parent != shards}
        return {path.relative_to(self._partial).as_posix(): seal(path) for path in files}

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        written = [answer for answers in results for answer in answers]
        failure = next((answer.failure for answer in written if answer.failure is not None), None)
        if failure is None:
            try:
                self._publish({name: sealed for answer in written for name, sealed in answer.seals.items()})
            except OSError as error:
                failure = f"{error}"
        if failure is not None:
            remove_partial(self._partial)
            self._failed(failure)
        metadata.storage_data = failure


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of the file, from 1, that each tensor goes to."""
    places, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        size += tensor.nbytes
        if size > _LARGEST_FILE and size > tensor.nbytes:
            number, size = number + 1, tensor.nbytes
        places[name] = number
    return places
