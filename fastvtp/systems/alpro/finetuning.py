"""What a pretrained ALPRO is fine-tuned as: retrieval and question answering.

Shape legend: B = clips, Q = questions, N = packed text tokens, D = width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastvtp.modules.bert import TextTakers
from fastvtp.modules.checks import check_positive
from fastvtp.modules.layers import init_linear_normal
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.packing import Packing, check_texts, pack_lengths, span_rows
from fastvtp.modules.precision import in_float32
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.modules.rows import take_rows
from fastvtp.systems.alpro.fusion import (
    AlproFusion,
    AlproOutput,
    AlproPlan,
    PairRows,
)
from fastvtp.systems.alpro.towers import AlproConfig


@dataclass(frozen=True, kw_only=True)
class AlproRetrievalConfig(AlproConfig):
    """ALPRO's sizes and objectives for retrieval: contrast and matching, without masked words and entities."""

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
    """Retrieval, fine-tuned by contrast and by matching with hard negatives, as ALPRO is."""

    def plan(
        self,
        input_ids: Tensor,
        text_lengths: Sequence[int],
        sample_ids: Tensor,
        *,
        seed: int,
        step: int,
        device: torch.device | str | None = None,
    ) -> AlproPlan:
        """Lay out the captions of a batch; the hard negatives will follow (seed, step). Arguments as `Alpro.plan`."""
        lengths = np.asarray(text_lengths, dtype=np.int64)
        check_texts(input_ids, lengths, self.config.max_text_length)
        plan = self.lay_out(input_ids=input_ids, lengths=lengths, sample_ids=sample_ids, seed=seed, step=step)
        return plan.to(device or self.device)

    @torch.no_grad()
    def collect(self, video: Tensor, plan: AlproPlan, wanted: Wanted) -> Collected:
        """Tell beforehand what the losses of a step need of this micro-batch. Arguments as `forward`."""
        return self.collect_pairs(video, plan, wanted)

    def forward(
        self,
        video: Tensor,
        plan: AlproPlan,
        *,
        negatives: tuple[Tensor, Tensor] | None = None,
        rest: RestOfStep = ALONE,
    ) -> AlproOutput:
        """Compute both losses of a batch. Arguments as `Alpro.forward`."""
        aligned = self.align(video, plan, negatives, rest)
        terms = {name: value.detach() for name, value in aligned.terms.items()}
        return AlproOutput(aligned.loss, terms, aligned.match_logits, aligned.match_labels, None)


@dataclass(frozen=True)
class AlproQuestions:
    """The integers of a batch of questions.

    text_ids, text_positions: int64 [N], the questions' tokens and their places in their questions. text_takers: which
    of them take each row of the text's tables. packing: how they divide into Q questions. clip: int64 [Q], the clip
    that each is about. num_videos: clips that the batch must have.
    """

    text_ids: Tensor
    text_positions: Tensor
    text_takers: TextTakers
    packing: Packing
    clip: Tensor
    num_videos: int


class AlproQA(AlproFusion):
    """Answers a question about a clip from the fused [CLS], as ALPRO is fine-tuned."""

    def __init__(self, config: AlproQAConfig):
        super().__init__(config)
        self.classifier = nn.Sequential(
            nn.Linear(config.width, 2 * config.width), nn.ReLU(), nn.Linear(2 * config.width, config.num_answers)
        )

    def init_weights(self) -> None:
        """Initialise the weights as the towers', from torch's global generator."""
        super().init_weights()
        self.classifier.apply(init_linear_normal)

    def plan(self, input_ids: Tensor, text_lengths: Sequence[int], video_of_text: Sequence[int]) -> AlproQuestions:
        """Lay out the questions of a batch, which has at least the clips that they are about. Arguments and errors as
        `VideoQA.plan`."""
        lengths = np.asarray(text_lengths, dtype=np.int64)
        check_texts(input_ids, lengths, self.config.max_text_length)
        if len(video_of_text) != len(lengths):
            raise ValueError(f"each of the {len(lengths)} texts needs a clip, got {len(video_of_text)}")
        if min(video_of_text, default=0) < 0:
            raise ValueError(f"video_of_text must not be negative, got {min(video_of_text)}")
        positions = torch.from_numpy(span_rows(np.zeros_like(lengths), lengths))
        questions = AlproQuestions(
            text_ids=input_ids,
            text_positions=positions,
            text_takers=TextTakers.of(self.config, input_ids, positions),
            packing=pack_lengths(lengths),
            clip=torch.tensor(video_of_text),
            num_videos=max(video_of_text, default=-1) + 1,
        )
        return on_device(questions, self.device)

    def forward(self, video: Tensor, plan: AlproQuestions) -> Tensor:
        """Judge every answer to each question: clips uint8 [B, T, H, W, 3], each encoded once, -> logits float32 [Q,
        num_answers]. Raises ValueError where a question is about a clip that the batch lacks."""
        if plan.num_videos > len(video):
            raise ValueError(f"video_of_text names clip {plan.num_videos - 1} of a batch of {len(video)}")
        text_ND = self.text_tokens(plan.text_ids, plan.text_positions, plan.packing, plan.text_takers)
        fused, ends = self.fuse(
            text_ND,
            plan.packing,
            self.video_tokens(video),
            text_index=torch.arange(len(plan.clip), device=video.device),
            video_index=plan.clip,
            num_text_rows=len(plan.text_ids),
            pair_rows=PairRows.first(len(plan.clip), video.device),
        )
        with torch.autocast(fused.device.type, enabled=False):
            return in_float32(self.classifier, take_rows(fused, ends[:-1].long()))
