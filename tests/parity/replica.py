"""The released forward passes once more, in plain PyTorch on official weights and in float64, to make parity folders of
any size. Nothing here comes from fastvtp, and nothing is packed: what the two have in common is the specification.
"""

import math
from collections.abc import Callable
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Arrays = dict[str, Tensor]
MEAN, STD = (torch.tensor(v).double().view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def linear(w: Arrays, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w: Arrays, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attention(w: Arrays, name: str, x: Tensor, heads: int, keys: Tensor | None) -> Tensor:
    batch, tokens, width = x.shape
    qkv = F.linear(x, w[f"{name}.qkv.weight"])
    if f"{name}.q_bias" in w:
        qkv = qkv + torch.cat([w[f"{name}.q_bias"], torch.zeros(width), w[f"{name}.v_bias"]])
    q, k, v = qkv.view(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    logits = q * (width // heads) ** -0.5 @ k.mT
    if keys is not None:
        logits = logits + (1 - keys.double())[:, None, None] * -10000
    return linear(w, f"{name}.proj", (logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


def blocks(w: Arrays, prefix: str, x: Tensor, heads: int, keys: Tensor | None = None) -> list[Tensor]:
    """Outputs of all blocks."""
    outputs = []
    for i in takewhile(lambda i: f"{prefix}blocks.{i}.norm1.weight" in w, count()):
        name = f"{prefix}blocks.{i}"
        branch = attention(w, f"{name}.attn", norm(w, f"{name}.norm1", x), heads, keys)
        x = x + branch * w.get(f"{name}.gamma_1", 1.0)
        branch = linear(w, f"{name}.mlp.fc2", F.gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x))))
        x = x + branch * w.get(f"{name}.gamma_2", 1.0)
        outputs.append(x)
    return outputs


def encoder(w: Arrays, config: dict[str, Any], x: Tensor, keys: Tensor | None = None) -> Tensor:
    return norm(w, "encoder.norm", blocks(w, "encoder.", x, config["heads"], keys)[-1])


def positions(tokens: int, width: int) -> Tensor:
    angle = torch.arange(tokens).double()[:, None] / 10000 ** (2 * (torch.arange(width) // 2).double() / width)
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())[None].float().double()


def patches(w: Arrays, prefix: str, video: Tensor) -> Tensor:
    weight = w[f"{prefix}patch_embed.proj.weight"]
    embedded = F.conv3d(video, weight, w[f"{prefix}patch_embed.proj.bias"], stride=weight.shape[2:])
    return embedded.flatten(2).mT


def targets(config: dict[str, Any], video: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised and raw pixels of the masked tubelets."""
    (batch, _, t, h, w), p0, p = video.shape, config["tubelet"], config["patch"]
    cut = (video * STD + MEAN).view(batch, 3, t // p0, p0, h // p, p, w // p, p)
    cut = cut.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(1, 3).flatten(2, 4)  # [B, N, pixels, 3]
    whitened = (cut - cut.mean(2, keepdim=True)) / (cut.var(2, keepdim=True).sqrt() + 1e-6)
    whitened, raw = (values.flatten(2)[mask].view(batch, -1, p0 * p * p * 3) for values in (whitened, cut))
    return whitened, raw


def decode(w: Arrays, config: dict[str, Any], encoded: Tensor, mask: Tensor) -> Arrays:
    batch, width = len(mask), config["ddim"]
    table = positions(mask.shape[1], width).expand(batch, -1, -1)
    visible = linear(w, "encoder_to_decoder", encoded)
    hidden = w["mask_token"] + table[mask].view(batch, -1, width)
    full = torch.cat([visible + table[~mask].view(batch, -1, width), hidden], 1)
    x = blocks(w, "decoder.", full, config["dheads"])[-1][:, -hidden.shape[1] :]
    return {
        "encoder_to_decoder_out": visible, "decoder_in": full, "decoder_pos_embed": table[:1],
        "decoder_pred": linear(w, "decoder.head", norm(w, "decoder.norm", x)),
    }  # fmt: skip


def contrast(config: dict[str, Any], text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    similarity = F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T
    diagonal = torch.arange(len(text))
    scaled = similarity / config["vtc_temperature"]
    return similarity, F.cross_entropy(scaled, diagonal) + F.cross_entropy(scaled.T, diagonal)


def words(w: Arrays, ids: Tensor, prefix: str = "") -> Tensor:
    prefix += "text_embeddings."
    # padding_idx: that row gets no gradient
    x = F.embedding(ids, w[f"{prefix}word_embeddings.weight"], padding_idx=0)
    x = x + w[f"{prefix}position_embeddings.weight"][: ids.shape[1]] + w[f"{prefix}token_type_embeddings.weight"][0]
    return norm(w, f"{prefix}LayerNorm", x, 1e-12)


def tower(w: Arrays, config: dict[str, Any], prefix: str, x: Tensor, keys: Tensor | None = None) -> Tensor:
    return norm(w, f"{prefix}fc_norm", blocks(w, prefix, x, config["heads"], keys)[-1].mean(1))


def videomae(config: dict[str, Any], w: Arrays, inputs: Arrays, extra: Arrays) -> tuple[Arrays, list]:
    """Outputs, and what to differentiate: (prefix of the names, loss, weights)."""
    video, mask = inputs["video"], inputs["video_mask"]
    embedded = patches(w, "encoder.", video)
    table = positions(*embedded.shape[1:])
    visible = (embedded + table)[~mask].view(len(video), -1, config["dim"])
    outputs = {
        "encoder_patch_embed": embedded, "encoder_pos_embed": table,
        "encoder_block0_out": blocks(w, "encoder.", visible, config["heads"])[0],
        "encoder_out": encoder(w, config, visible),
    }  # fmt: skip
    outputs |= decode(w, config, outputs["encoder_out"], mask)
    outputs["target_norm"], outputs["target_raw"] = targets(config, video, mask)
    for kind in ("norm", "raw"):
        outputs[f"loss_{kind}_target"] = (outputs["decoder_pred"] - outputs[f"target_{kind}"]).square().mean()
    tuned = {name.removeprefix("encoder."): value for name, value in w.items()} | extra
    outputs["finetune_features"] = tower(tuned, config, "", embedded + table)
    outputs["finetune_logits"] = linear(tuned, "head", outputs["finetune_features"])
    return outputs, [("grad.", outputs["loss_norm_target"], w)]


def simvtp(config: dict[str, Any], w: Arrays, inputs: Arrays, extra: Arrays) -> tuple[Arrays, list]:
    """Outputs, and what to differentiate: (prefix of the names, loss, weights)."""
    video, mask, real = inputs["video"], inputs["video_mask"], inputs["attention_mask"]
    batch, length = real.shape
    embedded, text = patches(w, "encoder.", video), words(w, inputs["input_ids"])
    table = positions(*embedded.shape[1:])
    visible = (embedded + table)[~mask].view(batch, -1, config["dim"])
    keys = torch.cat([torch.ones(visible.shape[:2]), real], 1)
    wrong = inputs["vtm_neg_idx"]
    pairs = torch.cat([torch.cat([visible, visible[wrong]]), torch.cat([text, text])], 1)
    joint = encoder(w, config, torch.cat([visible, text], 1), keys)
    outputs = {
        "encoder_patch_embed": embedded, "encoder_pos_embed": table, "text_embeddings": text,
        "joint_block0_out": blocks(w, "encoder.", torch.cat([visible, text], 1), config["heads"], keys)[0],
        "joint_encoder_out": joint,
        "video_only_encoder_out": encoder(w, config, visible),
        "text_only_encoder_out": encoder(w, config, text, real),
        "vtm_encoder_out": encoder(w, config, pairs, torch.cat([keys, keys])),
        "mlm_logits": linear(w, "text_cls", joint[:, -length:]),
        "vtm_labels": torch.tensor([1] * batch + [0] * batch),
        "target_norm": targets(config, video, mask)[0],
    }  # fmt: skip
    outputs |= decode(w, config, joint[:, :-length], mask)
    outputs["vtm_logits"] = linear(w, "vtm_head", outputs["vtm_encoder_out"].mean(1))
    outputs["text_feature"] = outputs["text_only_encoder_out"].mean(1)
    outputs["video_feature"] = outputs["video_only_encoder_out"].mean(1)
    outputs["sim_matrix"], outputs["loss_vtc"] = contrast(config, outputs["text_feature"], outputs["video_feature"])
    outputs["loss_video"] = (outputs["decoder_pred"] - outputs["target_norm"]).square().mean()
    outputs["loss_text"] = F.cross_entropy(outputs["mlm_logits"].flatten(0, 1), inputs["mlm_labels"].flatten())
    outputs["loss_vtm"] = F.cross_entropy(outputs["vtm_logits"], outputs["vtm_labels"])
    outputs["loss"] = outputs["loss_video"] + outputs["loss_text"] + outputs["loss_vtc"] + outputs["loss_vtm"]
    common = {name.removeprefix("encoder."): value for name, value in w.items()}
    tuned = {f"{side}_encoder.{name}": v.detach() for side in ("video", "text") for name, v in common.items()} | extra
    tuned = {name: value.requires_grad_() for name, value in tuned.items()}
    clips = tower(tuned, config, "video_encoder.", patches(tuned, "video_encoder.", video) + table)
    captions = words(tuned, inputs["input_ids_unmasked"], "text_encoder.")
    captions = tower(tuned, config, "text_encoder.", captions, real)
    outputs |= {"finetune_text_embedding": captions, "finetune_video_embedding": clips}
    outputs["finetune_sim_text_video"], outputs["finetune_loss"] = contrast(config, captions, clips)
    return outputs, [("grad.", outputs["loss"], w), ("grad.finetune.", outputs["finetune_loss"], tuned)]


Forward = Callable[[dict[str, Any], Arrays, Arrays, Arrays], tuple[Arrays, list]]


def replicate(forward: Forward, config: dict[str, Any], weights: Arrays, inputs: Arrays, extra: Arrays) -> Arrays:
    """The outputs of a step of a system and the gradients of all weights, float32."""
    exact = {name: value.double().requires_grad_() for name, value in weights.items()}
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    extra = {name: value.double() for name, value in extra.items()}
    outputs, steps = forward(config, exact, inputs, extra)
    for prefix, loss, leaves in steps:
        grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        outputs |= {prefix + name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
    return {
        name: value.detach().float().contiguous() if value.is_floating_point() else value
        for name, value in outputs.items()
    }


def schedule(c: dict[str, Any]) -> Tensor:
    """Learning rate of each step: float64 [steps]."""
    warmup, steps = c["warmup_epochs"] * c["niter_per_ep"], c["epochs"] * c["niter_per_ep"]
    turn = math.pi * torch.arange(steps - warmup).double() / (steps - warmup)
    decay = c["final_value"] + 0.5 * (c["base_value"] - c["final_value"]) * (1 + turn.cos())
    return torch.cat([torch.linspace(0, c["base_value"], warmup, dtype=torch.float64), decay])


def retrieval(similarity: Tensor) -> dict[str, float]:
    """Metrics of queries (rows) whose right answers stand on the diagonal; no two similarities are equal."""
    ranks = 1 + (similarity > similarity.diagonal()[:, None]).sum(1).double()
    metrics = {f"R{k}": 100 * (ranks <= k).double().mean().item() for k in (1, 5, 10, 50)}
    product = metrics["R1"] * metrics["R5"] * metrics["R10"]
    middle = ranks.quantile(0.5).item()
    return {**metrics, "MedR": middle, "MeanR": ranks.mean().item(), "geometric_mean_R1-R5-R10": product ** (1 / 3)}
