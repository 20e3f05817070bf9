"""Every shipped kernel, compiled for Hopper: what must hold of the machine code.

docs/kernels_compiled.md says the same of the other architectures and must be of the sources as they stand; writing it
takes minutes and fails on any fault.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import compile_device, compile_report, compile_tables, tuning
from fastvtp_kernels.compile_cases import ATTENTION, ATTENTION_VARIED, cases
from fastvtp_kernels.compile_workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "kernels_compiled.md", ROOT / "kernels" / "README.md"
READS_FRAMES = ("embed", "weight_gradient", "gather", "pixel_loss", "byte_loss")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The report as the command line writes it; the process must not interpret, whatever this one does."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    command = [sys.executable, "-m", "fastvtp_kernels.compile_report", "--arch", "sm_90", "--json", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert file.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found = compile_report.read_json(file)
    wrong = compile_report.faults(found) + compile_report.not_compiled(found)
    assert done.returncode == bool(wrong), done.stdout[-2000:]
    return found


def test_every_tile_of_the_table_is_compiled(rows):
    """By its own line and column: another line's launch of an equal tile does not count."""
    assert compile_report.not_compiled(rows) == []
    without = [row for row in rows if row.entry != "resident_forward_64 half"]
    (said,) = compile_report.not_compiled(without)
    assert said.startswith("sm_90 resident_forward_64 half: no case launches BLOCK_M=")


def test_every_option_width_and_form_of_attention_is_compiled(rows):
    launched = {row.case for row in rows if row.case.startswith("attention")} - {"attention order"}
    forward = {f"attention {entry}" for entry in (*ATTENTION, *ATTENTION_VARIED)}
    assert launched == forward | {f"{case} backward" for case in forward}


def test_no_launch_is_at_fault(rows):
    assert compile_report.faults(rows) == []
    assert [row.entry for row in rows if row.is_serialised] == []


def test_every_launch_has_a_modelled_time_above_its_floor(rows):
    """A hundredth is left for products whose rate is a library's, measured."""
    models = [compile_tables.predict(row) for row in rows]
    assert all(model is not None and model.total >= 0.99 * model.floor > 0 for model in models)


def test_loops_that_stream_are_found(rows):
    """One pass of a streaming kernel covers its tile: half of the program's instructions, or more, is not the loop."""
    streaming = [row for row in rows if row.kernel in STREAMING and row.entry.endswith("_64 half")]
    assert {row.kernel for row in streaming} == set(STREAMING)
    for row in streaming:
        assert 0 < row.code.main.instructions < row.code.program.instructions
        assert 0 < row.code.main.tensor <= row.code.program.tensor
        assert row.code.unrolled == 1


def test_workloads_are_of_cases_that_are_compiled(rows):
    assert {workload.case for workload in WORKLOADS} <= {row.case for row in rows}
    lines = compile_tables.workload_table(rows)
    assert len(lines) == 2 + len(WORKLOADS)


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
    "tiny_forward_256",
    "tiny_backward_256",
    "stream_backward_keys_256",
    "stream_backward_queries_256",
}


STREAMING = ("stream_forward", "stream_backward_keys", "stream_backward_queries")


def test_attention_on_hopper_uses_warpgroup_products(rows):
    hopper = [row for row in rows if row.arch == "sm_90" and row.case.startswith("attention") and row.has_dot]
    kernels = {entry.removesuffix(" half") for entry in {row.entry for row in hopper} if entry.endswith(" half")}
    wide = {f"{kernel}_{width}" for kernel in ("tiny_forward", "tiny_backward", *STREAMING) for width in (64, 128)}
    assert kernels >= {"resident_forward_64", "resident_backward_64", *wide}
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
    limits = compile_device.SHARED_LIMIT
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


def test_the_page_is_of_these_sources(rows):
    """Otherwise: python -m fastvtp_kernels.compile_report --page docs/kernels_compiled.md kernels/README.md"""
    architectures = (*compile_report.ARCHITECTURES, *compile_report.SMALLER_ARCHITECTURES)
    start, end = compile_report.PAGE_MARKERS
    written = PAGE.read_text().split(start)[1].split(end)[0]
    assert f"sources {compile_report.sources()}." in written
    assert "## Faults\n\nNone.\n" in written
    sections = dict(part.split("\n", 1) for part in written.split("\n## All launches on ")[1:])
    assert [title.split(" ")[0] for title in sections] == list(architectures)
    everywhere = {case.name for case in cases() if case.everywhere}
    for title, section in sections.items():
        launches = {line.split(" | ")[0].removeprefix("| ") for line in section.splitlines()}
        assert launches >= (everywhere if "sm_89" in title or "sm_120" in title else {row.case for row in rows})
    start, end = compile_report.SHORT_MARKERS
    short = README.read_text().split(start)[1].split(end)[0]
    assert f"sources {compile_report.sources()}." in short


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


def test_a_pattern_that_finds_nothing_fails_in_one_line(tmp_path, capsys):
    file = tmp_path / "report.json"
    assert compile_report.main(["--arch", "sm_90", "--only", "NOTHING_MATCHES", "--json", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.err == "compile_report: no launch on sm_90 has a name that 'NOTHING_MATCHES' finds\n"
    assert not printed.out
    assert not file.exists()


def test_a_pattern_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        compile_report.main(["--only", "("])
    assert "argument --only: '(' is no regular expression: " in capsys.readouterr().err


def test_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compile_report.compile_case(0, "sm_90")
