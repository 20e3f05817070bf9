"""Loaders by flat settings, for tests that vary one of them at a time."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.loader import Decoding, VideoTextLoader
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.stream import Batches
from fastvtp.data.text import Tokenizer

_PARTS = {"shape": ClipShape, "reading": ClipReading, "batches": Batches, "decoding": Decoding}


def make_loader(records: Sequence[VideoRecord], tokenizer: Tokenizer | None, **settings: Any) -> VideoTextLoader:
    """A loader of these settings, each a field of one of the loader's arguments, or `max_text_length`.

    Training crops keep half of the picture at least, where the settings do not say.
    """
    settings = {"crop_scale": (0.5, 1.0), **settings}
    parts: dict[str, Any] = {}
    for name, part in _PARTS.items():
        own = {field.name for field in fields(part)} & settings.keys()
        parts[name] = part(**{key: settings.pop(key) for key in own})
    return VideoTextLoader(records, tokenizer, **parts, **settings)
