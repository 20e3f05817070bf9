"""What the released systems share: capturing activations, finding gradients, clips, targets, rates, metrics."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.errors import UserError
from fastvtp.evaluation.retrieval import retrieval_metrics, retrieval_ranks
from fastvtp.modules.pixels import IMAGENET_MEAN, IMAGENET_STD
from fastvtp.modules.rows import take_rows
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videomae.model import VideoEmbeddings, VideoMAEConfig
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import learning_rate_at
from fastvtp_kernels import masked_pixel_loss, tubelet_embed
from tests.parity.folder import ParityFolder

# `cosine_scheduler(...)` of the released recipes' fixtures, unless config.json says otherwise
SCHEDULE = {"base_value": 1.5e-4, "final_value": 1e-5, "epochs": 5, "niter_per_ep": 4, "warmup_epochs": 2}

_FIRST_COUNT = 2**30  # which no initialisation gives

Load = Callable[[nn.Module, Mapping[str, Tensor]], Any]


def video_sizes(folder: ParityFolder) -> dict[str, Any]:
    """The encoder's part of a model's configuration."""
    folder.check_fixed(norm_eps=1e-6)
    patch = folder.setting("patch")
    return {
        "num_frames": folder.setting("frames"), "image_size": folder.setting("img"),
        "tubelet": (folder.setting("tubelet"), patch, patch),
        "width": folder.setting("dim"), "depth": folder.setting("depth"), "num_heads": folder.setting("heads"),
        "mlp_ratio": folder.config.get("mlp", 4.0), "qkv_bias": folder.config.get("qkv_bias", True),
        "layer_scale": folder.config.get("init_values", 0.0),
    }  # fmt: skip


def decoder_sizes(folder: ParityFolder) -> dict[str, Any]:
    """The decoder's part of a model's configuration, and the masking's."""
    return {
        "decoder_width": folder.setting("ddim"), "decoder_depth": folder.setting("ddepth"),
        "decoder_num_heads": folder.setting("dheads"), "video_mask_ratio": folder.config.get("mask_ratio", 0.75),
    }  # fmt: skip


def built(folder: ParityFolder, config_class: type, values: Mapping[str, Any]) -> Any:
    """A model of that configuration in evaluation mode."""
    try:
        return build_model(config_class(**values)).eval()
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder.path / 'config.json'}: {error}") from None


def read_clip(folder: ParityFolder, case: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels in [0, 1], float32 [B, T, H, W, 3], and visible and masked tubelets, int32 [B, Kv] and [B, Km]."""
    video, mask = folder.input(f"{case}video"), folder.input(f"{case}video_mask").bool()
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (video.float() * std + mean).permute(0, 2, 3, 4, 1).contiguous()
    counts = mask.sum(dim=1).unique()
    if len(counts) != 1:
        raise UserError(f"{case}video_mask must hide as many tubelets of each clip, got {counts.tolist()}")
    index = torch.arange(mask.shape[1], dtype=torch.int32).expand_as(mask)
    return pixels, index[~mask].view(len(mask), -1), index[mask].view(len(mask), -1)


def patch_embeddings(embeddings: VideoEmbeddings, pixels: Tensor) -> Tensor:
    """All tubelets without their positions, which a step never computes: [B, N, D]."""
    index = torch.arange(embeddings.num_tokens, dtype=torch.int32).expand(len(pixels), -1)
    return tubelet_embed(
        pixels, index, embeddings.weight, embeddings.bias,
        tubelet=embeddings.tubelet, mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip


def pixel_target(pixels: Tensor, masked: Tensor, config: VideoMAEConfig) -> Tensor:
    """What the pixel loss compares with, [B, Km, P].

    It never exists in memory: the loss's gradient at a prediction of 0 is -2 / n times it.
    """
    values = pixels.shape[-1] * math.prod(config.tubelet)
    prediction = torch.zeros(*masked.shape, values, requires_grad=True)
    loss = masked_pixel_loss(
        prediction, pixels, masked, tubelet=config.tubelet, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        normalize=config.target_normalization,
    )  # fmt: skip
    return torch.autograd.grad(loss, prediction)[0] * (-prediction.numel() / 2)


@contextmanager
def captured(outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What modules give (`outputs`) and take (`inputs`) first while the context is open, detached, by given name."""
    seen: dict[str, Tensor] = {}

    def keep_output(name: str, _: nn.Module, __: Any, value: Tensor) -> None:
        seen.setdefault(name, value.detach())

    def keep_input(name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        # a transformer is given its `Rows` behind the tokens
        seen.setdefault(name, take_rows(given[0], getattr(given[-1], "sources", None)).detach())

    hooks = [module.register_forward_hook(partial(keep_output, name)) for name, module in outputs.items()]
    hooks += [module.register_forward_pre_hook(partial(keep_input, name)) for name, module in inputs.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def named_blocks(pattern: str, blocks: nn.Module) -> dict[str, nn.Module]:
    """`pattern` with each block's number -> the block."""
    return {pattern.format(name): block for name, block in blocks.named_children()}


def gradients(model: nn.Module, weights: Mapping[str, Tensor], load: Load) -> dict[str, Tensor]:
    """The gradients that `model` holds, by official name and in the official shape; zero where there is none.

    Which numbers of which official tensors a parameter is made of is read off a second model, in whose official weights
    every number was its own count. What loading left out of a tensor (the keys' bias in one of queries, keys and
    values) has no gradient. Tensors of which nothing was loaded are left out.
    """
    marked = build_model(model.config).double()  # pyright: ignore[reportArgumentType]
    sizes = [value.numel() for value in weights.values()]
    counts = (_FIRST_COUNT + torch.arange(sum(sizes), dtype=torch.float64)).split(sizes)
    load(marked, {name: c.view(value.shape) for c, (name, value) in zip(counts, weights.items(), strict=True)})
    total = torch.zeros(sum(sizes))
    reached = torch.zeros(sum(sizes), dtype=torch.bool)
    parameters = dict(model.named_parameters())
    for name, parameter in marked.named_parameters():
        count, gradient = parameter.detach().flatten(), parameters[name].grad
        origin = count.long() - _FIRST_COUNT
        if (origin < 0).any() or not torch.equal(origin + _FIRST_COUNT, count):
            continue  # as it was initialised, or resized
        reached[origin] = True
        if gradient is not None:
            total.index_add_(0, origin, gradient.flatten().float())
    return {
        name: gradient.view(value.shape)
        for gradient, seen, (name, value) in zip(total.split(sizes), reached.split(sizes), weights.items(), strict=True)
        if seen.any()
    }


def learning_rates(folder: ParityFolder) -> dict[str, Tensor]:
    """The released schedule of the learning rate, float64 [steps], under each name that the outputs have for it."""
    own = folder.config.get("lr_schedule", folder.config)
    base, final, epochs, iterations, warmup = (own.get(name, value) for name, value in SCHEDULE.items())
    config = OptimizerConfig(learning_rate=base, final_learning_rate=final, warmup_steps=int(warmup * iterations))
    steps = epochs * iterations
    rates = torch.tensor([learning_rate_at(step, steps, config) for step in range(steps)], dtype=torch.float64)
    return dict.fromkeys(folder.outputs_of("lr_schedule"), rates)


def retrieval_scores(similarity: Tensor, wanted: Mapping[str, Mapping[str, float]]) -> dict[str, Tensor]:
    """The wanted metrics of similarities (rows: texts) under the names of the released evaluation."""
    ranks, metrics = retrieval_ranks(similarity)._asdict(), retrieval_metrics(similarity)
    scores = {}
    for direction in wanted.keys() & ranks.keys():
        for name in wanted[direction]:
            if (value := _score(name, metrics[direction], ranks[direction])) is not None:
                scores[f"retrieval_metrics.{direction}.{name}"] = torch.tensor(value, dtype=torch.float64)
    return scores


def _score(name: str, metrics: Mapping[str, float], ranks_Q: Tensor) -> float | None:
    """One metric: as fastvtp reports it, or else from the ranks; None: unknown."""
    ours = {"MedR": "MdR", "MeanR": "MnR"}.get(name, name)
    if ours in metrics:
        return metrics[ours]
    if recall := re.fullmatch(r"R(\d+)", name):
        return 100.0 * (ranks_Q <= int(recall[1])).double().mean().item()
    if geometric := re.fullmatch(r"geometric_mean_(R\d+(?:-R\d+)*)", name):
        parts = [_score(part, metrics, ranks_Q) or 0.0 for part in geometric[1].split("-")]
        return math.prod(parts) ** (1 / len(parts))
    return None
