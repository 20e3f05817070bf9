"""Every shipped kernel, compiled for Hopper: what must hold of the machine code.

docs/kernels_compiled.md says the same of the other architectures and must be of the sources as they stand; writing it
takes minutes and fails on any fault.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import compile_report, tuning
from fastvtp_kernels.compile_cases import ATTENTION, ATTENTION_VARIED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kernels_compiled.md"
READS_FRAMES = ("embed", "weight_gradient", "gather", "pixel_loss")
GOOD = compile_report.Row("case", "kernel", "sm_90", "tile", 128, 0, 1024, {"HGMMA": 4}, {128: 2}, False, True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The report as the command line writes it; the process must not interpret, whatever this one does."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    command = [sys.executable, "-m", "fastvtp_kernels.compile_report", "--arch", "sm_90", "--json", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = json.loads(file.read_text())
    return [
        compile_report.Row(**{**entry, "load_bits": {int(k): v for k, v in entry["load_bits"].items()}})
        for entry in entries
    ]


def test_every_tile_of_the_table_is_compiled(rows):
    """By its own line and column: another line's launch of an equal tile does not count."""
    assert compile_report.not_compiled(rows) == []
    without = [row for row in rows if row.entry != "resident_forward_64 half"]
    (said,) = compile_report.not_compiled(without)
    assert said.startswith("sm_90 resident_forward_64 half: no case launches BLOCK_M=")


def test_every_option_width_and_form_of_attention_is_compiled(rows):
    launched = {row.case for row in rows if row.case.startswith("attention")}
    assert launched == {f"attention {entry}" for entry in (*ATTENTION, *ATTENTION_VARIED)}


def test_no_fault(rows):
    assert [fault for row in rows for fault in row.faults()] == []


def test_frames_are_read_sixteen_bytes_at_a_time(rows):
    reading = [row for row in rows if row.kernel in READS_FRAMES and "tf32" not in row.case]
    assert {row.kernel for row in reading} == set(READS_FRAMES)
    assert all(row.load_bits.get(128, 0) > 0 and 8 not in row.load_bits for row in reading)


def test_products_of_16_bit_numbers_use_this_generations_tensor_cores(rows):
    multiplying = ("embed", "weight_gradient", "statistics", "logit_gradient", "sigmoid")
    found = [row for row in rows if row.kernel in multiplying and "bf16" in row.case]
    assert {row.kernel for row in found} == set(multiplying)
    assert all(set(row.tensor_core) == {"HGMMA"} for row in found)


# Lines of the table whose 16-bit products on sm_90 are not all those of a warpgroup: fewer than 64 rows are too few for
# one, and with more the registers spill.
NO_WARPGROUP_PRODUCTS = {
    "resident_backward_64_capped",
    "resident_backward_128_capped",
    "stream_backward_keys_64_dropout",
    "stream_backward_keys_128_masked",
    "stream_backward_keys_128_dropout",
    "tiny_forward_256",
    "tiny_backward_256",
    "stream_backward_keys_256",
    "stream_backward_queries_256",
}


STREAMING = ("stream_forward", "stream_backward_keys", "stream_backward_queries")


def test_attention_on_hopper_uses_warpgroup_products(rows):
    hopper = [row for row in rows if row.arch == "sm_90" and row.case.startswith("attention") and row.has_dot]
    kernels = {entry.removesuffix(" half") for entry in {row.entry for row in hopper} if entry.endswith(" half")}
    assert kernels >= {
        f"{kernel}_{width}"
        for kernel in ("tiny_forward", "tiny_backward", "resident_forward", "resident_backward", *STREAMING)
        for width in (64, 128)
    }
    # One query is no tile of 64.
    half = [row for row in hopper if row.entry.endswith(" half") and " on " not in row.case]
    without = {row.entry.removesuffix(" half") for row in half if set(row.tensor_core) != {"HGMMA"}}
    assert without == NO_WARPGROUP_PRODUCTS


@pytest.mark.parametrize(
    ("name", "tiles_of"),
    [
        ("sm_90", "sm_90"),
        ("sm_86", "sm_89"),
        ("sm_87", "sm_80"),
        ("sm_103", "sm_100"),
        ("sm_121", "sm_120"),
        ("sm_130", "sm_120"),
        ("gfx942", "gfx942"),
    ],
)
def test_an_architecture_without_tiles_takes_those_of_a_similar_one(name, tiles_of):
    assert tuning.known_architecture(name) == tiles_of
    with tuning.targeting(name):
        assert tuning.architecture(torch.device("cpu")) == tiles_of
        found = tuning.tile("stream_forward_128", torch.bfloat16, torch.device("cpu"))
    entries = tuning.TABLE["stream_forward_128"]["half"]
    assert found == entries.get(tiles_of, entries[tuning.ANY])
    limits = compile_report.SHARED_LIMIT
    assert limits.get(name, 101376) >= limits[tiles_of]


def test_the_table_names_architectures_that_exist():
    named = {name for columns in tuning.TABLE.values() for entries in columns.values() for name in entries}
    assert named <= {tuning.ANY, *tuning.KNOWN}
    assert {*compile_report.ARCHITECTURES, *compile_report.SMALLER_ARCHITECTURES} == set(tuning.KNOWN)


def test_a_variant_without_a_column_takes_the_kernels_own():
    tile = tuning.tile("stream_backward_keys_128", torch.float32, torch.device("cpu"), "_capped")
    assert tile.entry == "stream_backward_keys_128 single"
    tile = tuning.tile("stream_backward_keys_128", torch.bfloat16, torch.device("cpu"), "_capped")
    assert tile.entry == "stream_backward_keys_128_capped half"


def test_architectures_that_do_not_launch_a_kernel_leave_a_dash():
    rows = [GOOD, dataclasses.replace(GOOD, arch="sm_80"), dataclasses.replace(GOOD, case="other", registers=9)]
    lines = compile_report.table(rows).splitlines()
    assert "| case | `kernel` | tile | 128 / 128 | 0 / 0 | 1 / 1 | 4 HGMMA | 128 / 128 |" in lines
    assert "| other | `kernel` | tile | 9 / - | 0 / - | 1 / - | 4 HGMMA | 128 / - |" in lines


def test_the_page_holds_the_table_of_these_sources(rows):
    """Otherwise: python -m fastvtp_kernels.compile_report --page docs/kernels_compiled.md"""
    start, end = compile_report.PAGE_MARKERS
    written = PAGE.read_text().split(start)[1].split(end)[0]
    assert f"sources {compile_report.sources()}." in written
    lines = [line.split(" | ") for line in written.splitlines() if line.count(" | ") == 7][1:]
    assert {line[0].removeprefix("| ") for line in lines} >= {row.case for row in rows}
    spilled = [number for line in lines for number in line[4].replace(",", " /").split(" / ")]
    assert set(spilled) <= {"0", "-"}
    architectures = ", ".join((*compile_report.ARCHITECTURES, *compile_report.SMALLER_ARCHITECTURES))
    assert f"Side by side: {architectures} " in written


def test_the_digest_follows_code_and_not_what_is_said_of_it(tmp_path, monkeypatch):
    (tmp_path / "kernels.py").write_text("import triton\n\nX = 1  # one\n")
    monkeypatch.setattr(compile_report, "__file__", str(tmp_path / "compile_report.py"))
    before = compile_report.sources()
    (tmp_path / "kernels.py").write_text('"""Says\nmore."""\nimport triton\n# more\nX = 1\n"""Of X."""\n')
    assert compile_report.sources() == before
    (tmp_path / "kernels.py").write_text("import triton\n\nX = 'a string'\n")
    assert compile_report.sources() != before
    (tmp_path / "kernels.py").write_text("import triton\n\nX = 2\n")
    assert compile_report.sources() != before


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


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="has no lines <!-- compile report -->"):
        compile_report.with_table("# title\n", [GOOD])


def test_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compile_report.compile_case(0, "sm_90")
