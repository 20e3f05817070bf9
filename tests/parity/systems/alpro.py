"""ALPRO: one pretraining step with its prompter, the prompter's own objective, and the fine-tuned models."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from fastvtp.checkpoints.loading import absent_parts, load_checkpoint
from fastvtp.errors import UserError
from fastvtp.modules.packing import Packing
from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD
from fastvtp.systems.alpro.entities import (
    IGNORE_RULES,
    average_prompts,
    entity_targets,
)
from fastvtp.systems.alpro.finetuning import (
    AlproQAConfig,
    AlproRetrieval,
    AlproRetrievalConfig,
)
from fastvtp.systems.alpro.fusion import AlproFusion
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.timesformer import TimeSformer
from fastvtp.systems.alpro.towers import (
    AlproConfig,
    AlproPrompterConfig,
    AlproTowers,
)
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import linear_rate
from fastvtp_kernels import tubelet_embed
from tests.parity.folder import ParityFolder
from tests.parity.systems.alpro_inputs import (
    Texts,
    padded_packing,
    read_crop,
    read_video,
)
from tests.parity.systems.common import (
    built,
    captured,
    gradients,
    named_blocks,
)

EXCUSED = {"grad.*.attention.self.key.bias": "rounding: the softmax cancels the keys' bias, which fastvtp leaves out"}

# `get_lr_sched(...)` of the fixture, unless config.json says otherwise
SCHEDULE = {"learning_rate": 1e-4, "warmup_ratio": 0.05}
LEAST_RATE = 1e-8
PROMPTER, STUDENT_ONLY = "prompter.", ("prompter.", "mpm_head.")

load = partial(load_checkpoint, origin="alpro")


def compute(folder: ParityFolder) -> dict[str, Tensor]:
    """All arrays of the folder's outputs that fastvtp has a counterpart of, by name."""
    schedules = folder.outputs_of("lr_schedule_linear")
    arrays = {name: learning_rates(folder, len(folder.outputs[name])) for name in schedules}
    for case in folder.cases():
        video, texts = read_video(folder, case), Texts(folder, f"{case}text_input")
        of_case = pretraining(folder, case, video, texts) | prompting(folder, video, texts)
        released = folder.outputs.get(f"{case}ret_itm_logits")
        if released is not None and released.shape == (3 * len(video), 2):
            of_case |= retrieval(folder, video, texts, released)
        if folder.fine_tuned is not None:
            of_case |= question_answering(folder, folder.fine_tuned, case, video, texts)
        arrays |= {case + name: array for name, array in of_case.items()}
    return arrays


def sizes(folder: ParityFolder) -> dict[str, Any]:
    """The models' configuration."""
    folder.check_fixed(visual_norm_eps=1e-6, hidden=folder.setting("vdim"))
    special = folder.setting("special_ids")
    return {
        "num_frames": folder.setting("frames"), "image_size": folder.setting("img"),
        "patch_size": folder.setting("patch"), "width": folder.setting("vdim"), "depth": folder.setting("vdepth"),
        "num_heads": folder.setting("vheads"), "mlp_ratio": folder.config.get("visual_mlp_ratio", 4.0),
        "text_depth": folder.setting("fusion"), "fusion_depth": folder.setting("layers") - folder.setting("fusion"),
        "text_num_heads": folder.setting("heads"), "text_hidden": folder.setting("inter"),
        "vocab_size": folder.setting("vocab"), "max_text_length": folder.setting("maxpos"),
        "projection_dim": folder.setting("proj"), "num_entities": folder.setting("entities"),
        "pad_token_id": special["PAD"], "mask_token_id": special["MASK"],
        "special_token_ids": tuple(special.values()),
    }  # fmt: skip


def pretraining(folder: ParityFolder, case: str, video: Tensor, texts: Texts) -> dict[str, Tensor]:
    model: Alpro = built(folder, AlproConfig, sizes(folder))
    unprompted = set(absent_parts(model, folder.weights, origin="alpro")) & {"video_prompts", "image_prompts"}
    load(model, folder.weights, fresh=sorted(unprompted))
    prompts = prompt_features(model, folder)
    for name in unprompted:
        getattr(model, name).copy_(prompts[f"{name.removesuffix('s')}_feat"])
    kind = folder.config.get("prompt_type_used", folder.config.get("ptype", "video"))
    masked_ids, labels = folder.input(f"{case}mlm_text_input_ids"), folder.input(f"{case}mlm_labels")
    hidden, crop = labels != -100, read_crop(folder, case)
    if not torch.equal(labels[hidden], texts.padded[hidden]) or (hidden & ~texts.real).any():
        raise UserError(f"{case}mlm_labels must be -100 or the word of text_input_ids")
    plan = model.lay_out(
        input_ids=texts.ids, masked_ids=masked_ids[texts.real], hidden=hidden[texts.real], lengths=texts.lengths,
        sample_ids=torch.arange(len(video)), crop=crop,
    )  # fmt: skip
    negatives = folder.input(f"{case}vtm_video_neg_idx"), folder.input(f"{case}vtm_text_neg_idx")
    encoder = model.video_encoder
    blocks = named_blocks("visual_block{}", encoder.blocks)
    outputs = {
        **{f"{name}_out": block for name, block in blocks.items()},
        "visual_tokens_before_pool": encoder.norm, "video_embeds": encoder,
        "prompter_crop_cls_proj": model.prompter.video_projection,
    }  # fmt: skip
    inputs = {f"{name}_in": block for name, block in blocks.items()}
    with captured(outputs, {**inputs, "itm_in": model.match_head, "mpm_in": model.entity_head}) as seen:
        output = model(video, plan, kind=kind, negatives=negatives)
    output.loss.backward()

    targets = {
        rule: entity_targets(
            model.prompter.video_features(model.prompter.video_tokens(video, crop)), getattr(model, f"{kind}_prompts"),
            1 / model.prompter.logit_scale(), ignore_rule=rule,
        )
        for rule in IGNORE_RULES
    }  # fmt: skip
    found = {
        **{name: patch_last(value, video) if name.startswith("visual_") else value for name, value in seen.items()},
        **prompts,
        **padded(model, texts, masked_ids, seen["video_embeds"]),
        "patch_embed_conv": patch_embeddings(encoder, video),
        "itm_logits": output.match_logits,
        "itm_labels": output.match_labels,
        "mpm_logits": output.entity_logits,
        "mpm_soft_labels": targets["official"].probabilities,
        "mpm_ignore_mask": targets["official"].ignored,
        "mpm_ignore_mask_paper_rule": targets["paper"].ignored,
        "loss": output.loss,
        "loss_itc": output.terms["loss/contrastive"],
        "loss_itm": output.terms["loss/matching"],
        "loss_mlm": output.terms["loss/word"],
        "loss_mpm": output.terms["loss/entity"],
        **{f"grad.{name}": value for name, value in gradients(model, folder.weights, load).items()},
    }
    return {name: value for name, value in found.items() if value is not None}


@torch.no_grad()
def padded(model: Alpro, texts: Texts, masked_ids: Tensor, clips: Tensor) -> dict[str, Tensor]:
    """What the released step computes on padded texts and a packed one nowhere holds."""
    batch, length = texts.real.shape
    positions = torch.arange(length).repeat(batch)
    packing = padded_packing(texts.real)
    plain, masked = (
        model.text_tokens(ids.flatten(), positions, packing).unflatten(0, (batch, length))
        for ids in (texts.padded, masked_ids)
    )
    joint_packing = padded_packing(torch.cat([texts.real, torch.ones(clips.shape[:2], dtype=torch.bool)], dim=1))
    fused, fused_masked = (
        model.fusion_encoder(torch.cat([text, clips], dim=1).flatten(0, 1), joint_packing).unflatten(0, (batch, -1))
        for text in (plain, masked)
    )
    words = model.word_transform(fused_masked[:, :length]) @ model.text_embeddings.word_embeddings.weight.T
    first_rows = torch.arange(batch) * length
    text, video = model.text_features(plain.flatten(0, 1), first_rows), model.video_features(clips)
    sim_v2t = video @ text.T * model.logit_scale()
    others = torch.eye(batch, dtype=torch.bool)
    return {
        "text_embedding_output": model.text_embeddings(texts.padded.flatten(), positions).unflatten(0, (batch, -1)),
        "text_embeds": plain,
        "masked_text_embeds": masked,
        "fusion_pos_out": fused,
        "mlm_logits": words + model.word_transform.bias,
        "text_feat": text,
        "video_feat": video,
        "sim_v2t": sim_v2t,
        "sim_t2v": sim_v2t.T,
        "neg_weights_v2t": sim_v2t.masked_fill(others, -torch.inf).softmax(dim=1),
        "neg_weights_t2v": sim_v2t.T.masked_fill(others, -torch.inf).softmax(dim=1),
    }


def patch_last(tokens: Tensor, video: Tensor) -> Tensor:
    """Tokens [B, 1 + T*S, D] in the released order, in which the frames of a patch lie together."""
    patches = tokens[:, 1:].unflatten(1, (video.shape[1], -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat([tokens[:, :1], patches], dim=1)


def patch_embeddings(encoder: TimeSformer, video: Tensor) -> Tensor:
    """All patches without their positions, which a step never holds: [B*T, D, h, w]."""
    patch, frames = encoder.config.patch_size, video.shape[1]
    index = torch.arange(frames * encoder.config.num_patches, dtype=torch.int32).expand(len(video), -1)
    embedded = tubelet_embed(
        video, index, encoder.weight, encoder.bias, tubelet=(1, patch, patch), mean=CLIP_MEAN, std=CLIP_STD
    )
    return embedded.unflatten(1, (frames, *encoder.config.grid)).flatten(0, 1).permute(0, 3, 1, 2)


@torch.no_grad()
def prompt_features(model: Alpro, folder: ParityFolder) -> dict[str, Tensor]:
    """What the prompter makes of the entities' prompts, [E, projection_dim] for each kind that the inputs have."""
    found = {}
    for kind in ("video", "image"):
        if f"{kind}_prompt_ids" in folder.inputs:
            features = model.prompter.encode_text(*Texts(folder, f"{kind}_prompt").packed)
            found[f"{kind}_prompt_feat"] = average_prompts(features, model.config.num_entities)
    return found


@torch.no_grad()
def prompting(folder: ParityFolder, video: Tensor, texts: Texts) -> dict[str, Tensor]:
    """The prompter's own pretraining, as a checkpoint of its own."""
    model: AlproTowers = built(folder, AlproPrompterConfig, sizes(folder))
    own = {name.removeprefix(PROMPTER): w for name, w in folder.weights.items() if name.startswith(PROMPTER)}
    load(model, own)
    text, clips = model.encode_text(*texts.packed), model.encode_video(video)
    similarity = clips @ text.T * model.logit_scale()
    return {
        "prompter_itc_loss": model(video, *texts.packed),
        "prompter_itc_labels": torch.arange(len(video)),
        "prompter_v2t_logsoftmax": log_softmax(similarity, dim=1),
        "prompter_t2v_logsoftmax": log_softmax(similarity.T, dim=1),
    }


@torch.no_grad()
def retrieval(folder: ParityFolder, video: Tensor, texts: Texts, released_logits: Tensor) -> dict[str, Tensor]:
    """The fine-tuning's losses, and its inference. Which wrong clips and texts the released step drew is found from its
    logits, [3B, 2]: each is the pair that our model gives these logits."""
    model: AlproRetrieval = built(folder, AlproRetrievalConfig, sizes(folder))
    load(model, {name: w for name, w in folder.weights.items() if not name.startswith(STUDENT_ONLY)})
    logits = pair_logits(model, video, texts)
    batch = len(video)
    _, for_texts, for_clips = released_logits.split(batch)
    same = torch.eye(batch, dtype=torch.bool)
    wrong_clip = (logits - for_texts[:, None]).norm(dim=-1).masked_fill(same, torch.inf).argmin(dim=1)
    wrong_text = (logits - for_clips[None]).norm(dim=-1).masked_fill(same, torch.inf).argmin(dim=0)
    plan = model.plan(texts.ids, texts.lengths.tolist(), torch.arange(batch), seed=0, step=0)
    output = model(video, plan, negatives=(wrong_clip, wrong_text))
    similarity = model.encode_video(video) @ model.encode_text(*texts.packed).T * model.logit_scale()
    return {
        "ret_vneg_idx": wrong_clip,
        "ret_tneg_idx": wrong_text,
        "ret_itm_logits": output.match_logits,
        "ret_loss_itc": output.terms["loss/contrastive"],
        "ret_loss_itm": output.terms["loss/matching"],
        **{f"ret_infer_itm_logits_video{i}": logits[:, i] for i in range(batch)},
        **{f"ret_infer_itc_scores_video{i}": similarity[i : i + 1] for i in range(batch)},
    }


def pair_logits(model: AlproFusion, video: Tensor, texts: Texts) -> Tensor:
    """Logits of every text with every clip, [texts, clips, 2]."""
    tokens, _ = model.read_texts(*texts.packed)
    clips, _ = model.read_clips(video)
    count = len(video)
    fused, ends = model.fuse(
        tokens,
        Packing(texts.cu_seqlens, texts.length),
        clips,
        text_index=torch.arange(count).repeat_interleave(count),
        video_index=torch.arange(count).repeat(count),
        num_text_rows=count * len(tokens),
    )
    return model.match_logits(fused, ends).unflatten(0, (count, count))


def question_answering(
    folder: ParityFolder, own: Mapping[str, Tensor], case: str, video: Tensor, texts: Texts
) -> dict[str, Tensor]:
    """The classifier over answers, whose text encoder is saved as a BERT without a word head."""
    model = built(folder, AlproQAConfig, sizes(folder) | {"num_answers": folder.setting("labels")})
    weights = {
        name.replace("text_encoder.bert.", "text_encoder."): w
        for name, w in folder.weights.items()
        if not name.startswith((*STUDENT_ONLY, "text_encoder.cls."))
    }
    weights |= own
    load(model, weights)
    logits = model(video, model.plan(texts.ids, texts.lengths.tolist(), range(len(video))))
    loss = cross_entropy(logits, folder.input(f"{case}qa_labels"))
    loss.backward()
    grads = {f"grad.qa.{name}": value for name, value in gradients(model, weights, load).items()}
    return {"qa_logits": logits, "qa_loss": loss, **grads}


def learning_rates(folder: ParityFolder, count: int) -> Tensor:
    """The released schedule of the learning rate, float64 [steps + 1]."""
    own = folder.config.get("lr_schedule", folder.config)
    peak, warmup = (own.get(name, value) for name, value in SCHEDULE.items())
    steps = count - 1
    config = OptimizerConfig(
        learning_rate=peak, final_learning_rate=LEAST_RATE, warmup_steps=int(warmup * steps), schedule="linear"
    )
    return torch.tensor([linear_rate(step, steps, config) for step in range(count)], dtype=torch.float64)
