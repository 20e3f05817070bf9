"""What the parity runner must not let pass, and what it says of folders that it cannot run."""

from typing import Any

import pytest
import torch

from tests.parity.__main__ import main
from tests.parity.compare import (
    compare,
    relative_error,
    table,
)


def verdict(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("simvtp", "decoder_pred"), ("simvtp", "text_only_encoder_out"), ("simvtp", "loss_vtm"),
        ("simvtp", "grad.text_embeddings.position_embeddings.weight"), ("simvtp", "lr_schedule"),
        ("simvtp", "grad.finetune.video_encoder.patch_embed.proj.bias"), ("simvtp", "finetune_loss"),
        ("videomae", "target_raw"), ("videomae", "grad.mask_token"), ("videomae", "finetune_features"),
        ("videomae", "encoder_pos_embed"),
        ("alpro", "fusion_pos_out"), ("alpro", "mlm_logits"), ("alpro", "loss_mpm"), ("alpro", "image_prompt_feat"),
        ("alpro", "prompter_itc_loss"), ("alpro", "ret_itm_logits"), ("alpro", "qa_loss"),
        ("alpro", "visual_block0_in"), ("alpro", "lr_schedule_linear"),
        ("alpro", "grad.visual_encoder.model.pos_embed"),
        ("alpro", "grad.text_encoder.bert.encoder.layer.0.attention.self.key.weight"),
        ("alpro", "grad.qa.visual_encoder.model.blocks.0.attn.qkv.bias"),
    ],
)  # fmt: skip
def test_perturbed_output_is_named(system, name, change, capsys):
    folder = change(system, "outputs.safetensors", lambda outputs: {**outputs, name: outputs[name] * (1 + 1e-4)})
    assert main([system, str(folder)]) == 1
    assert verdict(capsys).endswith(f"failed: {name}")
    assert main([system, str(folder), "--tolerance", "1e-3"]) == 0


@pytest.mark.parametrize("metric", ["R1", "R50", "MedR", "MeanR", "geometric_mean_R1-R5-R10"])
def test_perturbed_retrieval_metric_is_named(metric, change, capsys):
    def edit(config: dict[str, Any]) -> dict[str, Any]:
        config["retrieval_metrics"]["v2t"][metric] += 0.01
        return config

    assert main(["simvtp", str(change("simvtp", "config.json", edit))]) == 1
    assert verdict(capsys).endswith(f"failed: retrieval_metrics.v2t.{metric}")


def test_unknown_retrieval_metrics_are_not_passed_over(change, capsys):
    def edit(config: dict[str, Any]) -> dict[str, Any]:
        config["retrieval_metrics"]["t2v"]["nDCG"] = 1.0
        config["retrieval_metrics"]["t2t"] = {"R1": 1.0}
        return config

    assert main(["simvtp", str(change("simvtp", "config.json", edit))]) == 1
    assert verdict(capsys).endswith("failed: retrieval_metrics.t2t.R1, retrieval_metrics.t2v.nDCG")


@pytest.mark.parametrize(
    ("name", "array", "note"),
    [
        ("mystery", torch.ones(2), "not compared"),
        ("grad.decoder.nothing", torch.ones(2), "not compared"),
        ("loss_norm_target", torch.ones(3), "computed as []"),
    ],
)
def test_array_that_cannot_be_compared(name, array, note, change, capsys):
    folder = change("videomae", "outputs.safetensors", lambda outputs: {**outputs, name: array})
    assert main(["videomae", str(folder)]) == 1
    *rows, last = capsys.readouterr().out.splitlines()
    assert last.endswith(f"failed: {name}")
    assert next(row for row in rows if row.startswith(name)).endswith(f"NO   {note}")


@pytest.mark.parametrize("name", ["decoder.norm.bias", "encoder.blocks.0.attn.v_bias", "encoder.norm.bias"])
def test_other_weight_is_noticed(name, change, capsys):
    """The weights come from the file."""
    folder = change("videomae", "state_dict.safetensors", lambda weights: {**weights, name: weights[name] + 0.01})
    assert main(["videomae", str(folder)]) == 1
    assert "decoder_pred" in verdict(capsys)


@pytest.mark.parametrize(
    ("system", "file", "name", "told"),
    [
        ("videomae", "state_dict.safetensors", "decoder.head.bias", "missing decoder.head.bias"),
        ("videomae", "finetune_extra.safetensors", "head.weight", "missing head.weight"),
        ("videomae", "inputs.safetensors", "video", "has no 'video'"),
        ("videomae", "config.json", "classes", "has no 'classes'"),
        ("simvtp", "state_dict.safetensors", "encoder.blocks.1.attn.q_bias", "missing encoder.blocks.1.attn.q_bias"),
        ("simvtp", "finetune_extra.safetensors", "text_encoder.fc_norm.bias", "missing text_norm.bias"),
        ("simvtp", "inputs.safetensors", "vtm_neg_idx", "has no 'vtm_neg_idx'"),
        ("simvtp", "config.json", "maxpos", "has no 'maxpos'"),
        ("alpro", "state_dict.safetensors", "mpm_head.0.bias", "missing entity_head.0.bias"),
        ("alpro", "state_dict.safetensors", "prompter.temp", "missing prompter.temperature"),
        ("alpro", "qa_extra.safetensors", "classifier.2.bias", "missing classifier.2.bias"),
        ("alpro", "inputs.safetensors", "mpm_mask", "has no 'mpm_mask'"),
        ("alpro", "config.json", "entities", "has no 'entities'"),
    ],
)
def test_missing_entry_is_one_line(system, file, name, told, change, capsys):
    def edit(entries: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in entries.items() if key != name}

    assert main([system, str(change(system, file, edit))]) == 2
    assert told in the_line(capsys)


@pytest.mark.parametrize(
    ("system", "file", "edit", "message"),
    [
        ("videomae", "config.json", {"norm_eps": 1e-5}, "norm_eps is 1e-05, the model has 1e-06"),
        ("simvtp", "config.json", {"bert_embedding_ln_eps": 1e-6}, "bert_embedding_ln_eps is 1e-06"),
        ("simvtp", "config.json", {"heads": 5}, "num_heads 5 does not divide the width 24"),
        ("videomae", "inputs.safetensors", {"video": torch.zeros(3, 3, 4, 8, 16)}, "video must be [B, 4, 16, 16, 3]"),
        ("videomae", "inputs.safetensors", {"video_mask": torch.arange(24).view(3, 8) > 9}, "as many tubelets"),
        ("simvtp", "inputs.safetensors", {"attention_mask": torch.tensor([[0] + [1] * 7] * 3)}, "before its padding"),
        ("simvtp", "inputs.safetensors", {"mlm_labels": torch.full((3, 8), -100)}, "[MASK] where mlm_labels"),
        ("alpro", "config.json", {"hidden": 32}, "hidden is 32, the model has 24"),
        ("alpro", "config.json", {"vheads": 5}, "num_heads 5 does not divide the width 24"),
        ("alpro", "inputs.safetensors", {"mlm_labels": torch.full((3, 8), 7)}, "mlm_labels must be -100 or the word"),
        ("alpro", "inputs.safetensors", {"crop_video": torch.ones(3, 3, 3, 16, 16)}, "crop_video is not video with"),
        ("alpro", "inputs.safetensors", {"text_input_mask": torch.eye(8)[:3].long()}, "before its padding"),
    ],
)
def test_folder_that_cannot_be_run(system, file, edit, message, change, capsys):
    assert main([system, str(change(system, file, lambda entries: {**entries, **edit}))]) == 2
    assert message in the_line(capsys)


def test_not_a_parity_folder(tmp_path, capsys):
    for file, content, message in (
        (None, "", "has no config.json"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "{}", "has no outputs.safetensors"),
        ("outputs.safetensors", "nothing", "not a readable safetensors file"),
    ):
        if file is not None:
            (tmp_path / file).write_text(content)
        assert main(["simvtp", str(tmp_path)]) == 2
        assert message in the_line(capsys)


@pytest.mark.parametrize("name", ["ret_vneg_idx", "ret_tneg_idx", "itm_labels", "mpm_ignore_mask"])
def test_other_integers_are_named(name, change, capsys):
    def edit(outputs: dict[str, Any]) -> dict[str, Any]:
        array = outputs[name]
        return {**outputs, name: ~array if array.dtype == torch.bool else array.roll(1)}

    assert main(["alpro", str(change("alpro", "outputs.safetensors", edit))]) == 1
    assert verdict(capsys).endswith(f"failed: {name}")


def test_only_noise_of_the_keys_biases_is_excused(pristine, capsys):
    """They are saved by the made folders, whose rounding is no rule for ours."""
    assert main(["alpro", str(pristine["alpro"])]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "rounding: the softmax" in line]
    assert rows
    assert all(name.startswith("grad.") and name.endswith("attention.self.key.bias") for name in rows)


@pytest.mark.parametrize(
    ("system", "file", "edit", "message"),
    [
        ("videomae", "config.json", lambda _: [1], "holds a list, expected an object"),
        ("simvtp", "config.json", lambda c: {**c, "special_ids": {"PAD": 0}}, "KeyError: 'MASK'"),
        ("simvtp", "config.json", lambda c: {**c, "special_ids": [0, 1]}, "TypeError: "),
        ("simvtp", "config.json", lambda c: {**c, "retrieval_metrics": [1]}, "AttributeError: "),
        ("simvtp", "inputs.safetensors", lambda i: {**i, "vtm_neg_idx": torch.full((3,), 9)}, "IndexError: "),
        ("alpro", "inputs.safetensors", lambda i: {**i, "video": i["video"][:2].contiguous()}, "RuntimeError: "),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(system, file, edit, message, change, capsys):
    folder = change(system, file, edit)
    assert main([system, str(folder)]) == 2
    line = the_line(capsys)
    assert line.startswith(f"cannot run {folder}: ")
    assert message in line
    with pytest.raises(Exception, match=r"."):
        main([system, str(folder), "--traceback"])


def test_relative_error():
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, 4.0]), torch.zeros(2)) == 5.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_fails(value):
    for actual, expected in ((value, 1.0), (1.0, value), (value, value)):
        rows = compare({"a": torch.tensor(actual)}, {"a": torch.tensor(expected)}, {})
        assert not rows[0].ok(1e-5)
        assert table(rows, 1e-5).endswith("failed: a")


def test_excuse_holds_only_for_what_is_not_computed():
    expected, excused = {"a": torch.ones(1)}, {"a": "random"}
    assert compare({}, expected, excused)[0].ok(1e-5)
    assert not compare({"a": torch.zeros(1)}, expected, excused)[0].ok(1e-5)
