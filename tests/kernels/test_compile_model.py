"""What the compile report reckons, by hand on a made-up launch: blocks of a multiprocessor, and a model of the time."""

import dataclasses

import pytest

from fastvtp_kernels.compile_device import resident_blocks
from fastvtp_kernels.compile_model import per_element, per_useful_element, predict
from tests.kernels.compile_rows import GOOD, with_counts


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "blocks"),
    [
        ("sm_90", 255, 0, 8, 1),
        # A scheduler's 16384 registers hold three warps of 168 x 32 registers, and four of 128 x 32.
        ("sm_90", 168, 0, 4, 3),
        ("sm_90", 128, 0, 4, 4),
        ("sm_90", 129, 0, 4, 3),
        # Of 144 three as well, so 12 warps, where the registers of all four schedulers together would do for 14.
        ("sm_90", 144, 0, 2, 6),
        ("sm_90", 32, 0, 4, 16),
        ("sm_90", 16, 0, 1, 32),
        ("sm_89", 16, 0, 1, 24),
        ("sm_89", 32, 0, 4, 12),
        # A block has 1 KiB more than it asks for.
        ("sm_90", 64, 75 * 1024, 4, 3),
        ("sm_90", 64, 76 * 1024, 4, 2),
        ("sm_80", 64, 81 * 1024, 4, 2),
        ("sm_120", 64, 50 * 1024, 4, 1),
    ],
)
def test_blocks_of_a_multiprocessor(arch, registers, shared, warps, blocks):
    assert resident_blocks(arch, registers, shared, warps) == blocks


def test_tensor_memory_bounds_the_blocks_too():
    assert resident_blocks("sm_100", 32, 0, 4, tensor_columns=128) == 4
    assert resident_blocks("sm_100", 32, 0, 4, tensor_columns=512) == 1


# 10 programs on each of 132 multiprocessors: 500 + 24 * 400 instructions of 8 warps, at 4 a clock of 1.6 GHz.
ISSUE = 10 * 8 * (500 + 24 * 400) / 4 / 1600
PRODUCTS = 1320 * 25 * 2097152 / 790e12 * 1e6
MEMORY = 10.0


def test_the_parts_of_the_time():
    model = predict(GOOD)
    assert model.issue == pytest.approx(ISSUE)
    assert model.products == pytest.approx(PRODUCTS)
    assert model.memory == pytest.approx(MEMORY)
    assert model.slow == pytest.approx(10 * 8 * (40 + 24 * 32) * 32 / 16 / 1600)
    assert model.shared == pytest.approx(10 * 8 * 4096 / 128 / 1600)
    assert model.bound == "instructions"
    # Two blocks of 8 warps with 128 registers fit, and hide half of the rest.
    assert GOOD.resident == 2
    assert model.total == pytest.approx(ISSUE + (PRODUCTS + MEMORY) / 2)
    assert model.floor == pytest.approx(PRODUCTS)


def test_nothing_hides_serialised_products():
    model = predict(dataclasses.replace(GOOD, serialised=("C7515",)))
    assert model.total == pytest.approx(ISSUE + 1.5 * PRODUCTS + MEMORY)
    assert model.floor == pytest.approx(PRODUCTS)


def test_the_busiest_multiprocessor_decides():
    work = dataclasses.replace(GOOD.work, programs=133)
    model = predict(dataclasses.replace(GOOD, work=work))
    assert model.issue == pytest.approx(ISSUE / 5)
    assert model.products == pytest.approx(PRODUCTS / 5)


def test_padding_is_no_use():
    work = dataclasses.replace(GOOD.work, elements=GOOD.work.elements / 2)
    padded = predict(dataclasses.replace(GOOD, work=work))
    assert (padded.total, padded.floor) == (predict(GOOD).total, pytest.approx(PRODUCTS / 2))


def test_products_that_warps_compute_twice_take_twice_as_long():
    doubled = with_counts(with_counts(GOOD, "main", tensor_flops=524288), "program", tensor_flops=524288)
    assert predict(doubled).products == pytest.approx(2 * PRODUCTS)
    assert predict(doubled).floor == predict(GOOD).floor


def test_products_of_a_warp_are_slower_on_hopper_alone():
    hmma = dataclasses.replace(GOOD, tensor_core={"HMMA": 64})
    assert predict(hmma).products == pytest.approx(PRODUCTS / 0.63)
    ampere = dataclasses.replace(hmma, arch="sm_80")
    assert predict(ampere).products == pytest.approx(GOOD.work.flops / 312e12 * 1e6 * 108 * 13 / 1320)


def test_exact_products_are_ordinary_instructions():
    exact = dataclasses.replace(GOOD, exact_fp32_dot=True, tensor_core={})
    assert predict(exact).products == 0
    assert predict(exact).floor == pytest.approx(GOOD.work.flops / (132 * 256 * 1.6e9) * 1e6)


def test_instructions_of_an_element():
    assert per_element(GOOD) == pytest.approx(400 * 8 * 32 / 8192)
    assert per_useful_element(GOOD) == pytest.approx((500 + 24 * 400) * 8 * 32 / (25 * 8192))
    unrolled = dataclasses.replace(GOOD, code=dataclasses.replace(GOOD.code, unrolled=2))
    assert per_element(unrolled) == per_element(GOOD) / 2
    sweeps = with_counts(GOOD, "loops", instructions=1200)
    sweeps = dataclasses.replace(sweeps, work=dataclasses.replace(sweeps.work, sweeps=True))
    assert per_element(sweeps) == pytest.approx((500 + 24 * 1200) * 8 * 32 / (25 * 8192))
    whole = with_counts(GOOD, "main", instructions=0)
    whole = dataclasses.replace(whole, work=dataclasses.replace(GOOD.work, passes=1))
    assert per_element(whole) == pytest.approx(500 * 8 * 32 / 8192)


def test_a_program_goes_one_way_of_several():
    """Both ways' loops stand in the code; a program runs one of them."""
    both = with_counts(GOOD, "loops", instructions=700)
    both = dataclasses.replace(both, work=dataclasses.replace(both.work, roles=2))
    assert predict(both).issue == pytest.approx(10 * 8 * (500 + 24 * 700) / 2 / 4 / 1600)
    assert per_useful_element(both) == pytest.approx((500 + 24 * 700) / 2 * 8 * 32 / (25 * 8192))


def test_what_is_not_known_is_not_predicted():
    assert predict(dataclasses.replace(GOOD, work=None)) is None
    assert predict(dataclasses.replace(GOOD, code=None, arch="gfx942")) is None
    assert predict(dataclasses.replace(GOOD, arch="sm_86")) is None
    assert per_element(dataclasses.replace(GOOD, work=None)) is None
