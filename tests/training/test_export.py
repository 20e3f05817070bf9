import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from fastvtp.errors import UserError
from fastvtp.training.export import export_model
from tests.training.states import make_state, write_tokenizer


@pytest.mark.parametrize("ema", [True, False])
def test_writes_the_final_weights(tmp_path, ema):
    state = make_state(ema=ema)
    export_model(tmp_path / "model", state, write_tokenizer)
    weights = {**state.model.state_dict(), **(state.average.tensors if ema else {})}
    assert (tmp_path / "model/model.safetensors").read_bytes() == save(weights)
    assert not ema or not torch.equal(weights["word_head.bias"], state.model.word_head.bias)
    assert json.loads((tmp_path / "model/config.json").read_text())["architecture"] == "simvtp"
    assert {path.name for path in tmp_path.rglob("*")} == {
        "model", "config.json", "model.safetensors", "tokenizer.json"
    }  # fmt: skip


def test_what_fails_leaves_the_earlier_model(tmp_path):
    state = make_state(ema=False)
    export_model(tmp_path / "model", state, write_tokenizer)
    before = load_file(tmp_path / "model/model.safetensors")
    with torch.no_grad():
        state.model.word_head.bias += 1

    def disk_full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"model: the model could not be written: \[Errno 28\] No space left on dev"):
        export_model(tmp_path / "model", state, disk_full)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load_file(tmp_path / "model/model.safetensors")["word_head.bias"], before["word_head.bias"])
    export_model(tmp_path / "model", state, write_tokenizer)
    after = load_file(tmp_path / "model/model.safetensors")["word_head.bias"]
    assert torch.equal(after, before["word_head.bias"] + 1)
