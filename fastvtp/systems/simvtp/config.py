"""Sizes and objectives of SimVTP."""

import math
from dataclasses import dataclass

from fastvtp.modules.bert import TextConfig
from fastvtp.modules.checks import (
    check_choice,
    check_ids,
    check_share,
)
from fastvtp.modules.contrast import ContrastConfig
from fastvtp.systems.videomae.model import VideoMAEConfig


@dataclass(frozen=True, kw_only=True)
class SimVTPConfig(VideoMAEConfig, TextConfig, ContrastConfig):
    """Sizes and objectives. `preset="official"` gives the released objectives, `"fastvtp"` the recommended ones:

    | field | official | fastvtp | reason |
    |---|---|---|---|
    | contrastive_text | "masked" | "clean" | a caption with 3 of 4 words hidden says little about which clip it names |
    | pad_text | True | False | [PAD] rows in a caption's mean make it depend on the longest one of the batch |
    | projection_dim | None | 256 (tiny: 128) | features keep what reconstruction needs, projections serve contrast |
    | learnable_temperature | False | True | CLIP's choice; a fixed 0.05 is too soft once features separate |
    | contrastive_directions | "sum" | "mean" | weight 1 then means the same as for the other losses |
    | gather_negatives | False | True | a clip is told apart from all of a step, not from its micro-batch alone |
    | matching_negatives | "random" | "hard" | what the contrast confuses teaches more than what it tells apart |

    Hard negatives need the similarities first: the mismatched pairs then are a second packed call of the encoder, of
    the same tokens.
    """

    # the ids are bert-base-uncased's
    mask_token_id: int = 103
    special_token_ids: tuple[int, ...] = (0, 100, 101, 102, 103)
    text_mask_ratio: float = 0.75
    contrastive_text: str = "masked"
    """Captions that the contrast reads: "masked" as in reconstruction, or "clean"."""
    matching_negatives: str = "random"
    """Wrong clip of the matching loss: "random", or "hard": drawn in proportion to its similarity to the caption."""
    pixel_weight: float = 1.0
    word_weight: float = 1.0
    contrastive_weight: float = 1.0
    matching_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_text()
        self.check_contrast()
        check_ids(self, "mask_token_id", "special_token_ids")
        check_share(self, "text_mask_ratio")
        check_choice(self, "contrastive_text", ("masked", "clean"))
        check_choice(self, "matching_negatives", ("random", "hard"))
        for name in ("pixel_weight", "word_weight", "contrastive_weight", "matching_weight"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
