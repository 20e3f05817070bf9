"""Every shipped kernel, compiled for each architecture: what must hold of the machine code, and the README's table."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
import triton

from fastvtp_kernels import compile_report, tuning

README = Path(__file__).parents[2] / "kernels" / "README.md"
READS_FRAMES = ("embed", "weight_gradient", "gather", "pixel_loss")
GOOD = compile_report.Row("case", "kernel", "sm_90", "tile", 128, 0, 1024, {"HGMMA": 4}, {128: 2}, False, True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The report as the command line writes it; the process must not interpret, whatever this one does."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(README.parent)
    command = [sys.executable, "-m", "fastvtp_kernels.compile_report", "--json", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = json.loads(file.read_text())
    return [
        compile_report.Row(**{**entry, "load_bits": {int(k): v for k, v in entry["load_bits"].items()}})
        for entry in entries
    ]


def kernel_of(entry):
    """The kernel of a line of the table: attention's lines add the head width and an option."""
    return re.sub(r"_(64|128|256)(_capped|_dropout)?$", "", entry)


def test_every_tile_of_the_table_is_compiled(rows):
    compiled = {(row.kernel, row.arch, row.tile) for row in rows}
    for kernel, columns in tuning.TABLE.items():
        for entries in columns.values():
            for arch in compile_report.ARCHITECTURES:
                tile = entries.get(arch, entries.get(tuning.ANY))
                assert tile is None or (kernel_of(kernel), arch, str(tile)) in compiled, (kernel, arch)


def test_no_fault(rows):
    assert [fault for row in rows for fault in row.faults()] == []


def test_frames_are_read_sixteen_bytes_at_a_time(rows):
    reading = [row for row in rows if row.kernel in READS_FRAMES and "tf32" not in row.case]
    assert {row.kernel for row in reading} == set(READS_FRAMES)
    assert all(row.load_bits.get(128, 0) > 0 and 8 not in row.load_bits for row in reading)


def test_products_of_16_bit_numbers_use_this_generations_tensor_cores(rows):
    for arch, opcode in (("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA")):
        for row in rows:
            if row.arch == arch and row.kernel in ("embed", "weight_gradient") and "bf16" in row.case:
                assert set(row.tensor_core) == {opcode}


def test_attention_on_hopper_uses_warpgroup_products(rows):
    plain = [row for row in rows if row.arch == "sm_90" and re.fullmatch(r"attention .* x (64|128) bf16", row.case)]
    kernels = {row.kernel for row in plain if row.has_dot}
    assert {
        "tiny_forward",
        "resident_forward",
        "resident_backward",
        "stream_forward",
        "stream_backward_keys",
    } <= kernels
    assert all(set(row.tensor_core) == {"HGMMA"} for row in plain if row.has_dot)


def test_readme_holds_the_table_of_the_pinned_triton(rows):
    if triton.__version__ != "3.7.1":
        pytest.skip(f"the README's table is of Triton 3.7.1, this is {triton.__version__}")
    text = README.read_text()
    assert compile_report.with_table(text, rows) == text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"spilled_bytes": 8}, "spills 8 bytes"),
        ({"shared_bytes": 232449}, "needs 232449 bytes of shared memory, 232448 exist"),
        ({"tensor_core": {}}, "no tensor-core instruction"),
        ({"tensor_core": {}, "exact_fp32_dot": True}, None),
        ({"tensor_core": {}, "has_dot": False}, None),
        ({"exact_fp32_dot": True}, "cannot hold its precision"),
    ],
)
def test_faults_are_found_and_named(change, said):
    faults = dataclasses.replace(GOOD, **change).faults()
    assert len(faults) == (said is not None)
    if said is not None:
        assert said in faults[0]
        assert faults[0].startswith("sm_90 case: kernel (tile)")


def test_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="has no lines <!-- compile report -->"):
        compile_report.with_table("# title\n", [GOOD])


def test_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compile_report.compile_case(0, "sm_90")
