"""What a pretrained ALPRO is fine-tuned as: retrieval and question answering.

Shape legend: B = clips, N = packed text tokens, D = width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastvtp.models.alpro_fusion import AlproFusion, AlproOutput, AlproPlan, check_texts
from fastvtp.models.alpro_towers import AlproConfig
from fastvtp.models.config import check_positive
from fastvtp.models.layers import init_linear_normal, take_rows


@dataclass(frozen=True, kw_only=True)
class AlproRetrievalConfig(AlproConfig):
    """Contrast and matching; no masked words, no entities."""

    word_weight: float = 0.0
    entity_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.word_weight or self.entity_weight:
            raise ValueError("word_weight and entity_weight must be 0: retrieval has no heads for them")


@dataclass(frozen=True, kw_only=True)
class AlproQAConfig(AlproConfig):
    """ALPRO's sizes and the number of answers, one class each."""

    num_answers: int = 1500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_answers")


class AlproRetrieval(AlproFusion):
    """Contrast and matching with hard negatives (ALPRO's fine-tuning)."""

    def plan(
        self, input_ids: Tensor, text_lengths: Sequence[int], sample_ids: Tensor, *, seed: int, step: int
    ) -> AlproPlan:
        """Lay out the captions of a batch; the hard negatives will follow (seed, step). Arguments as `Alpro.plan`."""
        lengths = np.asarray(text_lengths, dtype=np.int64)
        check_texts(input_ids, lengths)
        plan = self.lay_out(input_ids=input_ids, lengths=lengths, sample_ids=sample_ids, seed=seed, step=step)
        return plan.to(self.device)

    def forward(self, video: Tensor, plan: AlproPlan, *, negatives: tuple[Tensor, Tensor] | None = None) -> AlproOutput:
        """Both losses of a batch; arguments as `Alpro.forward`."""
        aligned = self.align(video, plan, negatives)
        terms = {name: value.detach() for name, value in aligned.terms.items()}
        return AlproOutput(aligned.loss, terms, aligned.match_logits, aligned.match_labels, None)


class AlproQA(AlproFusion):
    """A question and a clip -> answer, from the fused [CLS] (ALPRO's fine-tuning)."""

    def __init__(self, config: AlproQAConfig):
        super().__init__(config)
        self.classifier = nn.Sequential(
            nn.Linear(config.width, 2 * config.width), nn.ReLU(), nn.Linear(2 * config.width, config.num_answers)
        )

    def init_weights(self) -> None:
        super().init_weights()
        self.classifier.apply(init_linear_normal)

    def forward(self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Logits: uint8 [B, T, H, W, 3] and one packed question a clip -> float32 [B, num_answers]."""
        x_ND, packing = self.text_embeddings.embed_texts(input_ids, cu_seqlens, max_seqlen)
        each = torch.arange(len(video), device=video.device)
        fused, ends = self.fuse(
            self.text_encoder(x_ND, packing),
            packing,
            self.video_tokens(video),
            each,
            each,
            num_text_rows=len(input_ids),
        )
        with torch.autocast(fused.device.type, enabled=False):
            return self.classifier(take_rows(fused, ends[:-1].long()).float())
