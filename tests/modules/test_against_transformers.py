"""TimeSformer and BERT against transformers' on saved weights and activations."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.modules.packing import Packing
from fastvtp.systems.alpro.finetuning import AlproRetrievalConfig
from fastvtp.systems.alpro.timesformer import TimeSformer, TimeSformerConfig
from fastvtp.systems.alpro.towers import AlproConfig
from fastvtp.systems.catalogue import build_model

ARRAYS = Path(__file__).parent / "arrays"
TOLERANCE = 1e-5
WORDS = {"mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4)}
IN_BLOCK = {
    "attention.attention.qkv": "attn.qkv",
    "temporal_attention.attention.qkv": "temporal_attn.qkv",
    "attention.output.dense": "attn.proj",
    "temporal_attention.output.dense": "temporal_attn.proj",
    "temporal_dense": "temporal_fc",
    "temporal_layernorm": "temporal_norm",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def timesformer() -> TimeSformer:
    config = TimeSformerConfig(
        num_frames=3, image_size=16, patch_size=4, width=24, depth=2, num_heads=3, mlp_ratio=2.0, drop_path=0.0
    )
    theirs = load_file(ARRAYS / "hf_timesformer" / "model.safetensors")
    positions = theirs.pop("embeddings.position_embeddings")[0]
    state = {
        "weight": theirs.pop("embeddings.patch_embeddings.projection.weight")[:, :, None],
        "bias": theirs.pop("embeddings.patch_embeddings.projection.bias"),
        "cls_token": theirs.pop("embeddings.cls_token").flatten(),
        "time_positions": theirs.pop("embeddings.time_embeddings")[0],
        "cls_position": positions[0],
        "patch_positions": positions[1:],
        "norm.weight": theirs.pop("layernorm.weight"),
        "norm.bias": theirs.pop("layernorm.bias"),
    }
    for name, tensor in theirs.items():
        _, _, number, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        ours = f"blocks.{number}.{IN_BLOCK[part]}"
        if part.endswith("qkv") and kind == "bias":
            query, _, value = tensor.chunk(3)
            state |= {ours.replace("qkv", "q_bias"): query, ours.replace("qkv", "v_bias"): value}
        else:
            state[f"{ours}.{kind}"] = tensor
    model = TimeSformer(config)
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def test_timesformer():
    """All of it coincides: transformers has the class token in every frame too, averages what it collects there, and
    adds time embeddings to patches alone. Three things differ in form: it keeps the frames of a patch together (here
    those of a frame), takes no clip of one frame, and leaves the mean over time, which ALPRO takes, to the caller."""
    model, expected = timesformer(), load_file(ARRAYS / "hf_timesformer" / "expected.safetensors")

    def frame_first(tokens: torch.Tensor) -> torch.Tensor:
        patches = tokens[:, 1:].unflatten(1, (-1, 3)).transpose(1, 2).flatten(1, 2)
        return torch.cat([tokens[:, :1], patches], dim=1)

    tokens = model.embed(expected["video"])
    for i, block in enumerate(model.blocks):
        tokens = block(tokens, 3)
        assert error(tokens, frame_first(expected[f"block{i}"])) <= TOLERANCE
    final = frame_first(expected["tokens"])
    assert error(model.norm(tokens), final) <= TOLERANCE
    pooled = torch.cat([final[:, :1], final[:, 1:].unflatten(1, (3, -1)).mean(dim=1)], dim=1)
    assert error(model(expected["video"]), pooled) <= TOLERANCE


@pytest.mark.parametrize("text_depth", [1, 2])
@torch.no_grad()
def test_bert(text_depth):
    """Embeddings, layers wherever they are split, and the word head; packed, and padded as transformers computes."""
    config = AlproRetrievalConfig(
        num_frames=1,
        image_size=16,
        patch_size=8,
        width=24,
        depth=0,
        num_heads=3,
        text_depth=text_depth,
        fusion_depth=3 - text_depth,
        text_num_heads=3,
        text_hidden=40,
        vocab_size=50,
        max_text_length=12,
        **WORDS,
    )
    model = build_model(config).eval()
    report = load_checkpoint(model, ARRAYS / "hf_bert")
    assert not any(name.startswith("text_e") for name in report.fresh)
    expected = load_file(ARRAYS / "hf_bert" / "expected.safetensors")
    real, ids = expected["mask"].bool(), expected["ids"]
    ends = torch.tensor([0, 9, 13, 20], dtype=torch.int32)
    positions = torch.arange(9).repeat(3).view(3, 9)
    layers = [*model.text_encoder.layers, *model.fusion_encoder.layers]

    packed = model.text_embeddings(ids[real], positions[real])
    padded = model.text_embeddings(ids.flatten(), positions.flatten())
    padded_packing = replace(Packing.uniform(3, 9), key_rows=real.flatten().nonzero()[:, 0], cu_seqlens_k=ends)
    for i in range(4):
        if i:
            packed, padded = layers[i - 1](packed, Packing(ends, 9)), layers[i - 1](padded, padded_packing)
        assert error(packed, expected[f"layer{i}"][real]) <= TOLERANCE
        assert error(padded, expected[f"layer{i}"].flatten(0, 1)) <= TOLERANCE


@torch.no_grad()
def test_word_head():
    config = AlproConfig(
        num_frames=1,
        image_size=16,
        patch_size=8,
        width=24,
        depth=0,
        num_heads=3,
        text_depth=2,
        fusion_depth=1,
        text_num_heads=3,
        text_hidden=40,
        vocab_size=50,
        max_text_length=12,
        **WORDS,
    )
    model = build_model(config).eval()
    load_checkpoint(model, ARRAYS / "hf_bert")
    expected = load_file(ARRAYS / "hf_bert" / "expected.safetensors")
    logits = model.word_transform(expected["layer3"]) @ model.text_embeddings.word_embeddings.weight.T
    assert error(logits + model.word_transform.bias, expected["logits"]) <= TOLERANCE
