"""What a multiprocessor of each architecture holds, and how fast one device of it is: stated, for the report's model.

Limits: CUDA C++ Programming Guide, tables of compute capabilities and of arithmetic throughput. Rates: of the H200 both
were measured (a library's bf16 product, a copy); of the others they are the data sheets' and nothing was measured.
"""

from typing import NamedTuple

# Bytes that one block may have (CUDA C++ Programming Guide, table of compute capabilities; CDNA3 ISA).
SHARED_LIMIT = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_87": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_103": 232448,
    "sm_110": 232448,
    "sm_120": 101376,
    "sm_121": 101376,
    "gfx942": 65536,
}
# A multiprocessor has what one block may have, and 1 KiB more for each block that it holds.
SHARED_OF_A_BLOCK = 1024
REGISTERS, QUARTERS, REGISTER_UNIT = 65536, 4, 256
TENSOR_COLUMNS = 512
"""Of tensor memory, which sm_100 has."""
# Warps and blocks that a multiprocessor holds; (64, 32) where not named.
RESIDENT = {
    "sm_86": (48, 16),
    "sm_87": (48, 16),
    "sm_89": (48, 24),
    "sm_110": (48, 24),
    "sm_120": (48, 24),
    "sm_121": (48, 24),
}


class Device(NamedTuple):
    """One device of an architecture, for the report's model of time."""

    name: str
    multiprocessors: int
    gigahertz: float
    teraflops: float
    """Of dense products of 16-bit numbers with sums in float32."""
    terabytes: float
    """Per second, of memory."""


DEVICES = {
    "sm_80": Device("A100 80 GB SXM", 108, 1.41, 312, 2.04),
    "sm_89": Device("L40S", 142, 2.5, 362, 0.86),
    "sm_90": Device("H200", 132, 1.6, 790, 4.3),
    "sm_100": Device("B200", 148, 1.85, 2250, 8.0),
    "sm_120": Device("RTX PRO 6000 Blackwell", 188, 2.6, 500, 1.79),
}
# Warp instructions, lanes of special functions and conversions, and bytes of shared memory, per clock of a
# multiprocessor.
ISSUE, SLOW_LANES, SHARED_BYTES = 4, 16, 128
EXACT_LANES = 128
"""float32 multiply-adds per clock of a multiprocessor."""
WARP_PRODUCTS_ON_HOPPER = 0.63
"""Part of the rate that products of a warp reach where those of a warpgroup are meant (Luo et al. 2024,
arXiv:2402.13499)."""


def resident_blocks(arch: str, registers: int, shared_bytes: int, num_warps: int, tensor_columns: int = 0) -> int:
    """Return how many blocks an NVIDIA multiprocessor holds at once; `tensor_columns` of tensor memory are a block's.

    A warp gets its registers in units of 256, from the quarter of them that its scheduler has.
    """
    warps, blocks = RESIDENT.get(arch, (64, 32))
    unit = REGISTER_UNIT * -(-registers * 32 // REGISTER_UNIT)
    by_registers = QUARTERS * (REGISTERS // QUARTERS // max(unit, 1)) // num_warps
    by_shared = (SHARED_LIMIT[arch] + SHARED_OF_A_BLOCK) // (shared_bytes + SHARED_OF_A_BLOCK)
    by_tensor_memory = TENSOR_COLUMNS // tensor_columns if tensor_columns else blocks
    return min(by_registers, by_shared, by_tensor_memory, warps // num_warps, blocks)
