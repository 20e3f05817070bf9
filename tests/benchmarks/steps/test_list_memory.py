"""The measurement of lists in memory writes the list that it says, and tells all figures of it."""

import pytest

from benchmarks.steps.list_memory import main, write_list
from fastvtp.data.annotations import load_annotations


@pytest.mark.parametrize("spans", [False, True])
def test_the_list_is_as_said(tmp_path, spans):
    records = load_annotations(write_list(tmp_path / "a.jsonl", 30, spans=spans))
    assert len(records) == 30
    assert {len(record.captions[0].split()) for record in records} == {14}
    assert {record.span is not None for record in records} == {spans}


def test_all_figures_are_told(capsys):
    main(["--records", "200"])
    out = capsys.readouterr().out
    for name in ("records, MB", "with the source, MB", "peak, MB", "load, s", "digest, s", "one, us"):
        assert name in out
