"""Tiny models, and their weights under the names of other projects."""

import re
from typing import Any

import torch
from torch import Tensor

from fastvtp.architecture import find_architecture
from fastvtp.systems.catalogue import build_model

SIZES: dict[str, Any] = {
    "num_frames": 4, "image_size": 16, "tubelet": (2, 8, 8), "width": 32, "depth": 2, "num_heads": 2,
    "layer_scale": 0.1, "video_mask_ratio": 0.75, "decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2,
    "vocab_size": 50, "mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4),
    "max_text_length": 12, "num_classes": 5, "num_answers": 3,
}  # fmt: skip


def tiny_model(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """A model whose parameters are all random, biases and norms too."""
    config_class = find_architecture(architecture).config
    values = {name: value for name, value in SIZES.items() if name in config_class.__dataclass_fields__}
    model = build_model(config_class(**{**values, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return model


def official(architecture: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the authors' VideoMAE and SimVTP checkpoints."""
    changes = {
        "videomae": ("video_embeddings. encoder.patch_embed.proj.", "decoder.project. encoder_to_decoder.",
                     "decoder.transformer. decoder.", "decoder.mask_token mask_token"),
        "video_classifier": ("video_embeddings. patch_embed.proj.", "norm. fc_norm.", "encoder. "),
        "dual_encoder": ("video_embeddings. video_encoder.patch_embed.proj.", "video_norm. video_encoder.fc_norm.",
                         "text_norm. text_encoder.fc_norm.",
                         "text_embeddings.norm. text_encoder.text_embeddings.LayerNorm.",
                         "text_embeddings. text_encoder.text_embeddings."),
    }  # fmt: skip
    changes["simvtp"] = (
        *changes["videomae"], "text_embeddings.norm. text_embeddings.LayerNorm.", "word_head. text_cls.",
        "match_head. vtm_head.",
    )  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        for change in changes[architecture]:
            ours, theirs = change.split(" ")
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        renamed[re.sub(r"residual([12])\.gamma", r"gamma_\1", name)] = tensor
    if "mask_token" in renamed:
        renamed["mask_token"] = renamed["mask_token"].view(1, 1, -1)
    if architecture == "dual_encoder":  # what each tower carries of the other modality
        renamed["video_encoder.text_embeddings.LayerNorm.bias"] = torch.zeros(SIZES["width"])
        renamed["text_encoder.patch_embed.proj.bias"] = torch.zeros(SIZES["width"])
    return renamed


def hugging_face(architecture: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' VideoMAEForPreTraining and VideoMAEForVideoClassification; without layer scales."""
    stems = {
        "video_embeddings.": "videomae.embeddings.patch_embeddings.projection.",
        "encoder.blocks.": "videomae.encoder.layer.", "encoder.norm.": "videomae.layernorm.",
        "decoder.transformer.blocks.": "decoder.decoder_layers.", "decoder.transformer.norm.": "decoder.norm.",
        "decoder.project.": "encoder_to_decoder.", "decoder.mask_token": "mask_token",
        "norm.": "fc_norm.", "head.": "classifier.",
    }  # fmt: skip
    parts = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "attn.q_bias": "attention.attention.query.bias", "attn.v_bias": "attention.attention.value.bias",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = next((stem for stem in stems if name.startswith(stem)), "")
        name = stems.get(ours, "") + name.removeprefix(ours)
        for part, theirs in parts.items():
            name = re.sub(rf"(\d\.){part}", rf"\1{theirs}", name)
        if name.endswith("attn.qkv.weight"):
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = rows
        else:
            renamed[name] = tensor
    if "mask_token" in renamed:
        renamed["mask_token"] = renamed["mask_token"].view(1, 1, -1)
    return renamed
