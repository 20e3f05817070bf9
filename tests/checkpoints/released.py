"""Checkpoints in the released layout of VideoMAE and VideoMAE V2: the names and shapes of every tensor."""

from typing import Any

import torch
from torch import Tensor

# the authors' sizes: encoder (width, depth, heads), decoder (width, heads), what else differs
V1: dict[str, dict[str, Any]] = {
    "S": {"dim": 384, "depth": 12, "heads": 6, "ddim": 192, "dheads": 3},
    "B": {"dim": 768, "depth": 12, "heads": 12, "ddim": 384, "dheads": 6},
    "L": {"dim": 1024, "depth": 24, "heads": 16, "ddim": 512, "dheads": 8},
    "H": {"dim": 1280, "depth": 32, "heads": 16, "ddim": 640, "dheads": 8},
}
V2: dict[str, dict[str, Any]] = {
    **{size: V1[size] for size in "SBL"},
    "H": {"dim": 1280, "depth": 32, "heads": 16, "ddim": 512, "dheads": 8},
    "g": {"dim": 1408, "depth": 40, "heads": 16, "ddim": 512, "dheads": 8, "patch": 14, "mlp": 48 / 11},
}
Shapes = dict[str, tuple[int, ...]]


def _blocks(prefix: str, depth: int, width: int, hidden: int, scaled: bool) -> Shapes:
    shapes: Shapes = {}
    for number in range(depth):
        name = f"{prefix}blocks.{number}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{name}{norm}.weight": (width,), f"{name}{norm}.bias": (width,)}
        shapes |= {
            f"{name}attn.q_bias": (width,), f"{name}attn.v_bias": (width,),
            f"{name}attn.qkv.weight": (3 * width, width),
            f"{name}attn.proj.weight": (width, width), f"{name}attn.proj.bias": (width,),
            f"{name}mlp.fc1.weight": (hidden, width), f"{name}mlp.fc1.bias": (hidden,),
            f"{name}mlp.fc2.weight": (width, hidden), f"{name}mlp.fc2.bias": (width,),
        }  # fmt: skip
        if scaled:
            shapes |= {f"{name}gamma_1": (width,), f"{name}gamma_2": (width,)}
    return shapes


def encoder_shapes(size: dict[str, Any], prefix: str = "", *, scaled: bool = False) -> Shapes:
    """Patch embedding and blocks, without anything behind them."""
    width, patch = size["dim"], size.get("patch", 16)
    embedding: Shapes = {
        f"{prefix}patch_embed.proj.weight": (width, 3, 2, patch, patch), f"{prefix}patch_embed.proj.bias": (width,),
    }  # fmt: skip
    return embedding | _blocks(prefix, size["depth"], width, int(width * size.get("mlp", 4)), scaled)


def classifier_shapes(size: dict[str, Any], classes: int = 400, *, scaled: bool = False) -> Shapes:
    width = size["dim"]
    behind: Shapes = {
        "fc_norm.weight": (width,), "fc_norm.bias": (width,), "head.weight": (classes, width), "head.bias": (classes,)
    }  # fmt: skip
    return encoder_shapes(size, scaled=scaled) | behind


def pretraining_shapes(size: dict[str, Any], decoder_depth: int = 4, *, scaled: bool = False) -> Shapes:
    width, inner, pixels = size["dim"], size["ddim"], 3 * 2 * size.get("patch", 16) ** 2
    behind: Shapes = {
        "mask_token": (1, 1, inner), "encoder.norm.weight": (width,), "encoder.norm.bias": (width,),
        "encoder_to_decoder.weight": (inner, width), "decoder.norm.weight": (inner,), "decoder.norm.bias": (inner,),
        "decoder.head.weight": (pixels, inner), "decoder.head.bias": (pixels,),
    }  # fmt: skip
    hidden = int(inner * size.get("mlp", 4))
    decoder = _blocks("decoder.", decoder_depth, inner, hidden, scaled)
    return encoder_shapes(size, "encoder.", scaled=scaled) | behind | decoder


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random_weights(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Weights of such a spread that attention tells tokens apart and every branch counts."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        matrix = len(shape) > 1 and name != "mask_token"
        spread = 1.5 / (drawn[0].numel() ** 0.5) if matrix else 0.2
        weights[name] = drawn * spread + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return weights
