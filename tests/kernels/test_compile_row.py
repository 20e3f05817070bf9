"""What is wrong with a compiled kernel is found and named, in rows made by hand; and what ptxas says of real PTX."""

import dataclasses

import pytest

pytest.importorskip("triton")
from fastvtp_kernels.compile_row import faults, ptxas_log, said_of_products
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


# Two products of a warpgroup into the same sums, and something between them that may read those.
PTX = """
.version 8.0
.target sm_90a
.address_size 64
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


def test_what_ptxas_says_of_real_code_is_read():
    zeros = " ".join(f"mov.f32 %f{number}, 0f00000000;" for number in range(1, 5))
    log = ptxas_log(PTX.replace("FIRST", zeros).replace("BETWEEN", ""))
    assert "Used" in log
    assert said_of_products(log) == ((), ())
    log = ptxas_log(PTX.replace("FIRST", zeros).replace("BETWEEN", "add.f32 %f1, %f1, %f2;"))
    assert said_of_products(log) == ((), ("C7517", "C7519"))
    # Sums that nobody wrote before.
    log = ptxas_log(PTX.replace("FIRST", "").replace("BETWEEN", ""))
    assert "are serialized due to" in log
    assert said_of_products(log) == (("C7515",), ())
