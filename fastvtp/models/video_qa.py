"""Video question answering on SimVTP's joint encoder: a question is read together with the clip's tubelets.

Shape legend: B = clips, Q = texts (questions, or questions with one of their options), K = tubelets of a clip,
N = packed tokens, D = width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastvtp.models.bert import TextConfig, TextEmbeddings
from fastvtp.models.config import check_positive, check_share
from fastvtp.models.layers import Packing, init_linear_xavier, segment_mean, take_rows
from fastvtp.models.packing import SequenceBuilder, exclusive_cumsum, on_device, span_rows
from fastvtp.models.videomae import VideoEmbeddings, VideoEncoderConfig


@dataclass(frozen=True, kw_only=True)
class VideoQAConfig(VideoEncoderConfig, TextConfig):
    """The joint encoder's sizes and the head's."""

    pad_text: bool = False
    num_answers: int = 1
    """Answers of the open-ended head (one class each); 1: a score of a question with one of its options."""
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_text()
        check_positive(self, "num_answers")
        check_share(self, "head_dropout")
        if self.pad_text:
            raise ValueError("pad_text must be false: no released question answering of SimVTP pads its questions")


@dataclass(frozen=True)
class VideoQAPlan:
    """The integers of a batch: text_ids, text_positions int64 [Nt]; gather int64 [N] pool row of each packed row;
    num_videos: clips that the batch must have."""

    text_ids: Tensor
    text_positions: Tensor
    gather: Tensor
    packing: Packing
    num_videos: int


class VideoQA(nn.Module):
    """[all tubelets of a clip ; a text] -> joint encoder -> mean -> two-layer head.

    Open-ended: logits over the answer vocabulary. Multiple choice (`num_answers` 1): each option is a text of its own,
    the question before it, and the scores of a question's options are compared; a clip is embedded once for all of
    them. The two-layer head on pooled features follows ALPRO (arXiv:2112.09583); SimVTP's own was never released.
    """

    def __init__(self, config: VideoQAConfig):
        super().__init__()
        self.config = config
        self.video_embeddings = VideoEmbeddings(config.grid, config.tubelet, config.width)
        self.text_embeddings = TextEmbeddings(config, config.width)
        self.encoder = config.transformer()
        self.head = nn.Sequential(
            nn.Dropout(config.head_dropout),
            nn.Linear(config.width, 2 * config.width),
            nn.GELU(),
            nn.Linear(2 * config.width, config.num_answers),
        )

    def init_weights(self) -> None:
        """VideoMAE's initialisation; uses torch's global generator."""
        for module in (self.encoder, self.head):
            module.apply(init_linear_xavier)
        for module in (self.video_embeddings, self.text_embeddings):
            module.init_weights()

    @property
    def device(self) -> torch.device:
        return self.video_embeddings.weight.device

    def plan(
        self,
        input_ids: Tensor,
        text_lengths: Sequence[int],
        video_of_text: Sequence[int],
        num_videos: int | None = None,
    ) -> VideoQAPlan:
        """Lay out the sequences of a batch. input_ids: int64 [Nt] packed texts, on the CPU; text_lengths: tokens of
        each; video_of_text: the clip that each is about, Q host integers; num_videos: clips of the batch, None: up to
        the last that a text is about. Returns the plan on the model's device.
        """
        lengths, clips = np.asarray(text_lengths, np.int64), np.asarray(video_of_text, np.int64)
        if len(input_ids) != lengths.sum() or len(clips) != len(lengths) or not len(lengths):
            raise ValueError(
                f"input_ids must hold the {lengths.sum()} tokens of text_lengths, got {len(input_ids)}; each of "
                f"the {len(lengths)} texts needs a clip, got {len(clips)}"
            )
        if lengths.max() > self.config.max_text_length:
            raise ValueError(f"a text has {lengths.max()} tokens, the model takes {self.config.max_text_length}")
        tokens = self.config.num_tokens
        num_videos = int(clips.max()) + 1 if num_videos is None else num_videos
        if clips.min() < 0 or clips.max() >= num_videos:
            raise ValueError(f"video_of_text names clips {clips.min()} to {clips.max()} of a batch of {num_videos}")
        sequences = SequenceBuilder()
        sequences.add(
            (clips * tokens, np.full(len(clips), tokens)), (num_videos * tokens + exclusive_cumsum(lengths), lengths)
        )
        positions = torch.from_numpy(span_rows(np.zeros_like(lengths), lengths))
        plan = VideoQAPlan(
            text_ids=input_ids,
            text_positions=positions,
            gather=sequences.gather(),
            packing=sequences.packing(),
            num_videos=num_videos,
        )
        return on_device(plan, self.device)

    def forward(self, video: Tensor, plan: VideoQAPlan) -> Tensor:
        """Logits float32 [Q, num_answers]. video: uint8 [B, T, H, W, 3], as many clips as the plan is for."""
        if len(video) != plan.num_videos:
            raise ValueError(f"the plan is for {plan.num_videos} clips, video has {len(video)}")
        pool = torch.cat([
            self.video_embeddings(video).flatten(0, 1),
            self.text_embeddings(plan.text_ids, plan.text_positions),
        ])  # fmt: skip
        x_ND = self.encoder(take_rows(pool, plan.gather), plan.packing)
        with torch.autocast(x_ND.device.type, enabled=False):
            return self.head(segment_mean(x_ND, plan.packing.cu_seqlens))
