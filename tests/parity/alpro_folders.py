"""Sizes, weights' shapes and inputs of ALPRO's made parity folders."""

from typing import Any

import torch

from tests.parity.replica import Arrays

SIZES = {
    "img": 16, "patch": 8, "frames": 3, "vdim": 24, "vdepth": 1, "vheads": 3, "hidden": 24, "layers": 3, "fusion": 2,
    "heads": 2, "inter": 40, "vocab": 40, "maxpos": 12, "proj": 10, "entities": 5, "templates": 2, "L": 8,
    "lens": [8, 5, 3], "P": 5, "labels": 4, "prompt_type_used": "video", "visual_mlp_ratio": 4.0, "temp": 0.2,
    "special_ids": {"PAD": 0, "UNK": 1, "CLS": 2, "SEP": 3, "MASK": 4},
}  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def video_shapes(c: dict[str, Any]) -> Shapes:
    width, hidden = c["vdim"], int(c["vdim"] * c["visual_mlp_ratio"])
    found: Shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, (c["img"] // c["patch"]) ** 2 + 1, width),
        "time_embed": (1, c["frames"], width), "patch_embed.proj.weight": (width, 3, c["patch"], c["patch"]),
        "patch_embed.proj.bias": (width,), **norm("norm", width), **linear("head", 6, width),
    }  # fmt: skip
    for i in range(c["vdepth"]):
        block: Shapes = {}
        for attention in ("attn", "temporal_attn"):
            block |= linear(f"{attention}.qkv", 3 * width, width) | linear(f"{attention}.proj", width, width)
        for name in ("norm1", "norm2", "temporal_norm1"):
            block |= norm(name, width)
        block |= linear("temporal_fc", width, width)
        block |= linear("mlp.fc1", hidden, width) | linear("mlp.fc2", width, hidden)
        found |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {f"visual_encoder.model.{name}": shape for name, shape in found.items()}


def text_shapes(c: dict[str, Any]) -> Shapes:
    width = c["hidden"]
    tables = {"word": c["vocab"], "position": c["maxpos"], "token_type": 2}
    found: Shapes = {f"embeddings.{name}_embeddings.weight": (rows, width) for name, rows in tables.items()}
    found |= norm("embeddings.LayerNorm", width)
    for i in range(c["layers"]):
        layer: Shapes = {}
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            layer |= linear(name, width, width)
        layer |= linear("intermediate.dense", c["inter"], width) | linear("output.dense", width, c["inter"])
        layer |= norm("attention.output.LayerNorm", width) | norm("output.LayerNorm", width)
        found |= {f"encoder.layer.{i}.{name}": shape for name, shape in layer.items()}
    words = linear("transform.dense", width, width) | norm("transform.LayerNorm", width) | {"bias": (c["vocab"],)}
    return {f"text_encoder.bert.{name}": shape for name, shape in found.items()} | {
        f"text_encoder.cls.predictions.{name}": shape for name, shape in words.items()
    }


def shapes(c: dict[str, Any]) -> Shapes:
    """Names and shapes of the official pretraining weights; the features of prompts are not among them."""
    width = c["hidden"]
    model = video_shapes(c) | text_shapes(c) | linear("itm_head", 2, width) | {"temp": ()}
    for side in ("vision", "text"):
        model |= linear(f"{side}_proj", c["proj"], width)
    entities = linear("mpm_head.0", 2 * width, width) | linear("mpm_head.2", c["entities"], 2 * width)
    return model | entities | {f"prompter.{name}": shape for name, shape in model.items()}


def answer_shapes(c: dict[str, Any]) -> Shapes:
    """What the answering model has of its own."""
    return linear("classifier.0", 2 * c["hidden"], c["hidden"]) | linear("classifier.2", c["labels"], 2 * c["hidden"])


def draw_inputs(generator: torch.Generator, c: dict[str, Any]) -> Arrays:
    batch, length, side, special = len(c["lens"]), c["L"], c["img"] // c["patch"], c["special_ids"]

    def texts(count: int, rows: int, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = torch.arange(rows) < lengths[:, None]
        ids = torch.randint(max(special.values()) + 1, c["vocab"], (count, rows), generator=generator)
        ids[:, 0] = special["CLS"]
        return ids.masked_fill(~real, special["PAD"]), real.long()

    ids, real = texts(batch, length, torch.tensor(c["lens"]))
    hidden = real.bool() & (torch.rand(batch, length, generator=generator) < 0.5) & (ids != special["CLS"])
    hidden[0, 1] = True  # else the words' loss is that of no words
    video = torch.randn(batch, c["frames"], 3, c["img"], c["img"], generator=generator)
    outside = torch.ones(batch, side, side)
    outside[:, side // 2 :, : side // 2] = 0
    outside[0, 0, 0] = 0
    shown = (outside == 0).repeat_interleave(c["patch"], 1).repeat_interleave(c["patch"], 2)[:, None, None]
    inputs = {
        "video": video, "crop_video": video * shown, "mpm_mask": outside, "text_input_ids": ids,
        "text_input_mask": real, "mlm_text_input_ids": ids.masked_fill(hidden, special["MASK"]),
        "mlm_labels": ids.masked_fill(~hidden, -100), "vtm_video_neg_idx": (torch.arange(batch) + 1) % batch,
        "vtm_text_neg_idx": (torch.arange(batch) - 1) % batch,
        "qa_labels": torch.randint(c["labels"], (batch,), generator=generator),
    }  # fmt: skip
    for kind in ("video", "image"):
        count = c["templates"] * c["entities"]
        lengths = torch.randint(2, c["P"] + 1, (count,), generator=generator)
        inputs[f"{kind}_prompt_ids"], inputs[f"{kind}_prompt_mask"] = texts(count, c["P"], lengths)
    return inputs
