"""VideoPrism's parity folders of any size: random weights and inputs, and what the replica makes of them."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.parity.prism_replica import (
    Arrays,
    classifier,
    encoder,
    text_tower,
    video_text,
)

SIZES: dict[str, Any] = {
    "patch_size": 5, "pos_emb_shape": [3, 4, 4], "model_dim": 21, "num_spatial_layers": 2, "num_temporal_layers": 1,
    "num_heads": 3, "mlp_dim": 26, "atten_logit_cap": 9.0, "num_auxiliary_layers": 1, "vocabulary_size": 40,
    "num_unimodal_layers": 2, "norm_policy": "pre", "num_classes": 4,
}  # fmt: skip
# case -> clips, frames, side of the grid, whether frames are padded
CASES: dict[str, tuple[int, int, int, bool]] = {
    "whole/": (2, 3, 4, False), "one/": (3, 1, 3, False), "long/": (1, 5, 6, False), "padded/": (2, 3, 4, True),
    "short_padded/": (3, 2, 4, True),
}  # fmt: skip
LENGTHS = (6, 1, 4)


def stack(place: str, layers: int, width: int, hidden: int, heads: int, *, hybrid: bool = False) -> dict[str, tuple]:
    norms = ("pre_layer_norm", "post_layer_norm") if hybrid else ("layer_norm",)
    head = width // heads
    shapes: dict[str, tuple] = {}
    for name in norms:
        shapes |= {f"{part}{name}/{leaf}": (width,) for part in ("", "ff_layer/") for leaf in ("scale", "bias")}
    for part in ("query", "key", "value", "post"):
        bias = (width,) if part == "post" else (heads, head)
        shapes |= {f"self_attention/{part}/w": (width, heads, head), f"self_attention/{part}/b": bias}
    for part, (before, after) in {"ffn_layer1": (width, hidden), "ffn_layer2": (hidden, width)}.items():
        shapes |= {f"ff_layer/{part}/linear/kernel": (before, after), f"ff_layer/{part}/linear/bias": (after,)}
    return {f"{place}/x_layers/{name}": (layers, *shape) for name, shape in shapes.items()}


def encoder_shapes(c: dict[str, Any], prefix: str = "") -> dict[str, tuple]:
    width, (times, *grid) = c["model_dim"], c["pos_emb_shape"]
    found: dict[str, tuple] = {
        "patch_projection/linear/kernel": (c["patch_size"] ** 2 * 3, width), "patch_projection/linear/bias": (width,),
        "spatial_pos_emb/emb_var": (math.prod(grid), width), "temporal_pos_emb/emb_var": (times, width),
    }  # fmt: skip
    for part in ("spatial", "temporal"):
        found |= {f"{part}_ln/{leaf}": (width,) for leaf in ("scale", "bias")}
        layers = c[f"num_{part}_layers"]
        found |= stack(f"{part}_encoder/transformers_stack", layers, width, c["mlp_dim"], c["num_heads"])
    return {prefix + name: shape for name, shape in found.items()}


def text_shapes(c: dict[str, Any]) -> dict[str, tuple]:
    width = c["model_dim"]
    found: dict[str, tuple] = {"cls_emb": (1, 1, width), "token_emb/emb_var": (c["vocabulary_size"], width)}
    found |= {f"unimodal_ln/{leaf}": (width,) for leaf in ("scale", "bias")}
    hybrid = c["norm_policy"] == "primer_hybrid"
    found |= stack("unimodal_transformer", c["num_unimodal_layers"], width, 4 * width, c["num_heads"], hybrid=hybrid)
    return {f"text_encoder/{name}": shape for name, shape in found.items()}


def pooler_shapes(c: dict[str, Any], name: str, hidden: int) -> dict[str, tuple]:
    width, heads = c["model_dim"], c["num_heads"]
    inner, split = f"{name}/pooling_attention", (heads, hidden // heads)
    found = {f"{inner}/{part}/w": (width, *split) for part in ("query", "key", "value", "post")}
    found |= {f"{inner}/{part}/b": split for part in ("query", "key", "value")}
    return found | {
        f"{inner}/post/b": (width,), f"{inner}/per_dim_scale/per_dim_scale": split[1:], f"{inner}_query": (1, width),
        f"{inner}_layer_norm/scale": (width,), f"{inner}_layer_norm/bias": (width,),
    }  # fmt: skip


def draw(generator: torch.Generator, shapes: dict[str, tuple]) -> Arrays:
    """Everything random; queries and keys large enough for the cap to matter, but not of poolers, which have none: of a
    softmax that picks one token the gradient is hardly more than rounding."""
    found = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("kernel"):
            value *= 1 / math.sqrt(shape[-2])
        elif name.endswith("/w"):
            value *= (1 if "pooling" in name else 2) / math.sqrt(shape[-3])
        elif "emb" not in name and "query" not in name.rpartition("/")[2]:
            value *= 0.3
        found[name] = value.requires_grad_()
    return found


def write(
    path: Path, config: dict[str, Any], weights: Arrays, inputs: Arrays, run: Callable[[Arrays, str], Arrays],
    graded: tuple[str, ...], *, scan: bool,
) -> None:  # fmt: skip
    """One model's folder and its gradients: `run(weights, case)` gives the outputs of a case; `graded` names those, of
    the first case, that the loss is made of."""
    (path / "grads").parent.mkdir(parents=True)
    exact = {name: array.detach().double().requires_grad_() for name, array in weights.items()}
    cases = list(dict.fromkeys(name.rpartition("/")[0] for name in inputs))
    cases = [case + "/" if case else "" for case in cases]
    given = {n: (a.double() if a.is_floating_point() else a) for n, a in inputs.items()}
    for name, array in given.items():
        array.requires_grad_(name.endswith("inputs"))
    outputs: Arrays = {}
    loss = torch.zeros((), dtype=torch.float64)
    gradients: Arrays = {}
    for case in cases:
        of_case = run(exact | given, case)
        if case == cases[0]:
            for name in graded:
                gradients[f"cotangent/{name}"] = torch.randn(of_case[name].shape) / of_case[name].numel() ** 0.5
                loss = loss + (of_case[name] * gradients[f"cotangent/{name}"]).sum()
        else:
            of_case = {name: array for name, array in of_case.items() if not name.startswith("stage/")}
        outputs |= {case + name: array.detach().float().contiguous() for name, array in of_case.items()}
    if graded:
        loss.backward()
        gradients["loss"] = loss.detach()[None]
        gradients |= {f"grad/params/{n}": a.grad for n, a in exact.items() if a.grad is not None}
        if (clip := given.get(f"{cases[0]}inputs")) is not None and clip.grad is not None:
            gradients["grad_inputs"] = clip.grad
        folder = path.parent / "grads" / path.name
        folder.mkdir(parents=True)
        save_file(_saved(gradients, scan), folder / "grads.safetensors")
    save_file(_saved({f"params/{name}": array for name, array in weights.items()}, scan), path / "params.safetensors")
    save_file(
        {name: array.detach().contiguous() for name, array in (inputs | outputs).items()}, path / "io.safetensors"
    )
    (path / "config.json").write_text(json.dumps(config))


def _saved(arrays: Arrays, scan: bool) -> Arrays:
    """float32; without `scan` each layer by itself."""
    found = {}
    for name, array in arrays.items():
        before, stacked, behind = name.partition("/x_layers/")
        each = {name: array} if scan or not stacked else {
            f"{before}/x_layers_{i}/{behind}": layer for i, layer in enumerate(array)
        }  # fmt: skip
        found |= {key: value.detach().float().contiguous() for key, value in each.items()}
    return found


def make_folder(path: Path, *, seed: int, scan: bool = True, cases: dict = CASES, **sizes: Any) -> None:
    """Write a folder of an encoder, a video-text model, a text tower and a classifier, with gradients of all but the
    last; `sizes` replace those of `SIZES`."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    c = {**SIZES, **sizes, "scan": scan}
    clips: Arrays = {}
    for case, (batch, frames, side, is_padded) in cases.items():
        size = side * c["patch_size"]
        clips[f"{case}inputs"] = torch.rand(batch, frames, size, size, 3, generator=generator)
        if is_padded:
            padding = (torch.rand(batch, frames, generator=generator) < 0.5).float()
            padding[0] = 1  # a clip of nothing
            clips[f"{case}frame_paddings"] = padding
    length = max(LENGTHS) + 2
    real = torch.arange(length) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1, c["vocabulary_size"], real.shape, generator=generator, dtype=torch.int32) * real
    texts: Arrays = {"text_token_ids": ids.int(), "text_paddings": (~real).float()}
    first = next(iter(cases))
    first_clip = {"inputs": clips[f"{first}inputs"]}
    padded_clip = {"padded/frame_paddings": torch.tensor([[0.0] * (first_clip["inputs"].shape[1] - 1) + [1.0]] * len(
        first_clip["inputs"]))}  # fmt: skip

    def of_encoder(w: Arrays, case: str) -> Arrays:
        return encoder(w, c, w[f"{case}inputs"], w.get(f"{case}frame_paddings"))

    def of_both(w: Arrays, case: str) -> Arrays:
        texts = w["text_token_ids"], w["text_paddings"].double()
        return video_text(w, c, w["inputs"], *texts, w.get(f"{case}frame_paddings"))

    def of_text(c: dict[str, Any], w: Arrays, _: str) -> Arrays:
        return text_tower(w, c, w["text_token_ids"], w["text_paddings"].double())

    def of_classes(w: Arrays, _: str) -> Arrays:
        return classifier(w, c, w["inputs"])

    save = partial(write, scan=scan)
    save(path / "encoder", c, draw(generator, encoder_shapes(c)), clips, of_encoder, ("embeddings",))
    width = c["model_dim"]
    joint = stack(
        "auxiliary_encoder/transformers_stack", c["num_auxiliary_layers"], width, c["mlp_dim"], c["num_heads"]
    )
    joint |= pooler_shapes(c, "contrastive_vision_pooler", 4 * width)
    weights = draw(generator, encoder_shapes(c, "vision_encoder/") | joint | text_shapes(c))
    save(path / "lvt", c, weights, first_clip | padded_clip | texts, of_both, ("video_embeddings", "text_embeddings"))
    hybrid = c | {"norm_policy": "primer_hybrid"}
    save(
        path / "text_primer", hybrid, draw(generator, text_shapes(hybrid)), texts, partial(of_text, hybrid),
        ("text_embeddings",),
    )  # fmt: skip
    head = {"projection/linear/kernel": (width, c["num_classes"]), "projection/linear/bias": (c["num_classes"],)}
    shapes = encoder_shapes(c, "encoder/") | pooler_shapes(c, "atten_pooler", width) | head
    save(path / "classifier", {"encoder_params": c}, draw(generator, shapes), first_clip, of_classes, ())
