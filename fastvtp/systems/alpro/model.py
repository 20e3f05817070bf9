"""ALPRO: align and prompt (arXiv:2112.09583).

Shape legend: B = clips, N = packed text tokens, V = 1 + S rows of a clip (class token, patches), D = width,
Q = pairs of a text and a clip, M = masked words, E = entities.

Notable choices:
- Plain and masked captions go through the text tower in one packed call.
- Matched, mismatched and masked pairs are ONE packed call of the fusion layers. Which pairs are mismatched only the
  device knows (hard negatives), so their packing is made there; nothing is read back.
- Words are predicted for the masked ones alone, and no caption is padded.
- What no loss reads is not computed: the last fusion layer of each pair has the rows that count, the prompter's last
  block its class token.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fastvtp.errors import UserError, unknown_name
from fastvtp.modules.bert import WordTransform
from fastvtp.modules.layers import init_linear_normal
from fastvtp.modules.losses import masked_word_loss
from fastvtp.modules.packing import check_texts, offsets
from fastvtp.modules.precision import in_float32
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.modules.rows import segment_mean, take_rows
from fastvtp.systems.alpro.entities import (
    EntityTargets,
    crop_patches,
    entity_loss,
    entity_targets,
)
from fastvtp.systems.alpro.fusion import (
    AlproFusion,
    AlproOutput,
    AlproPlan,
)
from fastvtp.systems.alpro.towers import AlproConfig, AlproTowers
from fastvtp_kernels import Replacement, replace_masked_tokens, text_mask
from fastvtp_kernels.packing import locate_rows

_RANDOM_FRACTION = _KEEP_FRACTION = 0.1  # of the masked words, as in BERT


class Alpro(AlproFusion):
    """Pretrained by contrast, matching, masked words and prompted entities.

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
        self._prompts_seen = False

    def init_weights(self) -> None:
        """Initialise the weights as the towers', with no entity prompted yet, from torch's global generator."""
        super().init_weights()
        self.word_transform.init_weights()
        self.entity_head.apply(init_linear_normal)
        self.prompter.init_weights()
        for prompts in (self.video_prompts, self.image_prompts):
            nn.init.zeros_(prompts)

    def train(self, mode: bool = True) -> "Alpro":
        """Set the mode as of any module, except that the prompter stays in evaluation mode."""
        super().train(mode)
        self.prompter.eval()
        return self

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
        """Draw masked words and crops from (seed, step, sample id); arguments as `SimVTP.plan`.

        Raises ValueError for texts that do not fit, UserError where entities are to be learned of unset prompts.
        """
        config, lengths = self.config, np.asarray(text_lengths, dtype=np.int64)
        check_texts(input_ids, lengths, config.max_text_length)
        if config.entity_weight and not self._prompts_seen:
            self._check_prompts()
        cu_seqlens = offsets(lengths)
        draw, special = {"seed": seed, "step": step, "sample_ids": sample_ids}, config.special_token_ids
        hidden = text_mask(input_ids, cu_seqlens, config.word_mask_ratio, special_ids=special, **draw)
        words = Replacement(config.mask_token_id, config.vocab_size, _RANDOM_FRACTION, _KEEP_FRACTION, special)
        masked_ids = replace_masked_tokens(input_ids, hidden, cu_seqlens, words, **draw)
        crop = crop_patches(sample_ids.numpy(), config.grid, seed=seed, step=step) if config.entity_weight else None
        return self.lay_out(
            input_ids=input_ids,
            masked_ids=masked_ids,
            hidden=hidden,
            lengths=lengths,
            sample_ids=sample_ids,
            crop=crop,
            seed=seed,
            step=step,
        ).to(device or self.device)

    def forward(
        self,
        video: Tensor,
        plan: AlproPlan,
        *,
        kind: str = "video",
        negatives: tuple[Tensor, Tensor] | None = None,
        rest: RestOfStep = ALONE,
    ) -> AlproOutput:
        """Compute all losses of a batch.

        video: uint8 [B, T, H, W, 3]. plan: from `plan`. kind: "video" or "image", whose prompts the entities are.
        negatives: a wrong clip for every text, a wrong text for every clip, int64 [B] each; None: drawn by similarity.
        rest: of the step that the batch is a part of.
        """
        config, batch = self.config, len(video)
        loss, terms, fused, cu_seqlens, match_logits, match_labels = self.align(video, plan, negatives, rest)
        if config.word_weight:
            words, predicted = masked_word_loss(
                self.word_transform(fused[len(fused) - len(plan.word_labels) :]),
                self.text_embeddings.word_embeddings.weight,
                self.word_transform.bias,
                plan.word_labels,
            )
            accuracy = (predicted == plan.word_labels).sum() / max(len(plan.word_labels), 1)
            words, accuracy = rest.means("words", len(plan.word_labels), words, accuracy)
            loss = loss + config.word_weight * words
            terms |= {"loss/word": words, "word_accuracy": accuracy}
        entity_logits = None
        if plan.crop is not None:
            entity_logits = self._entity_logits(
                fused, cu_seqlens[: batch + 1], len(fused) - 3 * batch - len(plan.word_labels)
            )
            targets = plan.targets or self._targets(video, plan.crop, kind)
            (entities,) = rest.means("entities", (~targets.ignored).sum(), entity_loss(entity_logits, targets))
            loss = loss + config.entity_weight * entities
            terms |= {"loss/entity": entities, "entities_ignored": targets.ignored.float().mean()}
        detached = {name: value.detach() for name, value in terms.items()}
        return AlproOutput(loss, detached, match_logits, match_labels, entity_logits)

    def _entity_logits(self, fused: Tensor, cu_seqlens: Tensor, num_patches: int) -> Tensor:
        """Return logits of the entities in each crop, [B, E], from the mean of its patches.

        fused: [R, D], which begins with the matched pairs, cu_seqlens int32 [B+1]: of each its [CLS] and then the
        patches inside its crop, `num_patches` in all.
        """
        cu_patches = cu_seqlens - torch.arange(len(cu_seqlens), dtype=torch.int32, device=fused.device)
        clip, _ = locate_rows(cu_patches, num_patches)
        rows = torch.arange(1, num_patches + 1, device=fused.device) + clip
        with torch.autocast(fused.device.type, enabled=False):
            return in_float32(self.entity_head, segment_mean(take_rows(fused, rows), cu_patches))

    @torch.no_grad()
    def _targets(self, video: Tensor, crop: Tensor, kind: str) -> EntityTargets:
        """Ask the prompter which entities the crops show, by the prompts of this kind of batch. crop: bool [B, S]."""
        return entity_targets(
            self.prompter.encode_video(video, crop),
            self.prompts(kind),
            1 / self.prompter.logit_scale(),
            ignore_rule=self.config.ignore_rule,
        )

    @torch.no_grad()
    def collect(self, video: Tensor, plan: AlproPlan, wanted: Wanted, *, kind: str = "video") -> Collected:
        """Tell beforehand what the losses of a step need of this micro-batch. Arguments as `forward`."""
        found = self.collect_pairs(video, plan, wanted)
        counts = {**found.counts, "words": len(plan.word_labels)}
        if plan.crop is not None:
            plan = replace(plan, targets=self._targets(video, plan.crop, kind))
            assert plan.targets is not None  # just made
            counts["entities"] = (~plan.targets.ignored).sum()
        return replace(found, counts=counts, kept=plan)

    def prompts(self, kind: str) -> Tensor:
        """Return what the prompter made of the entities' prompts, [E, projection_dim]. kind: "video" or "image".

        Raises UserError for another kind.
        """
        prompts = {"video": self.video_prompts, "image": self.image_prompts}
        if kind not in prompts:
            raise unknown_name("kind of prompts", kind, prompts)
        return prompts[kind]

    def _check_prompts(self) -> None:
        """Raise UserError where no prompt was ever set: zeros would teach that every crop shows every entity alike.
        This is read back from the device for the first plan alone."""
        if not (self.video_prompts.any() or self.image_prompts.any()):
            raise UserError("video_prompts and image_prompts are all zero: fill them first, by `encode_prompts`")
        self._prompts_seen = True
