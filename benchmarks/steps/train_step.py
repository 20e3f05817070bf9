"""Measures a whole pretraining step: forward, backward and, unless --no-optimizer, fused AdamW.

It runs in bfloat16 autocast on CUDA, in float32 on the CPU.

released          the released structure in plain PyTorch (peers/plain_models.py and plain_alpro.py), from the float32
                  clip that its loader gives
released, sdpa    the same with scaled_dot_product_attention; compiled: under torch.compile
hf, sdpa          VideoMAEForPreTraining of transformers, VideoMAE only: also given the float32 clip, compiled too; from
                  frames: given uint8 frames, as ours is, and normalising them in the step; hf, eager: with its own
                  attention
fastvtp           the library's model, from uint8 frames; compiled: under torch.compile; graph: one CUDA graph

Models are ViT-B and ViT-S in the official preset; what is particular to ALPRO stands in alpro_step.py, to
VideoPrism in prism_step.py. All variants start from the same weights and must give the same loss; the learning rate is
0, so that they keep doing so. Masks and packing are those of one fixed batch: drawing them is the loader's overlap, not
the step's. Speed is the FLOP that the library's model computes over time: what another variant computes beyond them
(repeated passes, hidden tokens, rows that nothing reads) counts against it. Peak memory is that of a whole step,
gradients included, weights and optimizer state not.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastvtp.systems.catalogue import build_model, model_config
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.systems.simvtp.plan import SimVTPPlan
from fastvtp.systems.videomae.model import (
    VideoMAE,
    VideoMAEConfig,
    VideoMAEPlan,
)

from ..harness.case import Case, CaseFactory, Missing, Options
from ..harness.command import command_line, measure
from ..harness.timing import Function
from ..harness.workload import boolean_mask, normalized_clip, normalized_frames
from ..peers.hf_videomae import hf_videomae
from ..peers.plain_models import PlainSimVTP, PlainVideoMAE
from .alpro_step import alpro_case
from .prism_step import encoder_case, student_case
from .step import (
    SMOKE_TEXT,
    Loss,
    Side,
    block_flops,
    case_of,
    draw_captions,
    padded,
    sharing_flops,
    training_step,
    transformer_flops,
)

LONGEST_CAPTION = 32
SMOKE: dict[str, Any] = {
    "width": 32,
    "depth": 1,
    "num_heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 1,
    "num_frames": 4,
    "image_size": 32,
    "tubelet": (2, 8, 8),
}


@dataclass(frozen=True)
class Batch:
    """A batch gives both sides the same clips and captions.

    The library's model takes `video` and `plan`. The released structure takes `clip`, float32 [B, 3, T, H, W], and
    `hidden`, bool [B, tokens]; SimVTP's takes `captions` too, the ids, labels and wrong clips of `PlainSimVTP`.
    """

    video: Tensor
    plan: VideoMAEPlan | SimVTPPlan
    clip: Tensor
    hidden: Tensor
    captions: tuple[Tensor, ...] = ()


def step_flops(config: VideoMAEConfig, batch: Batch) -> int:
    """Count our FLOP of a step on packed tokens: forward once, backward twice (once for the embedding of frames).

    Padding counts where the preset carries it: such a row asks, and no row looks at it, but all are projected in one
    product. In the decoder's last block predicted tokens alone ask. In the first blocks, rows that begin alike are
    projected once.
    """
    plan, ratio = batch.plan, config.mlp_ratio
    clips, seen = plan.visible.shape
    lengths = keys = torch.full((clips,), seen)
    heads = words = 0
    if isinstance(plan, SimVTPPlan):
        assert isinstance(config, SimVTPConfig)
        packing = plan.packing
        lengths = keys = packing.cu_seqlens.cpu().long().diff()
        if packing.key_lengths is not None:
            keys = packing.key_lengths.cpu().long()
        words = len(plan.text_ids)
        heads = 2 * config.width * (len(plan.word_labels) * config.vocab_size + 2 * len(plan.match_labels))
    # tail rows, which are in no sequence, pass all layers but attention
    rows = len(plan.sources) if isinstance(plan, SimVTPPlan) else int(lengths.sum())
    encoder = config.depth * block_flops(rows, rows, int((lengths * keys).sum()), config.width, ratio)
    encoder -= sharing_flops(clips * seen + words, rows, rows, rows, config.width)
    predicted, width, values = plan.predicted.numel(), config.decoder_width, batch.clip[0].numel() // config.num_tokens
    tokens = seen + plan.predicted.shape[1]
    decoder = transformer_flops(clips * tokens, clips * tokens**2, width, config.decoder_depth - 1, ratio)
    decoder += block_flops(predicted, clips * tokens, predicted * tokens, width, ratio)
    asking = clips * tokens if config.decoder_depth > 1 else predicted
    decoder -= sharing_flops(clips * seen + config.num_tokens, clips * tokens, asking, clips * tokens, width)
    heads += 2 * clips * seen * config.width * width + 2 * predicted * width * values
    return 3 * (encoder + decoder + heads) + 2 * 2 * clips * seen * values * config.width


def cases(options: Options, words: Sequence[str] = ()) -> list[CaseFactory]:
    """Return the cases of models whose name contains one of `words`; without words all, in smoke one per class."""
    return [partial(CASES[name], name, options) for name in chosen_names(options.smoke, words)]


def chosen_names(smoke: bool, words: Sequence[str]) -> list[str]:
    """Return the models that a command line asks for."""
    offered = SMOKE_CASES if smoke and not words else tuple(CASES)
    return [name for name in offered if not words or any(word in name for word in words)]


def config_of(name: str, options: Options) -> VideoMAEConfig:
    """Return the official settings of a model without dropout of text, in smoke runs in tiny sizes."""
    config = model_config(name, preset="official")
    if options.smoke:
        config = dataclasses.replace(config, **SMOKE)
    if not isinstance(config, SimVTPConfig):
        return config
    return dataclasses.replace(config, text_dropout=0.0, **SMOKE_TEXT if options.smoke else {})


def make_batch(model: VideoMAE | SimVTP, options: Options) -> Batch:
    """Draw a batch, the same one in every run."""
    config, device = model.config, options.device
    clips = options.clips(cpu=2, cuda=64, smoke=3)
    generator = torch.Generator().manual_seed(0)
    shape = clips, config.num_frames, config.image_size, config.image_size, 3
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    if isinstance(model, SimVTP):
        plan, captions = make_captions(model, clips, generator)
    else:
        plan, captions = model.plan(torch.arange(clips), seed=0, step=0), ()
    hidden = ~boolean_mask(plan.visible, config.num_tokens)
    return Batch(video, plan, normalized_clip(video), hidden, captions)


def make_captions(
    model: SimVTP, clips: int, generator: torch.Generator
) -> tuple[SimVTPPlan, tuple[Tensor, Tensor, Tensor]]:
    """Return a plan with captions of random words, and the same captions padded for the released structure."""
    config, device = model.config, model.device
    ids, lengths = draw_captions(clips, config.vocab_size, LONGEST_CAPTION, generator)
    plan = model.plan(ids, lengths, torch.arange(clips), seed=0, step=0)
    shown = plan.text_ids[: len(ids)].cpu()
    labels = ids.where(shown == config.mask_token_id, -100)
    # The last B sequences are the mismatched pairs: their first rows say whose clip stands there.
    starts = plan.packing.cu_seqlens[3 * clips : 4 * clips].long()
    other = plan.sources.rows[starts] // plan.visible.shape[1]
    shown, labels = padded(shown, lengths, config.pad_token_id), padded(labels, lengths, -100)
    return plan, (shown.to(device), labels.to(device), other)


def step_case(name: str, options: Options) -> Case:
    """Build the case of a VideoMAE or SimVTP model."""
    torch.manual_seed(0)
    model = build_model(config_of(name, options), options.device).train()
    config, state, batch = model.config, model.state_dict(), make_batch(model, options)
    text = isinstance(model, SimVTP)

    def released(kernel: str) -> Side:
        with torch.device(options.device):
            plain = PlainSimVTP(config, kernel) if text else PlainVideoMAE(config, kernel)
        plain.load_state_dict(state)
        for part in ("video_embeddings", "decoder"):
            getattr(plain, part).positions.copy_(getattr(model, part).positions)
        return plain, plain, (batch.clip, batch.hidden, *batch.captions)

    def ours() -> Side:
        own = build_model(config, options.device).train()
        own.load_state_dict(state)
        return own, Loss(own), (batch.video, batch.plan)

    def hf(attention: str, *, from_frames: bool = False) -> Side:
        found = hf_videomae(config, state, attention).to(options.device).train()

        def loss(video: Tensor, hidden: Tensor) -> Tensor:
            return found(normalized_frames(video) if from_frames else video, bool_masked_pos=hidden).loss

        return found, loss, (batch.video if from_frames else normalized_frames(batch.video), batch.hidden)

    peers: dict[str, Function | Missing] = {}
    if not text:
        step = partial(training_step, options=options)
        peers = {
            "hf, eager": step(partial(hf, "eager")),
            "hf, sdpa": step(partial(hf, "sdpa")),
            "hf, sdpa, from frames": step(partial(hf, "sdpa", from_frames=True)),
            "hf, sdpa, compiled": step(partial(hf, "sdpa"), compile=True),
        }
        if importlib.util.find_spec("transformers") is None:
            peers = dict.fromkeys(peers, Missing("transformers is not installed"))
    return case_of(
        name,
        options,
        released=released,
        ours=ours,
        flops=step_flops(config, batch),
        peers=peers,
        shape={"batch": len(batch.video), "tokens": batch.hidden.shape[1], "visible": batch.plan.visible.shape[1]},
    )


# What builds the case of each model. Of most worth first: a run may be stopped.
CASES: dict[str, Callable[[str, Options], Case]] = {
    "videomae_base": step_case,
    "simvtp_base": step_case,
    "alpro_base": alpro_case,
    "videoprism_base": encoder_case,
    "videoprism_stage2_base": student_case,
    "videomae_small": step_case,
    "simvtp_small": step_case,
}
SMOKE_CASES = ("videomae_base", "simvtp_base", "alpro_base", "videoprism_base", "videoprism_stage2_base")
# Models that tell right pairs of clip and text from wrong ones.
PAIRED = ("simvtp", "alpro")


def train_step_main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from its command line."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--case", nargs="+", default=(), metavar="WORD", help=f"measure models whose name has one: {', '.join(CASES)}"
    )
    parser.add_argument(
        "--batch", type=int, metavar="CLIPS", help="take so many clips a step; default: as the case wants"
    )
    parser.add_argument("--no-optimizer", action="store_true", help="time forward and backward alone")
    given = parser.parse_args(arguments)
    if unknown := [word for word in given.case if not any(word in name for name in CASES)]:
        parser.error(f"--case: no case contains {unknown[0]!r}; there are {', '.join(CASES)}")
    paired = [name for name in chosen_names(given.smoke, given.case) if name.startswith(PAIRED)]
    least, why = (2, f" for {paired[0]} (a wrong pair needs two clips)") if paired else (1, "")
    if given.batch is not None and given.batch < least:
        parser.error(f"--batch must be at least {least}{why}, got {given.batch}")

    def chosen(options: Options) -> list[CaseFactory]:
        return cases(dataclasses.replace(options, batch=given.batch, optimizer=not given.no_optimizer), given.case)

    measure(chosen, parser, given)


if __name__ == "__main__":
    train_step_main()
