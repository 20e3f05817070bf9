"""How a model is scored: how its clips are read, and what is computed of them."""

from dataclasses import dataclass, field

from fastvtp.data.reading import ClipReading
from fastvtp.data.sampling import check_framing, check_views
from fastvtp.errors import UserError
from fastvtp.settings import check_types


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """How a model is scored. Raises UserError for values out of range or that do not go together."""

    reading: ClipReading = field(default_factory=ClipReading)
    """Which frames clips show, and how these come to the model's size; what training draws does not count here."""
    views: tuple[int, int] = (1, 1)
    """Segments and crops of each clip, over which results are averaged; see `VideoTextLoader`."""
    num_workers: int = 1
    """Decoding processes; 0 decodes in this process."""
    batch_size: int = 32
    """Most views at a time."""
    top_k: int | None = None
    """Pairs that a matching head scores, see `match_scores`; None: all."""
    max_text_length: int | None = None
    """Tokens kept of a text, if fewer than the model has positions for."""
    precision: str = "float32"
    """"float32" or "bfloat16" (autocast of the model alone)."""
    add_similarity: bool = False
    """How a matching head scores, see `match_scores`."""
    shared_captions: bool = True
    """Whether a caption that several videos have is right with each of them, in retrieval; False: with its own video
    alone, as published codes count."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.precision not in ("float32", "bfloat16"):
            raise UserError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        check_views(self.views)
        if self.reading.framing is not None:
            check_framing(self.reading.framing, self.views[1])
