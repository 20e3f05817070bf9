"""What a run leaves behind: JSON that holds every field, and an aligned table."""

import json
from dataclasses import replace

import pytest

from benchmarks.harness.environment import environment
from benchmarks.harness.record import Record, Row, markdown_table, write_json
from tests.benchmarks.harness.made import CPU

ROW = Row("op", "tiny", "usual", {"batch": 1}, "float32", "forward", 100, 500, 1.0, "usual")


def test_json_holds_every_field_and_no_nan(tmp_path):
    path = tmp_path / "rows.json"
    timed = replace(ROW, median_s=2.0, calls=3, speedup=1.0)
    record = Record(environment(CPU), [ROW, timed])
    write_json(path, record.rows, record.environment)
    content = json.loads(path.read_text())
    assert [Row(**row) for row in content["rows"]] == record.rows
    assert content["environment"] == record.environment
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [replace(ROW, median_s=float("nan"))], {})
    assert json.loads(path.read_text()) == content


def test_table_is_aligned_and_complete():
    timed = replace(ROW, median_s=0.0021, p20_s=0.002, p80_s=0.003, wall_s=0.004, peak_bytes=5_000_000)
    timed.speedup, timed.fraction_of_floor, timed.error = 1.5, 0.25, 1e-7
    lines = markdown_table([timed, replace(ROW, note="missing: gone")]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].split("|")[5:-1]]
    assert cells == ["2.100", "2.000-3.000", "4.000", "5.0", "1.50", "25.0%", "error 1.0e-07"]
    assert [cell.strip() for cell in lines[3].split("|")[5:-1]] == ["", "", "", "", "", "", "missing: gone"]
