"""Rows of the compile report made by hand, for the tests of what is reckoned from them."""

import dataclasses

from fastvtp_kernels.compile_code import Code, Counts
from fastvtp_kernels.compile_row import Row
from fastvtp_kernels.compile_work import Work

CODE = Code(
    program=Counts(instructions=500, tensor=8, tensor_flops=262144, special=40, slow=40, shared_bytes=4096),
    main=Counts(instructions=400, tensor=8, tensor_flops=262144, special=32, slow=32, shared_stores=2, shared_loads=7),
    loops=Counts(instructions=400, tensor=8, tensor_flops=262144, special=32, slow=32),
)
WORK = Work("logit", per_pass=8192, passes=25, programs=132 * 10, elements=132 * 10 * 25 * 8192, bytes=43_000_000)
GOOD = Row(
    case="case",
    kernel="kernel",
    arch="sm_90",
    tile="BLOCK_M=128 BLOCK_N=64 warps=8 stages=2",
    num_warps=8,
    registers=128,
    spilled_bytes=0,
    shared_bytes=1024,
    tensor_core={"HGMMA": 8},
    load_bits={128: 2},
    exact_fp32_dot=False,
    has_dot=True,
    code=CODE,
    work=dataclasses.replace(WORK, flops_of_pass=2097152),
)


def with_counts(row: Row, part: str, **counts: int) -> Row:
    """Return the row with other counts in one part of its code."""
    changed = dataclasses.replace(getattr(row.code, part), **counts)
    return dataclasses.replace(row, code=dataclasses.replace(row.code, **{part: changed}))
