"""The videos of webdataset tars as records; `fastvtp.data.storage.tar_samples` reads the samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.storage.shard_names import energon_fields
from fastvtp.data.storage.tar_samples import CAPTION_FIELDS, VIDEO_FIELDS, sample_key, tar_samples
from fastvtp.data.timespans import span_of_line

logger = logging.getLogger(__name__)

__all__ = ["sample_key", "tar_records", "tar_samples"]


def tar_records(
    source: str | Sequence[str],
    *,
    split: str = "train",
    captioned: bool = True,
    video: str | None = None,
    caption: str | None = None,
) -> Iterator[VideoRecord]:
    """Read the videos of tars, or the pictures, with their captions, in the order of the tars.

    The id of each is its key, or where several tars have the same key, "tar/key". Fields "start" and "end" of the .json
    make it a span of its video, see `record_of`. Samples without a video or a caption are left out; how many there were
    is said at the end.

    Args:
        source, split, video: as for `tar_samples`.
        captioned: whether records need captions; otherwise all have the one caption "".
        caption: where captions are, see `TarSample.captions`. None: what the field map of an Energon data set says, or
            the files as they are.

    Raises:
        FileNotFoundError: nothing there.
        UserError: as `tar_samples` does; or a .json that is none, or whose span is none.
    """
    fields = energon_fields(source) if isinstance(source, str) else {}
    video = video or next((fields[name] for name in VIDEO_FIELDS if name in fields), None)
    caption = caption or next((fields[name] for name in CAPTION_FIELDS if name in fields), None)
    seen: set[str] = set()
    left_out: dict[str, list[str]] = {"video": [], "caption": []}
    for sample in tar_samples(source, split=split, video=video):
        captions = sample.captions(caption) if captioned else ("",)
        if sample.video is None or not captions:
            left_out["video" if sample.video is None else "caption"].append(sample.place)
            continue
        name = sample.key
        if name in seen:
            name = f"{sample.archive.rpartition('/')[2].removesuffix('.tar')}/{name}"
        seen.add(name)
        span = span_of_line(sample.fields(), f"{sample.place}.json") if "json" in sample.texts else None
        yield VideoRecord(name, sample.video, captions).within(span)
    total = len(seen) + sum(map(len, left_out.values()))
    for what, places in left_out.items():
        if places:
            logger.warning("%d of %d samples have no %s, the first %s", len(places), total, what, places[0])
