"""What torch.compile is asked to do, and what blocks compute again."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fastvtp.errors import ConfigError
from fastvtp.modules.layers import Transformer
from fastvtp.modules.packing import Packing
from fastvtp.training import compiling
from fastvtp.training.compiling import check_graphs, compile_blocks, compile_mode, recompute_blocks
from fastvtp.training.config import RECOMPUTE, apply_overrides, differing_settings, save_config
from fastvtp.training.sizes import kept_recomputed
from tests.training.tiny_runs import RUNS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WIDTH, DEPTH, PACKING = 96, 4, Packing.uniform(8, 50)


def config(*settings: str) -> Any:
    return apply_overrides(RUNS["simvtp"].config(Path("data"), Path("out")), list(settings))


@pytest.mark.parametrize(
    ("setting", "on_cpu", "on_cuda"),
    [
        ("auto", "none", "blocks"),
        ("none", "none", "none"),
        ("false", "none", "none"),
        ("blocks", "blocks", "blocks"),
        ("step", "step", "step"),
        ("true", "step", "step"),
    ],
)
def test_what_is_compiled_follows_the_device(setting, on_cpu, on_cuda, monkeypatch):
    monkeypatch.setattr(compiling, "why_not", lambda device: "")
    chosen = config(f"compile={setting}")
    assert (compile_mode(chosen, CPU), compile_mode(chosen, CUDA)) == (on_cpu, on_cuda)


def test_where_nothing_can_be_compiled_auto_says_why_and_others_are_refused(monkeypatch, caplog):
    monkeypatch.setattr(compiling, "why_not", lambda device: "no compiler named c++")
    with caplog.at_level(logging.WARNING):
        assert compile_mode(config(), CUDA) == "none"
    assert caplog.messages == ["compile=auto compiles nothing: torch.compile does not work here: no compiler named c++"]
    assert compile_mode(config("compile=none"), CUDA) == "none"
    for mode in ("blocks", "step", "graphs"):
        with pytest.raises(ConfigError, match=f"compile={mode}: torch.compile does not work here: no compiler named"):
            compile_mode(config(f"compile={mode}"), CUDA)


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nmore lines")

    monkeypatch.setattr(torch, "compile", fail)
    assert compiling.why_not(CPU) == "InvalidCxxCompiler: no working C++ compiler"


def test_graphs_are_for_cuda_one_process_and_one_micro_batch():
    with pytest.raises(ConfigError, match="compile=graphs captures CUDA graphs, the device is cpu"):
        compile_mode(config("compile=graphs"), CPU)
    with pytest.raises(ConfigError, match="is for one process, the strategy is ddp"):
        check_graphs("ddp", 1)
    with pytest.raises(ConfigError, match="one micro-batch a step, got 4"):
        check_graphs("none", 4)
    check_graphs("none", 1)


@pytest.mark.parametrize("name", ["compile", "recompute"])
def test_an_unknown_choice_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} must be one of .*'none'.*, got 'all'"):
        config(f"{name}=all")


def test_a_run_of_before_goes_on(tmp_path):
    """Whose settings were true and false, and false by default."""
    path = tmp_path / "config.json"
    save_config(config(), path)
    text = path.read_text()
    for compile_, recompute, settings in (
        ("false", "false", ()),
        ("true", "true", ("compile=step", "recompute=blocks")),
    ):
        older = text.replace('"compile": "auto"', f'"compile": {compile_}')
        path.write_text(older.replace('"recompute": "none"', f'"recompute": {recompute}'))
        assert not differing_settings(config(*settings), path)
    assert differing_settings(config(), path) == {"compile": ("step", "auto"), "recompute": ("blocks", "none")}


def held_bytes(what: str) -> int:
    """Bytes that a forward pass leaves behind, of all tensors, its output's included."""
    torch.manual_seed(0)
    model, x = Transformer(WIDTH, DEPTH, 3), torch.randn(400, WIDTH, requires_grad=True)
    if what != "none":
        recompute_blocks(model, what)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        output = model(x, PACKING)
    assert output.requires_grad
    found: Any = profiled.profiler
    return sum(event.nbytes() for event in found.kineto_results.events() if event.name() == "[memory]")


def test_selective_blocks_keep_products_and_attention():
    none, blocks, selective = map(held_bytes, RECOMPUTE)
    assert blocks < selective < none
    size = kept_recomputed(Transformer(WIDTH, 1, 3).blocks[0], "selective")
    # the input; the results of four products, and of attention
    assert (size.bytes("float32"), size.bytes("bfloat16")) == (44 * WIDTH, 24 * WIDTH)
    assert selective - blocks == pytest.approx(400 * DEPTH * (size.bytes("float32") - 4 * WIDTH), rel=0.01)


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_compiled_blocks_are_one_graph_of_each_kind(recompute, monkeypatch):
    """Blocks of a kind share their code; other numbers of rows, and longer sequences, make one more and no third."""
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: original(self, backend="aot_eager", **options))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    plain, compiled = Transformer(WIDTH, DEPTH, 3), Transformer(WIDTH, DEPTH, 3)
    compiled.load_state_dict(plain.state_dict())
    if recompute != "none":
        recompute_blocks(compiled, recompute)
    compile_blocks(compiled, drawing=True)
    graphs = []
    for lengths in ([50, 50], [40, 60, 3], [64, 1, 1], [33, 20], [7, 7, 7, 7]):
        offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        x = torch.randn(sum(lengths), WIDTH)
        found, expected = [], []
        for model, into in ((compiled, found), (plain, expected)):
            leaf = x.clone().requires_grad_()
            output = model(leaf, Packing(offsets, max(lengths)))
            output.square().sum().backward()
            into += [output.detach(), leaf.grad, *(weight.grad for weight in model.parameters())]
            model.zero_grad()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == 1
    assert graphs[1] == graphs[-1] <= 3, graphs
    assert not torch._dynamo.utils.counters["graph_break"]
