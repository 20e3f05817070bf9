"""How clips are read for scores."""

from dataclasses import dataclass

from fastvtp.data.sampling import check_fit
from fastvtp.errors import UserError


@dataclass(frozen=True)
class EvaluationProtocol:
    """How clips are read for scores.

    views: segments and crops of each clip, see `VideoTextLoader`. sampling, frame_stride: its frames, see
    `FrameSampling`. top_k: pairs that a matching head scores, see `match_scores`. max_text_length: tokens kept of a
    text, if fewer than the model has positions for. precision: "float32" or "bfloat16" (autocast of the model alone).
    fit: "crop" or "squash", see `CropSampling`; None: as in the model's training. add_similarity: how a matching head
    scores, see `match_scores`.
    """

    views: tuple[int, int] = (1, 1)
    sampling: str = "uniform"
    frame_stride: int = 1
    num_workers: int = 1
    batch_size: int = 32
    """Most views at a time."""
    top_k: int | None = None
    max_text_length: int | None = None
    precision: str = "float32"
    fit: str | None = None
    add_similarity: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise UserError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.fit is not None:
            check_fit(self.fit, self.views[1])
