"""Parity folders of other sizes: random weights and inputs, and what the replica makes of them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity import alpro_folders
from tests.parity.alpro_replica import (
    alpro,
    linear_schedule,
    prompt_features,
)
from tests.parity.replica import (
    Arrays,
    replicate,
    retrieval,
    schedule,
    simvtp,
    videomae,
)

SYSTEMS = {"videomae": videomae, "simvtp": simvtp, "alpro": alpro}

SIZES = {
    "img": 16, "patch": 8, "tubelet": 2, "frames": 4, "dim": 24, "depth": 2, "heads": 3, "ddim": 16, "ddepth": 1,
    "dheads": 2, "mlp": 4.0, "init_values": 0.0, "vocab": 40, "maxpos": 12, "L": 8, "lens": [8, 5, 3], "classes": 5,
    "qkv_bias": True, "vtc_temperature": 0.05, "base_value": 3e-4, "final_value": 2e-5, "epochs": 6, "niter_per_ep": 7,
    "warmup_epochs": 1,
    "special_ids": {"PAD": 0, "UNK": 1, "CLS": 2, "SEP": 3, "MASK": 4},
}  # fmt: skip


def shapes(system: str, c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official pretraining weights."""
    found: dict[str, tuple[int, ...]] = {}
    values = c["tubelet"] * c["patch"] ** 2 * 3
    for part, width, depth in (("encoder", c["dim"], c["depth"]), ("decoder", c["ddim"], c["ddepth"])):
        hidden = int(width * c["mlp"])
        for i in range(depth):
            block = {
                "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
                "attn.q_bias": (width,), "attn.v_bias": (width,), "attn.qkv.weight": (3 * width, width),
                "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
                "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
                "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
            }  # fmt: skip
            if not c["qkv_bias"]:
                del block["attn.q_bias"], block["attn.v_bias"]
            if c["init_values"]:
                block |= {"gamma_1": (width,), "gamma_2": (width,)}
            found |= {f"{part}.blocks.{i}.{name}": shape for name, shape in block.items()}
        found |= {f"{part}.norm.weight": (width,), f"{part}.norm.bias": (width,)}
    dim = c["dim"]
    found |= {
        "encoder.patch_embed.proj.weight": (dim, 3, c["tubelet"], c["patch"], c["patch"]),
        "encoder.patch_embed.proj.bias": (dim,), "encoder_to_decoder.weight": (c["ddim"], dim),
        "mask_token": (1, 1, c["ddim"]), "decoder.head.weight": (values, c["ddim"]), "decoder.head.bias": (values,),
    }  # fmt: skip
    if system == "simvtp":
        tables = {"word": c["vocab"], "position": c["maxpos"], "token_type": 2}
        found |= {f"text_embeddings.{name}_embeddings.weight": (rows, dim) for name, rows in tables.items()}
        found |= {"text_embeddings.LayerNorm.weight": (dim,), "text_embeddings.LayerNorm.bias": (dim,)}
        for name, rows in (("text_cls", c["vocab"]), ("vtm_head", 2)):
            found |= {f"{name}.weight": (rows, dim), f"{name}.bias": (rows,)}
    return found


def draw(generator: torch.Generator, name: str, shape: tuple[int, ...]) -> Tensor:
    value = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return value * 1.3 / math.sqrt(value[0].numel())
    if "gamma" in name:
        return value * 0.5
    return value * 0.1 + ("norm" in name.lower() and name.endswith("weight"))


def draw_inputs(generator: torch.Generator, c: dict[str, Any]) -> Arrays:
    batch, frames, size, length = len(c["lens"]), c["frames"], c["img"], c["L"]
    cells, slots = (size // c["patch"]) ** 2, frames // c["tubelet"]
    tubes = torch.stack([torch.randperm(cells, generator=generator) < max(1, cells * 3 // 4) for _ in range(batch)])
    real = torch.arange(length) < torch.tensor(c["lens"])[:, None]
    special = c["special_ids"]
    ids = torch.randint(len(special), c["vocab"], (batch, length), generator=generator)
    ids[:, 0] = special["CLS"]
    hidden = real & (torch.rand(batch, length, generator=generator) < 0.6) & (ids != special["CLS"])
    hidden[0, 1] = True  # else the words' loss is that of no words
    ids = ids.masked_fill(~real, special["PAD"])
    return {
        "video": torch.randn(batch, 3, frames, size, size, generator=generator),
        "video_mask": tubes.repeat(1, slots), "attention_mask": real.long(), "input_ids_unmasked": ids,
        "input_ids": ids.masked_fill(hidden, special["MASK"]), "mlm_labels": ids.masked_fill(~hidden, -100),
        "vtm_neg_idx": (torch.arange(batch) + 1) % batch,
    }  # fmt: skip


def make_folder(system: str, path: Path, *, seed: int, **sizes: Any) -> None:
    """Write a parity folder of random weights and inputs; `sizes` replace those of `SIZES`."""
    generator = torch.Generator().manual_seed(seed)
    if system == "alpro":
        config, files = _alpro(generator, sizes)
    else:
        config, files = _masked(generator, system, sizes)
    path.mkdir(parents=True)
    for name, arrays in files.items():
        save_file(arrays, path / f"{name}.safetensors")
    (path / "config.json").write_text(json.dumps(config))


def _drawn(generator: torch.Generator, found: dict[str, tuple[int, ...]]) -> Arrays:
    return {name: draw(generator, name, shape) for name, shape in found.items()}


def _alpro(generator: torch.Generator, sizes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Arrays]]:
    config = {**alpro_folders.SIZES, **sizes}
    weights = _drawn(generator, alpro_folders.shapes(config))
    weights |= {name: torch.tensor(config["temp"]) for name in ("temp", "prompter.temp")}
    extra, inputs = _drawn(generator, alpro_folders.answer_shapes(config)), alpro_folders.draw_inputs(generator, config)
    prompts = prompt_features({name: value.double() for name, value in weights.items()}, config, inputs)
    weights |= {f"prompter.{name}": value.float() for name, value in prompts.items()}
    outputs = {**replicate(alpro, config, weights, inputs, extra), "lr_schedule_linear": linear_schedule(50)}
    return config, {"state_dict": weights, "inputs": inputs, "qa_extra": extra, "outputs": outputs}


def _masked(generator: torch.Generator, system: str, sizes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Arrays]]:
    config = {**SIZES, **sizes}
    weights = _drawn(generator, shapes(system, config))
    own = {"fc_norm.weight": (config["dim"],), "fc_norm.bias": (config["dim"],)}
    if system == "videomae":
        own |= {"head.weight": (config["classes"], config["dim"]), "head.bias": (config["classes"],)}
    else:
        own |= {"blocks.0.norm1.weight": (config["dim"],)}
        own = {f"{side}_encoder.{name}": shape for side in ("video", "text") for name, shape in own.items()}
    extra = _drawn(generator, own)
    inputs = draw_inputs(generator, config)
    outputs = {**replicate(SYSTEMS[system], config, weights, inputs, extra), "lr_schedule": schedule(config)}
    if system == "simvtp":
        sims = outputs["retrieval_sims"] = torch.randn(17, 17, generator=generator)
        config["retrieval_metrics"] = {"t2v": retrieval(sims), "v2t": retrieval(sims.T)}
    return config, {"state_dict": weights, "inputs": inputs, "finetune_extra": extra, "outputs": outputs}
