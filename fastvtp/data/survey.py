"""What a data set holds, counted before anything is trained on it: records, captions, classes, files, duplicates."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.data.classes import load_targets
from fastvtp.data.file_survey import FileProbe, evenly_spread, fingerprints, probe_files, sizes_of
from fastvtp.data.formats.faults import Faults
from fastvtp.data.formats.listing import Listing, left_out_of
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.formats.source import ListSource
from fastvtp.data.locations import is_remote, normal
from fastvtp.data.questions import load_questions
from fastvtp.data.records import VideoRecord, mentions_direction
from fastvtp.data.text import Tokenizer
from fastvtp.errors import UserError, counted

ALL = -1
"""As a number of files to probe: every one."""
_MANY = 1 << 20  # tokens: more than a text has


@dataclass(frozen=True)
class ListedSet:
    """A data set, whatever it says of its videos.

    Attributes:
        path: where it was read from.
        kind: "captions", "questions", "classes" or "videos", which comes without any.
        records: with the texts that belong to that kind as captions.
        classes: the number of records of each class by its name; empty for other kinds.
        left_out: videos, as the list names them, that are not there and that a run leaves out: no record has them.
        malformed: what is wrong with lines that cannot be read, with file, line and field, a text each; no record has
            them, and a run refuses the list.
        more_malformed: whether there may be further ones, since reading ended before the list did.
        repeated: lines that say what an earlier one says of the same video and span.
        first_repeated: the place of the first of these.
    """

    path: str
    kind: str
    records: Sequence[VideoRecord]
    classes: Mapping[str, int]
    left_out: Sequence[str] = ()
    malformed: Sequence[str] = ()
    more_malformed: bool = False
    repeated: int = 0
    first_repeated: str = ""


def read_any(path: str | os.PathLike[str], *, forgiving: bool = False) -> ListedSet:
    """Read a list or a folder of videos, a path or a `VideoList`, of whichever kind it is.

    forgiving: malformed lines are left out and told, and repeated ones counted; else the first malformed one raises.

    Raises:
        FileNotFoundError: nothing there.
        UserError: it cannot be read as any kind; the message is of the likeliest.
    """
    faults = Faults(collects=forgiving)
    source = ListSource(VideoList.of(path), faults=faults)
    first: UserError | None = None
    for kind in _kinds_of(source):
        faults.begin()
        try:
            listed = _READERS[kind](source)
        except UserError as error:
            first = first or _error_of(error, faults)
            if faults.found:  # since the list is not of that kind
                faults = Faults(collects=forgiving)
                source = ListSource(source.listed, faults=faults)
            continue
        told = {"malformed": tuple(faults.found), "more_malformed": faults.more}
        repeated = {"repeated": faults.repeated, "first_repeated": faults.first_repeated}
        return replace(listed, left_out=left_out_of(source), **told, **repeated)
    raise first or UserError(f"{source}: lists no videos")


def survey(
    listed: ListedSet,
    *,
    against: Sequence[ListedSet] = (),
    probe: int = 0,
    file_seconds: float = 60.0,
    workers: int | None = None,
    tokenizer: Tokenizer | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Count what is in a data set, and look for what is missing, unusable or there twice.

    Args:
        listed: the data set.
        against: others, such as the test split, that should share no video with it.
        probe: how many of its videos to open, evenly spread over the list, `ALL` for every one. From one on, equal
            bytes are looked for in all local files of all sets, by their sizes and the digests of their ends.
        file_seconds, workers: of `fastvtp.data.file_survey.probe_files`.
        tokenizer: counts the tokens of captions.
        progress: show bars.

    Returns:
        A report that JSON holds. "unusable" is the number of malformed lines, of files that are missing or cannot be
        decoded and of videos with spans that hold no frame; each is named with its reason in "malformed", in "missing"
        or in "probe", where "spans_past_the_end" names those that end after their videos. Of the missing, "left_out"
        counts those that a run of the same list leaves out, as `VideoList.missing` says; it keeps the others, and meets
        bad files. Files behind a URL are looked at only where they are probed; "not_looked_at" counts them.
    """
    sets = (listed, *against)
    locations = {each.path: _videos(each.records) for each in sets}
    own = locations[listed.path]
    sizes, kept = sizes_of(own, progress=progress)
    missing = dict.fromkeys(listed.left_out, "not there, and left out") | kept
    known = dict(sizes)
    for each in against:
        known |= sizes_of(locations[each.path], progress=progress)[0]
    alike = fingerprints(known, progress=progress) if probe else None
    there = [video for video in own if video not in kept]
    wanted = evenly_spread(there, len(there) if probe == ALL else probe)
    spans = defaultdict(list)
    for record in listed.records:
        spans[normal(record.video)].append(record.span)
    probed = {video: spans[video] for video in wanted}
    found = probe_files(probed, seconds=file_seconds, workers=workers, progress=progress)
    report: dict[str, Any] = {
        "data": listed.path,
        "kind": listed.kind,
        "records": len(listed.records),
        "videos": len(own),
        "spans": sum(record.span is not None for record in listed.records),
        "bytes": sum(sizes.values()),
        "captions": _captions(listed, tokenizer) if listed.kind in ("captions", "questions") else None,
        "classes": _classes(listed.classes) if listed.classes else None,
        "malformed": list(listed.malformed),
        "more_malformed": listed.more_malformed,
        "repeated_lines": {"count": listed.repeated, "first": listed.first_repeated} if listed.repeated else None,
        "missing": missing,
        "left_out": len(listed.left_out),
        "not_looked_at": sum(is_remote(video) and video not in found for video in own),
        "same_clip": _same_clip(listed.records),
        "same_id": sorted(name for name, number in Counter(r.id for r in listed.records).items() if number > 1),
        "same_bytes": None if alike is None else _groups(own, alike),
        "against": [_compared(listed, other, (own, locations[other.path]), alike) for other in against],
        "probe": _summary(found) if probe else None,
    }
    bad = sum(probe.reason is not None or bool(probe.empty_spans) for probe in found.values())
    return {**report, "unusable": len(listed.malformed) + len(missing) + bad}


# --- Reading


def _kinds_of(source: ListSource) -> Iterable[str]:
    """Return the kinds that a data set may be of, the likeliest first."""
    listing = Listing(source)
    if listing.source.is_folder:
        return ("captions", "classes", "videos")
    fields = set(listing.first())
    for kind, names in (("questions", {"question"}), ("classes", {"label", "labels"}), ("captions", {"caption"})):
        if names & fields:
            return (kind,)
    return ("videos",)


def _error_of(error: UserError, faults: Faults) -> UserError:
    """Return why a list cannot be read: the first of its malformed lines, where it has no other."""
    if not faults.found:
        return error
    lines = counted(len(faults.found), "malformed line")
    return UserError(f"{next(iter(faults.found))}; {lines}, and no other")


def _name_of(source: ListSource) -> str:
    split = source.listed.split
    path = str(source)
    if ".." in path.split("/") and not is_remote(path):
        path = os.path.realpath(path)
    return path if split is None else f"{path}, split {split}"


def _of_classes(source: ListSource) -> ListedSet:
    targets = load_targets(source)
    names = targets.class_names
    shown = Counter(dict.fromkeys(names, 0))
    shown.update(names[label] for labels in targets.labels for label in labels)
    return ListedSet(_name_of(source), "classes", targets.records, shown)


_READERS: dict[str, Callable[[ListSource], ListedSet]] = {
    "captions": lambda source: ListedSet(_name_of(source), "captions", load_annotations(source), {}),
    "questions": lambda source: ListedSet(_name_of(source), "questions", load_questions(source).records, {}),
    "classes": _of_classes,
    "videos": lambda source: ListedSet(_name_of(source), "videos", load_videos(source), {}),
}


# --- Counting


def quantiles(values: Iterable[float]) -> dict[str, float] | None:
    """Return least, median, mean, the 95th of a hundred, and largest of some numbers; None of none."""
    numbers = np.array(list(values), np.float64)
    if not len(numbers):
        return None
    middle, late = np.percentile(numbers, [50, 95])
    found = {"min": numbers.min(), "median": middle, "mean": numbers.mean(), "p95": late, "max": numbers.max()}
    return {name: round(float(value), 3) for name, value in found.items()}


def _videos(records: Sequence[VideoRecord]) -> list[str]:
    """Return the locations of the videos of records, each once."""
    return list(dict.fromkeys(normal(record.video) for record in records))


def _captions(listed: ListedSet, tokenizer: Tokenizer | None) -> dict[str, Any]:
    texts = [caption for record in listed.records for caption in record.captions]
    of_records = Counter(caption for record in listed.records for caption in set(record.captions))
    total = max(1, len(texts))
    return {
        "count": len(texts),
        "distinct": len(of_records),
        "empty": sum(not text.strip() for text in texts),
        "of_several_records": sum(number > 1 for number in of_records.values()),
        "words": quantiles(len(text.split()) for text in texts),
        "tokens": None if tokenizer is None else quantiles(map(len, tokenizer.encode(texts, _MANY))),
        "captions_a_record": quantiles(len(record.captions) for record in listed.records),
        "not_ascii": sum(not text.isascii() for text in texts) / total,
        "name_a_direction": sum(map(mentions_direction, texts)) / total,
        "not_mirrored": sum(not record.may_be_mirrored for record in listed.records) / max(1, len(listed.records)),
    }


def _classes(classes: Mapping[str, int]) -> dict[str, Any]:
    ordered = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    return {
        "count": len(classes),
        "without_a_video": [name for name, number in ordered if not number],
        "videos_a_class": quantiles(classes.values()),
        "largest": dict(ordered[:3]),
        "smallest": dict(ordered[-3:]),
    }


def _same_clip(records: Sequence[VideoRecord]) -> list[list[str]]:
    """Return the ids of records that are the same span of the same video, in groups."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for record in records:
        groups[record.clip].append(record.id)
    return [ids for ids in groups.values() if len(ids) > 1]


def _groups(videos: Iterable[str], alike: Mapping[str, str]) -> list[list[str]]:
    """Return the videos of which several have the same fingerprint, in groups."""
    groups: dict[str, list[str]] = defaultdict(list)
    for video in videos:
        if video in alike:
            groups[alike[video]].append(video)
    return [group for group in groups.values() if len(group) > 1]


def _compared(
    listed: ListedSet, other: ListedSet, videos: tuple[list[str], list[str]], alike: Mapping[str, str] | None
) -> dict[str, Any]:
    """Return what two data sets share, whose `videos` these are."""
    own, others = videos
    both = {*own} & {*others}
    texts = [{caption for record in each.records for caption in record.captions} for each in (listed, other)]
    compared: dict[str, Any] = {"data": other.path, "records": len(other.records), "videos": len(others)}
    compared |= {"same_video": sorted(both), "same_bytes": None}
    if alike is not None:
        by_print = {alike[video]: video for video in others if video in alike}
        pairs = [[video, by_print[alike[video]]] for video in own if alike.get(video) in by_print]
        compared["same_bytes"] = [pair for pair in pairs if pair[0] not in both]
    if {listed.kind, other.kind} == {"captions"}:
        compared["same_captions"] = len(texts[0] & texts[1])
    return compared


def _summary(found: Mapping[str, FileProbe]) -> dict[str, Any]:
    good = [probe for probe in found.values() if probe.reason is None]

    def counted(name: str) -> dict[str, int]:
        return {str(value): number for value, number in Counter(getattr(probe, name) for probe in good).most_common()}

    return {
        "files": len(found),
        "undecodable": {video: probe.reason for video, probe in found.items() if probe.reason is not None},
        "spans_without_a_frame": {video: probe.empty_spans for video, probe in found.items() if probe.empty_spans},
        "spans_past_the_end": {video: probe.late_ends for video, probe in found.items() if probe.late_ends},
        "seconds": quantiles(probe.seconds for probe in good),
        "frames": quantiles(probe.frames for probe in good),
        "megabytes": quantiles(probe.bytes / 1e6 for probe in good if probe.bytes is not None),
        "fps": counted("fps"),
        "sizes": counted("size"),
        "shapes": counted("shape"),
        "codecs": counted("codec"),
        "rotations": counted("rotation"),
        "mirrored": sum(probe.mirrored for probe in good),
        "pixels_not_square": sum(probe.stretch != 1 for probe in good),
        "interlaced": sum(probe.interlaced for probe in good),
        "variable_rate": sum(probe.variable for probe in good),
        "frames_a_keyframe": quantiles(probe.gop for probe in good),
        "decode_ms": quantiles(probe.decode_ms for probe in good),
    }
