"""The long regime's tiles: whole ones run without a mask, those that an end or the diagonal cuts in a loop of their
own, except in float32, where all are masked."""

import contextlib

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import tuning, varlen_attention
from fastvtp_kernels.tuning import Tile
from tests.kernels.attention_cases import forced, only, packed
from tests.kernels.triton_cases import assert_meets_the_law

# Queries on keys: ends on and beside the edges of tiles, the diagonal through corners and sides of tiles, whole tiles
# on both sides of it, queries without a key, one row.
LENGTHS = {
    "equal": ([64, 32, 1], None),
    "more keys": ([31, 33, 1], [64, 63, 33]),
    "more queries": ([63, 48, 33], [32, 31, 1]),
}
TILES = ("stream_forward", "stream_backward_keys", "stream_backward_queries")


@contextlib.contextmanager
def tiles_of(rows: int, keys: int):
    with only("streaming"), contextlib.ExitStack() as stack:
        for name in tuning.TABLE:
            if name.startswith(TILES):
                stack.enter_context(tuning.override(name, Tile({"BLOCK_M": rows, "BLOCK_N": keys})))
        yield


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("tile", [(16, 32), (32, 16)], ids=str)
@pytest.mark.parametrize("case", LENGTHS)
def test_ends_and_the_diagonal_cut_tiles_anywhere(case, tile, causal):
    with tiles_of(*tile):
        assert_meets_the_law(varlen_attention, packed(*LENGTHS[case], heads=1, causal=causal, dtype=torch.bfloat16))


@pytest.mark.parametrize(("length", "dtype"), [(511, torch.float16), (513, torch.bfloat16)])
def test_long_sequences_in_tiles_of_hopper(length, dtype):
    with only("streaming"):
        assert_meets_the_law(varlen_attention, packed([length], heads=1, width=64, dtype=dtype, tail=1))


@pytest.mark.parametrize("scale", [-0.7, 0.0])
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"causal": True}], ids=["plain", "softcap", "causal"])
def test_scales_that_turn_or_level_the_logits(scale, options):
    """The largest product has the smallest logit then, or all are equal."""
    with forced("streaming"):
        inputs = packed([35, 3], heads=1, softmax_scale=scale, dtype=torch.float16, **options)
        with torch.no_grad():
            inputs["query"] *= 8
        assert_meets_the_law(varlen_attention, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_far_below_zero(dtype):
    """A key that does not exist has a logit of 0, which is 2 ** 5000 times the weight of those that do."""
    inputs = packed([18, 3], heads=1, dtype=dtype)
    with torch.no_grad():
        inputs["query"][..., 0], inputs["key"][..., 0] = 120.0, -120.0
    with forced("streaming"):
        assert_meets_the_law(varlen_attention, inputs)
