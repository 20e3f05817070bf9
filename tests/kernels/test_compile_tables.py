"""The compile report's tables and its command line, on rows made by hand."""

import dataclasses

import pytest

pytest.importorskip("triton")
from fastvtp_kernels import compile_report, compile_tables
from fastvtp_kernels.compile_workloads import WORKLOADS
from tests.kernels.compile_rows import GOOD, with_counts


def test_floors_are_those_of_paper():
    """In microseconds: 64 clips of 160 visible tubelets, a decoder of 1600 rows and 6 heads, 32768 pairs of 512."""
    expected = {
        "embed 160": 30.6,
        "embed, backward": 30.6,
        "pixel loss": 161,
        "encoder layer, 168 rows x 12 heads, forward": 15.4,
        "encoder layer, 168 rows x 12 heads, backward": 30.7,
        "decoder layer, 1600 rows x 6 heads, forward": 318.5,
        "decoder layer, 1600 rows x 6 heads, backward": 796.3,
        "InfoNCE 32768 x 512, log": 1392,
        "hard negatives": 1392,
    }
    for name, floor in expected.items():
        (found,) = [workload.floor for workload in WORKLOADS if workload.name.startswith(name)]
        assert found == pytest.approx(floor, rel=0.005)


@pytest.mark.parametrize(("change", "status"), [({}, 0), ({"serialised": ("C7515",)}, 1)])
def test_a_fault_ends_the_program_with_status_1_and_stands_on_the_page(monkeypatch, tmp_path, capsys, change, status):
    row = dataclasses.replace(GOOD, **change)
    monkeypatch.setattr(compile_report, "report", lambda *_: [row])
    monkeypatch.setattr(compile_report, "not_compiled", lambda _: [])
    page = tmp_path / "page.md"
    page.write_text("before\n{}\nstale\n{}\nafter\n".format(*compile_report.PAGE_MARKERS))
    assert compile_report.main(["--page", str(page), "--arch", "sm_90"]) == status
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "stale" not in written
    for text in (written, capsys.readouterr().out):
        assert ("- sm_90 kernel (" in text) == bool(status)
        assert ("None." in text) != bool(status)


def test_a_row_survives_the_journey_through_json(tmp_path, monkeypatch, capsys):
    row = dataclasses.replace(GOOD, serialised=("C7515",), injected=("C7519",))
    bare = dataclasses.replace(GOOD, code=None, work=None, arch="gfx942")
    monkeypatch.setattr(compile_report, "report", lambda *_: [row, bare])
    compile_report.main(["--json", str(tmp_path / "rows.json"), "--only", "case"])
    assert compile_report.read_json(tmp_path / "rows.json") == [row, bare]


def test_two_reports_are_compared_launch_by_launch(tmp_path, monkeypatch, capsys):
    slow = dataclasses.replace(GOOD, serialised=("C7515",), registers=255)
    gone, new = (dataclasses.replace(GOOD, case="other", kernel=name) for name in ("gone", "new"))
    alone = dataclasses.replace(GOOD, case="not compiled after")
    for name, rows in (("old", [GOOD, slow, gone, alone]), ("new", [GOOD, GOOD, new])):
        monkeypatch.setattr(compile_report, "report", lambda *_, rows=rows: rows)
        compile_report.main(["--json", str(tmp_path / name), "--only", "."])
    capsys.readouterr()
    assert compile_report.main(["--compare", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "255 -> 128" in line]
    assert "8 HGMMA, serialised -> 8 HGMMA" in line
    assert "1 x 8 -> 2 x 8" in line
    assert "| `gone` | M=128 N=64 w8 s2 -> none |" in said
    assert "| `new` | none -> M=128 N=64 w8 s2 |" in said
    assert "not compiled after" not in said
    before, after = (2 * compile_tables.predict(row).total for row in (slow, GOOD))
    assert f"| sm_90 | case | {(before + after) / 2:.0f} | {after:.0f} |" in said


def test_what_is_far_from_its_floor_is_listed_worst_first():
    work = dataclasses.replace(GOOD.work, elements=1e7)
    far = dataclasses.replace(GOOD, case="far", serialised=("C7515",), work=work)
    farther = dataclasses.replace(far, case="farther", code=with_counts(far, "main", instructions=4000).code)
    short = dataclasses.replace(
        far, case="short", work=dataclasses.replace(far.work, programs=132, passes=1, elements=1e6)
    )
    exact = dataclasses.replace(far, case="exact", exact_fp32_dot=True)
    lines = compile_tables.far_from_floor([GOOD, far, short, exact, farther])
    (line,) = lines[2:]
    assert line.startswith("| `kernel` | M=128 N=64 w8 s2 | farther and 1 more |")
    assert line.endswith("serialised |")
    other = dataclasses.replace(far, tile="BLOCK_M=64")
    lines = compile_tables.far_from_floor([other, farther])
    assert [line.split(" | ")[2] for line in lines[2:]] == ["farther", "far"]


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="has no lines <!-- compile report -->"):
        compile_report.with_tables("# title\n", [GOOD], [])
