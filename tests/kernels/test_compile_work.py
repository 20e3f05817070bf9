"""How much a launch has to do, by launches whose elements can be counted on paper."""

from types import SimpleNamespace

import pytest
import torch

from fastvtp_kernels.compile_work import WORK, work_of
from fastvtp_kernels.launching import Compiled
from fastvtp_kernels.tuning import Tile

EMPTY = SimpleNamespace(asm={"ttir": ""})


def launch(kernel, programs=1, **arguments):
    return work_of(Compiled(kernel, Tile({}), EMPTY, programs, arguments))


def attend(kernel, length, length_k, *, causal=False, rows=64, columns=32, **constants):
    query, key = (torch.empty(2 * each, 3, 8, device="meta", dtype=torch.float16) for each in (length, length_k))
    sizes = {"sequences": 2, "heads": 3, "D": 8, "CAUSAL": causal, "BLOCK_M": rows, "BLOCK_N": columns}
    return launch(kernel, query_ptr=query, key_ptr=key, **sizes, **constants)


def test_keys_pass_by_a_tile_of_queries():
    work = attend("stream_forward", 100, 200)
    assert (work.element, work.per_pass, work.passes, work.elements) == ("logit", 64 * 32, 7, 2 * 3 * 100 * 200)
    assert work.bytes == 2 * 2 * 3 * 8 * (100 + 200)


@pytest.mark.parametrize(
    ("kernel", "length", "length_k", "passes"),
    [
        # Tiles of queries end at 64 and 128: 2 and 4 tiles of 32 keys.
        ("stream_forward", 128, 128, 3),
        # The last of 64 queries sees the last of 128 keys, the first sees 65.
        ("stream_forward", 64, 128, 4),
        # Keys 0, 32, 64, 96 are seen from the query tiles 0, 0, 1, 1 of two on.
        ("stream_backward_keys", 128, 128, 1.5),
        ("stream_backward_queries", 128, 128, 3),
    ],
)
def test_a_causal_launch_passes_over_half(kernel, length, length_k, passes):
    assert attend(kernel, length, length_k, causal=True).passes == passes


def test_a_causal_launch_has_the_logits_that_are_seen():
    seen = sum(1 for query in range(5) for key in range(7) if key <= query + 2)
    assert attend("stream_forward", 5, 7, causal=True).elements == 2 * 3 * seen


def test_half_the_programs_of_the_short_backward_pass_have_the_keys_and_half_the_queries():
    dot = "%4 = tt.dot %a, %b, %c : tensor<64x32xbf16> * tensor<32x16xbf16> -> tensor<64x16xf32>\n"
    loops = "".join(f"scf.for %i = %a to %b step %c : i32 {{\n{dot * count}}}\n" for count in (4, 3))
    query, key = (torch.empty(2 * rows, 3, 8, device="meta", dtype=torch.float16) for rows in (100, 200))
    sizes = {"sequences": 2, "heads": 3, "D": 8, "CAUSAL": False, "BLOCK": 64, "BLOCK_STAYING": 64, "TILES": 2}
    binary = SimpleNamespace(asm={"ttir": loops})
    work = work_of(Compiled("resident_backward", Tile({}), binary, 12, {"query_ptr": query, "key_ptr": key, **sizes}))
    # Two tiles of queries and four of keys pass by; both sides compute all logits.
    assert (work.roles, work.passes, work.elements) == (2, 3, 2 * 2 * 3 * 100 * 200)
    assert work.flops_of_pass == 3.5 * 2 * 64 * 32 * 16


def test_pixels_of_listed_tokens_are_read_and_no_others():
    video, index = (torch.empty(shape, device="meta", dtype=torch.uint8) for shape in ((2, 1000), (2, 10)))
    sizes = {"P": 48, "BLOCK_M": 4, "BLOCK_P": 32}
    work = launch("_pixel_loss", video_ptr=video, index_ptr=index, **sizes)
    assert (work.per_pass, work.passes, work.elements, work.bytes) == (128, 2, 960, 960 + 20)
    assert work.sweeps


def test_products_are_those_of_all_programs_and_the_useful_ones_those_without_padding():
    dot = "%4 = tt.dot %a, %b, %c : tensor<64x32xbf16> * tensor<32x16xbf16> -> tensor<64x16xf32>\n"
    ttir = f"scf.for %i = %a to %b step %c : i32 {{\n{dot}}}\n{dot}"
    binary = SimpleNamespace(asm={"ttir": ttir})
    tokens = torch.empty(1, device="meta")
    arguments = {"a_ptr": tokens, "D": 96, "M": 32, "N": 64, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 32}
    work = work_of(Compiled("statistics", Tile({}), binary, 5, arguments))
    assert work.flops == 5 * (3 + 1) * 2 * 64 * 32 * 16
    assert work.useful_flops == work.flops * (32 * 64) / (5 * 64 * 64)


def test_a_kernel_without_a_line_has_no_work():
    assert launch("unheard_of") is None
    assert "_" not in {name[0] for name in WORK}
