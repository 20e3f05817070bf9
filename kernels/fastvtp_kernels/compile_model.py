"""A model of how long a launch takes, from its machine code and its work: arithmetic, not a measurement.

    on a multiprocessor   code = max(warp instructions / issue slots, special functions and conversions / their unit,
                                     bytes to and from shared memory / its width)
                          products = FLOP of whole tiles / the device's rate
    on the device         memory = bytes that must move / its rate
    time = the longest of the three + the others / blocks that a multiprocessor holds at once

Blocks hide each other's waits; a single one computes its products, then runs the code between them. Of serialised
products each waits for the one before: they are taken to last half as long again, and nothing hides them. All is of the
multiprocessor with most programs. Without: the launch itself, cache misses, bank conflicts, waits that nothing hides.
Expect 30 percent of error.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import compile_device as device
from .compile_code import Code
from .compile_work import Work

if TYPE_CHECKING:
    from .compile_row import Row


SERIALISED = 1.5
"""A guess: how much longer products last of which each waits for the one before."""


@dataclass(frozen=True)
class Prediction:
    """Microseconds of one launch on the device of its architecture, and what bounds it."""

    issue: float
    slow: float
    shared: float
    products: float
    memory: float
    total: float
    floor: float
    """No launch that computes the same is faster: useful FLOP at the device's rate, or its bytes."""

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "instructions": self.issue,
            "special functions": self.slow,
            "shared memory": self.shared,
            "products": self.products,
            "memory": self.memory,
        }
        return max(parts, key=lambda name: parts[name])


def _product_rate(row: "Row") -> tuple[float, float]:
    """Return the FLOP per second of the whole device: the best for such numbers, and with these instructions."""
    here = device.DEVICES[row.arch]
    if row.exact_fp32_dot:
        # Ordinary instructions, which the issue slots count already.
        return here.multiprocessors * device.EXACT_LANES * 2 * here.gigahertz * 1e9, float("inf")
    best = here.teraflops * 1e12 * (0.5 if row.tf32_dot else 1)
    by_warps = row.arch == "sm_90" and row.tensor_core and "HGMMA" not in row.tensor_core
    return best, best * (device.WARP_PRODUCTS_ON_HOPPER if by_warps else 1)


def _executed(code: Code, work: Work) -> dict[str, float]:
    """Return what a warp executes in one program, by the fields of `Counts`; of several roles on average."""
    # The program has one pass of each loop already.
    passes = max(work.passes / code.unrolled - 1, 0) if code.main.instructions else 0
    together = code.program.times(passes, code.loops if work.sweeps or work.roles > 1 else code.main)
    return {name: value / work.roles for name, value in together.items()}


def predict(row: "Row") -> Prediction | None:
    """Return the model of a launch; None on devices without stated rates, and of launches whose work is not known."""
    here, work = device.DEVICES.get(row.arch), row.work
    if here is None or work is None or row.code is None:
        return None
    executed = _executed(row.code, work)
    programs = -(-work.programs // here.multiprocessors)
    clocks = 1e6 / (here.gigahertz * 1e9) * programs * row.num_warps
    issue = executed["instructions"] / device.ISSUE * clocks
    slow = executed["slow"] * 32 / device.SLOW_LANES * clocks
    shared = executed["shared_bytes"] / device.SHARED_BYTES * clocks
    best, rate = _product_rate(row)
    spread = programs * here.multiprocessors / work.programs
    # By the machine code where it tells more: a product that two warps compute alike counts twice.
    flops = max(executed["tensor_flops"] * row.num_warps * work.programs, work.flops)
    products = flops * spread / rate * 1e6 * (SERIALISED if row.is_serialised else 1)
    memory = work.bytes / (here.terabytes * 1e12) * 1e6
    parts = sorted((max(issue, slow, shared), products, memory))
    total = parts[2] + (parts[0] + parts[1]) / (1 if row.is_serialised else max(row.resident, 1))
    return Prediction(issue, slow, shared, products, memory, total, max(work.useful_flops / best * 1e6, memory))


def per_element(row: "Row") -> float | None:
    """Return the instructions of a thread per element of a tile in the main loop.

    In the whole program where that has no loop, or several over the same elements, which a compiler may unroll or not.
    """
    if row.work is None or row.code is None:
        return None
    code, work = row.code, row.work
    if work.sweeps or not code.main.instructions:
        return _executed(code, work)["instructions"] * row.num_warps * 32 / (work.per_pass * work.passes)
    return code.main.instructions * row.num_warps * 32 / (work.per_pass * code.unrolled)


def per_useful_element(row: "Row") -> float | None:
    """Return the instructions of a thread per element in the whole launch; what pads elements to tiles is not one."""
    if row.work is None or row.code is None:
        return None
    executed = _executed(row.code, row.work)["instructions"]
    return executed * row.num_warps * 32 * row.work.programs / row.work.elements
