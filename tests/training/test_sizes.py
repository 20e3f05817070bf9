"""What a run holds in memory, against what torch and its optimizers really hold."""

import pytest
import torch
from torch import nn

from fastvtp.modules.bert import BertLayer
from fastvtp.modules.layers import Transformer
from fastvtp.modules.packing import Packing
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import build_optimizer
from fastvtp.training.sizes import (
    activation_bytes,
    cast_bytes,
    count,
    kept_of,
    local_count,
    model_without_memory,
    parts_of,
    state_bytes,
)

ADAMW = OptimizerConfig()


def odd_model() -> nn.Module:
    """Parameters of no, one, two and four dimensions, of which none divides by 4; and a frozen one."""
    model = nn.Sequential(nn.Linear(7, 5), nn.Conv2d(3, 6, 3))
    model.register_parameter("temperature", nn.Parameter(torch.zeros(())))
    model.register_parameter("frozen", nn.Parameter(torch.zeros(9, 2), requires_grad=False))
    return model


def test_adamw_takes_16_bytes_of_each_trained_parameter_and_4_of_a_frozen_one():
    model = model_without_memory(get_recipe("videomae_pretrain_base").model)
    assert count(model.parameters()) == 94_210_944  # ViT-B with the released decoder of width 384
    assert state_bytes(model, ADAMW).total == 16 * 94_210_944
    student = model_without_memory(get_recipe("videoprism_stage2").model)  # with its frozen teacher
    trained, every = 142_208_320, 266_017_088
    assert state_bytes(student, ADAMW).total == 16 * trained + 4 * (every - trained)
    assert state_bytes(student, ADAMW, averaged=True).average == 4 * every


@pytest.mark.parametrize(
    "config",
    [
        ADAMW,
        OptimizerConfig(algorithm="adafactor"),
        OptimizerConfig(algorithm="adafactor", scale_by_parameter=False, momentum=0.9),
        OptimizerConfig(algorithm="adafactor", scale_by_parameter=False),
    ],
    ids=["adamw", "torch's adafactor", "with momentum", "without"],
)
def test_the_optimizer_s_state_is_what_the_optimizer_holds(config):
    model = odd_model()
    optimizer = build_optimizer(model, config)
    sum((parameter * parameter).sum() for parameter in model.parameters()).backward()
    optimizer.step()
    held = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name != "step" and value.numel() > 1
    )
    counted = state_bytes(model, config).optimizer
    single = 3 * 4 * 2  # the temperature's values, which the sum above leaves out with the counts of steps
    assert held <= counted <= held + single


@pytest.mark.parametrize("shards", [1, 2, 4, 5, 64])
def test_shards_are_torch_s_chunks_and_add_up(shards):
    model = odd_model()
    of_ranks = [
        sum(
            chunks[rank].numel() if rank < len(chunks) else 0
            for chunks in (tensor.chunk(shards) for tensor in model.parameters() if tensor.ndim)
        )
        for rank in range(shards)
    ]
    whole = sum(tensor.numel() for tensor in model.parameters() if tensor.ndim)
    assert sum(of_ranks) == whole
    assert count(model.parameters(), shards) == max(of_ranks) + 1  # the temperature is on all
    state = state_bytes(model, ADAMW, shards=shards)
    assert (state.weights, state.optimizer) == (4 * (of_ranks[0] + 1), 2 * state.gradients)
    assert local_count((), shards) == 1


def saved_bytes(module: nn.Module, x: torch.Tensor, packing: Packing, precision: str) -> int:
    """Bytes of all tensors that the backward pass has kept, parameters and their casts excepted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tuple(tensor.shape) not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    half = precision == "bfloat16"
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = module(x, packing)
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert output.requires_grad
    return total


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["pre-norm", "post-norm"])
def test_activations_are_close_to_what_autograd_keeps(kind, precision):
    """Sequences of one length, which the reference of attention does not pad; dropout off, whose masks are small."""
    rows, width = 8 * 50, 96
    x, packing = torch.randn(rows, width, requires_grad=True), Packing.uniform(8, 50)
    if kind == "pre-norm":
        module: nn.Module = Transformer(width, 4, 3)
        blocks, path = module.blocks, "blocks"
    else:
        module = nn.Module()
        module.layers = nn.ModuleList(BertLayer(width, 3, 384, 0.0) for _ in range(4))
        blocks, path = module.layers, "layers"
        module.forward = lambda x, packing: [x := block(x, packing) for block in blocks][-1]  # type: ignore
    model = activation_bytes(module, {path: 50}, clips=8, precision=precision)
    assert model == rows * sum(kept_of(block).bytes(precision) for block in blocks)
    assert saved_bytes(module, x, packing, precision) == pytest.approx(model, rel=0.05)


def test_a_block_of_vit_keeps_16_widths_of_a_row():
    """Of LayerNorms 2 in float32; of linear layers 4 + 4 inputs and 3 + 4 outputs less one that they share."""
    (block,) = Transformer(96, 1, 3).blocks
    kept = kept_of(block)
    assert (kept.wide, kept.narrow) == (2 * 96, 14 * 96)
    assert (kept.bytes("float32"), kept.bytes("bfloat16")) == (64 * 96, 36 * 96)


def test_recomputed_blocks_keep_their_inputs_and_one_of_them_all():
    model = nn.ModuleDict({"a": Transformer(64, 3, 2), "b": Transformer(32, 2, 2)})
    rows = {"a.blocks": 10, "b.blocks": 100}
    whole = activation_bytes(model, rows, clips=5, precision="float32")
    assert whole == 5 * 64 * (3 * 10 * 64 + 2 * 100 * 32)
    kept = activation_bytes(model, rows, clips=5, precision="float32", recompute="blocks")
    assert kept == 5 * (4 * (3 * 10 * 64 + 2 * 100 * 32) + 64 * 100 * 32)


def test_parts_are_blocks_and_the_rest():
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(4, size) for size in (3, 6)), "head": nn.Linear(4, 10)})
    model["blocks"][0].requires_grad_(False)
    assert parts_of(model) == (15 + 30, 30, 50, 30)
    assert cast_bytes(model) == 2 * (12 + 24 + 40)
