"""What a plan finds in the data of a run: its list, its vocabulary, and a small sample of its files and texts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fastvtp.data.file_survey import FileProbe, evenly_spread, probe_files
from fastvtp.data.formats.listing import describe_list
from fastvtp.data.locations import is_remote, normal, without_secrets
from fastvtp.data.records import VideoRecord
from fastvtp.data.storage.finding import UnreadableError, size_of
from fastvtp.data.text import Tokenizer
from fastvtp.data.timespans import FrameSpan
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError, counted, few
from fastvtp.training.config import TrainConfig
from fastvtp.training.initialization import given_tokenizer
from fastvtp.training.loader_rate import loader_rate
from fastvtp.training.task import Task, build_task

_TEXTS, _TRAINED_ON = 1000, 20_000  # texts whose lengths are counted, and that a tokenizer is trained on, at most
_NAMED = 3


@dataclass(frozen=True)
class PlannedData:
    """What was found in the data of a run.

    Attributes:
        config: the settings of the run, with the vocabulary and the classes of its data in those of the model.
        measured: values of `fastvtp.training.plan.Assumptions` by name, in place of what is assumed otherwise.
        sources: what each of them was measured on, in words.
        stored_bytes: of all videos together, by the mean of the sample; None: no size is known.
        said: for the report, as JSON holds it.
    """

    config: TrainConfig
    measured: Mapping[str, float]
    sources: Mapping[str, str]
    stored_bytes: float | None
    said: Mapping[str, Any]


@dataclass(frozen=True)
class _Clip:
    """A record whose video was opened: its bytes, None where they are not known, and the seconds and frames of its
    span."""

    bytes: float | None
    seconds: float
    frames: float
    fps: float


def look_at_data(config: TrainConfig, *, files: int, seconds: float = 0.0, progress: bool = False) -> PlannedData:
    """Read the lists of a run as it reads them, make or load its tokenizer, open some of its videos, try its loader.

    Args:
        config: the settings of the run.
        files: how many videos to open, evenly spread over the list, in processes of their own; 0: none.
        seconds: that the trial of the loader takes; 0: none is made.
        progress: show a bar.

    Raises:
        FileNotFoundError: there is no list.
        UserError: what reading the data of the run raises.
    """
    task = build_task(config)
    records = [record for each in (task.records, *task.more) for record in each]
    tokenizer, vocabulary = _tokenizer(config, task)
    videos = len({normal(record.video) for record in records})
    sample = evenly_spread(records, files) if config.data.features is None else []
    found = probe_files({normal(record.video): () for record in sample}, progress=progress)
    sizes = {video: _bytes(video, probe) for video, probe in found.items()}
    clips = [_clip(record, found, sizes) for record in sample if found[normal(record.video)].reason is None]
    measured: dict[str, float] = {"clips": len(records)}
    sources = {"clips": "the list"}
    opened = f"{counted(len(clips), 'clip')} of {len(records):,}"
    for name, values in (
        ("clip_mb", [clip.bytes / 1e6 for clip in clips if clip.bytes is not None]),
        ("decoded_frames", [] if _is_fixed(config) else [_decoded(config, clip) for clip in clips]),
    ):
        if values:
            measured[name], sources[name] = _mean(values), opened
    lengths = _lengths(task, tokenizer)
    if lengths:
        measured["words"], sources["words"] = _mean(lengths), counted(len(lengths), "text")
    known = [size for size in sizes.values() if size is not None]
    said = {
        **describe_list(config.data.train_list),
        "clips": len(records),
        "videos": videos,
        "spans": sum(record.span is not None for record in records),
        "pictures": len(task.images),
        "vocabulary": vocabulary,
        "files": {
            "opened": len(found),
            "megabytes": _mean_or_none([size / 1e6 for size in known]),
            "clip_seconds": _mean_or_none([clip.seconds for clip in clips]),
            "fps": _mean_or_none([clip.fps for clip in clips]),
            "decode_ms": _mean_or_none([probe.decode_ms for probe in found.values() if probe.reason is None]),
            "undecodable": {without_secrets(video): probe.reason for video, probe in found.items() if probe.reason},
        },
    }
    said["loader"] = _tried(config, task, tokenizer, seconds, progress=progress)
    completed = config if tokenizer is None and task.reads_text else replace(config, model=task.complete(tokenizer))
    stored = _mean(known) * videos if known else None
    return PlannedData(completed, measured, sources, stored, said)


def _tokenizer(config: TrainConfig, task: Task) -> tuple[Tokenizer | None, str]:
    """Return the tokenizer that the run will have, and what it is, in words."""
    if not task.reads_text:
        return None, "none: the model reads no text"
    try:
        if (tokenizer := given_tokenizer(config, task, None)) is not None:
            return tokenizer, f"of {tokenizer.vocab_size:,} entries, counted"
        texts = task.texts
        some = evenly_spread(texts, _TRAINED_ON)
        tokenizer = CaptionTokenizer.train(some, vocab_size=config.data.vocab_size)
    except (UserError, OSError) as error:
        return None, f"of {config.model.vocab_size:,} entries, as configured: {error}"
    of = "" if len(some) == len(texts) else f" of a tokenizer trained on {len(some):,} of the {len(texts):,} texts"
    return tokenizer, f"of {tokenizer.vocab_size:,} entries, counted{of}"


def _tried(
    config: TrainConfig, task: Task, tokenizer: Tokenizer | None, seconds: float, *, progress: bool
) -> dict[str, Any]:
    """Return what the loader of the run makes on this machine, or "why_not": the reason why that is not known."""
    if not seconds:
        return {"why_not": "--reading-seconds 0"}
    if config.data.features is not None:
        return {"why_not": "the run reads features, and no clips"}
    if tokenizer is None and task.reads_text:
        return {"why_not": "the run's tokenizer is not known here"}
    try:
        return asdict(loader_rate(config, task, tokenizer, seconds=seconds, progress=progress))
    except (UserError, OSError) as error:
        return {"why_not": f"{error}"}


def _lengths(task: Task, tokenizer: Tokenizer | None) -> list[int]:
    """Return the tokens of some texts, evenly spread, cut as the run cuts them."""
    if tokenizer is None:
        return []
    return [len(ids) for ids in tokenizer.encode(evenly_spread(task.texts, _TEXTS), task.max_text_length)]


def _bytes(video: str, probe: FileProbe) -> float | None:
    if probe.bytes is not None or probe.reason is not None or not is_remote(video):
        return probe.bytes
    try:
        return size_of(video)
    except UnreadableError:
        return None


def _clip(record: VideoRecord, found: Mapping[str, FileProbe], sizes: Mapping[str, float | None]) -> _Clip:
    video = normal(record.video)
    probe, size, span = found[video], sizes[video], record.span
    seconds, frames = probe.seconds, float(probe.frames)
    if isinstance(span, FrameSpan):
        frames = max(0.0, min(span.end or frames, frames) - span.start)
        seconds = frames / probe.frames * probe.seconds
    elif span is not None:
        seconds = max(0.0, min(span.end or seconds, seconds) - span.start)
        frames = seconds / probe.seconds * probe.frames if probe.seconds else frames
    share = frames / probe.frames if probe.frames else 1.0
    return _Clip(None if size is None else size * share, seconds, frames, probe.fps)


def _is_fixed(config: TrainConfig) -> bool:
    """Tell whether the settings alone say how many frames lie between the first and the last of a clip."""
    return config.data.reading.sampling == "strided" and config.data.reading.fps is None


def _decoded(config: TrainConfig, clip: _Clip) -> float:
    """Return the frames from the first to the last that a clip takes: of a strided one those of its time."""
    reading = config.data.reading
    if reading.sampling != "strided" or reading.fps is None:
        return clip.frames
    return min(clip.frames, (config.model.num_frames - 1) / reading.fps * clip.fps + 1)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_or_none(values: Sequence[float]) -> float | None:
    return _mean(values) if values else None


def data_lines(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was found, a line each: what it is, and the finding."""
    split = f", split {said['split']}" if said.get("split") else ""
    rows = [("data.train", f"{without_secrets(said['list'])} ({said['format']}{split})")]
    spans = f", {said['spans']:,} of them spans" if said["spans"] else ""
    rows.append(("clips", f"{said['clips']:,} of {counted(said['videos'], 'video')}{spans}"))
    if said["pictures"]:
        rows.append(("pictures", f"{said['pictures']:,}, which epochs leave aside"))
    if (missing := said.get("missing")) is not None:
        rows.append(("missing", f"{missing['videos']:,} of {missing['of']:,} videos"))
    rows.append(("vocabulary", said["vocabulary"]))
    files = said["files"]
    if not files["opened"]:
        return [*rows, ("files", "none opened: --probe N opens some")]
    parts = [f"{files[name]:.3g} {unit}" for name, unit in _OF_FILES.items() if files[name] is not None]
    rows.append((f"{counted(files['opened'], 'file')} opened, on average", ", ".join(parts) or "none can be decoded"))
    if bad := files["undecodable"]:
        named = few((f"{video}: {reason}" for video, reason in bad.items()), _NAMED, "; ")
        rows.append(("cannot be decoded", f"{len(bad)} of {files['opened']}: {named}"))
    return rows


_OF_FILES = {
    "megabytes": "MB",
    "clip_seconds": "s a clip",
    "fps": "frames a second",
    "decode_ms": "ms of one thread here for 16 frames, 4 apart",
}
