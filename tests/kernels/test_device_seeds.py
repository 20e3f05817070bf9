"""Seeds and steps as tensors on the device: the same draws, and new ones from code that was compiled or captured."""

from typing import Any

import pytest
import torch

from fastvtp_kernels import (
    Replacement,
    block_tube_mask,
    hard_negatives,
    replace_masked_tokens,
    running_cell_mask,
    text_mask,
    tube_mask,
)

from .triton_cases import DEVICE, random_values

BACKENDS = ("reference", "triton", "specification")
LARGE = (2**64 - 3, 2**32 - 5)  # in two's complement both are negative


A, B = (random_values(9, 8, seed=n).detach() for n in (0, 1))


def negatives(seed, step, backend):
    return torch.stack(hard_negatives(A, B, 0.1, seed=seed, step=step, backend=backend))


def tubes(seed, step, backend):
    return tube_mask(3, (2, 4, 5), 0.6, seed=seed, step=step, device=DEVICE, backend=backend).masked


DRAWS = {"hard_negatives": negatives, "tube_mask": tubes}


def on_device(value, bits=64):
    signed = value - 2**bits if value >= 2 ** (bits - 1) else value
    return torch.tensor([signed], dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", DRAWS)
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 3), LARGE])
def test_a_tensor_draws_what_its_integer_does(op, backend, seed, step):
    draw = DRAWS[op]
    expected = draw(seed, step, backend)
    assert torch.equal(draw(on_device(seed), on_device(step), backend), expected)
    assert torch.equal(draw(on_device(seed), step, backend), expected)
    assert torch.equal(draw(seed, on_device(step).reshape(()), backend), expected)
    assert not torch.equal(draw(on_device(seed), on_device(step + 1), backend), expected)


@pytest.mark.parametrize("op", DRAWS)
def test_compiled_code_draws_anew_from_a_changed_tensor_without_another_compilation(op):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    draw = DRAWS[op]
    compiled = torch.compile(lambda step: draw(5, step, None), backend=counting, fullgraph=True)
    step = on_device(0)
    for number in range(4):
        step.fill_(number)
        assert torch.equal(compiled(step), draw(5, number, None))
    assert len(graphs) == 1


def test_the_masks_without_kernels_take_tensors_too():
    words, offsets = torch.arange(5, 25), torch.tensor([0, 9, 20], dtype=torch.int32)
    draws = {
        "text_mask": lambda **d: text_mask(words, offsets, 0.5, special_ids=[7], **d),
        "block_tube_mask": lambda **d: block_tube_mask(3, (2, 6, 6), 0.5, **d).masked,
        "running_cell_mask": lambda **d: running_cell_mask(3, (2, 6, 6), 0.5, **d).masked,
        "replace_masked_tokens": lambda **d: replace_masked_tokens(
            words, words % 3 > 0, offsets, Replacement(4, 30, 0.3, 0.3), **d
        ),
    }
    for name, draw in draws.items():
        seed, step = torch.tensor([9]), torch.tensor([2])
        assert torch.equal(draw(seed=seed, step=step), draw(seed=9, step=2)), name
        assert not torch.equal(draw(seed=seed, step=step + 1), draw(seed=9, step=2)), name


@pytest.mark.parametrize("name", ["seed", "step"])
def test_what_is_no_seed_is_refused_by_name(name):
    given: dict[str, Any] = {"seed": 0, "step": 0}
    with pytest.raises(TypeError, match=f"tube_mask: {name} is torch.float32 .1., expected an integer or one int64"):
        tube_mask(1, (1, 2, 2), 0.5, **(given | {name: torch.zeros(1)}))
    with pytest.raises(TypeError, match=f"tube_mask: {name} is torch.int64 .2., expected an integer or one int64"):
        tube_mask(1, (1, 2, 2), 0.5, **(given | {name: torch.zeros(2, dtype=torch.int64)}))
    with pytest.raises(ValueError, match=f"tube_mask: {name} on meta, expected one device, cpu"):
        tube_mask(1, (1, 2, 2), 0.5, **(given | {name: torch.zeros(1, dtype=torch.int64, device="meta")}))


@pytest.mark.parametrize("draw", [tube_mask, block_tube_mask, running_cell_mask])
def test_a_seed_on_another_device_than_the_masks_is_refused_by_name(draw):
    for name in ("seed", "step"):
        given: dict[str, Any] = {"seed": 0, "step": 0} | {name: torch.zeros(1, dtype=torch.int64, device="meta")}
        with pytest.raises(ValueError, match=f"{draw.__name__}: {name} on meta, expected one device, cpu"):
            draw(1, (1, 8, 8), 0.5, **given)


@pytest.mark.parametrize("step", [-1, 2**32])
@pytest.mark.parametrize("draw", [tube_mask, block_tube_mask, running_cell_mask])
def test_a_step_out_of_range_is_refused_where_it_can_be_read(draw, step):
    with pytest.raises(ValueError, match=f"{draw.__name__}: step is {step}, expected 0 <= step < 2..32"):
        draw(1, (1, 8, 8), 0.5, seed=0, step=torch.tensor([step]))
