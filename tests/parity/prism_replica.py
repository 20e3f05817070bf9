"""VideoPrism's forward passes once more, in plain PyTorch on released arrays and in float64: dense attention, masks,
nothing packed, nothing from fastvtp. Layers of a stack lie along axis 0.

Shape legend: B = clips, T = frames, S = patches, L = padded text tokens, D = width, H = heads, K = head dim.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad, relu, softplus

Arrays = dict[str, Tensor]
HIDDEN = -0.7 * torch.finfo(torch.float32).max


def norm(w: Arrays, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + w[f"{name}/scale"]) + w[f"{name}/bias"]
    )


def linear(w: Arrays, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}/linear/kernel"] + w[f"{name}/linear/bias"]


def heads(w: Arrays, name: str, x: Tensor) -> Tensor:
    return torch.einsum("btd,dhk->bhtk", x, w[f"{name}/w"]) + w[f"{name}/b"][:, None]


def attended(w: Arrays, name: str, logits: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
    if hidden is not None:
        logits = logits.masked_fill(hidden, HIDDEN)
    return torch.einsum("bhtk,dhk->btd", logits.softmax(-1) @ value, w[f"{name}/post/w"]) + w[f"{name}/post/b"]


def attention(w: Arrays, name: str, x: Tensor, cap: float, hidden: Tensor | None) -> Tensor:
    query, key, value = (heads(w, f"{name}/{part}", x) for part in ("query", "key", "value"))
    logits = query * query.shape[-1] ** -0.5 @ key.mT
    return attended(w, name, cap * torch.tanh(logits / cap) if cap else logits, value, hidden)


def transformer(
    w: Arrays, place: str, x: Tensor, cap: float, padding: Tensor | None = None, *, text: bool = False
) -> list[Tensor]:
    """Outputs of all layers. padding: 1 where a row is none, [B, T]. text: causal, ReLU, with norms behind if there."""
    place, hidden, real = f"{place}/x_layers/", None, torch.ones(())
    layers = {name.removeprefix(place): array for name, array in w.items() if name.startswith(place)}
    if padding is not None:
        real, hidden = 1 - padding[..., None], padding[:, None, None].bool()
        if text:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            hidden = hidden | later | padding[:, None, :, None].bool()
    outputs = []
    for i in range(len(next(iter(layers.values()), []))):
        layer = {name: array[i] for name, array in layers.items()}
        before, behind = ("pre_layer_norm", True) if "pre_layer_norm/scale" in layer else ("layer_norm", False)
        branch = attention(layer, "self_attention", norm(layer, before, x), cap, hidden)
        x = x + (norm(layer, "post_layer_norm", branch) if behind else branch)
        inner = linear(layer, "ff_layer/ffn_layer1", norm(layer, f"ff_layer/{before}", x))
        branch = linear(layer, "ff_layer/ffn_layer2", (relu(inner) if text else gelu(inner)) * real) * real
        x = x + (norm(layer, "ff_layer/post_layer_norm", branch) if behind else branch)
        outputs.append(x)
    return outputs


def resizing(before: int, after: int) -> Tensor:
    """`jax.image.resize`, bilinear: a triangle, wider where it shrinks; [after, before]."""
    centre = (torch.arange(after).double() + 0.5) * before / after - 0.5
    away = (centre[:, None] - torch.arange(before)).abs() / max(before / after, 1)
    weight = (1 - away).clamp(min=0)
    return weight / weight.sum(1, keepdim=True)


def unit_length(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-12).sqrt()


def pooler(w: Arrays, name: str, x: Tensor) -> Tensor:
    inner, queries = f"{name}/pooling_attention", w[f"{name}/pooling_attention_query"].expand(len(x), -1, -1)
    query, key, value = (heads(w, f"{inner}/{p}", t) for p, t in (("query", queries), ("key", x), ("value", x)))
    scale = softplus(w[f"{inner}/per_dim_scale/per_dim_scale"]) * 1.442695041 / math.sqrt(query.shape[-1])
    return norm(w, f"{name}/pooling_attention_layer_norm", attended(w, inner, query * scale @ key.mT, value, None))


def encoder(w: Arrays, c: dict[str, Any], video: Tensor, padding: Tensor | None = None) -> Arrays:
    """`spatial_features`, `embeddings` and what lies between, under `stage/`."""
    (batch, frames, height, width, _), p, cap = video.shape, c["patch_size"], c["atten_logit_cap"]
    rows, columns, (times, *grid) = height // p, width // p, c["pos_emb_shape"]
    cut = video.view(batch * frames, rows, p, columns, p, 3).transpose(2, 3).reshape(batch * frames, rows * columns, -1)
    found = {"patch_projection": linear(w, "patch_projection", cut)}
    places, table = w["spatial_pos_emb/emb_var"].view(*grid, -1), w["temporal_pos_emb/emb_var"]
    found |= {"spatial_pos_emb": places.flatten(0, 1)[None], "temporal_pos_emb": table[None]}
    places = torch.einsum("yr,xc,rcd->yxd", resizing(grid[0], rows), resizing(grid[1], columns), places).flatten(0, 1)
    within = None if padding is None else padding.flatten()[:, None].expand(-1, rows * columns)
    x = found["patch_projection"] + places
    layers = transformer(w, "spatial_encoder/transformers_stack", x, cap, within)
    found |= {f"spatial_encoder/transformers_stack/x_layers_{i}": layer for i, layer in enumerate(layers)}
    found["spatial_ln"] = spatial = norm(w, "spatial_ln", [x, *layers][-1])
    x = spatial.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1) + resizing(times, frames) @ table
    along = None if padding is None else padding.repeat_interleave(rows * columns, dim=0)
    layers = transformer(w, "temporal_encoder/transformers_stack", x, cap, along)
    found |= {f"temporal_encoder/transformers_stack/x_layers_{i}": layer for i, layer in enumerate(layers)}
    found["temporal_ln"] = norm(w, "temporal_ln", [x, *layers][-1])
    tokens = found["temporal_ln"].unflatten(0, (batch, -1)).transpose(1, 2).flatten(1, 2)
    outer = {"spatial_features": spatial.reshape(batch, -1, spatial.shape[-1]), "embeddings": tokens}
    return outer | {f"stage/{name}": array for name, array in found.items()}


def within(w: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in w.items() if name.startswith(prefix)}


def sinusoid(length: int, width: int) -> Tensor:
    count = width // 2
    angle = torch.arange(length).double()[:, None] * 10000 ** -(torch.arange(count).double() / max(count - 1, 1))
    return pad(torch.cat([angle.sin(), angle.cos()], 1), (0, width % 2))


def text_tower(w: Arrays, c: dict[str, Any], ids: Tensor, padding: Tensor) -> Arrays:
    w, (count, length), width = within(w, "text_encoder/"), ids.shape, c["model_dim"]
    table = sinusoid(length, width)[None]
    cls = w["cls_emb"].expand(count, -1, -1) * math.sqrt(width)
    x = torch.cat([w["token_emb/emb_var"][ids.long()] * math.sqrt(width) + table, cls], 1)
    layers = transformer(w, "unimodal_transformer", x, c["atten_logit_cap"], pad(padding.double(), (0, 1)), text=True)
    features = norm(w, "unimodal_ln", [x, *layers][-1])
    return {
        "text_positional_embedding": table, "text_features": features,
        "text_embeddings_unnormalized": features[:, -1], "text_embeddings": unit_length(features[:, -1]),
    }  # fmt: skip


def video_text(
    w: Arrays, c: dict[str, Any], video: Tensor, ids: Tensor, texts: Tensor, padding: Tensor | None = None
) -> Arrays:
    vision = encoder(within(w, "vision_encoder/"), c, video, padding)
    tokens = vision["embeddings"]
    joint = transformer(w, "auxiliary_encoder/transformers_stack", tokens, c["atten_logit_cap"])
    x = [tokens, *joint][-1]
    frames = x.reshape(len(x) * video.shape[1], -1, x.shape[-1])
    clip = pooler(w, "contrastive_vision_pooler", x)[:, 0]
    each = pooler(w, "contrastive_vision_pooler", frames).view(*video.shape[:2], -1)
    found = text_tower(w, c, ids, texts)
    similarity = unit_length(clip) @ found["text_embeddings"].T
    return found | {
        "spatial_features": vision["spatial_features"], "spatiotemporal_features": tokens, "auxiliary_features": x,
        "video_embeddings_unnormalized": clip, "video_embeddings": unit_length(clip),
        "frame_embeddings_unnormalized": each, "frame_embeddings": unit_length(each),
        "similarity": similarity, "prob_over_texts_temp0.01": (similarity / 0.01).softmax(1),
    }  # fmt: skip


def classifier(w: Arrays, c: dict[str, Any], video: Tensor) -> Arrays:
    vision = encoder(within(w, "encoder/"), c, video)
    pooled = pooler(w, "atten_pooler", vision["embeddings"])[:, 0]
    return {
        "spatial_features": vision["spatial_features"], "spatiotemporal_features": vision["embeddings"],
        "global_embeddings": pooled, "logits": linear(w, "projection", pooled),
    }  # fmt: skip
