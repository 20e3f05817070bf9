"""Triton's assemble_tokens against the reference."""

from typing import Any

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import assemble_tokens, tuning
from tests.kernels.triton_cases import (
    DEVICE,
    DTYPES,
    assert_meets_the_law,
    assert_repeats,
    expanded,
    random_values,
    results,
    strided,
    tiles_of,
    transposed,
)

ORDERS = ("none", "one for the batch", "one per clip")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_order = pytest.mark.parametrize("order", ORDERS)


def example(
    dtype: torch.dtype = torch.float32,
    order: str = "none",
    sizes: tuple[int, int, int, int] = (3, 4, 7, 10),
    index_dtype: torch.dtype = torch.int32,
) -> dict[str, Any]:
    """Arguments of assemble_tokens for sizes (B, Kv, Km, D); places are unsorted, and without an order some repeat."""
    batch_size, visible_count, masked_count, width = sizes
    length = visible_count + masked_count
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, max(length, 1), (batch_size, length), generator=generator)
    shuffles = [torch.randperm(length, generator=generator) for _ in range(max(batch_size, 1))]
    per_clip = torch.stack(shuffles)[:batch_size]
    permutation = {"none": None, "one for the batch": shuffles[0], "one per clip": per_clip}[order]
    return {
        "visible": random_values(batch_size, visible_count, width, dtype=dtype),
        "mask_token": random_values(width, dtype=dtype, seed=1),
        "position": random_values(length, width, dtype=dtype, seed=2),
        "visible_index": index[:, :visible_count].to(DEVICE, index_dtype),
        "masked_index": index[:, visible_count:].to(DEVICE, index_dtype),
        "permutation": None if permutation is None else permutation.to(DEVICE, index_dtype),
    }


@pytest.mark.parametrize(
    ("sizes", "index_dtype"),
    [((3, 4, 7, 10), torch.int32), ((2, 9, 2, 72), torch.int64), ((1, 1, 1, 1), torch.int32)],
    ids=str,
)
@every_order
@every_dtype
def test_meets_the_law(dtype, order, sizes, index_dtype):
    assert_meets_the_law(assemble_tokens, example(dtype, order, sizes, index_dtype))


@pytest.mark.parametrize("sizes", [(0, 4, 7, 10), (2, 0, 5, 10), (2, 5, 0, 10), (2, 0, 0, 10)], ids=str)
@every_order
def test_nothing_visible_or_nothing_masked(order, sizes):
    inputs = example(order=order, sizes=sizes)
    assert_meets_the_law(assemble_tokens, inputs)
    found = results(assemble_tokens, inputs | {"backend": "triton"})
    assert found["output"].shape == (sizes[0], sizes[1] + sizes[2], 10)
    if sizes[2] == 0:
        assert not found["grad of mask_token"].any()


@pytest.mark.parametrize("incoming", [expanded, transposed])
@every_order
@every_dtype
def test_any_strides_will_do(dtype, order, incoming):
    inputs = example(dtype, order)
    views = {name: None if x is None else strided(x) for name, x in inputs.items()}
    assert not any(x.is_contiguous() for x in views.values() if x is not None)
    assert_meets_the_law(assemble_tokens, views, incoming)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_order
def test_parameters_of_their_own_dtype_and_shape(order, dtype):
    inputs = example(dtype, order)
    inputs["mask_token"] = random_values(1, 1, 10, seed=1)
    inputs["position"] = random_values(11, 10, seed=2)
    assert_meets_the_law(assemble_tokens, inputs)


@every_order
def test_gradients_of_the_inputs_that_ask_for_one(order):
    inputs = example(order=order)
    for name in ("visible", "mask_token", "position"):
        assert_meets_the_law(assemble_tokens, inputs | {name: inputs[name].detach()})


def test_a_position_that_many_tokens_share():
    """All 33 tokens of three clips stand at one place: its gradient is their sum, that of the others zero."""
    inputs = example()
    for name in ("visible_index", "masked_index"):
        inputs[name] = torch.full_like(inputs[name], 6)
    assert_meets_the_law(assemble_tokens, inputs)
    gradient = results(assemble_tokens, inputs | {"backend": "triton"}, expanded)["grad of position"]
    assert (gradient[6] == 33 / 2).all()
    assert not gradient[torch.arange(11, device=DEVICE) != 6].any()


TILES = tiles_of("assemble", "assemble_backward", "sum_segments")


@pytest.mark.parametrize(("kernel", "dtype", "tile"), TILES.values(), ids=TILES)
@every_order
def test_every_tile(order, kernel, dtype, tile):
    with tuning.override(kernel, tile):
        assert_meets_the_law(assemble_tokens, example(dtype, order))


@every_order
@every_dtype
def test_repeats_bit_for_bit(dtype, order):
    assert_repeats(assemble_tokens, example(dtype, order) | {"backend": "triton"})


@pytest.mark.parametrize("order", ORDERS[1:])
def test_an_order_that_names_a_place_twice_is_refused(order, monkeypatch):
    monkeypatch.setenv("FASTVTP_DEBUG", "1")
    inputs = example(order=order)
    inputs["permutation"][..., 3] = inputs["permutation"][..., 2]
    with pytest.raises(ValueError, match=r"permutation names a place twice, expected each of 0\.\.10 once"):
        assemble_tokens(**inputs, backend="triton")
