"""Each op's benchmark in smoke shapes: the command line ends, every peer is right, what is missing is named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.device.gpu import PARTS
from benchmarks.harness import command, timing
from benchmarks.harness.case import Missing, Options
from benchmarks.harness.record import Row
from benchmarks.harness.workload import Workload
from benchmarks.ops import masking, pixel_loss, token_assembly, tubelets
from fastvtp_kernels import TubeMask, tube_mask

ROOT = Path(__file__).parents[3]
MODULES = {module.__name__.rpartition(".")[2]: module for module in (tubelets, pixel_loss, masking, token_assembly)}
TINY = Workload("tiny", batch=2, frames=4, size=4, width=5, decoder_width=3, tubelet=(2, 2, 2), mask_ratio=0.5)
CPU = torch.device("cpu")
VARIANTS = {
    "tubelets": {"videomae", "videomae, float clip given", "index after conv", "hf, float clip given"},
    "pixel_loss": {"videomae engine", "compiled videomae engine"},
    "masking": {"videomae", "argsort of rand"},
    "token_assembly": {"videomae", "hf", "mae"},
}


def smoke_rows(name: str, path: Path, *arguments: str) -> list[Row]:
    command_line = ["--smoke", "--device", "cpu", "--json", str(path), *arguments]
    command.main(MODULES[name].cases, MODULES[name].__doc__, command_line)
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


@pytest.mark.parametrize("name", MODULES)
def test_smoke_run_times_every_variant_that_is_there(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)  # Triton's interpreter is slow
    rows = smoke_rows(name, tmp_path / "rows.json")
    assert {row.variant for row in rows} == VARIANTS[name] | {"reference", "compiled reference", "triton"}
    for row in rows:
        if row.note.startswith("missing: "):
            assert row.variant in ("triton", "hf, float clip given")
            continue
        assert row.note == ""
        assert row.error is not None
        assert row.median_s is not None
        assert row.p20_s is not None
        assert row.p80_s is not None
        assert 0 < row.p20_s <= row.median_s <= row.p80_s
        assert (row.peak_bytes or 0) > 0
        assert row.speedup is not None
        assert row.floor_s > 0
    assert capsys.readouterr().out.count("\n| ") >= len(rows)


@pytest.mark.parametrize("name", ["tubelets", "pixel_loss", "token_assembly"])
def test_every_peer_is_right_in_bfloat16(name, tmp_path):
    rows = smoke_rows(name, tmp_path / "rows.json", "--dtype", "bfloat16", "--only", *VARIANTS[name], "reference")
    assert rows
    assert all(row.note == "" or "transformers" in row.note for row in rows), [row.note for row in rows]


BARE = """
import runpy, sys
for name in ("typer", "tqdm", "triton", "einops", "transformers", "safetensors", "huggingface_hub", "matplotlib"):
    sys.modules[name] = None
sys.argv = ["tubelets", "--smoke", "--device", "cpu", "--json", sys.argv[1], "--only", "videomae", "reference"]
runpy.run_module("benchmarks.ops.tubelets", run_name="__main__")
"""


def test_runs_from_a_bare_checkout(tmp_path):
    path = tmp_path / "rows.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run([sys.executable, "-c", BARE, str(path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "case 3 of 3" in done.stderr
    assert len(json.loads(path.read_text())["rows"]) == 6


BARE_IMPORTS = """
import importlib, sys
optional = ("typer", "tqdm", "pydantic", "einops", "transformers", "safetensors", "huggingface_hub", "matplotlib", "av",
            "nvidia.dali", "tokenizers", "pytest", "hypothesis")
for name in optional:
    sys.modules[name] = None
for name in ("benchmarks.device.gpu", *sys.argv[1:]):
    importlib.import_module(name)
"""


def test_every_part_is_imported_without_optional_packages():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-c", BARE_IMPORTS, *sorted({part.module for part in PARTS})]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


class PatchEmbeddings(nn.Module):
    """Stands in for transformers' class: [B, T, C, H, W] -> [B, tokens, D], a parameter pair named `projection`."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        size = config.tubelet_size, config.patch_size, config.patch_size
        self.projection = nn.Conv3d(3, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values.permute(0, 2, 1, 3, 4)).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_hugging_face_variant(direction, monkeypatch):
    names = ("transformers", "transformers.models", "transformers.models.videomae")
    modeling = ModuleType("modeling_videomae")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["transformers"], "VideoMAEConfig", SimpleNamespace, raising=False)
    monkeypatch.setattr(modeling, "VideoMAEPatchEmbeddings", PatchEmbeddings, raising=False)
    monkeypatch.setitem(sys.modules, f"{names[-1]}.modeling_videomae", modeling)
    case = tubelets.embed_case(TINY, Options(CPU, torch.float32, smoke=True), direction)
    variant = case.variants["hf, float clip given"]
    assert not isinstance(variant, Missing)
    assert case.error(variant()) < 1e-5


def test_a_wrong_mask_is_an_error():
    grid, hidden_cells = (2, 2, 2), 2
    right = tube_mask(3, grid, 0.5, seed=0)
    error = masking._mask_error(grid, hidden_cells, right)
    boolean = F.one_hot(right.masked.long(), 8).sum(dim=1).bool()
    assert error(right) == error(tuple(right)) == error(boolean) == 0
    assert error(TubeMask(right.visible, right.masked.flip(1))) > 0
    assert error((right.visible, right.visible)) == 1
    assert error(torch.cat([boolean[:, :4], ~boolean[:, :4]], dim=1)) == 1
    assert error(torch.zeros_like(boolean)) == 1
    one_wrong = boolean.clone()
    one_wrong[0] = True
    assert error(one_wrong) == pytest.approx(1 / 3)
