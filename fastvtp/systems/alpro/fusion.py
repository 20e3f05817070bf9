"""ALPRO's fusion of texts and clips, and the losses that all of its stages after the prompter share.

Shape legend: B = clips, N = packed text tokens, V = 1 + S rows of a clip (class token, patches), D = width,
Q = pairs of a text and a clip, R = rows of pairs that are read, M = masked words, S = patches of a frame, E = entities.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastvtp.modules.bert import BertEncoder, TextTakers
from fastvtp.modules.layers import init_linear_normal
from fastvtp.modules.losses import CONTRAST_PRECISIONS, matching_accuracy, matching_loss
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.packing import Packing, join_packings, pack_lengths, pair_sequences, span_rows
from fastvtp.modules.precision import in_float32
from fastvtp.modules.rest_of_step import ALONE, Collected, Compared, RestOfStep, Wanted
from fastvtp.modules.rows import Pick, QueryRows, Rows, take_rows
from fastvtp.modules.stacks import Stack
from fastvtp.systems.alpro.entities import EntityTargets
from fastvtp.systems.alpro.towers import AlproConfig, AlproTowers
from fastvtp_kernels import hard_negatives


@dataclass(frozen=True)
class PairRows:
    """The rows of fused pairs whose results are read, by pair and place within it: where a pair's rows begin in the
    packed call depends on hard negatives, which only the device knows.

    pair, position: int64 [R], one pair's rows behind the other's. packing: how these R rows divide into all pairs.
    """

    pair: Tensor
    position: Tensor
    packing: Packing

    @staticmethod
    def first(num_pairs: int, device: torch.device) -> "PairRows":
        """Return the [CLS] of each pair, which is its first row."""
        pair = torch.arange(num_pairs, device=device)
        return PairRows(pair, torch.zeros_like(pair), Packing.uniform(num_pairs, 1, device))

    @staticmethod
    def of_losses(
        lengths: np.ndarray, crop: Tensor | None, word_caption: np.ndarray | None, word_position: np.ndarray
    ) -> "PairRows":
        """Return the rows that ALPRO's losses read, in the order that `AlproPlan` says, on the host.

        lengths: int64 [B], tokens of each text. crop: bool [B, S], patches inside each clip's crop; None: none are
        read. word_caption, word_position: int64 [M], the caption of each masked word and its place therein;
        word_caption None: there are no pairs of masked texts.
        """
        batch = len(lengths)
        pair, position = [np.arange(3 * batch)], [np.zeros(3 * batch, dtype=np.int64)]
        if crop is not None:
            clip, patch = crop.numpy().nonzero()
            pair.append(clip)
            position.append(lengths[clip] + 1 + patch)  # behind the text and the clip's class token
        if word_caption is not None:
            pair.append(3 * batch + word_caption)
            position.append(word_position)
        pairs, positions = np.concatenate(pair), np.concatenate(position)
        order = np.lexsort((positions, pairs))
        counts = np.bincount(pairs, minlength=(3 if word_caption is None else 4) * batch)
        return PairRows(torch.from_numpy(pairs[order]), torch.from_numpy(positions[order]), pack_lengths(counts))


@dataclass(frozen=True)
class AlproPlan:
    """The integers of one step.

    sample_ids: int64 [B], equal where the same clip stands in the batch twice.
    text_ids, text_positions: int64 [N], the tokens of the plain captions, then of those with words masked where the
        config masks words, and their places in their captions. packing: how they divide into captions. text_takers:
        which of them take each row of the text's tables.
    word_labels: int64 [M], the words that stood at the masked places.
    pair_rows: the rows of fused pairs that the losses read: the [CLS] of each matched pair, each text with a wrong clip
        and each clip with a wrong text; behind that of a matched pair the patches inside its crop; and the masked words
        of the pairs of a masked text with its clip.
    crop: bool [B, S], the patches inside each clip's crop; None: there are no entities to predict.
    seed, step: the key of the hard negatives' draw.
    targets: what the prompter sees in the crops, where it was asked beforehand; None: it is asked with the losses.
    """

    sample_ids: Tensor
    text_ids: Tensor
    text_positions: Tensor
    text_takers: TextTakers
    packing: Packing
    word_labels: Tensor
    pair_rows: PairRows
    crop: Tensor | None
    seed: int
    step: int
    targets: EntityTargets | None = None

    def to(self, device: torch.device | str) -> "AlproPlan":
        """Return the plan with its tensors on `device`, in copies that the host does not wait for."""
        return on_device(self, torch.device(device))


@dataclass(frozen=True)
class AlproOutput:
    """The losses of a batch.

    loss: [], the weighted sum. terms: unweighted losses and accuracies by name, [] each, detached. match_logits:
    [3B, 2], (no, yes) of the matched pairs, texts with wrong clips, clips with wrong texts. match_labels: int64 [3B], 1
    for a match, 0 for a mismatch, -100 where there was no wrong clip or text to draw. entity_logits: [B, E], or None
    where there are no entities.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    match_logits: Tensor
    match_labels: Tensor
    entity_logits: Tensor | None


class Aligned(NamedTuple):
    """Contrast and matching of a batch.

    loss: [], the weighted sum of both. terms: values by name, with their graph. fused: [R, D], the plan's `pair_rows`,
    divided into pairs by cu_seqlens int32 [Q+1]. match_logits, match_labels: as in `AlproOutput`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    fused: Tensor
    cu_seqlens: Tensor
    match_logits: Tensor
    match_labels: Tensor


class AlproFusion(AlproTowers):
    """The towers and BERT's upper layers over [text ; clip], which judge whether the two belong together."""

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.fusion_encoder = BertEncoder(
            config.width,
            config.fusion_depth,
            config.text_num_heads,
            hidden=config.text_hidden,
            dropout=config.text_dropout,
        )
        self.match_head = nn.Linear(config.width, 2)

    def init_weights(self) -> None:
        """Initialise the weights as the towers', from torch's global generator."""
        super().init_weights()
        self.fusion_encoder.init_weights()
        self.match_head.apply(init_linear_normal)

    def text_stack(self) -> Stack:
        """Tell how deep the parameters that read texts stand: the fusing layers go on where those of text end."""
        return super().text_stack().under("fusion_encoder.layers", len(self.fusion_encoder.layers))

    def fuse(
        self,
        text_ND: Tensor,
        text_packing: Packing,
        video_BVD: Tensor,
        *,
        text_index: Tensor,
        video_index: Tensor,
        num_text_rows: int,
        pair_rows: PairRows | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read texts together with clips, Q pairs in one packed call.

        text_ND: encoded texts in `text_packing`. video_BVD: encoded clips. text_index, video_index: int64 [Q], the text
        and the clip of each pair. num_text_rows: a host integer that is at least the text tokens of all pairs.
        pair_rows: the rows to return; None: all.

        Returns fused tokens [R, D] and their cu_seqlens int32 [Q+1]; a pair's rows are its text's and then the clip's.
        """
        clip_rows = video_BVD.shape[1]
        sources, cu_seqlens = pair_sequences(
            text_packing.cu_seqlens,
            text_index,
            video_index,
            video_rows=clip_rows,
            num_rows=num_text_rows + len(text_index) * clip_rows,
        )
        pool = torch.cat([text_ND, video_BVD.flatten(0, 1).to(text_ND.dtype)])
        packing = Packing(cu_seqlens, text_packing.max_seqlen + clip_rows)
        picked = Pick.sorted(sources, len(pool))
        if pair_rows is None:
            return self.fusion_encoder(pool, Rows(packing, sources=picked)), cu_seqlens
        queries = QueryRows(cu_seqlens[pair_rows.pair].long() + pair_rows.position, pair_rows.packing)
        return self.fusion_encoder(pool, Rows(packing, queries, picked)), pair_rows.packing.cu_seqlens

    def match_logits(self, fused: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Judge fused pairs by their [CLS], the first row of each: [R, D], divided into pairs by cu_seqlens int32
        [Q+1], -> logits float32 [Q, 2], (no, yes)."""
        with torch.autocast(fused.device.type, enabled=False):
            return in_float32(self.match_head, take_rows(fused, cu_seqlens[:-1].long()))

    def read_texts(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
        """Read packed captions, int64 [N] and int32 [B+1] -> their tokens [N, D], which pairs are scored by, and their
        features of unit length, float32 [B, projection_dim]."""
        x_ND, packing = self.text_embeddings.embed_texts(input_ids, cu_seqlens, max_seqlen)
        x_ND = self.text_encoder(x_ND, packing)
        return x_ND, self.text_features(x_ND, cu_seqlens[:-1].long())

    def read_clips(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Read clips, uint8 [B, T, H, W, 3] -> their tokens [B, V, D], which pairs are scored by, and their features of
        unit length, float32 [B, projection_dim]."""
        tokens_BVD = self.video_tokens(video)
        return tokens_BVD, self.video_features(tokens_BVD)

    def score_pairs(
        self,
        text_tokens: Tensor,
        clip_tokens: Tensor,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int,
        text_index: Tensor,
        clip_index: Tensor,
        odds: bool = True,
    ) -> Tensor:
        """Judge whether texts and clips belong together: the log-odds that they do, float32 [Q].

        text_tokens: [N, D] with cu_seqlens int32 [texts + 1] and max_seqlen, as from `read_texts`. clip_tokens:
        [clips, V, D], as from `read_clips`. text_index, clip_index: int64 [Q], the pairs. odds: False gives the logit
        for a match alone, without that against it.

        Clips that no pair names are not copied; which these are is read back from the device, so that this is for
        evaluation only.
        """
        clips, place = clip_index.unique(return_inverse=True)
        fused, ends = self.fuse(
            text_tokens,
            Packing(cu_seqlens, max_seqlen),
            clip_tokens[clips],
            text_index=text_index,
            video_index=place,
            num_text_rows=len(text_index) * max_seqlen,
            pair_rows=PairRows.first(len(text_index), text_index.device),
        )
        no, yes = self.match_logits(fused, ends).unbind(dim=1)
        return yes - no if odds else yes

    def read(self, video: Tensor, plan: AlproPlan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read clips, uint8 [B, T, H, W, 3], and the texts of their plan: tokens [B, V, D] and [N, D], and features of
        unit length of texts and clips, float32 [B, projection_dim] each."""
        video_BVD = self.video_tokens(video)
        text_ND = self.text_tokens(plan.text_ids, plan.text_positions, plan.packing, plan.text_takers)
        text_rows = plan.packing.cu_seqlens[: len(video)].long()
        return video_BVD, text_ND, self.text_features(text_ND, text_rows), self.video_features(video_BVD)

    def collect_pairs(self, video: Tensor, plan: AlproPlan, wanted: Wanted) -> Collected:
        """Tell beforehand what contrast and matching need of a micro-batch. Arguments as `align`."""
        compared = None
        if wanted.compared or wanted.pairs:
            compared = self.compared(*self.read(video, plan)[2:])
        batch = len(plan.sample_ids)
        # among its own clips all pairs have a wrong side, or none has
        others = 1 if wanted.pairs else (plan.sample_ids != plan.sample_ids[0]).any()
        return Collected({"pairs": batch + 2 * batch * others}, compared, kept=plan)

    @torch.no_grad()
    def draw_wrong(
        self, compared: Compared | None, sample_ids: Tensor, *, seed: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Draw hard negatives of a batch, of any size: for each text the row of a wrong clip, for each clip that of a
        wrong text, int64 [B] each, -1 where there is none.

        compared: its features. sample_ids: int64 [B]. The draw follows (seed, step). Raises ValueError without
        features.
        """
        if compared is None:
            raise ValueError("hard negatives need the features of the batch, got none")
        temperature = self.config.negative_temperature
        drawn = hard_negatives(
            compared.text.detach(),
            compared.video.detach(),
            compared.logit_scale.detach() if temperature is None else 1 / temperature,
            seed=seed,
            step=step,
            groups=sample_ids,
            precision=CONTRAST_PRECISIONS[compared.precision],
        )
        return drawn.b_for_a, drawn.a_for_b

    def lay_out(
        self,
        *,
        input_ids: Tensor,
        lengths: np.ndarray,
        sample_ids: Tensor,
        masked_ids: Tensor | None = None,
        hidden: Tensor | None = None,
        crop: Tensor | None = None,
        seed: int = 0,
        step: int = 0,
    ) -> AlproPlan:
        """Return the plan of given masks, on the host.

        input_ids: int64 packed captions. lengths: int64 [B], tokens of each. sample_ids: int64 [B]. masked_ids: the
        captions with words masked, and hidden: bool, where they are; None, or a `word_weight` of 0: no words are
        predicted. crop: bool [B, S], patches inside each clip's crop; None: no entities are predicted. seed, step: the
        key of the hard negatives' draw.
        """
        position = torch.from_numpy(span_rows(np.zeros_like(lengths), lengths))
        texts, words, caption = [input_ids], torch.zeros_like(input_ids, dtype=torch.bool), None
        if masked_ids is not None and hidden is not None and self.config.word_weight:
            texts, words = [input_ids, masked_ids], hidden
            caption = np.repeat(np.arange(len(lengths)), lengths)[hidden.numpy()]
        text_ids, text_positions = torch.cat(texts), position.repeat(len(texts))
        return AlproPlan(
            sample_ids=sample_ids,
            text_ids=text_ids,
            text_positions=text_positions,
            text_takers=TextTakers.of(self.config, text_ids, text_positions),
            packing=pack_lengths(np.tile(lengths, len(texts))),
            word_labels=input_ids[words],
            pair_rows=PairRows.of_losses(lengths, crop, caption, position[words].numpy()),
            crop=crop,
            seed=seed,
            step=step,
        )

    def align(
        self,
        video: Tensor,
        plan: AlproPlan,
        negatives: tuple[Tensor, Tensor] | None = None,
        rest: RestOfStep = ALONE,
    ) -> Aligned:
        """Contrast the batch, and match its pairs in one call of the fusion layers. Arguments as `Alpro.forward`."""
        config, batch = self.config, len(video)
        video_BVD, text_ND, text, clips = self.read(video, plan)
        contrastive = self.contrast(text, clips, plan.sample_ids, rest)

        each = torch.arange(batch, device=video.device)
        copies = (len(plan.packing.cu_seqlens) - 1) // batch  # plain texts alone, or masked ones too
        packing, more_rows = plan.packing, batch * plan.packing.max_seqlen
        if rest.wrong is None:
            wrong_clip, wrong_text = negatives or self.draw_wrong(
                self.compared(text, clips), plan.sample_ids, seed=plan.seed, step=plan.step
            )
            has_clip, has_text = wrong_clip >= 0, wrong_text >= 0
            wrong_clip, wrong_text = wrong_clip.clamp(min=0), wrong_text.clamp(min=0)
        else:
            # clips and texts from elsewhere are read here, so that their gradients need no way back
            assert rest.wrong.input_ids is not None  # `draw_wrong` asks for texts
            assert rest.wrong.text_positions is not None
            assert rest.wrong.text_packing is not None
            assert rest.wrong.has_text is not None
            video_BVD = torch.cat([video_BVD, self.video_tokens(rest.wrong.clips)])
            wrong_ND = self.text_tokens(rest.wrong.input_ids, rest.wrong.text_positions, rest.wrong.text_packing)
            packing, more_rows = join_packings(packing, rest.wrong.text_packing, len(text_ND)), len(wrong_ND)
            text_ND = torch.cat([text_ND, wrong_ND])
            wrong_clip, wrong_text = each + batch, each + copies * batch
            has_clip, has_text = rest.wrong.has_clip, rest.wrong.has_text
        # matched pairs, a wrong clip for every text, a wrong text for every clip, masked captions with their clip
        text_index = [each, each, wrong_text] + [each + batch] * (copies - 1)
        video_index = [each, wrong_clip, each] + [each] * (copies - 1)
        fused, cu_seqlens = self.fuse(
            text_ND,
            packing,
            video_BVD,
            text_index=torch.cat(text_index),
            video_index=torch.cat(video_index),
            num_text_rows=len(plan.text_ids) // copies * (len(text_index) - 1) + more_rows,
            pair_rows=plan.pair_rows,
        )

        match_logits = self.match_logits(fused, cu_seqlens[: 3 * batch + 1])
        has_wrong = torch.cat([has_clip, has_text])
        match_labels = torch.cat([torch.ones_like(each), torch.where(has_wrong, 0, -100)])
        matching, accuracy = rest.means(
            "pairs",
            (match_labels != -100).sum(),
            matching_loss(match_logits, match_labels),
            matching_accuracy(match_logits, match_labels),
        )
        terms = {
            "loss/contrastive": contrastive,
            "loss/matching": matching,
            "matching_accuracy": accuracy,
            "temperature": 1 / self.logit_scale(),
        }
        loss = config.contrastive_weight * contrastive + config.matching_weight * matching
        return Aligned(loss, terms, fused, cu_seqlens, match_logits, match_labels)
