"""Where the attention kernels read: any strides of query, key, value and offsets, and rows that lie far apart."""

import mmap
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
from torch import Tensor

from fastvtp_kernels import axial_attention, varlen_attention, varlen_attention_packed
from fastvtp_kernels.attention import kernels
from tests.kernels.attention_cases import (
    LENGTHS,
    forced,
    grid,
    packed,
    side_by_side,
)
from tests.kernels.triton_cases import (
    DEVICE,
    assert_meets_the_law,
    random_values,
    results,
)

REGIMES = ("tiny", "resident", "streaming")
every_regime = pytest.mark.parametrize("regime", REGIMES)


def spread(offsets: Tensor) -> Tensor:
    """The same numbers with others between them."""
    return torch.stack([offsets, -7 - 3 * offsets], dim=1)[:, 0]


@pytest.mark.parametrize("case", [*REGIMES, "tiny crossed", "resident crossed", "streaming crossed", "reference"])
def test_offsets_need_not_lie_side_by_side(case):
    backend = "reference" if case == "reference" else "triton"
    inputs = packed(*LENGTHS.get(case, LENGTHS["tiny crossed"]), backend=backend)
    apart = {name: spread(x) if name.startswith("cu_seqlens") else x for name, x in inputs.items()}
    assert not apart["cu_seqlens"].is_contiguous()
    with forced(case):
        one, other = results(varlen_attention, inputs), results(varlen_attention, apart)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@every_regime
def test_offsets_of_the_packed_op_need_not_lie_side_by_side(regime):
    inputs = side_by_side(LENGTHS[regime][0]) | {"backend": "triton"}
    apart = inputs | {"cu_seqlens": spread(inputs["cu_seqlens"])}
    with forced(regime):
        one, other = (results(varlen_attention_packed, x) for x in (inputs, apart))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def laid_out(values: Tensor, *order: int, width: int | None = None) -> Tensor:
    """The same values in memory whose dimensions lie in this order, the last being part of `width`."""
    shape = [values.shape[axis] for axis in order]
    storage = values.new_full([*shape[:-1], width or shape[-1]], float("nan"))
    view = storage[..., : shape[-1]].permute([order.index(axis) for axis in range(len(order))])
    with torch.no_grad():
        view.copy_(values)
    return view.requires_grad_()


@every_regime
@pytest.mark.parametrize("crossed", ["", " crossed"])
def test_query_key_and_value_each_in_strides_of_their_own(regime, crossed):
    """Whoever takes the strides of one for those of another reads the wrong rows, or NaN."""
    inputs = packed(*LENGTHS[regime + crossed])
    inputs["key"] = laid_out(inputs["key"], 1, 0, 2)
    inputs["value"] = laid_out(inputs["value"], 0, 1, 2, width=40)
    assert len({inputs[name].stride() for name in ("query", "key", "value")}) == 3
    assert all(inputs[name].stride(-1) == 1 for name in ("query", "key", "value"))
    with forced(regime):
        assert_meets_the_law(varlen_attention, inputs)


@pytest.mark.parametrize(("width", "stride"), [(16, 41), (16, 40), (10, 13)])
def test_heads_of_whole_vectors_begin_where_vectors_do(width, stride, monkeypatch):
    """The kernels are compiled for that; other heads are read where they are."""
    launched, launch = [], kernels.launch

    def recorded(kernel, grid, *arguments, **options):
        launched.append(arguments)
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(kernels, "launch", recorded)
    inputs = packed([20, 3], width=width)
    inputs["key"] = laid_out(inputs["key"], 0, 1, 2, width=stride)
    with forced("streaming"):
        assert_meets_the_law(varlen_attention, inputs)
    found = {arguments[1].stride(1) for arguments in launched if len(arguments) > 9}
    assert found == {16 if width == 16 and stride % 8 else stride}


@every_regime
def test_along_an_axis_in_strides_of_their_own(regime):
    inputs = grid(2, 8 if regime == "tiny" else 20, 3, 2, 16)
    inputs["key"] = laid_out(inputs["key"], 3, 2, 0, 1, 4)
    inputs["value"] = laid_out(inputs["value"], 1, 0, 2, 3, 4, width=24)
    assert len({inputs[name].stride() for name in ("query", "key", "value")}) == 3
    with forced(regime):
        assert_meets_the_law(axial_attention, inputs)


FAR = 2**30
"""Elements from one row to the next, so that 32 bits hold the way to the second."""


def far_apart(values: Tensor, row_axis: int, place: int) -> Tensor:
    """The same values with rows FAR apart, in memory that exists where it is touched."""
    if DEVICE.type != "cpu":
        pytest.skip("a GPU has no memory that is merely promised")
    rows, size = values.shape[row_axis], values[0].numel() * values.shape[0]
    # torch would ask for all of it; Linux's MAP_NORESERVE promises it
    memory = mmap.mmap(-1, rows * FAR * values.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    storage = torch.frombuffer(memory, dtype=values.dtype)
    dense = values.movedim(row_axis, 0).contiguous()
    view = storage.as_strided(dense.shape, (FAR, *dense.stride()[1:]), place * size).movedim(0, row_axis)
    with torch.no_grad():
        view.copy_(values)
    return view.requires_grad_()


@every_regime
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_a_sequence_that_lie_gibibytes_apart(regime, dtype):
    """Tokens in the order of time, a whole epoch of clips to the frame."""
    options: dict[str, Any] = {"causal": True}
    along = grid(1, 5, 2, 2, 16, dtype=dtype, **options)
    rows = packed([5, 0, 3], dtype=dtype, tail=2, **options)
    for place, name in enumerate(("query", "key", "value")):
        along[name] = far_apart(along[name].detach(), 1, place)
        rows[name] = far_apart(rows[name].detach(), 0, place)
    with forced(regime):
        assert_meets_the_law(axial_attention, along)
        assert_meets_the_law(varlen_attention, rows)


def test_far_rows_leave_the_regime_that_counts_in_32_bits():
    values = random_values(1, 40, 1, 1, 16, dtype=torch.bfloat16).detach()
    query, key, value = (far_apart(values, 1, place) for place in range(3))
    with forced("resident"):
        assert_meets_the_law(axial_attention, {"query": query, "key": key, "value": value})
