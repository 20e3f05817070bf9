"""ALPRO's weights, a BERT's and a ViT's under the names of other projects, from those of tiny models of ours."""

import re
from typing import Any

import torch
from torch import Tensor

from fastvtp.architecture import find_architecture
from fastvtp.systems.catalogue import build_model

SIZES: dict[str, Any] = {
    "num_frames": 3, "image_size": 16, "patch_size": 8, "width": 32, "depth": 2, "num_heads": 2, "text_depth": 1,
    "fusion_depth": 2, "text_num_heads": 2, "text_hidden": 48, "projection_dim": 6, "vocab_size": 110,
    "max_text_length": 12, "num_entities": 7, "num_answers": 4,
}  # fmt: skip
UNSEEN: dict[str, Any] = {"num_heads": 2, "text_num_heads": 2, "text_depth": 1}
IN_LAYER = {
    "attn.proj": "attention.output.dense", "attn.q_bias": "attention.self.query.bias",
    "attn.v_bias": "attention.self.value.bias", "norm1": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip
STEMS = {
    "video_encoder.": "visual_encoder.model.", "video_projection.": "vision_proj.", "text_projection.": "text_proj.",
    "temperature": "temp", "match_head.": "itm_head.", "entity_head.": "mpm_head.",
    "video_prompts": "prompter.video_prompt_feat", "image_prompts": "prompter.image_prompt_feat",
}  # fmt: skip


def tiny_alpro(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """A model in which every parameter and prompt is random."""
    config_class = find_architecture(architecture).config
    values = {name: value for name, value in SIZES.items() if name in config_class.__dataclass_fields__}
    model = build_model(config_class(**{**values, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        tensor.normal_(generator=generator)
    return model


def bert(state: dict[str, Tensor], text_depth: int = SIZES["text_depth"]) -> dict[str, Tensor]:
    """The names of transformers' BertForMaskedLM for embeddings, layers and word head; others are left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, rest = name.partition(".")
        if stem == "text_embeddings":
            found[f"bert.embeddings.{rest.replace('norm', 'LayerNorm')}"] = tensor
        elif stem == "word_transform":
            inside = "" if rest == "bias" else "transform."
            found[f"cls.predictions.{inside}{rest.replace('norm', 'LayerNorm')}"] = tensor
        elif stem in ("text_encoder", "fusion_encoder"):
            _, number, part = rest.split(".", 2)
            layer = f"bert.encoder.layer.{int(number) + (text_depth if stem == 'fusion_encoder' else 0)}."
            if part == "attn.qkv.weight":
                for which, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    found[f"{layer}attention.self.{which}.weight"] = rows
                    found[f"{layer}attention.self.key.bias"] = torch.ones(len(rows))
            else:
                ours = next(ours for ours in IN_LAYER if part.startswith(ours))
                found[f"{layer}{IN_LAYER[ours]}{part.removeprefix(ours)}"] = tensor
    return found


def timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of timm's ViTs, and of TimeSformer, for a `TimeSformer`."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in ("weight", "bias"):
            found[f"patch_embed.proj.{name}"] = tensor[:, :, 0] if name == "weight" else tensor
        elif name == "cls_token":
            found[name] = tensor.view(1, 1, -1)
        elif name == "time_positions":
            found["time_embed"] = tensor[None]
        elif name == "patch_positions":
            found["pos_embed"] = torch.cat([state["cls_position"][None], tensor])[None]
        elif name.endswith("q_bias"):
            parts = tensor, torch.ones_like(tensor), state[name.replace("q_bias", "v_bias")]
            found[name.replace("q_bias", "qkv.bias")] = torch.cat(parts)
        elif not name.endswith(("v_bias", "cls_position")):
            found[name.replace("temporal_norm.", "temporal_norm1.")] = tensor
    return found | {"head.weight": torch.ones(5, len(state["cls_token"])), "head.bias": torch.ones(5)}


def hugging_face_vit(weights: dict[str, Tensor], prefix: str = "vit.") -> dict[str, Tensor]:
    """timm's names -> transformers'."""
    changes = {
        r"^patch_embed\.proj": f"{prefix}embeddings.patch_embeddings.projection",
        r"^pos_embed": f"{prefix}embeddings.position_embeddings", r"^cls_token": f"{prefix}embeddings.cls_token",
        r"^norm\.": f"{prefix}layernorm.", r"^head\.": "classifier.", r"\.norm1\.": ".layernorm_before.",
        r"\.norm2\.": ".layernorm_after.", r"\.attn\.proj\.": ".attention.output.dense.",
        r"\.mlp\.fc1\.": ".intermediate.dense.", r"\.mlp\.fc2\.": ".output.dense.",
        r"^blocks\.": f"{prefix}encoder.layer.",
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for pattern, theirs in changes.items():
            name = re.sub(pattern, theirs, name)
        if ".attn.qkv." in name:
            for which, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".attention.attention.{which}.")] = rows
        else:
            found[name] = tensor
    return found


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def official(state: dict[str, Tensor], **sizes: int) -> dict[str, Tensor]:
    """The names of ALPRO's checkpoints."""
    found = {f"visual_encoder.model.{name}": tensor for name, tensor in timm(part(state, "video_encoder.")).items()}
    found |= {f"text_encoder.{name}": tensor for name, tensor in bert(state, **sizes).items()}
    found["text_encoder.bert.embeddings.position_ids"] = torch.arange(12)[None]
    if "word_transform.bias" in state:
        found["text_encoder.cls.predictions.decoder.weight"] = state["text_embeddings.word_embeddings.weight"]
        found["text_encoder.cls.predictions.decoder.bias"] = state["word_transform.bias"]
    for name, tensor in state.items():
        for ours, theirs in STEMS.items():
            if name.startswith(ours) and ours != "video_encoder.":
                found[theirs + name.removeprefix(ours)] = tensor
        if name.startswith("classifier."):
            found[name] = tensor
    if own := part(state, "prompter."):
        found |= {f"prompter.{name}": tensor for name, tensor in official(own, **sizes).items()}
    return found


def lavis(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("bert.", ""): tensor for name, tensor in weights.items() if ".cls." not in name}


def native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def alone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A prompter trained alone, with the prompts it may have kept."""
    return official(state) | {"video_prompt_feat": torch.ones(7, 6), "image_prompt_feat": torch.ones(7, 6)}


def holds(model: torch.nn.Module, expected: dict[str, Tensor], fresh: tuple[str, ...] = ()) -> None:
    """Every entry but the fresh ones is `expected`'s of the same name."""
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(part) for part in fresh):
            assert torch.equal(tensor, expected[name]), name
