"""What a synthetic data set is made of, and where its files lie."""

from dataclasses import dataclass
from pathlib import Path

from fastvtp.errors import UserError

# Raise it with every change that alters what a given configuration generates.
GENERATOR_VERSION = 1


@dataclass(frozen=True)
class SyntheticConfig:
    """What to generate; equal configurations give equal clips, captions and questions.

    Args:
        num_train, num_test: clips in each split; no scene and no caption of one split is in the other.
        num_frames: frames in each clip.
        height, width: pixels of a frame; even, because H.264 halves the colour planes, and at least 64, below which
            textures blur.
        fps: frames per second.
        seed: decides scenes, layout and wording.
        keyframe_interval: distance of key frames in frames; short distances make random access cheap.
        crf: x264 constant rate factor, 1 (best) to 40 (worst); 0 would be lossless, a profile that
            hardware decoders refuse.
        twin_fraction: share of the clips, 0 to 1, that come in pairs which look alike and differ only in time
            (left or right, grows or shrinks, which event first), so that a bag of frames cannot tell them apart.

    Raises:
        UserError: a value is out of its range; the message names the field and the range.
    """

    num_train: int = 3000
    num_test: int = 256
    num_frames: int = 16
    height: int = 112
    width: int = 112
    fps: int = 8
    seed: int = 0
    keyframe_interval: int = 8
    crf: int = 20
    twin_fraction: float = 0.25

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_train", 0, 1_000_000),
            ("num_test", 0, 1_000_000),
            ("num_frames", 8, 1000),
            ("height", 64, 4096),
            ("width", 64, 4096),
            ("fps", 1, 240),
            ("keyframe_interval", 1, 1000),
            ("crf", 1, 40),
            ("twin_fraction", 0, 1),
        ):
            value = getattr(self, name)
            if name != "twin_fraction" and not isinstance(value, int):
                raise UserError(f"SyntheticConfig.{name} must be a whole number, got {value!r}")
            if not low <= value <= high:
                raise UserError(f"SyntheticConfig.{name} must be from {low} to {high}, got {value}")
        for name in ("height", "width"):
            if getattr(self, name) % 2:
                raise UserError(f"SyntheticConfig.{name} must be even for H.264, got {getattr(self, name)}")


@dataclass(frozen=True)
class SyntheticDataset:
    """Where the files of a finished data set lie."""

    root: Path

    @property
    def train(self) -> Path:
        return self.root / "train.jsonl"

    @property
    def test(self) -> Path:
        return self.root / "test.jsonl"

    @property
    def train_questions(self) -> Path:
        return self.root / "train_questions.jsonl"

    @property
    def words(self) -> Path:
        return self.root / "words.txt"

    @property
    def test_questions(self) -> Path:
        return self.root / "test_questions.jsonl"
