"""ALPRO's checkpoints of all stages and origins, and its initialisation from ViT and BERT."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastvtp
from fastvtp.checkpoints.loading import absent_parts, load_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.errors import CheckpointError
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.alpro.tasks import load_prompter
from tests.systems.alpro.weight_names import (
    alone,
    bert,
    holds,
    hugging_face_vit,
    lavis,
    native,
    official,
    part,
    timm,
    tiny_alpro,
)

SIMVTP: dict[str, Any] = {"width": 32, "num_heads": 2, "vocab_size": 110, "max_text_length": 12}
PROMPTS = ("video_prompts", "image_prompts")
# architecture of the checkpoint, of the model, parts that stay fresh
PAIRS = [
    ("alpro", "alpro", ()),
    ("alpro", "alpro_retrieval", ()),
    ("alpro", "alpro_qa", ("classifier",)),
    ("alpro_retrieval", "alpro_retrieval", ()),
    ("alpro_retrieval", "alpro_qa", ("classifier",)),
    ("alpro_retrieval", "alpro", ("word_transform", "entity_head", "prompter", *PROMPTS)),
    ("alpro_retrieval", "alpro_prompter", ()),
    ("alpro_qa", "alpro_qa", ()),
]


@pytest.mark.parametrize(
    ("naming", "source", "target", "fresh"),
    # LAVIS has no pretraining
    [
        (naming, *pair)
        for naming in (official, native, lavis)
        for pair in PAIRS
        if naming is not lavis or pair[0] != "alpro"
    ],
)
def test_every_entry_lands_in_its_place(naming, source, target, fresh):
    state, model = tiny_alpro(source, 1).state_dict(), tiny_alpro(target, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = lavis(official(state)) if naming is lavis else naming(state)
    assert absent_parts(model, weights) == fresh
    report = load_checkpoint(model, {"model": weights}, fresh=fresh)
    holds(model, state, fresh)
    assert set(report.fresh) == {name for name in before if name.startswith(tuple(fresh) or "-")}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.fresh)
    assert report.resized == ()


@pytest.mark.parametrize("text_depth", [1, 2])
def test_the_model_says_how_its_bert_is_split(text_depth):
    sizes = {"text_depth": text_depth, "fusion_depth": 3 - text_depth}
    state, model = tiny_alpro("alpro", 1, **sizes).state_dict(), tiny_alpro("alpro", 2, **sizes)
    load_checkpoint(model, official(state, text_depth=text_depth))
    holds(model, state)


def test_what_no_model_uses_is_named():
    weights = official(tiny_alpro("alpro").state_dict())
    known = load_checkpoint(tiny_alpro("alpro", 1), weights).ignored
    assert {name.removeprefix("prompter.") for name in known} == {
        "visual_encoder.model.head.weight", "visual_encoder.model.head.bias",
        *(f"visual_encoder.model.blocks.{i}.{part}.k_bias" for i in (0, 1) for part in ("attn", "temporal_attn")),
        *(f"text_encoder.bert.encoder.layer.{i}.attention.self.key.bias" for i in range(3)),
        "text_encoder.bert.embeddings.position_ids", "text_encoder.cls.predictions.decoder.weight",
        "text_encoder.cls.predictions.decoder.bias",
    }  # fmt: skip
    # what the released prompter carries above its towers
    for name in (
        "itm_head.bias",
        "text_encoder.cls.predictions.bias",
        "text_encoder.bert.encoder.layer.2.output.dense.bias",
    ):
        weights[f"prompter.{name}"] = weights[name]
        assert set(load_checkpoint(tiny_alpro("alpro"), weights).ignored) >= {f"prompter.{name}"}


def test_what_is_missing_or_unknown_is_listed():
    weights = official(tiny_alpro("alpro", text_depth=2).state_dict(), text_depth=2)
    del weights["text_encoder.bert.encoder.layer.0.attention.self.key.weight"], weights["temp"]
    weights |= {"visual_encoder.model.blocks.7.norm1.bias": torch.ones(32), "mystery": torch.ones(1)}
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(tiny_alpro("alpro"), weights)
    for problem in (
        "missing text_encoder.layers.0.attn.qkv.weight", "missing temperature", "unexpected mystery",
        "unexpected visual_encoder.model.blocks.7.norm1.bias",
        "unexpected text_encoder.bert.encoder.layer.0.attention.self.query.weight",
        "unexpected text_encoder.bert.encoder.layer.3.output.dense.bias",
    ):  # fmt: skip
        assert problem in raised.value.problems
    assert "14 more unexpected. The checkpoint is depth 3" in str(raised.value)
    with pytest.raises(CheckpointError, match=r"\(to start these parts afresh: fresh=\('classifier',\)\)"):
        load_checkpoint(tiny_alpro("alpro_qa"), tiny_alpro("alpro_retrieval").state_dict())
    with pytest.raises(CheckpointError, match="is a alpro_qa, from which no alpro can start"):
        load_checkpoint(tiny_alpro("alpro"), tiny_alpro("alpro_qa").state_dict())


def test_answering_as_lavis_keeps_it():
    """Without projections, matching and temperature, which keep what they hold."""
    state, model = tiny_alpro("alpro_qa", 1).state_dict(), tiny_alpro("alpro_qa", 2)
    unused = ("video_projection", "text_projection", "temperature", "match_head")
    weights = lavis(official({name: value for name, value in state.items() if not name.startswith(unused)}))
    report = load_checkpoint(model, weights)
    holds(model, state, unused)
    assert {name.split(".")[0] for name in report.fresh} == set(unused)


@pytest.mark.parametrize("naming", [official, native, alone])
def test_a_prompter_of_its_own(naming):
    source, model = tiny_alpro("alpro_prompter", 1), tiny_alpro("alpro", 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_prompter(model, naming(source.state_dict()))
    holds(model.prompter, source.state_dict())
    holds(model, before, ("prompter",))
    assert not any(parameter.requires_grad for parameter in model.prompter.parameters())


def test_the_prompter_of_a_pretraining_run(tmp_path):
    source, model = tiny_alpro("alpro", 1), tiny_alpro("alpro", 2)
    load_prompter(model, official(source.state_dict()))
    holds(model.prompter, source.prompter.state_dict())
    write_model_folder(tmp_path, source, "alpro")
    load_prompter(model, tmp_path)
    holds(model.prompter, source.prompter.state_dict())
    unprompted = {name: value for name, value in source.state_dict().items() if not name.startswith("prompter.")}
    with pytest.raises(CheckpointError) as raised:
        load_prompter(model, unprompted)
    assert "missing video_encoder.cls_token" in raised.value.problems
    assert absent_parts(model, unprompted) == ("prompter",)


@pytest.mark.parametrize("word_head", [True, False])
@pytest.mark.parametrize("target", ["alpro", "alpro_retrieval", "alpro_qa", "alpro_prompter"])
def test_bert_fills_text_and_fusion(target, word_head):
    source, model = tiny_alpro("alpro", 1), tiny_alpro(target, 2)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, source.state_dict()
    weights = bert(state)
    weights |= {"bert.pooler.dense.bias": torch.ones(32), "cls.seq_relationship.bias": torch.ones(2)}
    if not word_head:  # a BertModel, whose names lack the prefix
        weights = {name.removeprefix("bert."): value for name, value in weights.items() if not name.startswith("cls.")}
    load_checkpoint(model, weights)
    filled = ["text_embeddings", "text_encoder", "fusion_encoder", *["word_transform"] * word_head]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (state if name.split(".")[0] in filled else before)[name]), name


def test_bert_must_have_all_layers_and_the_models_heads(tmp_path):
    weights = bert(tiny_alpro("alpro").state_dict())
    short = {name: value for name, value in weights.items() if "layer.2." not in name}
    with pytest.raises(CheckpointError, match=r"missing fusion_encoder.layers.1.attn.proj.bias"):
        load_checkpoint(tiny_alpro("alpro"), short)
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")
    for config, message in (
        ('{"num_attention_heads": 4}', "text_num_heads is 4, the model has 2"),
        ('{"hidden_act": "relu"}', "has hidden_act relu, fastvtp's BERT gelu"),
        ('{"position_embedding_type": "relative_key"}', "has position_embedding_type relative_key"),
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tiny_alpro("alpro"), tmp_path)
        # of which SimVTP reads the embeddings alone
        load_checkpoint(fastvtp.create_model("simvtp_tiny", **SIMVTP), tmp_path)


def bare_vit(weights):
    return hugging_face_vit(weights, prefix="")


@pytest.mark.parametrize("naming", [native, hugging_face_vit, bare_vit])
@pytest.mark.parametrize("target", ["alpro", "alpro_retrieval", "alpro_qa", "alpro_prompter"])
def test_vit_fills_the_video_encoder(target, naming):
    """Attention along time starts as that within frames, and without effect."""
    source, model = tiny_alpro("alpro_prompter", 1), tiny_alpro(target, 2)
    before, state = {n: v.clone() for n, v in model.state_dict().items()}, part(source.state_dict(), "video_encoder.")
    weights = naming(
        {name: value for name, value in timm(state).items() if "temporal" not in name and "time" not in name}
    )
    report = load_checkpoint(model, weights | {"pooler.dense.bias": torch.ones(32)})
    for name, tensor in model.state_dict().items():
        inner = name.removeprefix("video_encoder.")
        if inner == name or inner == "time_positions":
            assert torch.equal(tensor, before[name]), name
        elif "temporal_fc" in name:
            assert not tensor.any(), name
        else:
            origin = inner.replace("temporal_attn", "attn").replace("temporal_norm", "norm1")
            assert torch.equal(tensor, state[origin]), name
    assert "video_encoder.time_positions" in report.fresh
    assert len([name for name in report.ignored if not name.endswith("k_bias")]) == 3


def test_vit_is_no_start_of_other_models():
    weights = timm(part(tiny_alpro("alpro").state_dict(), "video_encoder."))
    with pytest.raises(CheckpointError, match=r"is a vit, from which no simvtp can start \(but alpro,"):
        load_checkpoint(fastvtp.create_model("simvtp_tiny"), {n: v for n, v in weights.items() if "temporal" not in n})
    with pytest.raises(CheckpointError, match="is a ViT: it fills the video encoder of a model, and is none"):
        config_of_checkpoint({n: v for n, v in weights.items() if "temporal" not in n})
