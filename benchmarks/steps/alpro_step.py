"""Builds ALPRO's training step: its batch, its cost, its two sides. `train_step.py` says what is measured and how.

Both sides are given the hard negatives: drawing them is measured in ops/contrastive.py. Dropout and drop path are off,
for they would give every variant a loss of its own. All variants share one set of weights in memory.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD
from fastvtp.systems.alpro.fusion import AlproPlan
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.timesformer import DividedBlock, TimeSformer, TimeSformerConfig
from fastvtp.systems.alpro.towers import AlproConfig
from fastvtp.systems.catalogue import build_model, model_config

from ..harness.case import Case, Options
from ..peers.plain_alpro import AlproInputs, PlainAlpro
from .step import SMOKE_TEXT, Side, block_flops, case_of, draw_captions, padded, sharing_flops, transformer_flops

# The released loader pads every caption to this length.
LONGEST_CAPTION = 30
SMOKE: dict[str, Any] = {
    "width": 32,
    "depth": 1,
    "num_heads": 2,
    "num_frames": 2,
    "image_size": 32,
    "patch_size": 8,
    "text_depth": 1,
    "fusion_depth": 1,
    "text_num_heads": 2,
    "text_hidden": 64,
    "projection_dim": 16,
    "num_entities": 5,
    **SMOKE_TEXT,
}


@dataclass(frozen=True)
class AlproBatch:
    """A batch gives both sides the same clips, crops and captions.

    The library's model takes `video`, `plan` and `negatives`, the released structure takes `released`.
    """

    video: Tensor
    plan: AlproPlan
    negatives: tuple[Tensor, Tensor]
    released: AlproInputs


def alpro_config(name: str, options: Options) -> AlproConfig:
    """Return the official settings of a model without dropout, in smoke runs in tiny sizes."""
    config = model_config(name, preset="official")
    return dataclasses.replace(config, drop_path=0.0, text_dropout=0.0, **SMOKE if options.smoke else {})


def alpro_model(config: AlproConfig, device: torch.device) -> Alpro:
    """Return a model with weights in place of the zeros that training begins with: its loss depends on every part."""
    model = build_model(config, device)
    for module in model.modules():
        if isinstance(module, TimeSformer):
            nn.init.normal_(module.time_positions, std=0.02)
        elif isinstance(module, DividedBlock):
            nn.init.normal_(module.temporal_fc.weight, std=0.02)
    for prompts in (model.video_prompts, model.image_prompts):
        prompts.copy_(normalize(torch.randn_like(prompts), dim=-1))
    return model.train()


def alpro_batch(model: Alpro, options: Options) -> AlproBatch:
    """Draw a batch, the same one in every run."""
    config, device = model.config, options.device
    clips = options.clips(cpu=2, cuda=16, smoke=3)
    generator = torch.Generator().manual_seed(0)
    shape = clips, config.num_frames, config.image_size, config.image_size, 3
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    ids, lengths = draw_captions(clips, config.vocab_size, LONGEST_CAPTION, generator)
    plan = model.plan(ids, lengths, torch.arange(clips), seed=1, step=0)
    assert plan.crop is not None
    clip = normalized_frames(video)
    shown = plan.crop.unflatten(1, config.grid)
    for axis in (1, 2):
        shown = shown.repeat_interleave(config.patch_size, axis)
    text = padded(plan.text_ids.cpu(), [*lengths, *lengths], config.pad_token_id).to(device)
    text = pad(text, (0, LONGEST_CAPTION - text.shape[1]), value=config.pad_token_id)
    labels = torch.full_like(text[:clips], -100)
    words = slice(len(plan.pair_rows.pair) - len(plan.word_labels), None)
    labels[plan.pair_rows.pair[words] - 3 * clips, plan.pair_rows.position[words]] = plan.word_labels
    each = torch.arange(clips, device=device)
    negatives = (each + 1) % clips, (each - 1) % clips
    crops = clip * shown[:, None, None]
    ids, masked_ids = text.split(clips)
    released = AlproInputs(clip, crops, plan.crop, ids, masked_ids, labels, *negatives)
    return AlproBatch(video, plan, negatives, released)


def normalized_frames(video: Tensor) -> Tensor:
    """Make of uint8 [B, T, H, W, 3] what ALPRO's loader does: float32 [B, T, 3, H, W], normalised as CLIP does."""
    mean, std = (torch.tensor(values, device=video.device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return ((video.permute(0, 1, 4, 2, 3) / 255 - mean) / std).contiguous()


def divided_flops(config: TimeSformerConfig, clips: int, *, class_only: bool = False) -> int:
    """Count the forward FLOP of the divided blocks: 2 per weight and row, 4 * width per pair that attends.

    The two linear layers after the attention along time are one, whose weights are multiplied first. With `class_only`
    the class tokens alone ask within frames and go through the MLP in the last block.
    """
    width, frames, patches, depth = config.width, config.num_frames, config.num_patches, config.depth
    tokens, framed = frames * patches, frames * (1 + patches)
    along_time = clips * (2 * 4 * tokens * width**2 + 4 * patches * frames**2 * width) + 2 * width**3

    def within_frames(asking: int) -> int:
        """Count the FLOP of one block beside its attention along time, where so many rows of each frame ask."""
        weights = 2 * frames * asking + 2 * framed + 2 * config.mlp_ratio * (1 + frames * (asking - 1))
        return int(clips * (2 * weights * width**2 + 4 * framed * asking * width))

    last = within_frames(1 if class_only else 1 + patches)
    return depth * along_time + (depth - 1) * within_frames(1 + patches) + last


def alpro_flops(config: AlproConfig, batch: AlproBatch) -> int:
    """Count our FLOP of a step: forward once, backward twice; the prompter and frames get no gradient.

    In the last fusion layer those rows alone ask that a loss reads; in the first, a text's or clip's rows are projected
    once for all their pairs.
    """
    clips, frames, size = batch.video.shape[:3]
    width, plan, ratio = config.width, batch.plan, config.text_hidden / config.width
    embedding = 2 * clips * frames * size**2 * 3 * width
    lengths = plan.packing.cu_seqlens.cpu().long().diff()
    plain, masked = lengths.split(clips)
    pairs = torch.cat([plain, plain, plain[batch.negatives[1].cpu()], masked]) + 1 + config.num_patches
    read = plan.pair_rows.packing.cu_seqlens.cpu().long().diff()
    rows = int(pairs.sum())
    texts = transformer_flops(int(lengths.sum()), int((lengths**2).sum()), width, config.text_depth, ratio)
    fusion = transformer_flops(rows, int((pairs**2).sum()), width, config.fusion_depth - 1, ratio)
    fusion += block_flops(int(read.sum()), rows, int((read * pairs).sum()), width, ratio)
    distinct, asking = int(lengths.sum()) + clips * (1 + config.num_patches), int(read.sum())
    fusion -= sharing_flops(distinct, rows, rows if config.fusion_depth > 1 else asking, rows, width)
    words = len(plan.word_labels) * (width + config.vocab_size)
    of_each_clip = 2 * (width + config.num_entities) + 2 * config.projection_dim + 3 * 2
    trained = divided_flops(config, clips) + texts + fusion + 2 * width * (words + clips * of_each_clip)
    prompted = divided_flops(config, clips, class_only=True) + embedding
    prompted += 2 * clips * config.projection_dim * (width + config.num_entities)
    return 3 * trained + 2 * embedding + prompted


def alpro_case(name: str, options: Options) -> Case:
    """Build the case of one ALPRO model."""
    torch.manual_seed(0)
    config = alpro_config(name, options)
    model = alpro_model(config, options.device)
    state, batch = model.state_dict(), alpro_batch(model, options)

    def released(kernel: str) -> Side:
        with torch.device("meta"):
            plain = PlainAlpro(config, kernel)
        plain.load_state_dict(state, assign=True)
        return plain, plain, (batch.released,)

    def ours() -> Side:
        with torch.device("meta"):
            own = Alpro(config).train()
        own.load_state_dict(state, assign=True)
        return own, lambda *inputs: own(*inputs, negatives=batch.negatives).loss, (batch.video, batch.plan)

    clips, frames = batch.video.shape[:2]
    return case_of(
        name,
        options,
        released=released,
        ours=ours,
        flops=alpro_flops(config, batch),
        shape={"batch": clips, "frames": frames, "tokens": 1 + frames * config.num_patches, "pairs": 4 * clips},
    )
