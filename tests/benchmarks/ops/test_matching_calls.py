"""Calls of the encoders, counted on a set so small that they can be counted by hand."""

import pytest

from benchmarks.ops import matching_calls
from benchmarks.ops.matching_calls import Counts, counting, make_model, make_set, released_scores


def test_calls_and_sequences_are_counted_until_the_block_is_left():
    model, batches = make_model(), make_set(5, 2)
    with counting(model) as found:
        for batch in batches:
            model.read_texts(batch.input_ids, batch.cu_seqlens, batch.max_text_length)
        model.read_clips(batches[0].video)
    model.read_clips(batches[0].video)
    assert found == {"text": Counts(3, 5), "video": Counts(1, 2)}


def test_the_released_way_encodes_a_text_for_every_clip(monkeypatch):
    monkeypatch.setattr(matching_calls, "RELEASED_PAIRS", 4)
    model = make_model()
    with counting(model) as found:
        scores = released_scores(model, make_set(6, 3))
    assert found == {"text": Counts(12, 36), "video": Counts(12, 12)}
    assert scores.std() > 100 * matching_calls.TOLERANCE


def test_the_command_prints_the_figures(capsys):
    matching_calls.main(["--size", "12", "--batch-size", "5"])
    out = capsys.readouterr().out
    assert "text encoder   12 (144)   3 (12)   4x (12x)" in out
    assert "video encoder   12 (12)   3 (12)   4x (1x)" in out


def test_other_scores_are_an_error(monkeypatch):
    score = matching_calls.match_scores
    monkeypatch.setattr(matching_calls, "match_scores", lambda *a, **k: [s.roll(1, 0) for s in score(*a, **k)])
    with pytest.raises(SystemExit, match="the scores differ by"):
        matching_calls.main(["--size", "4"])
