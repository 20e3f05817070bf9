"""Builds VideoPrism's training steps: their batches, costs and sides. `train_step.py` says what is measured and how.

videoprism_base      the encoder on whole clips of 8 frames of 288 pixels, against VideoPrismVisionModel of transformers
                     (which has only its own attention: no library's knows the cap) and the same in plain PyTorch.
                     The loss is the squared distance to noise around the right tokens, so that wrong ones show in it.
videoprism_stage2_base
                     the second stage: frozen teacher, student, both decoders; against all tokens through every block of
                     the student with masked attention (peers/plain_prism.py).
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.systems.catalogue import build_model, model_config
from fastvtp.systems.videoprism.distillation import PrismStudent, PrismStudentConfig
from fastvtp.systems.videoprism.encoder import VideoPrismConfig, VideoPrismEncoder
from fastvtp.systems.videoprism.video_text import POOLER_WIDTHS

from ..harness.case import Case, Missing, Options
from ..harness.timing import Function
from ..harness.workload import boolean_mask
from ..peers.plain_prism import PlainStudent, plain_encoder
from .step import Loss, Side, compared, training_step, transformer_flops

SMOKE: dict[str, Any] = {
    "num_frames": 4,
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 1,
    "temporal_depth": 1,
    "num_heads": 2,
    "mlp_hidden": 64,
}
SMOKE_DECODERS: dict[str, Any] = {
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "decoder_hidden": 32,
    "mask_min_cells": 2,
}


class TokenLoss(nn.Module):
    """The loss is the squared distance between a target [B, L, D] and the tokens that a function makes of clips."""

    def __init__(self, tokens: Callable[[Tensor], Tensor]):
        super().__init__()
        self.tokens = tokens

    def forward(self, video: Tensor, target: Tensor) -> Tensor:
        return (self.tokens(video) - target).square().mean()


def _video(config: VideoPrismConfig, options: Options, clips: int) -> tuple[Tensor, Tensor]:
    """Return uint8 frames for the library, and for others the same as float32 [B, T, 3, H, W] in [0, 1]."""
    shape = clips, config.num_frames, config.image_size, config.image_size, 3
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = video.to(options.device)
    return video, (video.permute(0, 1, 4, 2, 3) / 255).contiguous()


def encoder_flops(config: VideoPrismConfig, in_frames: Tensor, at_places: Tensor) -> int:
    """Count the forward FLOP of the blocks, from how many tokens each frame and each place of a clip has."""
    ratio = config.mlp_hidden / config.width
    return sum(
        transformer_flops(int(counts.sum()), int((counts**2).sum()), config.width, depth, ratio)
        for counts, depth in ((in_frames, config.depth), (at_places, config.temporal_depth))
    )


def _whole_flops(config: VideoPrismConfig, clips: int) -> int:
    frames, places = config.grid[0], config.grid[1] * config.grid[2]
    return encoder_flops(config, torch.full((clips * frames,), places), torch.full((clips * places,), frames))


def _embedding_flops(config: VideoPrismConfig, tokens: int) -> int:
    return 2 * tokens * 3 * config.patch_size**2 * config.width


def encoder_case(name: str, options: Options) -> Case:
    """Build the case of the encoder on whole clips."""
    sizes: dict[str, Any] = SMOKE if options.smoke else {"num_frames": 8}
    config: VideoPrismConfig = model_config(name, **sizes)
    found = importlib.util.find_spec("transformers") is not None
    torch.manual_seed(0)
    clips = options.clips(cpu=1, cuda=16, smoke=2)
    model: VideoPrismEncoder = build_model(config, options.device).train()
    if found:
        load_checkpoint(model, hf_encoder(config).state_dict(), origin="hf_videoprism")
    state = model.state_dict()
    video, clip = _video(config, options, clips)
    with torch.no_grad():
        right = model(video).float()
        target = right + torch.randn_like(right)
        expected = (right - target).square().mean().item()

    def ours() -> Side:
        own = build_model(config, options.device).train()
        own.load_state_dict(state)
        return own, TokenLoss(own), (video, target)

    def plain() -> Side:
        own = ours()[0]
        return own, TokenLoss(partial(plain_encoder, own)), (clip, target)

    def hf() -> Side:
        theirs = hf_encoder(config).to(options.device).train()
        return theirs, TokenLoss(lambda frames: theirs(frames).last_hidden_state), (clip, target)

    step = partial(training_step, options=options)
    peers: dict[str, Function | Missing] = {"hf, eager": step(hf), "hf, eager, compiled": step(hf, compile=True)}
    if not found:
        peers = dict.fromkeys(peers, Missing("transformers is not installed"))
    tokens = config.grid[0] * config.grid[1] * config.grid[2]
    flops = 3 * _whole_flops(config, clips) + 2 * _embedding_flops(config, clips * tokens)
    return compared(
        name,
        options,
        {"plain": step(plain), **peers},
        ours,
        baseline="hf, eager" if found else "plain",
        expected=expected,
        flops=flops,
        shape={"batch": clips, "frames": config.num_frames, "tokens": tokens},
    )


def hf_encoder(config: VideoPrismConfig) -> nn.Module:
    """Return transformers' VideoPrismVisionModel, each time with the same weights; without transformers ImportError."""
    import transformers  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    return transformers.VideoPrismVisionModel._from_config(
        transformers.VideoPrismVisionConfig(
            image_size=config.image_size,
            num_frames=config.num_frames,
            hidden_size=config.width,
            tubelet_size=[1, config.patch_size, config.patch_size],
            intermediate_size=config.mlp_hidden,
            num_attention_heads=config.num_heads,
            num_spatial_layers=config.depth,
            num_temporal_layers=config.temporal_depth,
            attn_logit_softcapping=config.softcap,
        ),
        attn_implementation="eager",
    )


def student_case(name: str, options: Options) -> Case:
    """Build the case of the second stage."""
    sizes = {**SMOKE, **SMOKE_DECODERS} if options.smoke else {}
    config: PrismStudentConfig = model_config("prism_student_base", **sizes)
    torch.manual_seed(0)
    clips = options.clips(cpu=1, cuda=16, smoke=2)
    model: PrismStudent = build_model(config, options.device).train()
    state = model.state_dict()
    video, clip = _video(config, options, clips)
    plan = model.plan(torch.arange(clips), seed=0, step=0)
    tokens = config.grid[0] * config.grid[1] * config.grid[2]
    visible = plan.visible.index
    inputs = clip, visible.long(), ~boolean_mask(visible, tokens), plan.order
    with torch.no_grad():
        expected = PlainStudent(model)(*inputs).item()

    def made() -> PrismStudent:
        own = build_model(config, options.device).train()
        own.load_state_dict(state)
        return own

    def ours() -> Side:
        own = made()
        return own, Loss(own), (video, plan)

    def plain() -> Side:
        own = made()
        return own, PlainStudent(own), inputs

    step = partial(training_step, options=options)
    return compared(
        name,
        options,
        {"unpacked": step(plain), "unpacked, compiled": step(plain, compile=True)},
        ours,
        baseline="unpacked",
        expected=expected,
        flops=_student_flops(config, plan.visible, clips, tokens),
        shape={"batch": clips, "frames": config.num_frames, "tokens": tokens, "visible": visible.shape[1]},
    )


def _student_flops(config: PrismStudentConfig, visible: Any, clips: int, tokens: int) -> int:
    """Count our FLOP of a step on packed tokens: the student's forward once and backward twice, the teacher's once."""
    shown = visible.index.numel()
    in_frames = visible.spatial.cu_seqlens.cpu().long().diff()
    listed = torch.zeros(clips, tokens, dtype=torch.int64).scatter_(1, visible.index.cpu().long(), 1)
    at_places = listed.view(clips, config.num_frames, -1).sum(dim=1).flatten()
    width, num_heads, ratio = (
        config.decoder_width,
        config.decoder_num_heads,
        config.decoder_hidden / config.decoder_width,
    )
    decoders = sum(
        transformer_flops(clips * length, clips * length**2, width, config.decoder_depth, ratio)
        for length in (tokens, shown // clips)
    )
    heads = 2 * config.width * width * (2 * shown + clips * tokens + clips)
    heads += _pooler_flops(width, num_heads, width, clips, shown)
    student = encoder_flops(config, in_frames, at_places) + decoders + heads
    teacher = _whole_flops(config, clips) + _embedding_flops(config, clips * tokens)
    teacher += _pooler_flops(config.width, config.num_heads, POOLER_WIDTHS * config.width, clips, clips * tokens)
    return teacher + 3 * student + 2 * _embedding_flops(config, shown)


def _pooler_flops(width: int, num_heads: int, hidden: int, clips: int, tokens: int) -> int:
    """Count the forward FLOP of an `AttentionPooler` of one query; `tokens` are those of all clips."""
    return 2 * width * (2 * (1 + clips) * hidden + 2 * tokens * num_heads)
