"""How a model is shared by processes: what is chosen, what is refused, and what recomputing and rounding change."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fastvtp import processes
from fastvtp.errors import ConfigError
from fastvtp.training.compiling import blocks_of, recompute_blocks
from fastvtp.training.config import RECOMPUTE
from fastvtp.training.loop import train
from fastvtp.training.parallel import choose_strategy
from tests.ranks import run_ranks
from tests.training.test_many_processes import records_of
from tests.training.tiny_runs import RUNS, prepare

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(captioned_videos) -> Path:
    return prepare(captioned_videos)


@pytest.mark.parametrize(
    ("world", "settings", "chosen"),
    [
        (1, [], "none"),
        (1, ["parallel.strategy=ddp"], "none"),
        (1, ["parallel.strategy=fsdp2"], "fsdp2"),
        (2, [], "ddp"),
        (4, ["parallel.strategy=hsdp", "parallel.shard_size=2"], "hsdp"),
    ],
)
def test_strategies(world, settings, chosen, data, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "size", lambda: world)
    config = RUNS["videomae"].config(data, tmp_path, *settings)
    assert choose_strategy(config, nn.Linear(2, 2), CPU) == chosen


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["parallel.strategy=none"], "parallel.strategy=none is for one process, there are 2"),
        (["parallel.strategy=fsdp2", "optimizer.algorithm=adafactor"], "optimizer.algorithm=adafactor with parallel"),
        (["parallel.strategy=hsdp", "parallel.shard_size=3"], "parallel.shard_size=3 does not divide the 2 processes"),
        (["parallel.param_dtype=bfloat16", "precision=bfloat16"], "param_dtype=bfloat16 is for fsdp2 and hsdp, not"),
    ],
)
def test_what_cannot_be_is_refused(settings, said, data, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "size", lambda: 2)
    config = RUNS["videomae"].config(data, tmp_path, *settings)
    with pytest.raises(ConfigError, match=said):
        choose_strategy(config, nn.Linear(2, 2), CPU)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 64)) for _ in range(4))
        self.activations = nn.ModuleList([nn.GELU()])  # nothing to shard

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """What a forward pass keeps for the backward pass beside the weights."""
    weights, kept = {weight.data_ptr() for weight in model.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum().backward()
    return sum(kept.values())


def test_recomputed_blocks_keep_their_inputs_alone():
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(100, 64, requires_grad=True)
    assert blocks_of(model) == [*model.blocks][::-1]
    names, before = [name for name, _ in model.named_parameters()], kept_bytes(model, x)
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    recompute_blocks(model)
    after = kept_bytes(model, x)
    assert after <= 5 * x.nbytes < 0.2 * before
    assert [name for name, _ in model.named_parameters()] == names
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("name", ["simvtp-hard", "prism-1", "alpro"])
def test_recomputing_changes_no_bit(name, data, tmp_path):
    """With dropout and skipped branches, which are drawn alike again."""
    for value in RECOMPUTE:
        config = RUNS[name].config(data, tmp_path / value, "steps=2", f"recompute={value}")
        train(config, progress_bar=False)
    first, *others = (tmp_path / value for value in RECOMPUTE)
    for other in others:
        for file in ("metrics.jsonl", "model/model.safetensors"):
            assert (first / file).read_bytes() == (other / file).read_bytes()


def _half(rank: int, root: str, output: str, names: tuple[str, ...]) -> None:
    for name in names:
        for dtype in ("float32", "bfloat16"):
            settings = ["steps=2", "precision=bfloat16", "parallel.strategy=fsdp2", f"parallel.param_dtype={dtype}"]
            train(RUNS[name].config(Path(root), Path(output) / dtype / name, *settings), progress_bar=False)


def test_matrices_gathered_in_bfloat16_are_what_autocast_makes_of_them(data, tmp_path):
    """Pictures and a prompter whose text tower never runs included."""
    names = ("videomae", "simvtp", "alpro")
    run_ranks(_half, tmp_path, str(data), str(tmp_path), names, processes=2)
    for name in names:
        whole, half = (records_of(tmp_path / dtype / name) for dtype in ("float32", "bfloat16"))
        for one, other in zip(whole, half, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=5e-3)
    assert records_of(tmp_path / "float32/alpro") != records_of(tmp_path / "bfloat16/alpro")
