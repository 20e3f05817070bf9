"""A whole pretraining step, forward, backward and fused AdamW, in bfloat16 autocast on CUDA (float32 on the CPU).

released          the released structure in plain PyTorch (plain_models.py), from the float32 clip that its loader gives
released, sdpa    the same with scaled_dot_product_attention; compiled: under torch.compile
hf, sdpa          VideoMAEForPreTraining of transformers, compiled too; for videomae_base
fastvtp           the library's model, from uint8 frames; compiled: under torch.compile; graph: one CUDA graph

All start from the same weights and must give the same loss; the learning rate is 0, so that they keep doing so. Masks
and packing are those of one fixed batch: drawing them is the loader's overlap, not the step's. Speed is model FLOP of
the packed tokens over time: what padding, repeated passes and hidden tokens cost more counts against a variant.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastvtp.models.layers import Packing
from fastvtp.models.registry import build_model, model_config
from fastvtp.models.simvtp import SimVTP, SimVTPConfig, SimVTPPlan
from fastvtp.models.videomae import IMAGENET_MEAN, IMAGENET_STD
from fastvtp_kernels import masked_pixel_loss

from .harness import Case, CaseFactory, Cost, Missing, Options, compiled, main
from .hf_videomae import hf_videomae
from .plain_models import PlainSimVTP, PlainVideoMAE
from .timing import Function
from .workload import boolean_mask, normalized_clip

TEXT_TOKENS = (10, 32)
# Relative difference of the loss from the float32 one.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
SMOKE: dict[str, Any] = {
    "width": 32, "depth": 1, "num_heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 1,
    "num_frames": 4, "image_size": 32, "tubelet": (2, 8, 8), "vocab_size": 200,
    "mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4),
}  # fmt: skip
FIRST_WORD_ID = 150


class VideoMAE(nn.Module):
    """Pixels alone, of the parts that SimVTP shares with VideoMAE."""

    def __init__(self, model: SimVTP):
        super().__init__()
        self.config = model.config
        self.video_embeddings, self.encoder, self.decoder = model.video_embeddings, model.encoder, model.decoder

    def forward(self, video: Tensor, plan: SimVTPPlan) -> Tensor:
        visible = self.video_embeddings(video, plan.visible)
        batch, tokens, width = visible.shape
        packing = Packing.uniform(batch, tokens, visible.device)
        visible = self.encoder(visible.flatten(0, 1), packing).view(batch, tokens, width)
        return masked_pixel_loss(
            self.decoder(visible, plan.visible, plan.masked), video, plan.masked,
            tubelet=self.config.tubelet, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        )  # fmt: skip


class SimVTPLoss(nn.Module):
    def __init__(self, model: SimVTP):
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, plan: SimVTPPlan) -> Tensor:
        return self.model(video, plan).loss


@dataclass(frozen=True)
class Batch:
    """The same clips and captions for both sides: uint8 and float clips, packed and padded captions."""

    video: Tensor
    plan: SimVTPPlan
    clip: Tensor
    hidden: Tensor
    ids: Tensor
    labels: Tensor
    other: Tensor


def transformer_flops(tokens: int, pairs: int, width: int, depth: int, mlp_ratio: float) -> int:
    """Forward FLOP of `depth` blocks: 2 per weight and token (4 + 2 mlp_ratio width^2 weights), 4 width per pair."""
    return int(depth * (2 * tokens * (4 + 2 * mlp_ratio) * width**2 + 4 * pairs * width))


def step_flops(config: SimVTPConfig, batch: Batch, text: bool) -> int:
    """Model FLOP of a step on packed tokens: forward once, backward twice (embedding: once, frames get no gradient)."""
    offsets = batch.plan.packing.cu_seqlens.cpu().long()
    lengths = offsets.diff() if text else torch.full((len(batch.video),), batch.plan.visible.shape[1])
    clips, masked = batch.plan.masked.shape
    decoder_tokens = batch.hidden.shape[1]
    values = batch.clip[0].numel() // decoder_tokens
    visible = batch.plan.visible.numel()
    forward = transformer_flops(
        int(lengths.sum()), int((lengths**2).sum()), config.width, config.depth, config.mlp_ratio
    ) + transformer_flops(
        clips * decoder_tokens, clips * decoder_tokens**2, config.decoder_width, config.decoder_depth, config.mlp_ratio
    )
    forward += 2 * visible * config.width * config.decoder_width + 2 * clips * masked * config.decoder_width * values
    if text:
        forward += 2 * len(batch.plan.word_labels) * config.width * config.vocab_size
    return 3 * forward + 2 * 2 * visible * values * config.width


def cases(options: Options) -> list[CaseFactory]:
    return [partial(step_case, name, options) for name in ("videomae_base", "simvtp_base")]


def config_of(options: Options) -> SimVTPConfig:
    config = model_config("simvtp_base", preset="official", text_dropout=0.0)
    return dataclasses.replace(config, **SMOKE) if options.smoke else config


def make_batch(model: SimVTP, options: Options) -> Batch:
    config, device = model.config, options.device
    clips = 3 if options.smoke else 64 if device.type == "cuda" else 2
    generator = torch.Generator().manual_seed(0)
    shape = clips, config.num_frames, config.image_size, config.image_size, 3
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    lengths = torch.randint(TEXT_TOKENS[0], TEXT_TOKENS[1] + 1, (clips,), generator=generator).tolist()
    ids = torch.randint(FIRST_WORD_ID, config.vocab_size, (sum(lengths),), generator=generator)
    plan = model.plan(ids, lengths, torch.arange(clips), seed=0, step=0)

    padded, labels = (torch.full((clips, max(lengths)), fill) for fill in (config.pad_token_id, -100))
    for row, (length, shown, true) in enumerate(
        zip(lengths, plan.text_ids[: len(ids)].cpu().split(lengths), ids.split(lengths), strict=True)
    ):
        padded[row, :length] = shown
        labels[row, :length] = true.where(shown == config.mask_token_id, torch.tensor(-100))
    # The last B sequences are the mismatched pairs: their first rows say whose clip stands there.
    starts = plan.packing.cu_seqlens[3 * clips : 4 * clips].long()
    other = plan.gather[starts] // plan.visible.shape[1]
    hidden = boolean_mask(plan.masked, int(np.prod(config.grid)))
    return Batch(video, plan, normalized_clip(video), hidden, padded.to(device), labels.to(device), other)


def training_step(model: nn.Module, forward: Callable[[], Tensor], options: Options, capturable: bool) -> Function:
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.0, fused=True, capturable=capturable
    )

    def step() -> Tensor:
        with torch.autocast(options.device.type, options.dtype, enabled=options.dtype != torch.float32):
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def graphed(step: Function, device: torch.device) -> Function | Missing:
    """One replay of all the step's launches; the gradients' memory is the graph's own."""
    if device.type != "cuda":
        return Missing("CUDA graphs need a CUDA device")
    graph = torch.cuda.CUDAGraph()
    loss: list[Any] = []

    def replay() -> Any:
        if not loss:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                loss.append(step())
        graph.replay()
        return loss[0]

    return replay


def step_case(name: str, options: Options) -> Case:
    text, config = name == "simvtp_base", config_of(options)
    torch.manual_seed(0)
    model = build_model(config, options.device).train()
    batch = make_batch(model, options)
    state = model.state_dict()

    def released(kernel: str) -> tuple[nn.Module, Callable[..., Tensor], tuple[Tensor, ...]]:
        kind = PlainSimVTP if text else PlainVideoMAE
        with torch.device(options.device):
            plain = kind(config, kernel)
        plain.load_state_dict({key: value for key, value in state.items() if key in plain.state_dict()})
        for part in ("video_embeddings", "decoder"):
            getattr(plain, part).positions.copy_(getattr(model, part).positions)
        inputs = (batch.clip, batch.hidden, batch.ids, batch.labels, batch.other)
        return plain, plain, inputs if text else inputs[:2]

    def ours() -> tuple[nn.Module, Callable[..., Tensor], tuple[Any, ...]]:
        own = build_model(config, options.device).train()
        own.load_state_dict(state)
        wrapped = SimVTPLoss(own) if text else VideoMAE(own)
        return wrapped, wrapped, (batch.video, batch.plan)

    def hf() -> tuple[nn.Module, Callable[..., Tensor], tuple[Tensor, ...]]:
        found = hf_videomae(config, state).to(options.device).train()
        pixels = batch.clip.transpose(1, 2).contiguous()
        return found, lambda pixels, hidden: found(pixels, bool_masked_pos=hidden).loss, (pixels, batch.hidden)

    def variant(make: Callable[[], Any], *, compile: bool = False, graph: bool = False) -> Function | Missing:
        try:
            module, function, inputs = make()
        except ImportError as error:
            return Missing(f"transformers cannot be imported: {error}")
        function = compiled(function, options) if compile else function
        step = training_step(module, lambda: function(*inputs), options, capturable=graph)
        return graphed(step, options.device) if graph else step

    variants: dict[str, Function | Missing] = {
        "released": variant(partial(released, "manual")),
        "released, sdpa": variant(partial(released, "sdpa")),
        "released, sdpa, compiled": variant(partial(released, "sdpa"), compile=True),
    }
    if not text:
        variants |= {"hf, sdpa": variant(hf), "hf, sdpa, compiled": variant(hf, compile=True)}
    variants |= {
        "fastvtp": variant(ours),
        "fastvtp, compiled": variant(ours, compile=True),
        "fastvtp, graph": variant(ours, graph=True) if options.device.type == "cuda" else graphed(ours, options.device),
    }

    _, truth, inputs = released("manual")
    with torch.no_grad():
        expected = truth(*inputs).item()
    clips = len(batch.video)
    return Case(
        op="train_step", name=name, direction="step",
        shape={"batch": clips, "tokens": batch.hidden.shape[1], "visible": batch.plan.visible.shape[1]},
        dtype=options.dtype, device=options.device,
        cost=Cost(0, step_flops(config, batch, text)), variants=variants, baseline="released, sdpa",
        error=lambda loss: abs(loss.item() - expected) / abs(expected), tolerance=TOLERANCES[options.dtype],
    )  # fmt: skip


if __name__ == "__main__":
    main(cases, __doc__)
