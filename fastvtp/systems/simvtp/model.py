"""SimVTP: masked video-text pretraining with one shared encoder (arXiv:2212.03490).

Shape legend: B = clips, Kv / Km / Kp = visible / masked / predicted tubelets of a clip, D = width, N = packed tokens,
M = masked words, P = values of a tubelet.

Notable choices:
- Tubelets and words share one encoder, without modality embeddings. Masked tubelets never enter it; masked words do,
  as [MASK].
- Joint, video-only, text-only and mismatched sequences are packed into ONE encoder call (hard negatives, which need its
  features, into a second one); the matched half of the matching loss is the joint pass itself.
- Everything ragged is settled on the host beforehand (`SimVTP.plan`), so that `SimVTP.forward` reads nothing back from
  the device.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastvtp.modules.bert import TextEmbeddings
from fastvtp.modules.capacity import NO_LABEL
from fastvtp.modules.contrast import Contrast
from fastvtp.modules.layers import init_linear_xavier
from fastvtp.modules.losses import (
    CONTRAST_PRECISIONS,
    masked_word_loss,
    matching_accuracy,
    matching_labels,
    matching_loss,
    random_mismatch,
)
from fastvtp.modules.packing import check_texts, offsets
from fastvtp.modules.pixels import IMAGENET_MEAN, IMAGENET_STD
from fastvtp.modules.precision import in_float32
from fastvtp.modules.rest_of_step import ALONE, Collected, Compared, RestOfStep, Wanted
from fastvtp.modules.rows import Pick, Rows, segment_mean, take_rows
from fastvtp.modules.stacks import Stack
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.plan import CaptionTokens, SimVTPPlan, StepMasks, lay_out
from fastvtp_kernels import hard_negatives, masked_pixel_loss, text_mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SimVTPOutput:
    """What `SimVTP.forward` gives; all but `terms` keeps its graph.

    loss: [], the weighted sum of the losses. terms: unweighted losses and accuracies by name, [] each, detached.
    pixel_prediction: [B, Kp, P]. word_features: [M, D], what the word head sees of the masked words; of those that are
        labelled -100 in the plan, anything.
    encoded: [N, D], the encoder's output in the plan's packing; of tail rows, anything finite.
    text_features, video_features: [B, D or projection_dim], what the contrast compares, not scaled to unit length.
    match_logits: [2B, 2], (no, yes) of the matched and then the mismatched pairs. match_labels: int64 [2B], see
        `matching_labels`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    pixel_prediction: Tensor
    word_features: Tensor
    encoded: Tensor
    text_features: Tensor
    video_features: Tensor
    match_logits: Tensor
    match_labels: Tensor


class SimVTP(nn.Module):
    """Shared video-text encoder with pixel decoder, word head, contrastive projections and matching head.

    Construction leaves parameters as torch's own constructors do; call `init_weights`, or load a checkpoint.
    """

    averages_unit_views = False
    """Retrieval averages a clip's views as `embed_video` gives them."""

    def __init__(self, config: SimVTPConfig):
        super().__init__()
        self.config = config
        self.video_embeddings = config.video_embeddings()
        self.text_embeddings = TextEmbeddings(config, config.width)
        self.encoder = config.transformer(final_norm=config.encoder_norm)
        self.decoder = config.video_decoder()
        self.word_head = nn.Linear(config.width, config.vocab_size)
        self.match_head = nn.Linear(config.width, 2)
        self.contrast = Contrast(config, config.width)
        self._sizes: set[tuple[int, ...]] = set()

    def init_weights(self) -> None:
        """Initialise the weights as VideoMAE's, from torch's global generator."""
        for module in (self.encoder, self.word_head, self.match_head):
            module.apply(init_linear_xavier)
        for module in (self.contrast, self.video_embeddings, self.text_embeddings, self.decoder):
            module.init_weights()

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
        sample_ids: Tensor,
        *,
        seed: int,
        step: int,
        own_pairs: bool = True,
        device: torch.device | str | None = None,
    ) -> SimVTPPlan:
        """Draw the masks of a micro-batch and lay out its sequences, all of it from (seed, step, sample id).

        input_ids: int64 [Nt] packed captions, on the CPU. text_lengths: tokens of each caption, B host integers.
        sample_ids: int64 [B] keys of the masks, on the CPU. step: number of the micro-batch in the run. own_pairs:
        False leaves the wrong pairs open, for `RestOfStep.wrong`. Returns the plan on `device`, the model's unless
        another is given, and says at level DEBUG where its size is the model's first of that kind. Raises ValueError
        where the captions do not fit their lengths or the model's positions.
        """
        config = self.config
        lengths = np.asarray(text_lengths, dtype=np.int64)
        check_texts(input_ids, lengths, config.max_text_length)
        hidden = text_mask(
            input_ids,
            offsets(lengths),
            config.text_mask_ratio,
            special_ids=config.special_token_ids,
            seed=seed,
            step=step,
            sample_ids=sample_ids,
        )
        visible, predicted = config.draw_masks(sample_ids, seed=seed, step=step)
        apart = config.matching_negatives == "hard" or not own_pairs
        plan = lay_out(
            config,
            StepMasks(visible, predicted, hidden),
            CaptionTokens(input_ids, lengths),
            mismatch=None if apart else random_mismatch(sample_ids.numpy(), seed=seed, step=step),
            sample_ids=sample_ids,
            seed=seed,
            step=step,
            roomy=True,
        )
        self._tell_of_new_size(plan, len(input_ids))
        return plan.to(device or self.device)

    def _tell_of_new_size(self, plan: SimVTPPlan, tokens: int) -> None:
        clips, words, rows = len(plan.sample_ids), len(plan.word_labels), len(plan.sources)
        size = clips, words, rows, plan.packing.max_seqlen
        if size not in self._sizes:
            self._sizes.add(size)
            logger.debug(
                "%d clips with %d tokens of text: a plan of a new size, %d packed rows, %d masked words, sequences of "
                "up to %d; %.1f %% of rows are nobody's",
                *(clips, tokens, rows, words, plan.packing.max_seqlen, 100 * plan.capacity_waste()),
            )

    def collect(self, video: Tensor, plan: SimVTPPlan, wanted: Wanted) -> Collected:
        """Tell beforehand what the losses of a step need of this micro-batch: its masked words, and the features that
        the contrast compares, where that or hard negatives want them. Arguments as `forward`."""
        compared = None
        if wanted.compared or (wanted.pairs and self.config.matching_negatives == "hard"):
            with torch.no_grad():
                compared = self.contrast.compared(*self._features(self._means(self._encode(video, plan)[1], plan)))
        pairs: int | Tensor = 2 * len(plan.sample_ids)
        if plan.mismatched is None:
            pairs = (plan.match_labels != -100).sum()
        elif not wanted.pairs:  # among its own clips all captions have a wrong one, or none has
            pairs = len(plan.sample_ids) * (1 + (plan.sample_ids != plan.sample_ids[0]).any())
        words = (plan.word_labels != NO_LABEL).sum()
        return Collected({"words": words, "pairs": pairs}, compared, {"visible": plan.visible}, plan)

    def draw_wrong(
        self, compared: Compared | None, sample_ids: Tensor, *, seed: int, step: int | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Draw for each of the texts of a whole batch the row of a wrong clip, int64 [B], -1 where there is none; no
        wrong texts. compared: the features of the batch; sample_ids: int64 [B], equal where a clip stands there twice.
        Raises ValueError where hard negatives are to be drawn without features.
        """
        if self.config.matching_negatives != "hard":
            other = torch.from_numpy(random_mismatch(sample_ids.cpu().numpy(), seed=seed, step=int(step)))
            other = other.to(sample_ids.device)
            return torch.where(sample_ids[other] != sample_ids, other, -1), None
        if compared is None:
            raise ValueError("hard negatives need the features of the batch, got none")
        clips, _ = hard_negatives(
            normalize(compared.text.detach(), dim=-1),
            normalize(compared.video.detach(), dim=-1),
            compared.logit_scale.detach(),
            seed=seed,
            step=step,
            groups=sample_ids,
            precision=CONTRAST_PRECISIONS[compared.precision],
        )
        return clips, None

    def _encode(self, video: Tensor, plan: SimVTPPlan) -> tuple[Tensor, Tensor]:
        """Return the pool, visible tubelets [B*Kv, D] with the text tokens behind them, and the encoder's [N, D]."""
        tubelets = self.video_embeddings(video, plan.visible).flatten(0, 1)
        texts = self.text_embeddings(plan.text_ids, plan.text_positions, plan.text_takers)
        pool = torch.cat([tubelets, texts])
        return pool, self.encoder(pool, Rows(plan.packing, sources=plan.sources))

    def _means(self, x_ND: Tensor, plan: SimVTPPlan) -> Sequence[Tensor]:
        """Return the mean token of each sequence, float32 [B, D], of one kind of sequences after the other."""
        with torch.autocast(x_ND.device.type, enabled=False):
            return segment_mean(x_ND, plan.packing.cu_seqlens).split(len(plan.visible))

    def _features(self, means: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the contrast compares, texts and clips, float32 [B, D or projection_dim] each."""
        # in float32: at an inverse temperature of 100 a bfloat16 feature is off by whole logits
        with torch.autocast(means[0].device.type, enabled=False):
            text = in_float32(self.contrast.text_projection, means[2])
            return text, in_float32(self.contrast.video_projection, means[1])

    def forward(self, video: Tensor, plan: SimVTPPlan, rest: RestOfStep = ALONE) -> SimVTPOutput:
        """Compute all four losses of a batch of clips, uint8 [B, T, H, W, 3], with what `plan` drew for it. rest: of
        the step that the batch is a part of."""
        config, (batch_size, num_visible) = self.config, plan.visible.shape
        pool, x_ND = self._encode(video, plan)

        visible = take_rows(x_ND, plan.joint_video_rows).view(batch_size, num_visible, -1)
        pixel_prediction = self.decoder(visible, plan.visible, plan.predicted)
        pixel_loss = masked_pixel_loss(
            pixel_prediction,
            video,
            plan.predicted,
            tubelet=config.tubelet,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            normalize=config.target_normalization,
        )
        word_features = take_rows(x_ND, plan.word_rows)
        labels = plan.word_labels
        word_loss, words = masked_word_loss(word_features, self.word_head.weight, self.word_head.bias, labels)
        num_words = (labels != NO_LABEL).sum()
        right_words = (words == labels).sum() / num_words.clamp(min=1)
        word_loss, right_words = rest.means("words", num_words, word_loss, right_words)

        means = self._means(x_ND, plan)
        text, video_only = self._features(means)
        with torch.autocast(x_ND.device.type, enabled=False):
            contrastive = self.contrast(text, video_only, plan.sample_ids, rest)
        mismatched, match_labels = self._mismatched(pool, plan, means, (text, video_only), rest)
        with torch.autocast(x_ND.device.type, enabled=False):
            match_logits = in_float32(self.match_head, torch.cat([means[0], mismatched]))
            matching, right_matches = rest.means(
                "pairs",
                (match_labels != -100).sum(),
                matching_loss(match_logits, match_labels),
                matching_accuracy(match_logits, match_labels),
            )

        loss = (
            config.pixel_weight * pixel_loss
            + config.word_weight * word_loss
            + config.contrastive_weight * contrastive
            + config.matching_weight * matching
        )
        terms = {
            "loss/pixel": pixel_loss,
            "loss/word": word_loss,
            "loss/contrastive": contrastive,
            "loss/matching": matching,
            "word_accuracy": right_words,
            "matching_accuracy": right_matches,
            "temperature": 1 / self.contrast.logit_scale(),
        }
        return SimVTPOutput(
            loss=loss,
            terms={name: value.detach() for name, value in terms.items()},
            pixel_prediction=pixel_prediction,
            word_features=word_features,
            encoded=x_ND,
            text_features=text,
            video_features=video_only,
            match_logits=match_logits,
            match_labels=match_labels,
        )

    def _mismatched(
        self,
        pool: Tensor,
        plan: SimVTPPlan,
        means: Sequence[Tensor],
        features: tuple[Tensor, Tensor],
        rest: RestOfStep,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean encoded token of each wrong pair, float32 [B, D], and the labels of all 2B pairs, int64
        [2B]."""
        if plan.mismatched is None:
            return means[3], plan.match_labels
        batch_size, num_visible = plan.visible.shape
        if rest.wrong is None:
            compared = self.contrast.compared(*features)
            clips, _ = self.draw_wrong(compared, plan.sample_ids, seed=plan.seed, step=plan.step)
            found = clips >= 0
        else:
            # clip i is the wrong one of caption i, and takes its place in the pool
            wrong = self.video_embeddings(rest.wrong.clips, rest.wrong.of_clips["visible"]).flatten(0, 1)
            pool = torch.cat([wrong.to(pool.dtype), pool[batch_size * num_visible :]])
            clips, found = torch.arange(batch_size, device=pool.device), rest.wrong.has_clip
        sources = plan.mismatched.sources(clips.clamp(min=0), num_visible)
        x_ND = self.encoder(pool, Rows(plan.mismatched.packing, sources=Pick.sorted(sources, len(pool))))
        # a caption whose clip is the whole batch has no negative
        return segment_mean(x_ND, plan.mismatched.packing.cu_seqlens), matching_labels(found)

    def embed_video(self, video: Tensor) -> Tensor:
        """Compute one vector for each whole clip, not scaled: uint8 [B, T, H, W, 3] -> float32 [B, D or
        projection_dim]."""
        x_ND, packing = self.video_embeddings.embed_clips(video)
        features = segment_mean(self.encoder(x_ND, packing), packing.cu_seqlens)
        return in_float32(self.contrast.video_projection, features)

    def embed_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute one vector for each caption, not scaled: int64 [N], int32 [B+1] -> float32 [B, D or projection_dim].

        max_seqlen: a bound on the longest caption. Raises ValueError where that is more than there are positions.
        """
        x_ND, packing = self.text_embeddings.embed_texts(input_ids, cu_seqlens, max_seqlen)
        features = segment_mean(self.encoder(x_ND, packing), packing.cu_seqlens)
        return in_float32(self.contrast.text_projection, features)

    def encode_video(self, video: Tensor) -> Tensor:
        """Compute `embed_video` at unit length."""
        return normalize(self.embed_video(video), dim=-1)

    def encode_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute `embed_text` at unit length."""
        return normalize(self.embed_text(input_ids, cu_seqlens, max_seqlen), dim=-1)
