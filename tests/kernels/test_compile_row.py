"""What is wrong with a compiled kernel is found and named, in rows made by hand and in machine code made of PTX."""

import dataclasses
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels.compile_row import assemble, faults, inspect, said_of_products
from fastvtp_kernels.launching import Compiled
from fastvtp_kernels.tuning import Tile
from tests.kernels.compile_rows import GOOD, with_counts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"spilled_bytes": 128}, None),
        ({"spilled_bytes": 132}, "spills 132 bytes, more than 128"),
        ({"spilled_bytes": 8, "code": None, "arch": "gfx942"}, "spills 8 bytes"),
        ({"serialised": ("C7515",)}, "has serialised products (C7515)"),
        ({"serialised": ("C7515",), "tf32_dot": True}, None),
        ({"serialised": ("C7515",), "arch": "sm_100"}, None),
        ({"injected": ("C7519",)}, None),
        ({"shared_bytes": 232449}, "needs 232449 bytes of shared memory, 232448 exist"),
        ({"tensor_core": {}}, "no tensor-core instruction"),
        ({"tensor_core": {}, "exact_fp32_dot": True}, None),
        ({"tensor_core": {}, "has_dot": False}, None),
        ({"exact_fp32_dot": True}, "cannot hold its precision"),
        ({"work": None}, "has no line in compile_work.WORK"),
    ],
)
def test_faults_are_found_and_named(change, said):
    row = dataclasses.replace(GOOD, **change)
    found = row.faults()
    assert len(found) == (said is not None)
    if said is not None:
        assert said in found[0]


def test_a_fault_names_all_launches_that_have_it():
    bad = dataclasses.replace(GOOD, spilled_bytes=256)
    rows = [bad, dataclasses.replace(bad, case="other"), bad, GOOD, dataclasses.replace(bad, arch="sm_80")]
    hopper, ampere = faults(rows)
    assert hopper == f"sm_90 kernel ({GOOD.tile}) spills 256 bytes, more than 128: case, other"
    assert ampere.startswith("sm_80 kernel")


def test_machine_code_that_waits_for_every_product_is_serialised_whatever_ptxas_says():
    (fault,) = with_counts(GOOD, "program", waits=8).faults()
    assert "serialised products (a wait after every product)" in fault
    assert with_counts(GOOD, "program", waits=7).faults() == []
    # Few products of one pass each may have their own wait.
    assert with_counts(GOOD, "program", waits=4, tensor=4).faults() == []


def test_a_spill_in_a_loop_is_a_fault_however_small():
    row = dataclasses.replace(GOOD, spilled_bytes=4, code=dataclasses.replace(GOOD.code, spills_in_loops=3))
    (fault,) = row.faults()
    assert "spills in a loop, 3 loads and stores" in fault


HEAD = """
.version 8.0
.target sm_90a
.address_size 64
"""
# Two products of a warpgroup into the same sums.
PRODUCTS = """
.visible .entry kernel(.param .u64 out, .param .u64 tile)
{
    .reg .b64 %rd<3>;
    .reg .f32 %f<5>;
    ld.param.u64 %rd1, [out];
    ld.param.u64 %rd2, [tile];
    FIRST
    wgmma.fence.sync.aligned;
    PRODUCT
    BETWEEN
    PRODUCT
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    st.global.v4.f32 [%rd1], {%f1, %f2, %f3, %f4};
    ret;
}
""".replace(
    "PRODUCT",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd2, %rd2, 1, 1, 1, 0, 0;",
)
ZEROS = " ".join(f"mov.f32 %f{number}, 0f00000000;" for number in range(1, 5))


def products(first: str, between: str) -> str:
    return HEAD + PRODUCTS.replace("FIRST", first).replace("BETWEEN", between)


@pytest.mark.parametrize(
    ("ptx", "said"),
    [
        (products(ZEROS, ""), ((), ())),
        (products(ZEROS, "add.f32 %f1, %f1, %f2;"), ((), ("C7517", "C7519"))),
        # Into sums that nobody wrote before.
        (products("", ""), (("C7515",), ())),
    ],
)
def test_what_ptxas_says_of_products_is_read(ptx, said):
    assert said_of_products(assemble(ptx)[0]) == said


def compiled(ptx: str) -> Compiled:
    """Return real machine code as if a launch had compiled it."""
    assembly = {"ptx": ptx, "ttir": "", "cubin": assemble(ptx)[1]}
    binary = SimpleNamespace(asm=assembly, metadata=SimpleNamespace(shared=0))
    arguments = {"values_ptr": torch.empty(1, device="meta"), "count": 1, "BLOCK": 1}
    return Compiled("_scale", Tile({"BLOCK": 1}), binary, 1, arguments)


def test_serialised_machine_code_is_a_fault():
    good, bad = (inspect("case", "sm_90", compiled(products(first, ""))) for first in (ZEROS, ""))
    assert set(good.tensor_core) == set(bad.tensor_core) == {"HGMMA"}
    assert good.faults() == []
    assert bad.faults() == ["has serialised products (C7515)"]


def crowded(registers: int) -> str:
    """Return a loop over 64 sums that must all be in registers, of which there are so many."""
    names = [f"%f{number}" for number in range(64)]
    loads = "\n".join(f"ld.global.f32 {name}, [%rd1+{4 * number}];" for number, name in enumerate(names))
    steps = "\n".join(f"fma.rn.f32 {name}, {name}, {names[number - 1]}, {name};" for number, name in enumerate(names))
    stores = "\n".join(f"st.global.f32 [%rd1+{4 * number}], {name};" for number, name in enumerate(names))
    return f"""{HEAD}
.visible .entry kernel(.param .u64 out, .param .u32 count)
.maxnreg {registers}
{{
    .reg .b64 %rd<3>;
    .reg .f32 %f<64>;
    .reg .b32 %r<3>;
    .reg .pred %p<2>;
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd2, %r2, 256;
    add.s64 %rd1, %rd1, %rd2;
    {loads}
$again:
    {steps}
    sub.s32 %r1, %r1, 1;
    setp.gt.s32 %p1, %r1, 0;
    @%p1 bra $again;
    {stores}
    ret;
}}
"""


def test_machine_code_that_spills_in_its_loop_is_a_fault():
    good, bad = (inspect("case", "sm_90", compiled(crowded(registers))) for registers in (128, 32))
    assert good.spilled_bytes == 0
    assert good.faults() == []
    assert good.code.main.instructions == 64 + 3
    assert bad.spilled_bytes > 0
    assert "spills in a loop" in bad.faults()[0]
