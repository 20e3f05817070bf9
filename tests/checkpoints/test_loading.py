"""Every pair of checkpoint and model: each entry lands where it belongs, and what does not fit is named."""

from typing import get_type_hints

import pytest
import torch

from fastvtp.checkpoints.loading import absent_parts, load_checkpoint
from fastvtp.errors import CheckpointError, UserError
from fastvtp.model_folder import load_pretrained, write_model_folder
from fastvtp.settings import parse_value
from tests.checkpoints.names import (
    hugging_face,
    official,
    tiny_model,
)

TEXT, NORMS = ("text_embeddings",), ("video_norm", "text_norm")
# architecture of the checkpoint, of the model, {prefix of the model: of the checkpoint}, parts that stay fresh
PAIRS = [
    ("videomae", "videomae", {}, ()),
    ("videomae", "simvtp", {}, (*TEXT, "word_head", "match_head")),
    ("videomae", "video_classifier", {}, ("norm", "head")),
    ("videomae", "dual_encoder", {"video_encoder.": "encoder."}, (*TEXT, "text_encoder", *NORMS)),
    ("videomae", "video_qa", {}, (*TEXT, "head")),
    ("video_classifier", "video_classifier", {}, ()),
    ("video_classifier", "videomae", {}, ("encoder.norm", "decoder")),
    ("video_classifier", "simvtp", {}, (*TEXT, "word_head", "match_head", "encoder.norm", "decoder")),
    ("video_classifier", "dual_encoder", {"video_encoder.": "encoder.", "video_norm.": "norm."},
     (*TEXT, "text_encoder", "text_norm")),
    ("video_classifier", "video_qa", {}, (*TEXT, "encoder.norm", "head")),
    ("simvtp", "simvtp", {}, ()),
    ("simvtp", "videomae", {}, ()),
    ("simvtp", "video_classifier", {}, ("norm", "head")),
    ("simvtp", "dual_encoder", {"video_encoder.": "encoder.", "text_encoder.": "encoder."}, NORMS),
    ("simvtp", "video_qa", {}, ("head",)),
    ("dual_encoder", "dual_encoder", {}, ()),
    ("video_qa", "video_qa", {}, ()),
]  # fmt: skip
NAMINGS = {"videomae", "video_classifier", "simvtp", "dual_encoder"}, {"videomae", "video_classifier"}
CASES = [
    *((official, *pair) for pair in PAIRS if pair[0] in NAMINGS[0]),
    *((hugging_face, *pair) for pair in PAIRS if pair[0] in NAMINGS[1]),
    *((None, *pair) for pair in PAIRS),
]


def inside(name: str, parts: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{part}." for part in parts))


@pytest.mark.parametrize(("naming", "origin", "target", "prefixes", "fresh"), CASES)
def test_every_entry_lands_in_its_place(naming, origin, target, prefixes, fresh):
    scale = {"layer_scale": 0.0} if naming is hugging_face else {}
    source, model = tiny_model(origin, 1, **scale).state_dict(), tiny_model(target, 2, **scale)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = source if naming is None else naming(origin, source)
    assert absent_parts(model, weights) == fresh

    report = load_checkpoint(model, weights, fresh=fresh)

    used = set()
    for name, tensor in model.state_dict().items():
        if inside(name, fresh):
            assert torch.equal(tensor, before[name]), name
            continue
        ours = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        origin_name = prefixes.get(ours, "") + name.removeprefix(ours)
        assert torch.equal(tensor, source[origin_name]), name
        used.add(origin_name)
    assert set(report.loaded) | set(report.fresh) == set(before)
    assert set(report.fresh) == {name for name in before if inside(name, fresh)}
    assert report.resized == ()
    if naming is None:
        assert set(report.ignored) == source.keys() - used


def test_parts_that_are_not_called_fresh_are_missing_and_nothing_is_loaded():
    model = tiny_model("video_classifier", 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(model, official("videomae", tiny_model("videomae").state_dict()), fresh=("norm",))
    assert str(raised.value) == (
        "the state dict does not fit VideoClassifier: missing head.bias; missing head.weight "
        "(to start these parts afresh: fresh=('norm', 'head'))"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_everything_that_does_not_fit_is_listed_in_one_line():
    weights = official("simvtp", tiny_model("simvtp", depth=3, vocab_size=51).state_dict())
    del weights["decoder.head.bias"], weights["encoder.blocks.0.attn.q_bias"]
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(tiny_model("simvtp"), weights)
    unexpected = sorted(name for name in weights if name.startswith("encoder.blocks.2."))
    assert str(raised.value) == (
        "the state dict does not fit SimVTP: text_cls.bias is [51], the model's word_head.bias [50]; "
        "text_cls.weight is [51, 32], the model's word_head.weight [50, 32]; text_embeddings.word_embeddings.weight is "
        "[51, 32], the model's text_embeddings.word_embeddings.weight [50, 32]; missing decoder.head.bias; missing "
        f"encoder.blocks.0.attn.q_bias; unexpected {'; unexpected '.join(unexpected[:3])}; {len(unexpected) - 3} more "
        "unexpected. The checkpoint is depth 3, vocab_size 51: set model.depth=3 and give the tokenizer of its 51 "
        "words (data.tokenizer=FILE; for a model built in Python, vocab_size=51)"
    )


@pytest.mark.parametrize(
    ("architecture", "changes", "advice"),
    [
        ("videomae", {"width": 64, "depth": 3, "num_heads": 1},
         "width 64, depth 3: set model.width=64 model.depth=3, and model.num_heads as it was trained"),
        ("simvtp", {"decoder_width": 128, "mlp_ratio": 3.0},
         "mlp_ratio 3.0, decoder_width 128: set model.mlp_ratio=3.0 model.decoder_width=128, and "
         "model.decoder_num_heads as it was trained"),
        ("videomae", {"qkv_bias": False, "layer_scale": 0.0},
         "qkv_bias False, layer_scale 0.0: set model.qkv_bias=False model.layer_scale=0.0"),
        ("simvtp", {"tubelet": (2, 4, 4)}, "tubelet 2,4,4: set model.tubelet=2,4,4"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_size_says_what_to_set(architecture, changes, advice):
    weights = official(architecture, tiny_model(architecture, **changes).state_dict())
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(tiny_model(architecture), weights)
    listed, cure = str(raised.value).split(". ")
    unknown = " (nothing in it shows how many)" if "as it was trained" in advice else ""
    assert cure == f"The checkpoint is {advice}{unknown}"
    assert listed.count("; ") > 0
    assert len(str(raised.value)) < 900
    typed = advice.split(": set ")[1].partition(", and ")[0]
    settings = [setting.removeprefix("model.").split("=") for setting in typed.split()]
    assert {name for name, _ in settings} == {name for name in changes if not name.endswith("num_heads")}
    config_class = type(tiny_model(architecture).config)
    values = {name: parse_value(text, get_type_hints(config_class)[name], name) for name, text in settings}
    load_checkpoint(tiny_model(architecture, **values), weights)


def test_what_another_size_does_not_explain_comes_without_advice():
    weights = official("simvtp", tiny_model("simvtp", max_text_length=20).state_dict())
    del weights["vtm_head.bias"]
    with pytest.raises(CheckpointError, match=r"^the state dict does not fit SimVTP: missing match_head\.bias$"):
        load_checkpoint(tiny_model("simvtp"), weights)


def test_a_bert_of_another_width_says_what_to_set():
    table = torch.zeros(60, 128)
    cure = r"set .*, and model.num_heads as it was trained \(.*\) and give .* words \("
    with pytest.raises(CheckpointError, match=r"The checkpoint is width 128, vocab_size 60: " + cure):
        load_checkpoint(tiny_model("simvtp", num_heads=4), {"bert.embeddings.word_embeddings.weight": table})


def test_another_patch_size_is_named():
    weights = official("videomae", tiny_model("videomae", tubelet=(2, 4, 4)).state_dict())
    with pytest.raises(
        CheckpointError, match=r"proj.weight is \[32, 3, 2, 4, 4\], the .*embeddings.weight \[32, 3, 2, 8, 8\]"
    ):
        load_checkpoint(tiny_model("videomae"), weights)


def test_other_numbers_of_tubelets_need_no_table():
    source, model = tiny_model("videomae"), tiny_model("videomae", 1, num_frames=8, image_size=32)
    positions = model.video_embeddings.positions.clone()
    load_checkpoint(model, official("videomae", source.state_dict()))
    assert torch.equal(model.video_embeddings.positions, positions)
    assert len(positions) == 8 * len(source.video_embeddings.positions)


def test_position_tables_of_captions_are_cut_and_never_stretched():
    weights = official("simvtp", tiny_model("simvtp").state_dict())
    model = tiny_model("simvtp", 1, max_text_length=7)
    report = load_checkpoint(model, weights)
    name = "text_embeddings.position_embeddings.weight"
    assert report.resized == (f"{name}: the first 7 of 12 rows",)
    assert torch.equal(model.state_dict()[name], weights[name][:7])
    with pytest.raises(CheckpointError, match=rf"{name} is \[12, 32\], the model's {name} \[13, 32\]"):
        load_checkpoint(tiny_model("simvtp", max_text_length=13), weights)


def test_a_head_of_another_size_starts_afresh_where_asked():
    weights = official("video_classifier", tiny_model("video_classifier", num_classes=9).state_dict())
    model = tiny_model("video_classifier", 1)
    head = model.head.weight.clone()
    report = load_checkpoint(model, weights, fresh=["head"])
    assert torch.equal(model.head.weight, head)
    assert report.fresh == ("head.weight", "head.bias")
    assert report.ignored == ("head.weight", "head.bias")


def test_a_shared_tower_takes_the_encoder_once():
    source, model = tiny_model("simvtp"), tiny_model("dual_encoder", 1, shared_encoder=True)
    load_checkpoint(model, official("simvtp", source.state_dict()), fresh=NORMS)
    assert torch.equal(model.video_encoder.blocks[1].attn.qkv.weight, source.encoder.blocks[1].attn.qkv.weight)


def test_projections_carry_over_to_the_dual_encoder_where_widths_agree():
    source = tiny_model("simvtp", projection_dim=6, learnable_temperature=True)
    model = tiny_model("dual_encoder", 1, projection_dim=6, learnable_temperature=True)
    load_checkpoint(model, source.state_dict(), fresh=NORMS)
    assert torch.equal(model.contrast.text_projection.weight, source.contrast.text_projection.weight)
    assert torch.equal(model.contrast.log_logit_scale, source.contrast.log_logit_scale)
    assert (
        "contrast.text_projection.weight"
        in load_checkpoint(tiny_model("dual_encoder"), source.state_dict(), fresh=NORMS).ignored
    )
    other = tiny_model("dual_encoder", 1, projection_dim=7)
    with pytest.raises(CheckpointError, match=r"contrast.text_projection.weight is \[6, 32\]"):
        load_checkpoint(other, source.state_dict(), fresh=NORMS)
    load_checkpoint(other, source.state_dict(), fresh=(*NORMS, "contrast"))


@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("norm", [("weight", "bias"), ("gamma", "beta")])
@pytest.mark.parametrize("architecture", ["simvtp", "dual_encoder", "video_qa"])
def test_bert_fills_the_embeddings_of_captions_alone(architecture, prefix, norm):
    source = tiny_model("simvtp", max_text_length=20).text_embeddings.state_dict()
    weights = {f"{prefix}embeddings.{name}": tensor for name, tensor in source.items() if "norm" not in name}
    for ours, theirs in zip(("weight", "bias"), norm, strict=True):
        weights[f"{prefix}embeddings.LayerNorm.{theirs}"] = source[f"norm.{ours}"]
    weights |= {f"{prefix}encoder.layer.0.output.dense.bias": torch.zeros(32), "cls.predictions.bias": torch.zeros(50)}
    weights |= {f"{prefix}embeddings.position_ids": torch.arange(20)[None]}
    model = tiny_model(architecture, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    report = load_checkpoint(model, weights)

    for name, tensor in model.state_dict().items():
        stem, _, rest = name.partition(".")
        expected = source[rest][: len(tensor)] if stem == "text_embeddings" else before[name]
        assert torch.equal(tensor, expected), name
    assert len(report.loaded) == 5
    assert len(report.ignored) == 3
    assert report.resized == ("text_embeddings.position_embeddings.weight: the first 12 of 20 rows",)
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight is \[50, 32\]"):
        load_checkpoint(tiny_model(architecture, vocab_size=60), weights)
    with pytest.raises(CheckpointError, match="is a bert, from which no videomae can start"):
        load_checkpoint(tiny_model("videomae"), weights)


def test_position_ids_of_old_checkpoints_are_left():
    weights = official("simvtp", tiny_model("simvtp").state_dict())
    weights["text_embeddings.position_ids"] = torch.arange(12)[None]
    assert load_checkpoint(tiny_model("simvtp", 1), weights).ignored == ("text_embeddings.position_ids",)


def test_a_folder_of_ours_states_its_heads(tmp_path):
    write_model_folder(tmp_path, tiny_model("simvtp"), "simvtp")
    load_checkpoint(tiny_model("simvtp", 1), tmp_path)
    with pytest.raises(CheckpointError, match="num_heads is 2, the model has 4"):
        load_checkpoint(tiny_model("simvtp", num_heads=4), tmp_path)


def test_a_classifier_of_the_first_token_is_refused():
    state = tiny_model("video_classifier").state_dict()
    state = {("encoder." if name.startswith("norm.") else "") + name: tensor for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match="use_mean_pooling=false"):
        load_checkpoint(tiny_model("video_classifier"), official("video_classifier", state))


def test_wrong_requests():
    weights = official("videomae", tiny_model("videomae").state_dict())
    model = tiny_model("videomae")
    with pytest.raises(UserError, match="no origin 'videomea'; did you mean 'videomae'"):
        load_checkpoint(model, weights, origin="videomea")
    with pytest.raises(CheckpointError, match="the state dict is no checkpoint of simvtp: its 55 tensors begin with"):
        load_checkpoint(model, weights, origin="simvtp")
    with pytest.raises(UserError, match="fresh names 'haed', which VideoMAE does not have"):
        load_checkpoint(model, weights, fresh=("haed",))
    with pytest.raises(UserError, match="fresh must be a sequence"):
        load_checkpoint(model, weights, fresh="head")
    with pytest.raises(CheckpointError, match="is a video_qa, from which no videomae can start"):
        load_checkpoint(model, tiny_model("video_qa").state_dict())
    with pytest.raises(UserError, match="Linear is no model of a registered system"):
        load_checkpoint(torch.nn.Linear(2, 2), weights)
    with pytest.raises(CheckpointError, match=r"another entry are both decoder\.mask_token"):
        load_checkpoint(model, {**weights, "decoder.mask_token": weights["mask_token"]})


def test_another_tokenizer_is_the_cure_where_only_the_words_differ():
    weights = official("simvtp", tiny_model("simvtp", vocab_size=77).state_dict())
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(tiny_model("simvtp"), weights)
    assert str(raised.value).endswith(
        "The checkpoint is vocab_size 77: give the tokenizer of its 77 words (data.tokenizer=FILE; for a model built "
        "in Python, vocab_size=77)"
    )


def test_a_folder_of_another_size_is_a_short_line(tmp_path):
    write_model_folder(tmp_path, tiny_model("simvtp", depth=5), "simvtp")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"depth": 5', '"depth": 2'))
    with pytest.raises(CheckpointError, match=r"unexpected encoder\.blocks\.2\..* \d+ more unexpected$") as raised:
        load_pretrained(tmp_path)
    assert len(str(raised.value)) < 400
