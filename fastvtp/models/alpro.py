"""ALPRO: align and prompt (arXiv:2112.09583).

Shape legend: B = clips, N = packed text tokens, V = 1 + S rows of a clip (class token, patches), D = width,
Q = pairs of a text and a clip, M = masked words, E = entities.

Notable choices:
- Plain and masked captions go through the text tower in one packed call.
- Matched, mismatched and masked pairs are ONE packed call of the fusion layers. Which pairs are mismatched only the
  device knows (hard negatives), so their packing is made there; nothing is read back.
- Words are predicted for the masked ones alone, and no caption is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fastvtp.models.alpro_towers import AlproConfig, AlproTowers
from fastvtp.models.bert import BertEncoder, WordTransform
from fastvtp.models.layers import Packing, init_linear_normal, take_rows
from fastvtp.models.packing import exclusive_cumsum, pack_lengths, packing_to, pair_sequences, span_rows, to_device
from fastvtp.objectives.entity_prompts import crop_patches, entity_loss, entity_targets
from fastvtp.objectives.matching import matching_accuracy, matching_loss
from fastvtp.objectives.reconstruction import masked_word_loss
from fastvtp_kernels import hard_negatives, replace_masked_tokens, text_mask

_RANDOM_FRACTION = _KEEP_FRACTION = 0.1  # of the masked words, as in BERT


@dataclass(frozen=True)
class AlproPlan:
    """The integers of one step. text_ids, text_positions: int64 [N] plain captions, then masked ones where the config
    masks words; packing: those sequences. word_caption, word_position, word_labels: int64 [M] masked words. crop: bool
    [B, S] patches inside the crop, or None. seed, step: of the hard negatives."""

    sample_ids: Tensor
    text_ids: Tensor
    text_positions: Tensor
    packing: Packing
    word_caption: Tensor
    word_position: Tensor
    word_labels: Tensor
    crop: Tensor | None
    seed: int
    step: int

    def to(self, device: torch.device | str) -> "AlproPlan":
        device = torch.device(device)
        tensors = {name: to_device(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, packing=packing_to(self.packing, device))


@dataclass(frozen=True)
class AlproOutput:
    """loss: []. terms: detached losses and accuracies by name. match_logits: [3B, 2] of the matched pairs, texts with
    wrong clips, clips with wrong texts; match_labels int64 [3B]. entity_logits: [B, E] or None."""

    loss: Tensor
    terms: dict[str, Tensor]
    match_logits: Tensor
    match_labels: Tensor
    entity_logits: Tensor | None


class AlproFusion(AlproTowers):
    """The towers and BERT's upper layers over [text ; clip], which judge whether the two belong together."""

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.fusion_encoder = BertEncoder(
            config.width, config.fusion_depth, config.text_num_heads, config.text_hidden, config.text_dropout
        )
        self.match_head = nn.Linear(config.width, 2)

    def init_weights(self) -> None:
        super().init_weights()
        self.fusion_encoder.init_weights()
        self.match_head.apply(init_linear_normal)

    def fuse(
        self,
        text_ND: Tensor,
        text_packing: Packing,
        video_BVD: Tensor,
        text_index: Tensor,
        video_index: Tensor,
        *,
        num_text_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """Fused tokens of Q pairs in one packed call.

        text_ND: encoded texts; video_BVD: encoded clips; text_index, video_index: int64 [Q]. num_text_rows: at least
        the text tokens of all pairs, a host integer. Returns ([rows, D], cu_seqlens int32 [Q+1]); a pair's rows are its
        text's and then the clip's.
        """
        clip_rows = video_BVD.shape[1]
        rows, cu_seqlens = pair_sequences(
            text_packing.cu_seqlens, text_index, video_index, clip_rows,
            num_rows=num_text_rows + len(text_index) * clip_rows,
        )  # fmt: skip
        pool = torch.cat([text_ND, video_BVD.flatten(0, 1).to(text_ND.dtype)])
        packing = Packing(cu_seqlens, text_packing.max_seqlen + clip_rows)
        return self.fusion_encoder(take_rows(pool, rows), packing), cu_seqlens

    def match_logits(self, fused: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Logits [Q, 2] (no, yes) of fused pairs, from their [CLS]."""
        with torch.autocast(fused.device.type, enabled=False):
            return self.match_head(take_rows(fused, cu_seqlens[:-1].long()).float())

    def encode_texts(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
        """Packed captions -> tokens [N, D] and features of unit length float32 [B, projection_dim]."""
        x_ND, packing = self.text_embeddings.embed_texts(input_ids, cu_seqlens, max_seqlen)
        x_ND = self.text_encoder(x_ND, packing)
        return x_ND, self.text_features(x_ND, cu_seqlens[:-1].long())

    def encode_clips(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, T, H, W, 3] -> tokens [B, V, D] and features of unit length float32 [B, projection_dim]."""
        tokens_BVD = self.video_tokens(video)
        return tokens_BVD, self.video_features(tokens_BVD)

    def score_pairs(
        self,
        text_tokens: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        clip_tokens: Tensor,
        text_index: Tensor,
        clip_index: Tensor,
    ) -> Tensor:
        """Log-odds that encoded texts and clips belong together, for pairs int64 [Q], int64 [Q] -> float32 [Q].

        Clips that no pair names are not copied. For evaluation: which clips those are is read back from the device.
        """
        clips, place = clip_index.unique(return_inverse=True)
        fused, ends = self.fuse(
            text_tokens, Packing(cu_seqlens, max_seqlen), clip_tokens[clips], text_index, place,
            num_text_rows=len(text_index) * max_seqlen,
        )  # fmt: skip
        no, yes = self.match_logits(fused, ends).unbind(dim=1)
        return yes - no

    def draw_negatives(self, text: Tensor, video: Tensor, plan: "AlproPlan") -> tuple[Tensor, Tensor]:
        """A wrong clip for every text and a wrong text for every clip, int64 [B] each; -1 where there is none."""
        with torch.no_grad():
            drawn = hard_negatives(
                text.detach(), video.detach(), self.logit_scale().detach(),
                seed=plan.seed, step=plan.step, groups=plan.sample_ids,
            )  # fmt: skip
        return drawn.b_for_a, drawn.a_for_b


class Alpro(AlproFusion):
    """Contrast, matching, masked words and prompted entities.

    prompter: frozen towers trained by contrast alone (`load_prompter`), and what they make of the entities' prompts.
    """

    video_prompts: Tensor
    image_prompts: Tensor

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.word_transform = WordTransform(config.width, config.vocab_size)
        self.entity_head = nn.Sequential(
            nn.Linear(config.width, 2 * config.width), nn.ReLU(), nn.Linear(2 * config.width, config.num_entities)
        )
        self.prompter = AlproTowers(config).requires_grad_(False)
        for kind in ("video", "image"):
            self.register_buffer(f"{kind}_prompts", torch.empty(config.num_entities, config.projection_dim))

    def init_weights(self) -> None:
        super().init_weights()
        self.word_transform.init_weights()
        self.entity_head.apply(init_linear_normal)
        self.prompter.init_weights()
        for prompts in (self.video_prompts, self.image_prompts):
            nn.init.zeros_(prompts)

    def train(self, mode: bool = True) -> "Alpro":
        super().train(mode)
        self.prompter.eval()
        return self

    def plan(
        self, input_ids: Tensor, text_lengths: Sequence[int], sample_ids: Tensor, *, seed: int, step: int
    ) -> AlproPlan:
        """Draw masked words and crops from (seed, step, sample id); arguments as `SimVTP.plan`."""
        config, lengths = self.config, np.asarray(text_lengths, dtype=np.int64)
        if input_ids.device.type != "cpu" or len(input_ids) != lengths.sum():
            raise ValueError(
                f"input_ids must be a CPU tensor of {lengths.sum()} tokens (the sum of text_lengths), "
                f"got {len(input_ids)} on {input_ids.device}"
            )
        cu_seqlens = torch.from_numpy(np.append(exclusive_cumsum(lengths), lengths.sum()).astype(np.int32))
        draw = {"special_ids": config.special_token_ids, "seed": seed, "step": step, "sample_ids": sample_ids}
        hidden = text_mask(input_ids, cu_seqlens, config.word_mask_ratio, **draw)
        masked_ids = replace_masked_tokens(
            input_ids, hidden, cu_seqlens, mask_id=config.mask_token_id, vocab_size=config.vocab_size,
            random_fraction=_RANDOM_FRACTION, keep_fraction=_KEEP_FRACTION, **draw,
        )  # fmt: skip
        crop = crop_patches(sample_ids.numpy(), config.grid, seed=seed, step=step) if config.entity_weight else None
        return self.lay_out(
            input_ids=input_ids, masked_ids=masked_ids, hidden=hidden, lengths=lengths, sample_ids=sample_ids,
            crop=crop, seed=seed, step=step,
        ).to(self.device)  # fmt: skip

    def lay_out(
        self,
        *,
        input_ids: Tensor,
        masked_ids: Tensor,
        hidden: Tensor,
        lengths: np.ndarray,
        sample_ids: Tensor,
        crop: Tensor | None,
        seed: int = 0,
        step: int = 0,
    ) -> AlproPlan:
        """The plan of given masks, on the host. input_ids, masked_ids: int64 [Nt] packed captions. hidden: bool [Nt],
        words to predict. lengths: int64 [B]. crop: bool [B, S]."""
        position = torch.from_numpy(span_rows(np.zeros_like(lengths), lengths))
        caption = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        copies = 2 if self.config.word_weight else 1
        return AlproPlan(
            sample_ids=sample_ids,
            text_ids=torch.cat([input_ids, masked_ids][:copies]),
            text_positions=position.repeat(copies),
            packing=pack_lengths(np.tile(lengths, copies)),
            word_caption=caption[hidden],
            word_position=position[hidden],
            word_labels=input_ids[hidden],
            crop=crop,
            seed=seed,
            step=step,
        )

    def forward(
        self, video: Tensor, plan: AlproPlan, *, kind: str = "video", negatives: tuple[Tensor, Tensor] | None = None
    ) -> AlproOutput:
        """All losses of a batch.

        video: uint8 [B, T, H, W, 3]. plan: from `plan`. kind: "video" or "image", whose prompts the entities are.
        negatives: a wrong clip for every text, a wrong text for every clip, int64 [B] each; None: drawn by similarity.
        """
        config, batch = self.config, len(video)
        video_BVD = self.video_tokens(video)
        text_ND = self.text_tokens(plan.text_ids, plan.text_positions, plan.packing)
        text_rows = plan.packing.cu_seqlens[:batch].long()
        text, clips = self.text_features(text_ND, text_rows), self.video_features(video_BVD)
        contrastive = self.contrast(text, clips, plan.sample_ids)

        wrong_clip, wrong_text = negatives or self.draw_negatives(text, clips, plan)
        each = torch.arange(batch, device=video.device)
        # matched pairs, a wrong clip for every text, a wrong text for every clip, masked captions with their clip
        text_index = [each, each, wrong_text.clamp(min=0)] + ([each + batch] if config.word_weight else [])
        video_index = [each, wrong_clip.clamp(min=0), each] + ([each] if config.word_weight else [])
        plain_rows = len(plan.text_ids) // (2 if config.word_weight else 1)
        fused, cu_seqlens = self.fuse(
            text_ND, plan.packing, video_BVD, torch.cat(text_index), torch.cat(video_index),
            num_text_rows=plain_rows * (len(text_index) - 1) + batch * plan.packing.max_seqlen,
        )  # fmt: skip

        pairs = 3 * batch
        match_logits = self.match_logits(fused, cu_seqlens[: pairs + 1])
        wrong = torch.cat([wrong_clip, wrong_text])
        match_labels = torch.cat([torch.ones_like(each), torch.where(wrong >= 0, 0, -100)])
        matching = matching_loss(match_logits, match_labels)
        loss = config.contrastive_weight * contrastive + config.matching_weight * matching
        terms = {
            "loss/contrastive": contrastive,
            "loss/matching": matching,
            "matching_accuracy": matching_accuracy(match_logits, match_labels),
        }
        if config.word_weight:
            rows = cu_seqlens[pairs + plan.word_caption].long() + plan.word_position
            words, predicted = masked_word_loss(
                self.word_transform(take_rows(fused, rows)),
                self.text_embeddings.word_embeddings.weight, self.word_transform.bias, plan.word_labels,
            )  # fmt: skip
            loss = loss + config.word_weight * words
            accuracy = (predicted == plan.word_labels).sum() / max(len(plan.word_labels), 1)
            terms |= {"loss/word": words, "word_accuracy": accuracy}
        entity_logits = None
        if plan.crop is not None:
            entity_logits = self._entity_logits(fused, cu_seqlens[1 : batch + 1], plan.crop)
            targets = entity_targets(
                *self._prompted(video, plan.crop, kind), 1 / self.prompter.logit_scale(), ignore_rule=config.ignore_rule
            )
            entities = entity_loss(entity_logits, targets)
            loss = loss + config.entity_weight * entities
            terms |= {"loss/entity": entities, "entities_ignored": targets.ignored.float().mean()}
        detached = {name: value.detach() for name, value in terms.items()}
        return AlproOutput(loss, detached, match_logits, match_labels, entity_logits)

    def _entity_logits(self, fused: Tensor, ends: Tensor, crop: Tensor) -> Tensor:
        """From the mean of the matched pairs' patches inside the crop: their rows are the last S before `ends`."""
        patches = crop.shape[1]
        rows = ends.long()[:, None] - patches + torch.arange(patches, device=fused.device)
        inside = take_rows(fused, rows.flatten()).view(*crop.shape, -1).float() * crop[..., None]
        with torch.autocast(fused.device.type, enabled=False):
            return self.entity_head(inside.sum(dim=1) / crop.sum(dim=1, keepdim=True))

    @torch.no_grad()
    def _prompted(self, video: Tensor, crop: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """The prompter's features of the crops, and of the prompts of this kind of batch."""
        crops = self.prompter.video_features(self.prompter.video_tokens(video, crop))
        return crops, self.video_prompts if kind == "video" else self.image_prompts


class AlproQA(AlproFusion):
    """A question and a clip -> answer, from the fused [CLS] (ALPRO's fine-tuning)."""

    def __init__(self, config: AlproConfig, num_answers: int):
        super().__init__(config)
        self.classifier = nn.Sequential(
            nn.Linear(config.width, 2 * config.width), nn.ReLU(), nn.Linear(2 * config.width, num_answers)
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
