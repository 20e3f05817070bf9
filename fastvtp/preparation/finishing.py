"""What is written once all shards are there: the list of shards, the list of clips, and a report."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from fastvtp.data.formats.source import CLASS_NAMES, SHARDS_NAME
from fastvtp.data.locations import in_archive, is_remote, member_of
from fastvtp.data.storage.finding import UnreadableError, size_of
from fastvtp.data.timespans import FrameSpan, TimeSpan
from fastvtp.data.workers.helper_process import lent_helper
from fastvtp.errors import UserError, counted
from fastvtp.evaluation.report import REPORT_NAME, write_report
from fastvtp.files import write_atomically
from fastvtp.preparation.reading import Source
from fastvtp.preparation.settings import SETTINGS_NAME
from fastvtp.preparation.shard import lines_left
from fastvtp.preparation.shard_work import Manifests, ShardWork
from fastvtp.preparation.work import decode_ms, texts_left

logger = logging.getLogger(__name__)

PAGE_NAME = "report.html"
TIMED_CLIPS = 16

# the list of the clips, by a field that its lines have
_LISTS = {
    "question": "questions.jsonl",
    "caption": "captions.jsonl",
    "label": "classes.jsonl",
    "labels": "classes.jsonl",
}
_NOTHING = (None, "", [])  # of a field
_NAMED_REJECTED = 1000
_BINS = 20


def finish(works: Sequence[ShardWork], output: Path, given: Source, known: Manifests) -> dict[str, Any]:
    """Write `dataset.json`, a list of the clips, the names of their classes where they have some, `report.json` and
    `report.html`; returns the report.

    `dataset.json` lists the shards as WIDS does, and says how they were made. The list of the clips, which may be named
    captions, questions, classes or videos `.jsonl`, has the lines of the source with clips in place of videos.

    known: the manifests of the shards, as far as they were read.
    """
    manifests = [(work, _manifest(work, known)) for work in works]
    begun = json.loads((output / SETTINGS_NAME).read_bytes())
    listed = _write_list(manifests, output)
    if given.class_names:
        write_atomically(output / CLASS_NAMES, "".join(f"{name}\n" for name in given.class_names).encode())
    shards = [
        {"url": told["tar"], "nsamples": told["samples"], "filesize": told["bytes"], "sha256": told["sha256"]}
        for _, told in manifests
        if told["tar"] is not None
    ]
    dataset = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": output.name,
        "shardlist": shards,
        "samples": sum(shard["nsamples"] for shard in shards),
        "list": listed,
        **begun,
    }
    write_atomically(output / SHARDS_NAME, _json(dataset))
    report = {"data": given.description, **_report(manifests, begun, listed)}
    write_report(output / REPORT_NAME, report)
    _write_page(output / PAGE_NAME, report, output.name)
    return report


def _manifest(work: ShardWork, known: Manifests) -> dict[str, Any]:
    told = known.of(work)
    if told is None:
        raise UserError(f"{work.manifest}: is gone, or no longer what was written")
    return told


def _write_list(manifests: Sequence[tuple[ShardWork, dict[str, Any]]], output: Path) -> str:
    """Write the lines of the source anew, about clips in shards; returns the name of the file. Lines that do not say
    what most say, as those without a caption among captions, are left out."""
    rows: dict[str, list[str]] = {}
    for work, told in manifests:
        for clip in told["clips"]:
            item, member = work.items[clip["item"]], in_archive(told["tar"], f"{clip['key']}.mp4")
            captions, _ = texts_left(item.captions, work.settings.filters)
            scene = clip["id"].removeprefix(item.id)
            for line in lines_left(item, captions):
                named = {"id": f"{line['id']}{scene}" if "id" in line else clip["id"], "video": member}
                kind = next(
                    (listed for field, listed in _LISTS.items() if line.get(field) not in _NOTHING), "videos.jsonl"
                )
                named |= clip.get("span", {})
                rows.setdefault(kind, []).append(json.dumps({**line, **named}, ensure_ascii=False))
    if not rows:
        return "videos.jsonl"
    name = max(rows, key=lambda kind: len(rows[kind]))
    if left := sum(map(len, rows.values())) - len(rows[name]):
        logger.warning("%s: leaves out %s of another kind than most", output / name, counted(left, "line"))
    write_atomically(output / name, "".join(f"{row}\n" for row in rows[name]).encode())
    return name


def _report(
    manifests: Sequence[tuple[ShardWork, dict[str, Any]]], begun: Mapping[str, Any], listed: str
) -> dict[str, Any]:
    clips = [clip for _, told in manifests for clip in told["clips"]]
    rejected = [each for _, told in manifests for each in told["rejected"]]
    sources = {each["video"] for each in clips}
    copied = [clip["copied"] for clip in clips if "copied" in clip]
    held = {"clips": len(copied), "seconds": round(sum(each["end"] - each["start"] for each in copied), 3)}
    return {
        "samples": len(clips),
        "shards": sum(told["tar"] is not None for _, told in manifests),
        "list": listed,
        "videos": begun["inputs"]["videos"],
        "seconds": round(sum(clip["seconds"] for clip in clips), 3),
        "frames": sum(clip["frames"] for clip in clips),
        **({"copied": held} if copied else {}),
        "slower_sources": sum("capped" in clip for clip in clips),
        "bytes": {
            "sources": _sizes(manifests, sources),
            "clips": sum(clip["bytes"] for clip in clips),
            "shards": sum(told["bytes"] for _, told in manifests),
        },
        "decoding": _decoding(manifests),
        "rejected": {
            "count": len(rejected),
            "by_rule": dict(Counter(each["rule"] for each in rejected).most_common()),
            "clips": rejected[:_NAMED_REJECTED],
        },
        "histograms": _histograms(clips),
        "settings": begun["settings"],
    }


def _sizes(manifests: Sequence[tuple[ShardWork, dict[str, Any]]], sources: Collection[str]) -> int:
    """Return the bytes of these videos, as they were when the shards were made: of a store, asking for each would take
    a request."""
    known = {
        item.video: stamp[0]
        for work, told in manifests
        for item, stamp in zip(work.items, told["sources"], strict=True)
        if stamp is not None and is_remote(item.video) and member_of(item.video) is None
    }
    return sum(known[video] if video in known else _size(video) for video in sources)


def _size(video: str) -> int:
    try:
        return size_of(video)
    except (UnreadableError, OSError):  # moved since, or a folder of frames
        return 0


def _decoding(manifests: Sequence[tuple[ShardWork, dict[str, Any]]]) -> dict[str, Any]:
    """Measure what decoding takes before and after, on some clips spread over all shards."""
    every = [(work, clip) for work, told in manifests for clip in told["clips"]]
    places = np.unique(np.linspace(0, len(every) - 1, TIMED_CLIPS).astype(int)) if every else []
    before, after = [], []
    with lent_helper(every[0][0].file_seconds if every else 1.0) as helper:
        for work, clip in (every[place] for place in places):
            with work.tar.open("rb") as file:
                encoded = os.pread(file.fileno(), clip["bytes"], clip["offset"])
            side, own = work.settings.encoding.side, clip.get("copied", {})
            ours = FrameSpan(own["first"], own["stop"]) if own else TimeSpan(0.0, None)
            try:
                pair = [
                    helper.call(decode_ms, clip["video"], TimeSpan(clip["start"], clip["end"]), side),
                    helper.call(decode_ms, encoded, ours, side),
                ]
            except UserError:  # the source is gone since, which the shards need not care about
                continue
            before.append(pair[0])
            after.append(pair[1])
    if not before:
        return {"clips": 0}
    return {
        "clips": len(before),
        "cpu_ms_before": round(float(np.median(before)), 2),
        "cpu_ms_after": round(float(np.median(after)), 2),
        "times_faster": round(float(np.median(before) / np.median(after)), 2),
    }


def _histograms(clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the values of what is known of all clips, in bins of equal width."""
    values: dict[str, Iterable[Any]] = {
        "seconds": [clip["seconds"] for clip in clips],
        "kilobytes": [clip["bytes"] / 1000 for clip in clips],
        "shorter side of the source": [min(clip["source"]["height"], clip["source"]["width"]) for clip in clips],
        **{
            name: [clip["scores"][name] for clip in clips if name in clip["scores"]]
            for name in ("motion", "words", "similarity")
        },
    }
    found = {}
    for name, each in values.items():
        if listed := list(each):
            counts, edges = np.histogram(listed, bins=_BINS)
            found[name] = {"counts": counts.tolist(), "edges": [float(f"{edge:.6g}") for edge in edges]}
    return found


def _write_page(path: Path, report: Mapping[str, Any], title: str) -> None:
    """Write the report as one page that needs nothing else: its pictures are drawn in it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("fastvtp.preparation").joinpath("report.html").read_text("utf-8")
    bars = {name: list(_bars(table)) for name, table in report["histograms"].items()}
    page = environment.from_string(template).render(
        title=title, bars=bars, report=report, size=_shown_size, counted=counted
    )
    write_atomically(path, page.encode())


def _bars(table: Mapping[str, Any]) -> Iterator[tuple[float, float, str]]:
    """Return each bar of a histogram as its left edge and height, in percent, and what it says."""
    counts, edges = table["counts"], table["edges"]
    for place, count in enumerate(counts):
        said = f"{edges[place]:g} to {edges[place + 1]:g}: {count}"
        yield 100 * place / len(counts), 100 * count / max(counts), said


def _shown_size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
