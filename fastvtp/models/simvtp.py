"""SimVTP: masked video-text pretraining with one shared encoder (arXiv:2212.03490).

Shape legend: B = clips, Kv / Km = visible / masked tubelets of a clip, D = width, N = packed tokens, M = masked words,
P = values of a tubelet.

Notable choices:
- Tubelets and words share one encoder, without modality embeddings. Masked tubelets never enter it; masked words do,
  as [MASK].
- Joint, video-only, text-only and mismatched sequences are packed into ONE encoder call; the matched half of the
  matching loss is the joint pass itself.
- Everything ragged is settled on the host beforehand (`SimVTP.plan`), so that `SimVTP.forward` reads nothing back from
  the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastvtp.models.bert import TextEmbeddings
from fastvtp.models.layers import Packing, Transformer, init_linear_xavier, segment_mean, take_rows
from fastvtp.models.packing import SequenceBuilder, exclusive_cumsum, span_rows
from fastvtp.models.videomae import IMAGENET_MEAN, IMAGENET_STD, VideoDecoder, VideoEmbeddings
from fastvtp.objectives.contrastive import video_text_contrast
from fastvtp.objectives.matching import matching_accuracy, matching_labels, matching_loss, random_mismatch
from fastvtp.objectives.reconstruction import masked_word_loss
from fastvtp_kernels import TubeMask, masked_pixel_loss, text_mask, tube_mask
from fastvtp_kernels.packing import locate_rows


@dataclass(frozen=True, kw_only=True)
class SimVTPConfig:
    """Sizes and objectives. `preset="official"` gives the released objectives, `"fastvtp"` the recommended ones:

    | field | official | fastvtp | reason |
    |---|---|---|---|
    | contrastive_text | "masked" | "clean" | a caption with 3 of 4 words hidden says little about which clip it names |
    | projection_dim | None | 256 (tiny: 128) | features keep what reconstruction needs, projections serve contrast |
    | learnable_temperature | False | True | CLIP's choice; a fixed 0.05 is too soft once features separate |
    | contrastive_directions | "sum" | "mean" | weight 1 then means the same as for the other losses |
    """

    # video
    num_frames: int = 16
    image_size: int = 224
    tubelet: tuple[int, int, int] = (2, 16, 16)
    video_mask_ratio: float = 0.9
    # text; the ids are bert-base-uncased's
    vocab_size: int = 30522
    max_text_length: int = 512
    """Tokens kept of a caption, [CLS] and [SEP] included."""
    pad_token_id: int = 0
    mask_token_id: int = 103
    special_token_ids: tuple[int, ...] = (0, 100, 101, 102, 103)
    text_mask_ratio: float = 0.75
    text_dropout: float = 0.1
    # encoder and decoder
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_num_heads: int = 6
    # objectives
    contrastive_text: str = "masked"
    contrastive_directions: str = "sum"
    projection_dim: int | None = None
    temperature: float = 0.05
    learnable_temperature: bool = False
    pixel_weight: float = 1.0
    word_weight: float = 1.0
    contrastive_weight: float = 1.0
    matching_weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tubelet", tuple(self.tubelet))  # JSON gives lists
        object.__setattr__(self, "special_token_ids", tuple(self.special_token_ids))
        for name in (
            "width",
            "num_heads",
            "decoder_width",
            "decoder_num_heads",
            "vocab_size",
            "mlp_ratio",
            "temperature",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"projection_dim must be positive, or none, got {self.projection_dim}")
        if len(self.tubelet) != 3 or min(self.tubelet) < 1:
            raise ValueError(f"tubelet must be three positive sizes (time, height, width), got {self.tubelet}")
        for name in ("depth", "decoder_depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("pixel_weight", "word_weight", "contrastive_weight", "matching_weight"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        for name, size, tile in (
            ("num_frames", self.num_frames, self.tubelet[0]),
            ("image_size", self.image_size, self.tubelet[1]),
            ("image_size", self.image_size, self.tubelet[2]),
        ):
            if size % tile:
                raise ValueError(f"{name} {size} is not a multiple of the tubelet's {tile}")
        for name in ("video_mask_ratio", "text_mask_ratio", "text_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if int(self.video_mask_ratio * self.grid[1] * self.grid[2]) < 1:
            raise ValueError(
                f"video_mask_ratio {self.video_mask_ratio} hides none of the {self.grid[1]} x {self.grid[2]} cells of "
                "a frame, which leaves nothing to reconstruct"
            )
        for name, width, heads in (
            ("num_heads", self.width, self.num_heads),
            ("decoder_num_heads", self.decoder_width, self.decoder_num_heads),
        ):
            if width % heads:
                raise ValueError(f"{name} {heads} does not divide the width {width}")
        if self.contrastive_text not in ("masked", "clean"):
            raise ValueError(f"contrastive_text must be 'masked' or 'clean', got {self.contrastive_text!r}")
        if self.contrastive_directions not in ("mean", "sum"):
            raise ValueError(f"contrastive_directions must be 'mean' or 'sum', got {self.contrastive_directions!r}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubelets along (time, height, width)."""
        pt, ph, pw = self.tubelet
        return self.num_frames // pt, self.image_size // ph, self.image_size // pw


@dataclass(frozen=True)
class SimVTPPlan:
    """The integers of one step: masks, masked words, and the packing of all encoder passes.

    visible, masked: int32 [B, Kv], [B, Km] tubelet indices. sample_ids: int64 [B].
    text_ids, text_positions: int64 [Nt] masked words, followed by the clean ones where the contrast uses them.
    gather: int64 [N] pool row of each packed row; packing: the sequences joint, video-only, text-only, mismatched (B
    each).
    joint_video_rows: int64 [B*Kv] packed rows of the joint pass's video tokens.
    match_labels: int64 [2B] of the matched and mismatched pairs.
    word_rows, word_labels: int64 [M] packed rows of the masked words and what stood there.
    """

    sample_ids: Tensor
    visible: Tensor
    masked: Tensor
    text_ids: Tensor
    text_positions: Tensor
    gather: Tensor
    packing: Packing
    joint_video_rows: Tensor
    match_labels: Tensor
    word_rows: Tensor
    word_labels: Tensor

    def to(self, device: torch.device | str) -> "SimVTPPlan":
        device = torch.device(device)

        def move(tensor: Tensor) -> Tensor:
            # only a copy from pinned memory leaves the host free to run ahead
            if device.type == "cuda" and tensor.device.type == "cpu":
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=True)

        tensors = {name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return SimVTPPlan(**tensors, packing=Packing(move(self.packing.cu_seqlens), self.packing.max_seqlen))


@dataclass(frozen=True)
class SimVTPOutput:
    """loss: [] weighted sum. terms: unweighted detached losses and accuracies by name, each []. Predictions keep
    their graph: pixel_prediction [B, Km, P] (normalised per patch and channel), word_features [M, D], what
    the word head sees of the masked words."""

    loss: Tensor
    terms: dict[str, Tensor]
    pixel_prediction: Tensor
    word_features: Tensor


class SimVTP(nn.Module):
    """Shared video-text encoder with pixel decoder, word head, contrastive projections and matching head.

    Construction leaves parameters as torch's own constructors do; call `init_weights`, or load a checkpoint.
    """

    log_logit_scale: Tensor

    def __init__(self, config: SimVTPConfig):
        super().__init__()
        self.config = config
        num_tokens, values = math.prod(config.grid), 3 * math.prod(config.tubelet)
        self.video_embeddings = VideoEmbeddings(config.grid, config.tubelet, config.width)
        self.text_embeddings = TextEmbeddings(
            config.vocab_size, config.width, config.max_text_length, config.text_dropout, config.pad_token_id
        )
        self.encoder = Transformer(config.width, config.depth, config.num_heads, config.mlp_ratio)
        self.decoder = VideoDecoder(
            config.width, num_tokens, config.decoder_width, config.decoder_depth,
            config.decoder_num_heads, config.mlp_ratio, values,
        )  # fmt: skip
        self.word_head = nn.Linear(config.width, config.vocab_size)
        self.match_head = nn.Linear(config.width, 2)
        if config.projection_dim is None:
            self.video_projection = self.text_projection = nn.Identity()
        else:
            self.video_projection = nn.Linear(config.width, config.projection_dim, bias=False)
            self.text_projection = nn.Linear(config.width, config.projection_dim, bias=False)
        log_scale = torch.empty(())
        if config.learnable_temperature:
            self.log_logit_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_logit_scale", log_scale, persistent=False)

    def init_weights(self) -> None:
        """VideoMAE's initialisation; uses torch's global generator."""
        for module in (self.encoder, self.word_head, self.match_head, self.video_projection, self.text_projection):
            module.apply(init_linear_xavier)
        self.video_embeddings.init_weights()
        self.text_embeddings.init_weights()
        self.decoder.init_weights()
        with torch.no_grad():
            self.log_logit_scale.fill_(-math.log(self.config.temperature))

    @property
    def device(self) -> torch.device:
        return self.video_embeddings.weight.device

    def plan(
        self, input_ids: Tensor, text_lengths: Sequence[int], sample_ids: Tensor, *, seed: int, step: int
    ) -> SimVTPPlan:
        """Draw the masks of a step and lay out its sequences, all from (seed, step, sample id).

        input_ids: int64 [Nt] packed captions, on the CPU. text_lengths: tokens of each caption, B host integers.
        sample_ids: int64 [B] keys of the masks, on the CPU. Returns the plan on the model's device.
        """
        config, batch_size = self.config, len(text_lengths)
        lengths = np.asarray(text_lengths, dtype=np.int64)
        if input_ids.device.type != "cpu" or len(input_ids) != lengths.sum():
            raise ValueError(
                f"input_ids must be a CPU tensor of {lengths.sum()} tokens (the sum of text_lengths), "
                f"got {len(input_ids)} on {input_ids.device}"
            )
        if batch_size and lengths.max() > config.max_text_length:
            raise ValueError(f"a caption has {lengths.max()} tokens, the model takes {config.max_text_length}")
        text_starts = exclusive_cumsum(lengths)
        hidden = text_mask(
            input_ids, torch.from_numpy(np.append(text_starts, lengths.sum()).astype(np.int32)), config.text_mask_ratio,
            special_ids=config.special_token_ids, seed=seed, step=step, sample_ids=sample_ids,
        )  # fmt: skip
        tube = tube_mask(
            batch_size, config.grid, config.video_mask_ratio, seed=seed, step=step, sample_ids=sample_ids,
        )  # fmt: skip
        mismatch = random_mismatch(sample_ids.numpy(), seed=seed, step=step)
        return self.assemble_plan(tube, input_ids, hidden, lengths, mismatch, sample_ids)

    def assemble_plan(
        self,
        tube: TubeMask,
        input_ids: Tensor,
        hidden: Tensor,
        lengths: np.ndarray,
        mismatch: np.ndarray,
        sample_ids: Tensor,
    ) -> SimVTPPlan:
        """The plan for given masks and negatives; everything is given on the host.

        tube: visible and masked tubelets; input_ids: int64 [Nt]; hidden: bool [Nt], True for a masked word;
        lengths: int64 [B] tokens of each caption; mismatch: int64 [B], the wrong video shown with each text;
        sample_ids: int64 [B], equal where a clip stands in the batch twice.
        """
        batch_size, num_text, num_visible = len(lengths), len(input_ids), tube.visible.shape[1]
        masked_ids = input_ids.masked_fill(hidden, self.config.mask_token_id)
        text_positions = torch.from_numpy(span_rows(np.zeros_like(lengths), lengths))

        # pool rows: B*Kv video tokens, Nt masked words, and Nt clean words where they are used
        video = (np.arange(batch_size) * num_visible, np.full(batch_size, num_visible))
        text = (batch_size * num_visible + exclusive_cumsum(lengths), lengths)
        clean = self.config.contrastive_text == "clean"
        sequences = SequenceBuilder()
        joint_rows = sequences.add(video, text)
        sequences.add(video)
        sequences.add((text[0] + num_text, lengths) if clean else text)
        sequences.add((video[0][mismatch], video[1]), text)

        joint_text_rows = torch.from_numpy(span_rows(joint_rows + num_visible, lengths))
        return SimVTPPlan(
            sample_ids=sample_ids,
            visible=tube.visible,
            masked=tube.masked,
            text_ids=torch.cat([masked_ids, input_ids]) if clean else masked_ids,
            text_positions=text_positions.repeat(2) if clean else text_positions,
            gather=sequences.gather(),
            packing=sequences.packing(),
            joint_video_rows=torch.from_numpy(span_rows(joint_rows, video[1])),
            match_labels=matching_labels(sample_ids[torch.from_numpy(mismatch)] != sample_ids),
            word_rows=joint_text_rows[hidden],
            word_labels=input_ids[hidden],
        ).to(self.device)

    def forward(self, video: Tensor, plan: SimVTPPlan) -> SimVTPOutput:
        """All four losses of a batch. video: uint8 [B, T, H, W, 3]; plan: from `plan`."""
        config, (batch_size, num_visible) = self.config, plan.visible.shape
        pool = torch.cat([
            self.video_embeddings(video, plan.visible).flatten(0, 1),
            self.text_embeddings(plan.text_ids, plan.text_positions),
        ])  # fmt: skip
        x_ND = self.encoder(take_rows(pool, plan.gather), plan.packing)

        visible = take_rows(x_ND, plan.joint_video_rows).view(batch_size, num_visible, -1)
        pixel_prediction = self.decoder(visible, plan.visible, plan.masked)
        pixel_loss = masked_pixel_loss(
            pixel_prediction, video, plan.masked,
            tubelet=config.tubelet, mean=IMAGENET_MEAN, std=IMAGENET_STD, normalize="patch_channel",
        )  # fmt: skip
        word_features = take_rows(x_ND, plan.word_rows)
        word_loss, words = masked_word_loss(word_features, self.word_head.weight, self.word_head.bias, plan.word_labels)

        # features and heads in float32: at an inverse temperature of 100 a bfloat16 feature is off by whole logits
        with torch.autocast(x_ND.device.type, enabled=False):
            features = segment_mean(x_ND, plan.packing.cu_seqlens)
            joint, video_only, text_only, mismatched = features.split(batch_size)
            contrastive = video_text_contrast(
                self.text_projection(text_only), self.video_projection(video_only), self.logit_scale_value(),
                sample_ids=plan.sample_ids, directions=config.contrastive_directions,
            )  # fmt: skip
            match_logits = self.match_head(torch.cat([joint, mismatched]))
            matching = matching_loss(match_logits, plan.match_labels)

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
            "word_accuracy": (words == plan.word_labels).sum() / max(len(plan.word_labels), 1),
            "matching_accuracy": matching_accuracy(match_logits, plan.match_labels),
        }
        return SimVTPOutput(loss, {k: v.detach() for k, v in terms.items()}, pixel_prediction, word_features)

    def logit_scale_value(self) -> Tensor:
        """The inverse temperature [], at most 100 as in CLIP."""
        return self.log_logit_scale.exp().clamp(max=100.0)

    def encode_video(self, video: Tensor) -> Tensor:
        """Unit-length retrieval features of whole clips: uint8 [B, T, H, W, 3] -> float32 [B, D or projection_dim]."""
        tokens = math.prod(self.config.grid)
        index = torch.arange(tokens, dtype=torch.int32, device=video.device).expand(len(video), -1)
        x_ND = self.video_embeddings(video, index).flatten(0, 1)
        packing = Packing.uniform(len(video), tokens, video.device)
        features = segment_mean(self.encoder(x_ND, packing), packing.cu_seqlens)
        return normalize(self.video_projection(features), dim=-1)

    def encode_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Unit-length retrieval features of captions: int64 [N], int32 [B+1] -> float32 [B, D or projection_dim]."""
        _, positions = locate_rows(cu_seqlens, len(input_ids))
        x_ND = self.encoder(self.text_embeddings(input_ids, positions), Packing(cu_seqlens, max_seqlen))
        return normalize(self.text_projection(segment_mean(x_ND, cu_seqlens)), dim=-1)
