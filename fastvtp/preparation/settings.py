"""What a preparation does to videos, and which of them it keeps."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvtp.errors import UserError, unknown_name
from fastvtp.files import write_atomically

FORMAT_VERSION = 3
"""Counts up when equal settings begin to give other shards."""
SETTINGS_NAME = "settings.json"

DUPLICATES = ("", "hash", "embeddings")
# the constant quality at which the codecs look alike to us at 224 pixels
QUALITIES = {"h264": 22, "hevc": 26, "vp9": 32, "av1": 32}
_OTHER_NAMES = {"h265": "hevc", "x265": "hevc", "h.265": "hevc", "x264": "h264", "h.264": "h264", "avc": "h264"}
COPY = "copy"
"""Stands in place of a codec where packets are copied as they are."""
SHORT_SIDE = 224
GOPS = {"h264": 3, "hevc": 8, "vp9": 8, "av1": 8}
"""Frames from one keyframe to the next where nothing is said; measurements are in docs/preparation.md."""
MOST_SAMPLES = 10_000  # of a shard: four digits of a key


@dataclass(frozen=True, kw_only=True)
class ClipEncoding:
    """How clips are written.

    Attributes:
        short_side: pixels of the shorter side, None: 224; smaller pictures stay as they are. Proportions stay, sizes
            become even.
        fps: frames a second, at most; None, or a source that has fewer: every frame, when it was shown in the source.
        gop: frames from one keyframe to the next; None: see `GOPS`.
        codec: "h264", "hevc", "vp9" or "av1"; or "copy", which cuts packets out and leaves them as they are, see
            `fastvtp.data.video.copying.copy_frames`: then none of the others can be set.
        crf: the encoder's constant quality, smaller is better; None: see `QUALITIES`.
    """

    short_side: int | None = None
    fps: float | None = None
    gop: int | None = None
    codec: str = "h264"
    crf: int | None = None

    def __post_init__(self) -> None:
        """Raise UserError for values out of range, and for those that a copy has no use for."""
        if self.codec in _OTHER_NAMES:
            raise UserError(f"no codec {self.codec!r}; did you mean {_OTHER_NAMES[self.codec]!r}?")
        if self.codec not in (*QUALITIES, COPY):
            raise unknown_name("codec", self.codec, (*QUALITIES, COPY))
        for name in ("short_side", "fps", "gop", "crf") if self.copies else ():
            if getattr(self, name) is not None:
                raise UserError(f"codec=copy leaves pictures as they are encoded: leave {name} out, or choose a codec")
        _check(self.side >= 16, "short_side", "at least 16 pixels", self.short_side)
        _check(self.fps is None or 0 < self.fps <= 240, "fps", "more than 0 and at most 240", self.fps)
        _check(self.gop is None or self.gop >= 1, "gop", "at least 1 frame", self.gop)
        _check(self.crf is None or 0 <= self.crf <= 63, "crf", "0 to 63", self.crf)

    @property
    def copies(self) -> bool:
        """Whether packets are copied, and nothing is encoded."""
        return self.codec == COPY

    @property
    def side(self) -> int:
        """Pixels of the shorter side; of a copy those that it will be looked at with, to measure it."""
        return SHORT_SIDE if self.short_side is None else self.short_side

    @property
    def key_distance(self) -> int:
        """Frames from one keyframe to the next that the encoder is told."""
        return GOPS[self.codec] if self.gop is None else self.gop

    @property
    def quality(self) -> int:
        """The constant quality that the encoder is given."""
        return QUALITIES[self.codec] if self.crf is None else self.crf

    def described(self) -> dict[str, Any]:
        """Return what is set, by name, in place of None what that comes to."""
        said = dataclasses.asdict(self)
        if self.copies:
            return said
        return said | {"short_side": self.side, "gop": self.key_distance, "crf": self.quality}


@dataclass(frozen=True, kw_only=True)
class ClipFilters:
    """Which clips are kept; None keeps all.

    Attributes:
        min_seconds, max_seconds: of a clip, after its span was cut.
        min_side: pixels of the shorter side of the source.
        min_motion, max_motion: see `fastvtp.preparation.looks.MotionMeter`.
        min_words, max_words: words of a text; texts outside go, a clip that is left with none goes too.
        duplicates: "hash" or "embeddings", by which clips that look like an earlier one are found; "" keeps them.
        duplicate_bits: bits of 256 in which the perceptual hashes of duplicates differ at most.
        duplicate_cosine: cosine of the embeddings of duplicates, at least.
        model: model folder that embeds clips for duplicates.
        similarity: model folder that compares clips with their texts; "" for none.
        min_similarity: cosine of a clip and the best of its texts, at least.
    """

    min_seconds: float | None = None
    max_seconds: float | None = None
    min_side: int | None = None
    min_motion: float | None = None
    max_motion: float | None = None
    min_words: int | None = None
    max_words: int | None = None
    duplicates: str = ""
    duplicate_bits: int = 12
    duplicate_cosine: float = 0.95
    model: str = ""
    similarity: str = ""
    min_similarity: float | None = None

    def __post_init__(self) -> None:
        """Raise UserError for values out of range and for those that need another one."""
        if self.duplicates not in DUPLICATES:
            raise UserError(f'duplicates must be "hash" or "embeddings", got {self.duplicates!r}')
        _check(0 <= self.duplicate_bits <= 64, "duplicate_bits", "0 to 64", self.duplicate_bits)
        _check(-1 < self.duplicate_cosine <= 1, "duplicate_cosine", "a cosine above -1", self.duplicate_cosine)
        for low, high in (("min_seconds", "max_seconds"), ("min_motion", "max_motion"), ("min_words", "max_words")):
            least, most = getattr(self, low), getattr(self, high)
            _check(least is None or least >= 0, low, "0 or more", least)
            _check(most is None or most >= (least or 0), high, f"{low} or more", most)
        if self.duplicates == "embeddings" and not self.model:
            raise UserError("duplicates=embeddings needs a model: say which model folder embeds the clips")
        if self.model and self.duplicates != "embeddings":
            raise UserError('model is for duplicates="embeddings" alone; texts are compared by similarity')
        if (self.min_similarity is not None) and not self.similarity:
            raise UserError("min_similarity needs similarity: say which model folder compares clips with their texts")

    @property
    def need_survey(self) -> bool:
        """Whether all clips must be looked at before the first is written."""
        return bool(self.duplicates or self.similarity)


@dataclass(frozen=True, kw_only=True)
class SceneCuts:
    """Scenes as samples.

    Attributes:
        scenes: whether each scene of a video, or of a span of one, becomes a sample.
        scene_threshold: change of picture that counts as a cut, as of PySceneDetect's ContentDetector.
        scene_seconds: the shortest scene; what is shorter belongs to the scene before.
    """

    scenes: bool = False
    scene_threshold: float = 27.0
    scene_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Raise UserError for values out of range."""
        _check(self.scene_threshold > 0, "scene_threshold", "more than 0", self.scene_threshold)
        _check(self.scene_seconds >= 0, "scene_seconds", "0 or more", self.scene_seconds)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """All that decides what is in the shards. samples_per_shard: videos, or spans of them, that a shard is made of."""

    encoding: ClipEncoding = field(default_factory=ClipEncoding)
    filters: ClipFilters = field(default_factory=ClipFilters)
    cuts: SceneCuts = field(default_factory=SceneCuts)
    samples_per_shard: int = 256

    def __post_init__(self) -> None:
        """Raise UserError for values out of range."""
        _check(
            1 <= self.samples_per_shard <= MOST_SAMPLES, "samples_per_shard", f"1 to {MOST_SAMPLES}",
            self.samples_per_shard,
        )  # fmt: skip

    def described(self) -> dict[str, Any]:
        """Return all settings in one table, by their names."""
        parts = [self.encoding.described(), dataclasses.asdict(self.filters), dataclasses.asdict(self.cuts)]
        merged = {name: value for part in parts for name, value in part.items()}
        for name in ("model", "similarity"):
            merged[name] = os.path.abspath(merged[name]) if merged[name] else ""
        return merged | {"samples_per_shard": self.samples_per_shard}


def claim(output: Path, settings: Preparation, inputs: dict[str, Any]) -> dict[str, Any]:
    """Write into the folder `output` what is made there, or check that it is the same as was begun before.

    inputs: what tells one list of videos from another. Returns what was written.

    Raises:
        UserError: another preparation was begun there; names the first setting that differs.
    """
    described = {"format": FORMAT_VERSION, "settings": settings.described(), "inputs": inputs}
    path = output / SETTINGS_NAME
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, expected the folder of the shards")
    if not path.exists():
        # another job of the array, or one that was killed, may have left a temporary name
        if output.exists() and any(not path.name.startswith(".") for path in output.iterdir()):
            raise UserError(f"{output}: is not empty, and no preparation was begun there: choose another folder")
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(described, indent=1) + "\n").encode())
        return described
    try:
        begun = json.loads(path.read_bytes())
        made_by, earlier = begun["format"], {**begun["settings"], **begun["inputs"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is not what a preparation writes: choose another folder") from None
    if made_by != FORMAT_VERSION:
        raise UserError(
            f"{output} was begun by a version of fastvtp that makes other shards of the same videos and settings "
            f"(format {json.dumps(made_by)}, now it is {FORMAT_VERSION}): finish it with that version, choose another "
            "folder, or delete that one"
        )
    for name, value in {**described["settings"], **described["inputs"]}.items():
        if name == "list" and earlier.get(name) != value:
            raise UserError(
                f"{output} was begun with another list of {earlier['videos']} videos: choose another folder"
            )
        if earlier.get(name) != value:
            before, now = (json.dumps(each) for each in (earlier.get(name), value))
            cure = "choose another folder, or delete that one"
            if name in described["settings"] and type(earlier.get(name)) in (int, float):  # a default may have changed
                cure += f", or go on with --{name.replace('_', '-')} {before}"
            raise UserError(f"{output} was begun with {name} {before}, now it is {now}: {cure}")
    return described


def _check(holds: bool, name: str, expected: str, value: Any) -> None:
    if not holds or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{name} must be {expected}, got {value!r}")
