"""A whole preparation: from what lists name to shards, a list of them, and a report."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastvtp.data.locations import located, refused_url, spelled
from fastvtp.data.workers.helper_process import end_idle_helpers
from fastvtp.errors import UserError, counted, few
from fastvtp.preparation.decisions import decide, undecided, undo_decisions
from fastvtp.preparation.encoding import check_codec
from fastvtp.preparation.engines import Engine, share_of
from fastvtp.preparation.finishing import finish
from fastvtp.preparation.items import digest_of
from fastvtp.preparation.locks import SharedFolder
from fastvtp.preparation.reading import Source, read_source
from fastvtp.preparation.scenes import check_scenes
from fastvtp.preparation.settings import Preparation, claim
from fastvtp.preparation.shard import delete, forget, survey_shard, write_shard
from fastvtp.preparation.shard_work import SURVEY_FOLDER, Manifests, ShardWork, is_surveyed, surveyed
from fastvtp.preparation.staleness import staleness_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """How a preparation runs, of which nothing is seen in the shards.

    Attributes:
        engine: who does the work.
        part: (I, N) for the I-th of N jobs of an array, which does the shards I, I + N, ...; None for all shards.
        file_seconds: that a video may take to be surveyed, and each sample of it to be written.
        retry: whether shards with videos that could not be read, or changed since, are made anew.
        open_model: opens a model folder; needed for embeddings and similarities alone.
        progress: whether bars are drawn.
    """

    engine: Engine = field(default_factory=Engine)
    part: tuple[int, int] | None = None
    file_seconds: float = 600.0
    retry: bool = False
    open_model: Callable[[str], Any] | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        """Raise UserError for values out of range."""
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise UserError(f"shard must be I/N with 0 <= I < N, got {self.part[0]}/{self.part[1]}")
        if not self.file_seconds > 0:
            raise UserError(f"file_seconds must be more than 0, got {self.file_seconds:g}")


def prepare(
    source: str | os.PathLike[str], output: str | os.PathLike[str], settings: Preparation, running: Running
) -> dict[str, Any] | None:
    """Prepare what `source` lists in the folder `output`: shards `NNNNNN.tar` with a manifest each, and at last
    `dataset.json`, which lists them, a list of the clips, `report.json` and `report.html`.

    What was interrupted goes on: finished shards stay as they are. The same videos and settings give the same shards,
    whatever does the work.

    Returns:
        The report, or None where other jobs of the array have shards to do still.

    Raises:
        FileNotFoundError: nothing at `source`.
        UserError: a malformed list; another preparation in `output`; an encoder, model or library that is not there.
    """
    try:
        return _prepare(source, local_folder(output), settings, running)
    finally:
        end_idle_helpers()


def _prepare(
    source: str | os.PathLike[str], output: Path, settings: Preparation, running: Running
) -> dict[str, Any] | None:
    check_codec(settings.encoding.codec)
    if settings.cuts.scenes:
        check_scenes()
    given = read_source(source)
    works = _works(given, output, settings, running.file_seconds)
    with SharedFolder(output) as folder:
        return _prepare_shards(given, works, output, settings, running, folder)


def _prepare_shards(
    given: Source,
    works: Sequence[ShardWork],
    output: Path,
    settings: Preparation,
    running: Running,
    folder: SharedFolder,
) -> dict[str, Any] | None:
    folder.if_alone(lambda: clear(output))
    own, manifests = share_of(works, running.part), Manifests()
    _look_at_stale(own, manifests, settings, running)
    if done := sum(manifests.of(work) is not None for work in own):
        logger.info("%s: %d of %s finished already", output, done, counted(len(own), "shard"))
    decided: dict[str, dict[str, Any]] = {}
    if settings.filters.need_survey:
        _survey(own, works, running)
        if missing := _unsurveyed(works):
            return _wait(output, f"{missing} are surveyed by other jobs: when they are, start the array once more")
        decided = decide(works)
    todo = _unfinished(own, decided, manifests)
    with _bar(todo, "preparing", running) as bar:
        running.engine.run([(work, decided.get(work.name)) for work in todo], write_shard, bar.update)
    if missing := [work.name for work in _unfinished(works, decided, manifests)]:
        return _wait(output, f"shards {few(missing)} are up to other jobs; the last one writes dataset.json")
    return _finish(given, works, output, folder, manifests)


def conclude(source: str | os.PathLike[str], output: str | os.PathLike[str], settings: Preparation) -> dict[str, Any]:
    """Write the list of shards and the report, once all jobs of an array have done theirs.

    Raises UserError where shards are not finished; names them.
    """
    output = local_folder(output)
    given = read_source(source)
    works, manifests = _works(given, output, settings), Manifests()
    if missing := [work.name for work in works if manifests.of(work) is None]:
        raise UserError(f"{output}: shards {few(missing)} of {len(works)} are not finished")
    with SharedFolder(output) as folder:
        return _finish(given, works, output, folder, manifests)


def local_folder(output: str | os.PathLike[str]) -> Path:
    """Return the absolute path of the folder of the shards. Raises UserError for a URL."""
    place = located(spelled(output), os.getcwd())
    if refused := refused_url(place):
        cure = "prepare to one, then copy it there; training reads them from there (data.train=URL of the copy)"
        raise UserError(f"{refused}: {cure}")
    return Path(place)


def _finish(
    given: Source, works: Sequence[ShardWork], output: Path, folder: SharedFolder, manifests: Manifests
) -> dict[str, Any]:
    folder.if_alone(lambda: clear(output))
    report = finish(works, output, given, manifests)
    if not report["samples"]:
        first = report["rejected"]["clips"][0]
        rules = ", ".join(f"{rule} {count}" for rule, count in report["rejected"]["by_rule"].items())
        raise UserError(f"{output}: no clip is left ({rules}); the first, {first['id']}: {first['reason']}")
    return report


def _works(given: Source, output: Path, settings: Preparation, file_seconds: float = 600.0) -> list[ShardWork]:
    if given.folder is not None and output.resolve().is_relative_to(given.folder.resolve()):
        # else what is made would be found there by the next run
        raise UserError(f"{output}: lies in the folder that is prepared, {given.folder}: choose another folder")
    items, each = given.items, settings.samples_per_shard
    claim(output, settings, {"videos": len(items), "list": digest_of(items)})
    return [
        ShardWork(number, items[first : first + each], settings, output, file_seconds)
        for number, first in enumerate(range(0, len(items), each))
    ]


def clear(output: Path) -> None:
    """Delete what interrupted runs left under temporary names."""
    for path in [*output.glob(".*.tmp"), *(output / SURVEY_FOLDER).glob(".*.tmp")]:
        delete(path)


def _unfinished(
    works: Sequence[ShardWork], decided: Mapping[str, Mapping[str, Any]], manifests: Manifests
) -> list[ShardWork]:
    return [work for work in works if manifests.of(work, decided.get(work.name)) is None]


def _look_at_stale(own: Sequence[ShardWork], manifests: Manifests, settings: Preparation, running: Running) -> None:
    """Say which videos of finished shards could not be read or changed since; or make these shards unfinished."""
    done = [(work, manifest) for work in own if (manifest := manifests.of(work)) is not None]
    found = [(work, staleness_of(work.items, manifest, remote=running.retry)) for work, manifest in done]
    stale = [(work, why) for work, why in found if why]
    if not stale:
        return
    output, unreadable = own[0].output, sum(why.unreadable for _, why in stale)
    changed = list(dict.fromkeys(video for _, why in stale for video in why.changed))
    if not running.retry:
        if unreadable:
            logger.warning(
                "%s: still rejected as unreadable: %s; --retry makes the shards anew",
                output, counted(unreadable, "clip"),
            )  # fmt: skip
        if changed:
            logger.warning("%s: %s changed since the shards were made: %s; --retry makes them anew",
                           output, counted(len(changed), "video"), few(changed))  # fmt: skip
        return
    logger.info("%s: %s made anew: %s could not be read, %s changed", output, counted(len(stale), "shard"),
                counted(unreadable, "clip"), counted(len(changed), "video"))  # fmt: skip
    if settings.filters.need_survey:
        if running.part is not None:
            raise UserError("retry of what is decided over all clips is one job's: leave shard out")
        undo_decisions(output)
    for work, _ in stale:
        forget(work)


def _survey(own: Sequence[ShardWork], works: Sequence[ShardWork], running: Running) -> None:
    if not undecided(works[0].output):
        return
    todo = [work for work in own if surveyed(work) is None]
    with _bar(todo, "surveying", running) as bar:
        running.engine.run([(work,) for work in todo], survey_shard, bar.update)
    filters = own[0].settings.filters if own else works[0].settings.filters
    if not (filters.model or filters.similarity):
        return
    from fastvtp.preparation.embeddings import compare_shard, embed_shard  # here: it imports torch

    if running.open_model is None:
        raise UserError("embeddings and similarities need a model, and nobody says how one is opened")
    for folder, work_on, what in (
        (filters.model, embed_shard, "embedding"),
        (filters.similarity, compare_shard, "comparing"),
    ):
        if folder:
            opened = running.open_model(folder)
            with _bar(own, what, running) as bar:
                for work in own:
                    work_on(work, opened)
                    bar.update(len(work.items))


def _unsurveyed(works: Sequence[ShardWork]) -> str:
    if not undecided(works[0].output):
        return ""
    missing = [work.name for work in works if not is_surveyed(work)]
    return f"shards {few(missing)}" if missing else ""


def _wait(output: Path, what: str) -> None:
    logger.info("%s: this job is done; %s", output, what)


def _bar(works: Sequence[ShardWork], what: str, running: Running) -> tqdm:
    total = sum(len(work.items) for work in works)
    return tqdm(total=total, desc=what, unit="video", disable=not running.progress or not total)
