"""The reader of machine code, on small texts in which every loop and count is known."""

import pytest

from fastvtp_kernels.compile_code import Counts, count, parse, products, read


def sass(text: str) -> str:
    """Number the lines as nvdisasm does: labels stand alone, everything else is an instruction."""
    lines = []
    for number, line in enumerate(line.strip() for line in text.strip().splitlines()):
        lines.append(line if line.startswith(".") else f"        /*{16 * number:04x}*/                   {line} ;")
    return "\n".join(lines)


LOOP = """
    MOV R1, c[0x0][0x28]
    .L_x_0:
    FADD R2, R2, R3
    MUFU.EX2 R2, R2
    {branch}
    STG.E desc[UR4][R4.64], R2
    EXIT
    .L_x_1:
    BRA `(.L_x_1)
    NOP
"""


@pytest.mark.parametrize("branch", ["@P0 BRA {}", "@!UP0 BRA {}", "BRA P0, {}", "BRA.U !UP1, {}"])
def test_a_loop_is_closed_by_any_form_of_branch(branch):
    code = read(sass(LOOP.format(branch=branch.format("`(.L_x_0)"))))
    assert (code.main.instructions, code.main.special) == (3, 1)
    # The padding behind the end jumps to itself, is never reached, and is no loop.
    assert code.program.instructions == 6


def test_a_branch_forward_is_no_loop():
    code = read(sass(LOOP.format(branch="@P0 BRA `(.L_x_1)")))
    # Now the padding is reached, and stays where it is.
    assert code.program.instructions == 7
    assert code.main.instructions == 1


def test_the_slow_path_behind_the_end_is_no_loop():
    code = read(
        sass("""
    MUFU.RCP R2, R3
    @P0 BRA `(.L_x_2)
    FMUL R2, R2, R3
    .L_x_1:
    STG.E desc[UR4][R4.64], R2
    EXIT
    .L_x_2:
    FFMA R2, R3, R3, R2
    BRA `(.L_x_1)
    """)
    )
    assert code.main.instructions == 0
    assert code.program.instructions == 7


NESTED = """
    MOV R1, R2
    .L_x_0:
    LDG.E R3, desc[UR4][R4.64]
    .L_x_1:
    FADD R2, R2, R3
    STL [R1], R2
    @P1 BRA `(.L_x_1)
    FMUL R2, R2, R2
    @P0 BRA `(.L_x_0)
    LDL R2, [R1+0x4]
    EXIT
"""


def test_of_nested_loops_the_inner_one_counts():
    code = read(sass(NESTED))
    assert code.main == count(parse(sass(NESTED))[0][2:5])
    assert code.loops == code.main
    assert code.program.instructions == 9


def test_spills_in_any_loop_are_told_from_those_outside():
    assert read(sass(NESTED)).spills_in_loops == 1
    outer = NESTED.replace("STL [R1], R2", "FADD R2, R2, R2").replace("FMUL R2, R2, R2", "LDL R2, [R1]")
    assert read(sass(outer)).spills_in_loops == 1
    outside = NESTED.replace("STL [R1], R2", "FADD R2, R2, R2")
    assert read(sass(outside)).spills_in_loops == 0
    assert read(sass(outside)).program.local == 1


def test_threads_that_part_and_meet_again_stay_in_the_loop():
    code = read(
        sass("""
    .L_x_0:
    BSSY B0, `(.L_x_2)
    @P0 BRA `(.L_x_1)
    FADD R2, R2, R3
    BRA `(.L_x_2)
    .L_x_1:
    FMUL R2, R2, R3
    .L_x_2:
    BSYNC B0
    @P1 BRA `(.L_x_0)
    EXIT
    """)
    )
    assert code.main.instructions == 7


def test_a_loop_left_in_the_middle_ends_at_its_own_branch():
    code = read(
        sass("""
    .L_x_0:
    FADD R2, R2, R3
    @P0 BRA `(.L_x_1)
    FMUL R2, R2, R3
    BRA `(.L_x_0)
    .L_x_1:
    FADD R2, R2, R2
    EXIT
    """)
    )
    assert code.main.instructions == 4


def test_a_loop_that_only_waits_is_none():
    code = read(
        sass("""
    .L_x_0:
    UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], UP0
    .L_x_1:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2
    @!P0 BRA `(.L_x_1)
    FADD R2, R2, R3
    @P1 BRA `(.L_x_0)
    .L_x_2:
    NANOSLEEP 0x64
    @P2 BRA `(.L_x_2)
    EXIT
    """)
    )
    assert (code.main.instructions, code.main.tensor, code.main.barriers) == (5, 1, 1)
    assert code.loops == code.main


PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"
PEELED = f"""
    .L_x_0:
    {PRODUCT}
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    @P0 BRA `(.L_x_0)
    .L_x_1:
    {PRODUCT}
    ISETP.GT.AND P1, PT, R2, R3, PT
    FSEL R2, R2, -INF, P1
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    @P2 BRA `(.L_x_1)
    {PRODUCT}
    .L_x_3:
    FADD R2, R2, R3
    FADD R2, R2, R3
    FADD R2, R2, R3
    FADD R2, R2, R3
    FADD R2, R2, R3
    @P3 BRA `(.L_x_3)
    EXIT
"""


def test_the_main_loop_multiplies_and_is_not_the_masked_one():
    code = read(sass(PEELED))
    assert (code.main.instructions, code.main.tensor, code.main.waits) == (3, 1, 1)
    # The third loop multiplies nothing.
    assert code.loops.instructions == 3 + 5
    assert code.program.tensor == 3
    assert code.main.tensor_flops == 2 * 64 * 64 * 16 // 4


def test_what_is_counted():
    found = count(
        parse(
            sass("""
    STS.128 [R2], R4
    STS.U16 [R2], R4
    LDS.64 R4, [R2]
    LDSM.16.MT88.4 R4, [R2]
    STSM.16.M88.2 [R2], R4
    LDSM.16.M88 R4, [R2]
    BAR.SYNC.DEFER_BLOCKING 0x0
    SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R4
    I2F.U8 R2, R3
    I2FP.F32.S32 R2, R3
    F2FP.BF16.F32.PACK_AB R2, R3, R4
    MUFU.RCP R2, R3
    HMMA.16816.F32.BF16 R4, R8, R12, R4
    @P0 LDG.E.128 R4, desc[UR4][R2.64]
    LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64]
    NOP
    """)
        )[0]
    )
    assert found == Counts(
        instructions=15,
        tensor=1,
        tensor_flops=2 * 16 * 8 * 16,
        special=1,
        conversions=3,
        slow=2,
        shared_stores=3,
        shared_loads=3,
        shared_bytes=512 + 64 + 256 + 512 + 256 + 128,
        barriers=2,
        memory=2,
    )


def test_a_body_that_ptxas_repeats_is_counted_once():
    ptx = """
$L__BB0_1:
    ld.global.b32 %r1, [%rd1];
    @%p1 bra $L__BB0_1;
    ld.global.b32 %r1, [%rd1];
"""
    loop = "LDG.E R3, desc[UR4][R4.64]\n" * 4
    code = read(sass(f".L_x_0:\n{loop}@P0 BRA `(.L_x_0)\nEXIT"), ptx)
    assert code.unrolled == 4
    assert read(sass(f".L_x_0:\n{loop}@P0 BRA `(.L_x_0)\nEXIT")).unrolled == 1


TTIR = """
    %0 = tt.dot %a, %b, %c, inputPrecision = tf32 : tensor<16x32xf32> * tensor<32x8xf32> -> tensor<16x8xf32> loc(#loc1)
    %1 = scf.for %i = %c0 to %n step %c1 iter_args(%x = %y) -> (tensor<16x16xf32>)  : i32 {
      %2 = scf.if %p -> (i32) {
        scf.yield %u : i32
      } else {
        scf.yield %v : i32
      }
      %3 = tt.load %q {evict = 1 : i32} : tensor<16x16x!tt.ptr<f32>>
      %4 = tt.dot %a, %b, %c : tensor<64x32xbf16> * tensor<32x16xbf16> -> tensor<64x16xf32>
      %5 = tt.dot %a, %b, %c : tensor<64x32xbf16> * tensor<32x16xbf16> -> tensor<64x16xf32>
      scf.yield %4 : tensor<16x16xf32>
    } {tt.num_stages = 2 : i32}
    scf.for %i = %c0 to %n step %c1  : i32 {
      %7 = tt.dot %a, %b, %c : tensor<64x32xbf16> * tensor<32x16xbf16> -> tensor<64x16xf32>
    }
"""


def test_products_are_read_before_any_architecture():
    assert products(TTIR) == (2 * 2 * 64 * 32 * 16, 2 * 16 * 32 * 8)
    assert products("") == (0, 0)


def test_products_of_several_roles_are_those_of_as_many_loops_on_average():
    dot = "%4 = tt.dot %a, %b, %c : tensor<64x32xbf16> * tensor<32x16xbf16> -> tensor<64x16xf32>\n"
    loops = [f"scf.for %i = %a to %b step %c : i32 {{\n{dot * count}}}\n" for count in (1, 4, 3)]
    assert products("".join(loops), roles=2) == (3.5 * 2 * 64 * 32 * 16, 0)
    assert products(loops[1], roles=2) == (2 * 2 * 64 * 32 * 16, 0)
