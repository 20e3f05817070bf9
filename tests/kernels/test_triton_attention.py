"""Triton's attention kernels against the reference, regime by regime: the tolerance law for output, dq, dk and dv."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
from safetensors.torch import load_file

from fastvtp_kernels import (
    axial_attention,
    axial_attention_packed,
    tuning,
    varlen_attention,
    varlen_attention_packed,
)
from fastvtp_kernels.attention import kernels, resident, streaming, tiny
from fastvtp_kernels.testing import tiny as tiny_error
from fastvtp_kernels.testing import truths
from tests.kernels.attention_cases import (
    ATTENTION_KERNELS,
    LENGTHS,
    OPTIONS,
    forced,
    grid,
    grid_side_by_side,
    of_views,
    offsets,
    options_of,
    packed,
    side_by_side,
)
from tests.kernels.triton_cases import (
    DEVICE,
    DTYPES,
    assert_meets_the_law,
    assert_repeats,
    expanded,
    pattern,
    results,
    strided,
    transposed,
)

VIDEOPRISM = Path(__file__).parent / "data" / "videoprism_attention.safetensors"
REGIMES = ("tiny", "resident", "streaming")
every_regime = pytest.mark.parametrize("regime", REGIMES)
every_case = pytest.mark.parametrize("case", LENGTHS)


CASES = {
    f"{case}, {name}": (case, options_of(name, case))
    for case in LENGTHS
    for name in OPTIONS
    if (case.split()[0], name) != ("resident", "dropout")
}


@pytest.mark.parametrize(("case", "options"), CASES.values(), ids=CASES)
def test_every_option_meets_the_law(case, options):
    with forced(case):
        assert_meets_the_law(varlen_attention, packed(*LENGTHS[case], **options))


@every_case
@pytest.mark.parametrize("name", ["plain", "everything"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_meets_the_law(case, name, dtype):
    with forced(case):
        assert_meets_the_law(varlen_attention, packed(*LENGTHS[case], dtype=dtype, heads=1, **options_of(name, case)))


# Wider heads than 64 do not fit the resident regime.
WIDTHS = [(regime, width) for regime in ("tiny", "streaming") for width in (24, 80, 88, 96, 128, 256)]
WIDTHS += [("resident", 24), ("resident", 64)]


@pytest.mark.parametrize(("regime", "width"), WIDTHS)
def test_head_widths(regime, width):
    dtype = torch.bfloat16 if width in (64, 88, 256) else torch.float32
    lengths = {"tiny": [5, 16, 2], "resident": [33, 17], "streaming": [17]}[regime]
    with forced(regime):
        assert_meets_the_law(varlen_attention, packed(lengths, heads=1, width=width, dtype=dtype))


@every_regime
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_six_heads_draw_different_numbers_of_one_counter(regime, softcap):
    """Dropout takes the four words of a counter for four heads, then the next counter."""
    options = {"dropout_p": 0.5, "seed": 3, "softcap": softcap}
    with forced(regime):
        assert_meets_the_law(varlen_attention, packed([9], [12], heads=6, tail=0, **options))


@pytest.mark.parametrize("keys", [33, 100])
@pytest.mark.parametrize("regime", ["resident", "streaming"])
def test_one_query_that_pools_many_keys(regime, keys):
    with forced(regime):
        assert_meets_the_law(varlen_attention, packed([1, 1, 1], [keys, 0, 7], softcap=50.0))


@every_regime
@pytest.mark.parametrize("causal", [False, True])
def test_many_queries_of_few_keys(regime, causal):
    lengths = ([32, 3], [3, 32]) if regime == "tiny" else ([40, 3], [3, 40])
    with forced(regime):
        assert_meets_the_law(varlen_attention, packed(*lengths, causal=causal))


RESIDENT = [resident.resident_forward, resident.resident_backward]
STREAMING = [streaming.stream_forward, streaming.stream_backward_queries, streaming.stream_backward_keys]
MIXED = [resident.resident_forward, *STREAMING[1:]]
DROPOUT = {"dropout_p": 0.5}
# longest query, longest key, head width, dtype, options -> kernels of forward and backward
CHOICES: dict[str, tuple[Any, ...]] = {
    "32 rows": (32, 32, 64, torch.float32, {}, [tiny.tiny_forward, tiny.tiny_backward]),
    "32 wide rows": (32, 32, 256, torch.float16, DROPOUT, [tiny.tiny_forward, tiny.tiny_backward]),
    "33 rows": (33, 33, 64, torch.bfloat16, {}, RESIDENT),
    "33 keys": (1, 33, 64, torch.float16, {}, RESIDENT),
    "33 queries": (33, 1, 64, torch.float16, {}, RESIDENT),
    "256 rows": (256, 256, 64, torch.bfloat16, {}, RESIDENT),
    "192 causal rows": (192, 192, 64, torch.bfloat16, {"causal": True}, RESIDENT),
    "193 causal rows": (193, 193, 64, torch.bfloat16, {"causal": True}, STREAMING),
    "257 keys": (1, 257, 64, torch.bfloat16, {}, MIXED),
    "257 queries": (257, 1, 64, torch.bfloat16, {}, MIXED),
    "320 rows": (320, 320, 64, torch.bfloat16, {}, MIXED),
    "321 keys": (1, 321, 64, torch.bfloat16, {}, STREAMING),
    "321 queries": (321, 1, 64, torch.bfloat16, {}, STREAMING),
    "33 wide rows": (33, 33, 65, torch.bfloat16, {}, STREAMING),
    "33 exact rows": (33, 33, 64, torch.float32, {}, STREAMING),
    "33 rows with dropout": (33, 33, 64, torch.bfloat16, DROPOUT, STREAMING),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_lengths_dtype_and_options_choose_the_regime(choice, monkeypatch):
    length, length_k, width, dtype, options, expected = choice
    launched = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, *_, **__: launched.append(kernel))
    with tuning.targeting("sm_90"):
        results(varlen_attention, packed([length], [length_k], width=width, dtype=dtype, backend="triton", **options))
    assert launched == expected


TILES = {
    f"{kernel} {column} {tile}": (kernel, dtype, tile)
    for kernel in ATTENTION_KERNELS
    for column, dtype in (("half", torch.bfloat16), ("single", torch.float32))
    if column in tuning.TABLE[kernel]
    for tile in tuning.tiles(kernel, column)
}


@pytest.mark.parametrize(("kernel", "dtype", "tile"), TILES.values(), ids=TILES)
def test_every_tile_of_the_table(kernel, dtype, tile):
    """Two tiles in every dimension, the second not full; other kernels of the call run in small ones."""
    regime = next((name for name in ("tiny", "resident") if kernel.startswith(name)), "streaming")
    options = OPTIONS["dropout" if "dropout" in kernel else "softcap" if "capped" in kernel else "plain"]
    # Heads that do not fill the block; where those have tiles of their own, heads that do.
    unfilled = 0 if f"{kernel}_masked" in tuning.TABLE else 56
    width = next((size - unfilled for size in (64, 128, 256) if str(size) in kernel), 8)
    rows, keys = (tile.blocks.get(name, tile.blocks.get("BLOCK", 16)) for name in ("BLOCK_M", "BLOCK_N"))
    lengths = ([7, 32, 9, 1], None) if regime == "tiny" else ([rows + 3], [keys + 3])
    with forced(regime), tuning.override(kernel, tile), tuning.asked() as taken:
        assert_meets_the_law(varlen_attention, packed(*lengths, heads=1, width=width, dtype=dtype, **options))
    assert any(x is tile for x in taken)


@every_regime
@pytest.mark.parametrize("incoming", [expanded, transposed])
def test_any_strides_will_do(regime, incoming):
    inputs = packed(LENGTHS[regime][0])
    views = {name: strided(x) if name in ("query", "key", "value") else x for name, x in inputs.items()}
    assert not views["key"].is_contiguous()
    with forced(regime):
        assert_meets_the_law(varlen_attention, views, incoming)


@every_regime
def test_offsets_that_end_early_repeat_and_a_longest_that_is_longer(regime):
    inputs = packed(LENGTHS[regime][0], heads=1, tail=40)
    last = inputs["cu_seqlens"][-1:]
    inputs["cu_seqlens"] = torch.cat([inputs["cu_seqlens"], last, last, last])
    inputs["max_seqlen"] += 13
    with forced(regime):
        assert_meets_the_law(varlen_attention, inputs)
        zeros = results(varlen_attention, inputs | {"backend": "triton"})
    for name, value in zeros.items():
        assert not value[-40:].any(), name


@every_regime
@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=["no sequence", "empty sequences"])
@pytest.mark.parametrize("tail", [0, 5])
def test_no_row_in_any_sequence(regime, lengths, tail):
    inputs = packed([*lengths, 0], tail=tail) | {"cu_seqlens": offsets(lengths)}
    with forced(regime):
        assert_meets_the_law(varlen_attention, inputs)


PACKED = {"tiny": ([5, 0, 7], "plain"), "resident": ([33, 1], "softcap"), "streaming": ([17, 0, 5], "everything")}


@pytest.mark.parametrize("regime", PACKED)
def test_the_packed_op_gives_the_same_bits_and_one_gradient(regime):
    lengths, name = PACKED[regime]
    inputs = side_by_side(lengths) | OPTIONS[name]
    with forced(regime):
        assert_meets_the_law(varlen_attention_packed, inputs)
        whole, views = (
            results(function, inputs | {"backend": "triton"}) for function in (varlen_attention_packed, of_views)
        )
    assert whole["grad of qkv"].is_contiguous()
    for name, value in whole.items():
        assert torch.equal(value, views[name]), name


@every_regime
@pytest.mark.parametrize("options", ["plain", "softcap", "causal"])
def test_along_an_axis(regime, options):
    shape = (2, 8, 3, 2, 16) if regime == "tiny" else (1, 40, 2, 1, 24)
    with forced(regime):
        assert_meets_the_law(axial_attention, grid(*shape, **OPTIONS[options]))


def axial_of_views(tokens, **options):
    """[A, C, L, 3, H, Dh], as one linear layer makes them of tokens ordered (place, frame)."""
    return axial_attention(*tokens.transpose(1, 2).unbind(3), **options)


@every_regime
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_along_an_axis_of_views(regime, dtype):
    length = 8 if regime == "tiny" else 20
    tokens = grid(1, 2, length, 3, 2, 16, dtype=dtype)["query"]
    with forced(regime):
        assert_meets_the_law(axial_of_views, {"tokens": tokens, "causal": True}, transposed)
        assert_meets_the_law(axial_of_views, {"tokens": strided(tokens)}, expanded)


@every_regime
def test_the_packed_axis_gives_the_same_bits_and_one_gradient(regime):
    length = 8 if regime == "tiny" else 40
    inputs = grid_side_by_side(1, length, 2, 3, 2, 16) | {"softcap": 1.5, "causal": True}
    with forced(regime):
        assert_meets_the_law(axial_attention_packed, inputs)
        assert_meets_the_law(axial_attention_packed, inputs | {"qkv": strided(inputs["qkv"])}, transposed)
        whole = results(axial_attention_packed, inputs | {"backend": "triton"})
        views = results(lambda qkv, **x: axial_attention(*qkv.unbind(3), **x), inputs | {"backend": "triton"})
    assert whole["grad of qkv"].is_contiguous()
    for name, value in whole.items():
        assert torch.equal(value, views[name]), name


@every_regime
@pytest.mark.parametrize("shape", [(0, 3, 2, 1, 16), (1, 3, 0, 2, 16)], ids=str)
def test_a_grid_of_nothing(regime, shape):
    with forced(regime):
        assert_meets_the_law(axial_attention, grid(*shape))


@every_regime
def test_an_axis_of_one_row(regime):
    """Attention of one key is its value. Gradients of query and key are zero but for the rounding of the two equal
    terms that cancel; the law asks for the reference's own rounding and cannot be applied."""
    inputs = grid(2, 1, 3, 1, 16)
    with forced(regime):
        found = results(axial_attention, inputs | {"backend": "triton"})
    incoming = pattern(found["output"])
    # A weight is 2 ** (logit - logit), which a fused multiply-add rounds to almost 1.
    for name, value in {"output": inputs["value"], "grad of value": incoming}.items():
        assert (found[name] - value).abs().max().item() <= tiny_error(torch.float32, value.abs().max().item()), name
    terms = (incoming * inputs["value"]).abs().sum(-1, keepdim=True).max().item() * 16**-0.5
    for name, factor in (("query", "key"), ("key", "query")):
        magnitude = terms * inputs[factor].abs().max().item()
        assert found[f"grad of {name}"].abs().max().item() <= tiny_error(torch.float32, magnitude)


def test_an_axis_of_no_rows_launches_nothing(monkeypatch):
    """A kernel that ran would touch memory that is not there."""
    launched = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, *_, **__: launched.append(kernel))
    found = results(axial_attention, grid(2, 0, 3, 1, 16, backend="triton"))
    assert [x.shape for x in found.values()] == [(2, 0, 3, 1, 16)] * 4
    assert not launched


@every_regime
def test_repeats_bit_for_bit(regime):
    options = options_of("everything", regime)
    lengths = {"tiny": [5, 0, 7], "resident": [33, 20], "streaming": [20]}[regime]
    with forced(regime):
        assert_repeats(varlen_attention, packed(lengths, backend="triton", heads=1, **options))


@pytest.mark.parametrize("cap", [0, 5, 50])
@pytest.mark.parametrize("path", [*REGIMES, "reference", "specification"])
def test_videoprism_parity(path, cap):
    """The official package's attention: all queries of the keys that are not padding; then causal, among the rest."""
    data = {name: x.to(DEVICE) for name, x in load_file(VIDEOPRISM).items()}
    clips, length = data["paddings"].shape
    present = data["paddings"] == 0
    lengths = present.sum(1).tolist()
    query, keys, values = data["q"], data["k"][present], data["v"][present]
    options = {"softcap": float(cap), "backend": "triton" if path in REGIMES else "reference"}
    cu, kept = offsets([length] * clips), offsets(lengths)
    with truths() if path == "specification" else forced(path):
        full = varlen_attention(
            query.flatten(0, 1), keys, values, cu, length, cu_seqlens_k=kept, max_seqlen_k=length, **options
        )
        causal = varlen_attention(query[present], keys, values, kept, length, causal=True, **options)
    expected = {name: data[f"cap{cap}_{name}"] for name in ("full", "causal")}
    torch.testing.assert_close(full, expected["full"].flatten(0, 1), rtol=0, atol=2e-5)
    torch.testing.assert_close(causal, expected["causal"][present], rtol=0, atol=2e-5)
