"""Video question answering on SimVTP's joint encoder: a question is read together with the clip's tubelets.

Shape legend: B = clips, Q = texts (questions, or questions with one of their options), K = tubelets of a clip,
N = packed tokens, D = width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastvtp.modules.bert import TextConfig, TextEmbeddings, TextTakers
from fastvtp.modules.checks import (
    check_choice,
    check_ids,
    check_positive,
    check_share,
)
from fastvtp.modules.layers import init_linear_xavier
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.packing import Packing, SequenceBuilder, exclusive_cumsum, offsets, span_rows
from fastvtp.modules.precision import in_float32
from fastvtp.modules.rows import Pick, QueryRows, Rows, Takers, segment_mean, take_rows
from fastvtp.modules.stacks import Stack
from fastvtp.systems.videomae.model import VideoEncoderConfig


@dataclass(frozen=True, kw_only=True)
class VideoQAConfig(VideoEncoderConfig, TextConfig):
    """Sizes of the joint encoder, and the head on it."""

    pad_text: bool = False
    num_answers: int = 1
    """Answers of the open-ended head (one class each); 1: a score of a question with one of its options."""
    head_dropout: float = 0.0
    readout: str = "mean"
    """Where an answer is read: "mean" of clip and text, by a two-layer head; "mask": at the text's closing [SEP], which
    becomes [MASK], by one layer that can start as pretraining's word head, see `start_from_words`. That layer also sees
    the sum of the text's input embeddings, at first with zero weight: a question names or rules out answers by its
    words alone."""
    mask_token_id: int = 103

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_text()
        check_positive(self, "num_answers")
        check_share(self, "head_dropout")
        check_choice(self, "readout", ("mean", "mask"))
        if self.readout == "mask":
            check_ids(self, "mask_token_id")
        if self.pad_text:
            raise ValueError("pad_text must be false: no released question answering of SimVTP pads its questions")


@dataclass(frozen=True)
class VideoQAPlan:
    """The integers of a batch of questions.

    text_ids, text_positions: int64, the tokens of all texts and their places in their texts; text_takers: which of them
    take each row of the text's tables. text_offsets: int32 [Q+1], where each text begins and ends among them. sources:
    the N pool rows of the packed rows, the pool being all tubelets of the clips and then the text tokens. packing: how
    the packed rows divide into Q sequences. num_videos: clips that the batch must have.
    """

    text_ids: Tensor
    text_positions: Tensor
    text_takers: TextTakers
    text_offsets: Tensor
    sources: Pick
    packing: Packing
    num_videos: int


class VideoQA(nn.Module):
    """Answers questions by a head on a joint encoder of [all tubelets of a clip ; a text]: it reads the mean token, or
    the [MASK] that closes the text.

    Open-ended: logits over the answer vocabulary. Multiple choice (`num_answers` 1): each option is a text of its own,
    the question before it, and the scores of a question's options are compared; a clip is embedded once for all of
    them. SimVTP's own head was never released: two layers on pooled features follow ALPRO (arXiv:2112.09583), an
    answer read as a masked word follows FrozenBiLM (arXiv:2206.08155).
    """

    def __init__(self, config: VideoQAConfig):
        super().__init__()
        self.config = config
        self.video_embeddings = config.video_embeddings()
        self.text_embeddings = TextEmbeddings(config, config.width)
        self.encoder = config.transformer()
        hidden = 2 * config.width
        layers = [nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.num_answers)]
        if config.readout == "mask":
            layers = [nn.Linear(2 * config.width, config.num_answers)]
        self.head = nn.Sequential(nn.Dropout(config.head_dropout), *layers)

    def init_weights(self) -> None:
        """Initialise the weights as VideoMAE's, from torch's global generator."""
        for module in (self.encoder, self.head):
            module.apply(init_linear_xavier)
        for module in (self.video_embeddings, self.text_embeddings):
            module.init_weights()
        if self.config.readout == "mask":
            nn.init.zeros_(self.head[-1].get_parameter("weight")[:, self.config.width :])

    @torch.no_grad()
    def start_from_words(self, weight: Tensor, bias: Tensor, answers: Sequence[Sequence[int]]) -> None:
        """Let the head of a "mask" readout predict answers as a word head predicts their words, on average.

        weight: [vocab_size, D], bias: [vocab_size], of a word head. answers: the token ids of each answer.
        Raises ValueError where the readout is another, or answers or shapes do not fit the head.
        """
        layer, vocabulary = self.head[-1], (self.config.vocab_size, self.config.width)
        if self.config.readout != "mask" or not isinstance(layer, nn.Linear):
            raise ValueError(f"only the head of readout 'mask' starts from words, got {self.config.readout!r}")
        if tuple(weight.shape) != vocabulary or len(bias) != len(weight):
            raise ValueError(
                f"weight must be {list(vocabulary)} with a bias each, got {list(weight.shape)}, {len(bias)}"
            )
        if len(answers) != self.config.num_answers:
            raise ValueError(f"answers must be {self.config.num_answers}, got {len(answers)}")
        if empty := [row for row, ids in enumerate(answers) if not len(ids)]:
            raise ValueError(f"each answer needs a token, answer {empty[0]} has none")
        for row, ids in enumerate(answers):
            layer.weight[row, : weight.shape[1]] = weight[list(ids)].mean(0)
            layer.bias[row] = bias[list(ids)].mean()

    @property
    def device(self) -> torch.device:
        return self.video_embeddings.weight.device

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters stand, see `Stack`."""
        return [Stack(("video_embeddings", "text_embeddings")).under("encoder.blocks", len(self.encoder.blocks))]

    def plan(
        self,
        input_ids: Tensor,
        text_lengths: Sequence[int],
        video_of_text: Sequence[int],
        *,
        num_videos: int | None = None,
    ) -> VideoQAPlan:
        """Lay out the sequences of a batch.

        input_ids: int64, packed texts, on the CPU. text_lengths: tokens of each, Q host integers. video_of_text: the
        clip that each is about, Q host integers. num_videos: clips of the batch; None: up to the last that a text is
        about. Returns the plan on the model's device.

        Raises ValueError where these do not go together, or a text has too many tokens, or none with readout "mask".
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
        if self.config.readout == "mask":
            if lengths.min() < 1:
                raise ValueError(f"readout 'mask' reads a text's last token: text {lengths.argmin()} has none")
            input_ids = input_ids.index_fill(0, torch.from_numpy(lengths.cumsum() - 1), self.config.mask_token_id)
        sequences = SequenceBuilder()
        sequences.add(
            (clips * tokens, np.full(len(clips), tokens)), (num_videos * tokens + exclusive_cumsum(lengths), lengths)
        )
        positions = torch.from_numpy(span_rows(np.zeros_like(lengths), lengths))
        sources, pool_rows = sequences.sources(), num_videos * tokens + len(input_ids)
        plan = VideoQAPlan(
            text_ids=input_ids,
            text_positions=positions,
            text_takers=TextTakers.of(self.config, input_ids, positions),
            text_offsets=offsets(lengths),
            sources=Pick(sources, Takers.of(sources, pool_rows)),
            packing=sequences.packing(),
            num_videos=num_videos,
        )
        return on_device(plan, self.device)

    def forward(self, video: Tensor, plan: VideoQAPlan) -> Tensor:
        """Judge every answer to each question: clips uint8 [B, T, H, W, 3] -> logits float32 [Q, num_answers].

        Raises ValueError for a batch of another number of clips than the plan is for.
        """
        if len(video) != plan.num_videos:
            raise ValueError(f"the plan is for {plan.num_videos} clips, video has {len(video)}")
        text_ND = self.text_embeddings(plan.text_ids, plan.text_positions, plan.text_takers)
        pool = torch.cat([self.video_embeddings(video).flatten(0, 1), text_ND])
        masked = self.config.readout == "mask"
        queries = QueryRows.last(plan.packing) if masked else None
        x_ND = self.encoder(take_rows(pool, plan.sources), Rows(plan.packing, queries))
        with torch.autocast(x_ND.device.type, enabled=False):
            if not masked:
                return in_float32(self.head, segment_mean(x_ND, plan.packing.cu_seqlens))
            words = segment_mean(text_ND, plan.text_offsets) * plan.text_offsets.diff()[:, None]
            return in_float32(self.head, torch.cat([x_ND.to(words.dtype), words], dim=1))
