"""ALPRO's released forward pass once more, in plain PyTorch on official weights, for parity folders of any size; see
`tests.parity.replica`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.parity.replica import (
    Arrays,
    linear,
    norm,
)

Config = dict[str, Any]


def part(w: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, keys: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if keys is not None:
        logits = logits - 10000 * (1 - keys.double())[:, None, None]
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def video_attention(w: Arrays, name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = linear(w, f"{name}.qkv", x).chunk(3, -1)
    return linear(w, f"{name}.proj", attend(q, k, v, heads))


def timesformer(w: Arrays, c: Config, video: Tensor) -> Arrays:
    """Tokens of a patch's frames lie together."""
    batch, frames = video.shape[:2]
    conv = F.conv2d(video.flatten(0, 1), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=c["patch"])
    x = (conv.flatten(2).mT + w["pos_embed"][:, 1:]).unflatten(0, (batch, frames)).transpose(1, 2)
    patches = x.shape[1]
    cls = (w["cls_token"] + w["pos_embed"][:, :1]).expand(batch, -1, -1)
    x = torch.cat([cls, (x + w["time_embed"]).flatten(1, 2)], 1)
    found = {"patch_embed_conv": conv}
    for i in range(c["vdepth"]):
        found[f"visual_block{i}_in"], block = x, f"blocks.{i}."
        times = norm(w, f"{block}temporal_norm1", x[:, 1:].reshape(batch * patches, frames, -1))
        update = video_attention(w, f"{block}temporal_attn", times, c["vheads"]).reshape(batch, patches * frames, -1)
        x = torch.cat([x[:, :1], x[:, 1:] + linear(w, f"{block}temporal_fc", update)], 1)
        framed = x[:, 1:].reshape(batch, patches, frames, -1).transpose(1, 2)
        framed = torch.cat([x[:, None, :1].expand(-1, frames, -1, -1), framed], 2).flatten(0, 1)
        update = video_attention(w, f"{block}attn", norm(w, f"{block}norm1", framed), c["vheads"])
        update = update.unflatten(0, (batch, frames))
        within = update[:, :, 1:].transpose(1, 2).flatten(1, 2)
        x = x + torch.cat([update[:, :, 0].mean(1, keepdim=True), within], 1)
        hidden = F.gelu(linear(w, f"{block}mlp.fc1", norm(w, f"{block}norm2", x)))
        found[f"visual_block{i}_out"] = x = x + linear(w, f"{block}mlp.fc2", hidden)
    found["visual_tokens_before_pool"] = x = norm(w, "norm", x)
    found["video_embeds"] = torch.cat([x[:, :1], x[:, 1:].unflatten(1, (patches, frames)).mean(2)], 1)
    return found


def bert(w: Arrays, c: Config, x: Tensor, keys: Tensor, layers: range) -> Tensor:
    for i in layers:
        name = f"encoder.layer.{i}."
        q, k, v = (linear(w, f"{name}attention.self.{which}", x) for which in ("query", "key", "value"))
        update = linear(w, f"{name}attention.output.dense", attend(q, k, v, c["heads"], keys))
        x = norm(w, f"{name}attention.output.LayerNorm", x + update, 1e-12)
        update = linear(w, f"{name}output.dense", F.gelu(linear(w, f"{name}intermediate.dense", x)))
        x = norm(w, f"{name}output.LayerNorm", x + update, 1e-12)
    return x


class Towers:
    """One copy of ALPRO: the student or the prompter."""

    def __init__(self, w: Arrays, c: Config):
        self.w, self.c = w, c
        self.visual, self.text = part(w, "visual_encoder.model."), part(w, "text_encoder.bert.")
        self.text = self.text or part(w, "text_encoder.")
        self.temp = w["temp"]

    def embedded(self, ids: Tensor) -> Tensor:
        w = self.text
        x = F.embedding(ids, w["embeddings.word_embeddings.weight"], padding_idx=self.c["special_ids"]["PAD"])
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        return norm(w, "embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0], 1e-12)

    def read(self, ids: Tensor, real: Tensor) -> Tensor:
        return bert(self.text, self.c, self.embedded(ids), real, range(self.c["fusion"]))

    def fuse(self, text: Tensor, real: Tensor, video: Tensor) -> Tensor:
        keys = torch.cat([real, torch.ones(video.shape[:2], dtype=real.dtype)], 1)
        return bert(self.text, self.c, torch.cat([text, video], 1), keys, range(self.c["fusion"], self.c["layers"]))

    def feature(self, side: str, tokens: Tensor) -> Tensor:
        return F.normalize(linear(self.w, f"{side}_proj", tokens[:, 0]), dim=-1)

    def similarities(self, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """Clip to text, text to clip."""
        similarity = self.feature("vision", video) @ self.feature("text", text).T / self.temp
        return similarity, similarity.T

    def pairs(self, text: Tensor, real: Tensor, video: Tensor, wrong_video: Tensor, wrong_text: Tensor) -> Tensor:
        """Fused [CLS] of the matched pairs, and of texts with wrong clips and clips with wrong texts in one call."""
        matched = self.fuse(text, real, video)[:, 0]
        texts, reals = torch.cat([text, text[wrong_text]]), torch.cat([real, real[wrong_text]])
        return torch.cat([matched, self.fuse(texts, reals, torch.cat([video[wrong_video], video]))[:, 0]])


def contrast(similarities: tuple[Tensor, Tensor]) -> Tensor:
    diagonal = torch.arange(len(similarities[0]))
    return (F.cross_entropy(similarities[0], diagonal) + F.cross_entropy(similarities[1], diagonal)) / 2


def prompt_features(w: Arrays, c: Config, inputs: Arrays) -> Arrays:
    prompter, found = Towers(part(w, "prompter."), c), {}
    for kind in ("video", "image"):
        tokens = prompter.read(inputs[f"{kind}_prompt_ids"], inputs[f"{kind}_prompt_mask"])
        rows = prompter.feature("text", tokens)
        found[f"{kind}_prompt_feat"] = rows.unflatten(0, (-1, c["entities"])).mean(0)
    return found


def alpro(c: Config, w: Arrays, inputs: Arrays, extra: Arrays) -> tuple[Arrays, list]:
    """Outputs, and what to differentiate: (prefix of the names, loss, weights)."""
    video, ids, real = inputs["video"], inputs["text_input_ids"], inputs["text_input_mask"]
    batch, length = ids.shape
    student, prompter = Towers(w, c), Towers(part(w, "prompter."), c)
    out = timesformer(student.visual, c, video)
    clips, text = out["video_embeds"], student.read(ids, real)
    masked = student.read(inputs["mlm_text_input_ids"], real)
    fused = student.fuse(text, real, clips)
    out |= {
        "text_embedding_output": student.embedded(ids), "text_embeds": text, "masked_text_embeds": masked,
        "video_feat": student.feature("vision", clips), "text_feat": student.feature("text", text),
        "fusion_pos_out": fused, "itm_labels": torch.tensor([1] * batch + [0] * 2 * batch),
    }  # fmt: skip
    similarities = out["sim_v2t"], out["sim_t2v"] = student.similarities(text, clips)
    diagonal = torch.eye(batch, dtype=torch.bool)
    for name in ("v2t", "t2v"):
        out[f"neg_weights_{name}"] = out[f"sim_{name}"].masked_fill(diagonal, -torch.inf).softmax(1)

    out["itm_in"] = student.pairs(text, real, clips, inputs["vtm_video_neg_idx"], inputs["vtm_text_neg_idx"])
    out["itm_logits"] = linear(w, "itm_head", out["itm_in"])
    head = part(w, "text_encoder.cls.predictions.")
    words = F.gelu(linear(head, "transform.dense", student.fuse(masked, real, clips)[:, :length]))
    words = norm(head, "transform.LayerNorm", words, 1e-12)
    out["mlm_logits"] = words @ student.text["embeddings.word_embeddings.weight"].T + head["bias"]

    prompts = prompt_features(w, c, inputs)
    crops = timesformer(prompter.visual, c, inputs["crop_video"])["video_embeds"]
    out["prompter_crop_cls_proj"] = linear(prompter.w, "vision_proj", crops[:, 0])
    shown = prompter.feature("vision", crops) @ prompts[f"{c['prompt_type_used']}_prompt_feat"].T / prompter.temp
    out["mpm_soft_labels"] = shown.softmax(1)
    likeliest, index = out["mpm_soft_labels"].max(1)
    out |= {**prompts, "mpm_ignore_mask": index < 0.2, "mpm_ignore_mask_paper_rule": likeliest < 0.2}
    inside = (inputs["mpm_mask"] == 0).flatten(1).double()[..., None]
    out["mpm_in"] = (fused[:, length + 1 :] * inside).sum(1) / inside.sum(1)
    out["mpm_logits"] = linear(w, "mpm_head.2", linear(w, "mpm_head.0", out["mpm_in"]).relu())
    each = -(out["mpm_soft_labels"].detach() * out["mpm_logits"].log_softmax(1)).sum(1)

    out["loss_itc"] = contrast(similarities)
    out["loss_itm"] = F.cross_entropy(out["itm_logits"], out["itm_labels"])
    out["loss_mlm"] = F.cross_entropy(out["mlm_logits"].flatten(0, 1), inputs["mlm_labels"].flatten())
    out["loss_mpm"] = each[~out["mpm_ignore_mask"]].mean()
    out["loss"] = out["loss_itc"] + out["loss_itm"] + out["loss_mlm"] + out["loss_mpm"]

    own = prompter.similarities(prompter.read(ids, real), timesformer(prompter.visual, c, video)["video_embeds"])
    out |= {"prompter_itc_loss": contrast(own), "prompter_itc_labels": torch.arange(batch)}
    out["prompter_v2t_logsoftmax"], out["prompter_t2v_logsoftmax"] = (one.log_softmax(1) for one in own)

    out["ret_vneg_idx"], out["ret_tneg_idx"] = ((torch.arange(batch) + step) % batch for step in (1, -1))
    pairs = student.pairs(text, real, clips, out["ret_vneg_idx"], out["ret_tneg_idx"])
    out["ret_itm_logits"] = linear(w, "itm_head", pairs)
    out |= {"ret_loss_itc": out["loss_itc"], "ret_loss_itm": F.cross_entropy(out["ret_itm_logits"], out["itm_labels"])}
    first = student.fuse(text, real, clips[:1].expand(batch, -1, -1))[:, 0]
    out["ret_infer_itm_logits_video0"] = linear(w, "itm_head", first)
    out["ret_infer_itc_scores_video0"] = out["sim_v2t"][:1]

    answering = {name.replace("text_encoder.bert.", "text_encoder."): value.detach() for name, value in w.items()}
    answering = {name: value.requires_grad_() for name, value in (answering | extra).items()}
    tower = Towers(answering, c)
    fused = tower.fuse(tower.read(ids, real), real, timesformer(tower.visual, c, video)["video_embeds"])
    out["qa_logits"] = linear(answering, "classifier.2", linear(answering, "classifier.0", fused[:, 0]).relu())
    out["qa_loss"] = F.cross_entropy(out["qa_logits"], inputs["qa_labels"])
    return out, [("grad.", out["loss"], w), ("grad.qa.", out["qa_loss"], answering)]


def linear_schedule(steps: int) -> Tensor:
    """Learning rate of each step and of the one after the last: float64 [steps + 1]."""
    warmup = int(0.05 * steps)
    rates = [1e-4 * (i / warmup if i < warmup else (steps - i) / (steps - warmup)) for i in range(steps + 1)]
    return torch.tensor([rate if rate > 0 else 1e-8 for rate in rates], dtype=torch.float64)
