"""Triton's gather_tubelets and tubelet_embed against the reference."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
from safetensors.torch import load_file

from fastvtp_kernels import gather_tubelets, tubelet_embed, tuning
from fastvtp_kernels.testing import assert_within_tolerance, poisoned_empty
from fastvtp_kernels.tubelets import kernels
from fastvtp_kernels.unit_errors import gathered
from tests.kernels.triton_cases import (
    DEVICE,
    DTYPES,
    SMALL_TILES,
    assert_meets_the_law,
    assert_repeats,
    expanded,
    random_values,
    random_video,
    results,
    strided,
    tiles_of,
    transposed,
)

VIDEOMAE = Path(__file__).parent / "data" / "videomae.safetensors"
# Unsorted tokens of a 2 x 2 x 2 grid, some more than once; 15 fill no tile.
LISTED = [[7, 0, 3, 3, 1], [2, 3, 5, 7, 0], [4, 3, 3, 6, 2]]
# tubelet, channels, width, index dtype
SHAPES = {
    "2x16x16x3": ((2, 16, 16), 3, 10, torch.int32),
    "1x16x16x1": ((1, 16, 16), 1, 10, torch.int64),
    "1x18x18x3": ((1, 18, 18), 3, 7, torch.int32),
    "2x14x14x4": ((2, 14, 14), 4, 10, torch.int64),
    "2x4x6x3 wide": ((2, 4, 6), 3, 72, torch.int32),
    "2x4x5x4": ((2, 4, 5), 4, 20, torch.int64),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def example(
    dtype: torch.dtype = torch.float32,
    shape: tuple[Any, ...] = ((2, 4, 6), 3, 10, torch.int32),
    video_dtype: torch.dtype = torch.uint8,
    listed: list[list[int]] = LISTED,
) -> dict[str, Any]:
    """Arguments of tubelet_embed."""
    tubelet, channels, width, index_dtype = shape
    values = channels * tubelet[0] * tubelet[1] * tubelet[2]
    return {
        "video": random_video(len(listed), *(2 * side for side in tubelet), channels, dtype=video_dtype),
        "index": torch.tensor(listed, dtype=index_dtype, device=DEVICE).view(
            len(listed), len(listed[0]) if listed else 0
        ),
        "weight": random_values(width, channels, *tubelet, dtype=dtype, scale=values**-0.5),
        "bias": random_values(width, dtype=dtype, seed=1),
        "position": random_values(8, width, dtype=dtype, seed=2),
        "tubelet": tubelet,
        "mean": (0.485, 0.456, 0.406, 0.5)[:channels],
        "std": (0.229, 0.224, 0.225, 0.1)[:channels],
    }


def gather_example(*args: Any, **options: Any) -> dict[str, Any]:
    return {
        name: x for name, x in example(*args, **options).items() if name in ("video", "index", "tubelet", "mean", "std")
    }


def assert_gathers(inputs: dict[str, Any], dtype: torch.dtype) -> None:
    with poisoned_empty():
        actual = gather_tubelets(**inputs, dtype=dtype, backend="triton")
    same, exact = (gather_tubelets(**inputs, dtype=x, backend="reference") for x in (dtype, torch.float64))
    std, plain = inputs["std"], {"mean": [0.0] * len(inputs["std"]), "std": [1.0] * len(inputs["std"])}
    pixels = gather_tubelets(**inputs | plain, dtype=torch.float64, backend="reference")
    assert_within_tolerance("values", actual, same, exact, gathered(exact, std, pixels))


@every_shape
@every_dtype
def test_embed_meets_the_law(dtype, shape):
    assert_meets_the_law(tubelet_embed, example(dtype, shape))


@every_shape
@every_dtype
def test_gather_meets_the_law(dtype, shape):
    assert_gathers(gather_example(dtype, shape), dtype)


@pytest.mark.parametrize("video_dtype", [*DTYPES, torch.float64], ids=str)
@every_dtype
def test_floating_point_video(dtype, video_dtype):
    assert_meets_the_law(tubelet_embed, example(dtype, video_dtype=video_dtype))
    assert_gathers(gather_example(video_dtype=video_dtype), dtype)


@every_dtype
def test_bias_and_position_are_optional(dtype):
    inputs = example(dtype)
    for change in ({"bias": None}, {"position": None}, {"bias": None, "position": None}):
        assert_meets_the_law(tubelet_embed, inputs | change)
    fixed = inputs | {name: inputs[name].detach() for name in ("bias", "position")}
    assert_meets_the_law(tubelet_embed, fixed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_position_table_of_its_own_dtype(dtype):
    position = random_values(8, 10, dtype=torch.float32)
    assert_meets_the_law(tubelet_embed, example(dtype) | {"position": position})


@pytest.mark.parametrize("incoming", [expanded, transposed])
@every_dtype
def test_any_strides_will_do(dtype, incoming):
    inputs = example(dtype)
    views = {name: strided(x) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    assert not any(x.is_contiguous() for x in views.values() if isinstance(x, torch.Tensor))
    assert_meets_the_law(tubelet_embed, views, incoming)
    packed, viewed = (results(tubelet_embed, x | {"backend": "triton"}, incoming) for x in (inputs, views))
    for name, value in packed.items():
        assert torch.equal(value, viewed[name]), name
    assert_gathers({name: views[name] for name in gather_example()}, dtype)


@pytest.mark.parametrize("listed", [[], [[], []]], ids=["no clip", "no token"])
def test_nothing_listed(listed):
    inputs = example(listed=listed)
    assert_meets_the_law(tubelet_embed, inputs)
    zeros = results(tubelet_embed, inputs | {"backend": "triton"})
    assert zeros["output"].shape == (len(listed), 0, 10)
    assert not any(zeros[f"grad of {name}"].any() for name in ("weight", "bias", "position"))
    assert_gathers(gather_example(listed=listed), torch.float32)


TILES = tiles_of("embed", "weight_gradient", "fold", "sum_segments")


@pytest.mark.parametrize(("kernel", "dtype", "tile"), TILES.values(), ids=TILES)
def test_every_tile_embeds(kernel, dtype, tile):
    with tuning.override(kernel, tile):
        assert_meets_the_law(tubelet_embed, example(dtype, SHAPES["2x4x5x4"]))


GATHER_TILES = tiles_of("gather")


@pytest.mark.parametrize(("kernel", "dtype", "tile"), GATHER_TILES.values(), ids=GATHER_TILES)
def test_every_tile_gathers(kernel, dtype, tile):
    with tuning.override(kernel, tile):
        assert_gathers(gather_example(shape=SHAPES["2x4x5x4"]), dtype)


@pytest.mark.parametrize(("programs", "splits"), [(1, 1), (18, 2), (264, 3)])
@every_dtype
def test_the_weight_gradient_is_split_over_tokens(dtype, programs, splits, monkeypatch):
    """33 tokens in blocks of 16, nine tiles of the weight: no split, one of two blocks and a shorter one, or three."""
    grids, launch = [], kernels.launch

    def record(kernel, grid, *args, **options):
        if kernel is kernels._weight_gradient:
            grids.append(grid)
        launch(kernel, grid, *args, **options)

    monkeypatch.setattr(kernels, "_SPLIT_PROGRAMS", programs)
    monkeypatch.setattr(kernels, "launch", record)
    with tuning.override("weight_gradient", SMALL_TILES["weight_gradient"]):
        assert_meets_the_law(tubelet_embed, example(dtype, listed=[[5, 0, 3, 3, 1, 7, 2, 4, 6, 0, 3]] * 3))
    assert grids == [(9, splits)]


@every_dtype
def test_repeats_bit_for_bit(dtype):
    with tuning.override("weight_gradient", SMALL_TILES["weight_gradient"]):
        assert_repeats(tubelet_embed, example(dtype, listed=LISTED + LISTED) | {"backend": "triton"})
    assert_repeats(gather_tubelets, gather_example() | {"dtype": dtype, "backend": "triton"})


def into(index_copy, backend):
    """The packed form as a function of its inputs: rows of a copy of `base`, by the op itself or by index_copy."""

    def run(base, rows, **inputs):
        if index_copy:
            return base.index_copy(0, rows.flatten().long(), tubelet_embed(**inputs, backend=backend).flatten(0, 1))
        out = base.clone()
        written = tubelet_embed(**inputs, backend=backend, out=out, out_rows=rows)
        assert written is out
        return out

    return run


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("row_dtype", [torch.int32, torch.int64], ids=str)
@every_dtype
def test_rows_of_a_packed_buffer(dtype, row_dtype, backend):
    rows = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:15].view(3, 5)
    inputs = example(dtype) | {"base": random_values(20, 10, dtype=dtype, seed=4)}
    inputs["rows"] = rows.to(DEVICE, row_dtype)
    expected = results(into(True, backend), inputs)
    with poisoned_empty():
        actual = results(into(False, backend), inputs)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("optional", [True, False], ids=["bias and position", "weight alone"])
def test_a_buffer_without_gradient_receives_one(backend, optional):
    inputs = example() | {"base": torch.full((20, 10), 7.0, device=DEVICE)}
    inputs["rows"] = torch.arange(15, dtype=torch.int32, device=DEVICE).view(3, 5)
    if not optional:
        inputs |= {"bias": None, "position": None}
    actual, expected = (results(into(index_copy, backend), inputs) for index_copy in (False, True))
    assert torch.equal(actual["output"][15:], inputs["base"][15:])
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"out_rows": None}, ValueError, "out is given without out_rows"),
        ({"out": None}, ValueError, "out_rows is given without out,"),
        ({"out": torch.zeros(20, 9)}, ValueError, r"out has shape \[20, 9\], expected \[N, 10\]"),
        ({"out": torch.zeros(20, 10).half()}, TypeError, r"out is torch\.float16 with .*expected contiguous torch\.fl"),
        ({"out": torch.zeros(10, 20).T}, TypeError, r"with strides \(1, 20\), expected contiguous"),
        ({"out_rows": torch.zeros(3, 4).int()}, ValueError, r"out_rows has shape \[3, 4\], expected \[3, 5\]"),
        ({"out_rows": torch.zeros(3, 5)}, TypeError, "out_rows is torch.float32, expected int32 or int64"),
        ({"out_rows": torch.arange(6, 21).view(3, 5)}, ValueError, r"out_rows holds 6\.\.20, expected rows of out in"),
        ({"out_rows": torch.arange(15).view(3, 5) // 2}, ValueError, "out_rows names a row twice, expected distinct"),
    ],
)
def test_refuses_a_buffer(backend, change, error, message, monkeypatch):
    monkeypatch.setenv("FASTVTP_DEBUG", "1")
    buffer: dict[str, Any] = {"out": torch.zeros(20, 10), "out_rows": torch.arange(15).view(3, 5)} | change
    buffer = {name: None if x is None else x.to(DEVICE) for name, x in buffer.items()}
    with pytest.raises(error, match=message):
        tubelet_embed(**example(), **buffer, backend=backend)


def test_autocast_decides_the_outputs_dtype_and_leaves_the_gradients():
    def embed(video, **inputs):
        with torch.autocast(video.device.type, torch.bfloat16):
            return tubelet_embed(video, **inputs)

    inputs = example()
    assert_meets_the_law(embed, inputs)
    actual = results(embed, inputs | {"backend": "triton"})
    assert actual.pop("output").dtype == torch.bfloat16
    assert {x.dtype for x in actual.values()} == {torch.float32}


@pytest.mark.parametrize("quantised", [False, True], ids=["float", "uint8"])
def test_equals_released_videomae_patch_embedding(quantised):
    arrays = {name: x.to(DEVICE) for name, x in load_file(VIDEOMAE).items()}
    video = arrays["video"].permute(0, 2, 3, 4, 1)  # normalised already: mean 0, std 1
    mean, std, allowed = 0.0, 1.0, 1e-5
    if quantised:
        low, high = (x.item() for x in video.aminmax())
        video, mean, std = ((video - low) * (255 / (high - low))).round().byte(), -low / (high - low), 1 / (high - low)
        # Half a step of the input, through the weights.
        allowed = arrays["weight"].abs().flatten(1).sum(1) * (0.5 / 255 / std) + 1e-5
    index = torch.arange(64, device=DEVICE).expand(2, -1)
    weight, bias = arrays["weight"], arrays["bias"]
    options: dict[str, Any] = {"tubelet": (2, 8, 8), "mean": (mean,) * 3, "std": (std,) * 3, "backend": "triton"}
    error = tubelet_embed(video, index, weight, bias, **options) - arrays["encoder_patch_embed"]
    assert (error.abs() <= allowed).all()


def test_tf32_is_taken_from_either_of_torchs_interfaces():
    from fastvtp_kernels.launching import dot_precision

    matmul = torch.backends.cuda.matmul
    assert dot_precision(torch.float32) == "ieee"
    try:
        matmul.fp32_precision = "tf32"
        assert (dot_precision(torch.float32), dot_precision(torch.bfloat16)) == ("tf32", "ieee")
        matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision("high")
        assert dot_precision(torch.float32) == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert dot_precision(torch.float32) == "ieee"
