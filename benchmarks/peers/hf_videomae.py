"""Gives VideoMAEForPreTraining of transformers our weights, which makes it a peer of the training step."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.systems.videomae.model import VideoMAEConfig

# fastvtp's name -> transformers'. Query, key and value stand in one matrix here, in three there.
_BLOCK = (
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"attn\.proj\.", "attention.output.dense."),
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
)
_NAMES = (
    (r"video_embeddings\.(weight|bias)", r"videomae.embeddings.patch_embeddings.projection.\1"),
    (r"encoder\.norm\.", "videomae.layernorm."),
    (r"encoder\.blocks\.", "videomae.encoder.layer."),
    (r"decoder\.project\.", "encoder_to_decoder."),
    (r"decoder\.mask_token", "mask_token"),
    (r"decoder\.transformer\.norm\.", "decoder.norm."),
    (r"decoder\.transformer\.blocks\.", "decoder.decoder_layers."),
)


def hf_videomae(config: VideoMAEConfig, state: Mapping[str, Tensor], attention: str) -> nn.Module:
    """Return transformers' model with the weights of a fastvtp VideoMAE; its attention is "sdpa" or "eager".

    Raises ImportError without transformers, RuntimeError where names or shapes do not fit.
    """
    import transformers  # pyright: ignore[reportMissingImports]

    model = transformers.VideoMAEForPreTraining(
        transformers.VideoMAEConfig(
            image_size=config.image_size,
            patch_size=config.tubelet[1],
            num_frames=config.num_frames,
            tubelet_size=config.tubelet[0],
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=int(config.width * config.mlp_ratio),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6,
            use_mean_pooling=False,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_intermediate_size=int(config.decoder_width * config.mlp_ratio),
            attn_implementation=attention,
        )
    )
    model.load_state_dict(hf_state(state, model.state_dict()))
    return model


def hf_state(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights in `state` under the names, and in the shapes, that `expected` has."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in (*_NAMES, *_BLOCK):
            name = re.sub(rf"(?:^|(?<=\.)){pattern}", replacement, name)
        block, _, of_attention = name.partition("attn.")
        attention = f"{block}attention.attention."
        if of_attention == "qkv.weight":
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            found |= {f"{attention}{part}.weight": rows for part, rows in parts}
        elif of_attention == "q_bias":
            found[f"{attention}query.bias"] = value
            if f"{attention}key.bias" in expected:
                # Some releases of transformers have one, which changes nothing (models/layers.py says why).
                found[f"{attention}key.bias"] = torch.zeros_like(value)
        elif of_attention == "v_bias":
            found[f"{attention}value.bias"] = value
        else:
            found[name] = value
    return {name: value.reshape(expected[name].shape) if name in expected else value for name, value in found.items()}
