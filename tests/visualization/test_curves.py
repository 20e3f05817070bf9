"""Curves: what a figure holds (by intercepting it before it is written) and what a broken file is told."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fastvtp.visualization.curves import plot_curves


def write(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, "utf-8")
    return path


@pytest.fixture
def panels(monkeypatch):
    """plot_curves(...) and then {panel title: {line label: (steps, values)}} of the visible panels."""

    def draw(source, output):
        figures = []
        savefig = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k)))
        plot_curves(source, output, title="a run")
        return {
            axes.get_title(loc="left"): {
                str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()
            }
            for axes in figures[0].axes
            if axes.get_visible()
        }

    return draw


def test_panels_of_a_whole_run(tmp_path, panels):
    rows = [
        {"step": step, "loss": 5.0 - step, "loss/video": 1.0, "loss/text": 4.0 - step, "learning_rate": 1e-4 * step}
        | {"word_accuracy": 0.1 * step, "matching_accuracy": 0.5}
        | {"grad_norm": 1.5, "clips_per_second": 3.0, "note": "ignored"}
        for step in range(4)
    ]
    evaluation = {
        "eval/t2v/R1": 10.0,
        "eval/t2v/R5": 30.0,
        "eval/t2v/MdR": 7.0,
        "eval/t2v/MnR": 9.0,
        "eval/accuracy": 0.5,
    }
    source = write(tmp_path / "metrics.jsonl", [*rows, {"step": 3} | evaluation])
    drawn = panels(source, tmp_path / "curves.png")
    training = ["loss", "loss/video", "loss/text", "accuracy", "learning_rate", "grad_norm"]
    assert list(drawn) == [*training, "t2v recall (%)", "t2v rank", "eval/accuracy"]
    assert drawn["loss"] == {"loss": ([0, 1, 2, 3], [5.0, 4.0, 3.0, 2.0])}
    assert drawn["accuracy"] == {
        "word": ([0, 1, 2, 3], [0.1 * step for step in range(4)]),
        "matching": ([0, 1, 2, 3], [0.5] * 4),
    }
    assert drawn["t2v recall (%)"] == {"R1": ([3], [10.0]), "R5": ([3], [30.0])}
    assert drawn["t2v rank"] == {"MdR": ([3], [7.0]), "MnR": ([3], [9.0])}
    with Image.open(tmp_path / "curves.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_smoothed_curve_over_the_raw_one(tmp_path, panels):
    clean = 3 * np.exp(-np.arange(400) / 40)
    values = clean + np.random.default_rng(0).normal(0, 0.1, 400)
    values[50] = math.nan
    rows = [{"step": step, "loss": value, "learning_rate": value} for step, value in enumerate(values)]
    drawn = panels(write(tmp_path / "metrics.jsonl", rows), tmp_path / "curves.svg")
    raw, smooth = (np.array(series) for _, series in drawn["loss"].values())
    assert np.array_equal(raw, values, equal_nan=True)
    assert np.isfinite(smooth).all()
    assert np.abs(smooth - clean).mean() < 0.04  # the raw values err by 0.08
    assert abs((smooth - clean)[6:40].mean()) < 0.04  # a window of 12 past points would lag by 0.2 here
    assert len(drawn["learning_rate"]) == 1  # a schedule is shown as it is


def test_a_step_logged_again_after_resuming_counts_once_and_in_its_place(tmp_path, panels):
    rows = [{"step": step, "loss": 1.0} for step in (0, 4, 8)] + [{"step": step, "loss": 2.0} for step in (6, 8, 10)]
    drawn = panels(write(tmp_path / "metrics.jsonl", rows), tmp_path / "curves.png")
    assert drawn["loss"]["loss"] == ([0, 4, 6, 8, 10], [1.0, 1.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("tail", ['{"step": 2, "lo', '{"step": 2, "loss": 3.0', "{"])
def test_half_written_last_line_is_ignored(tmp_path, panels, tail):
    rows = [{"step": step, "loss": 1.0 + step} for step in range(2)]
    drawn = panels(write(tmp_path / "metrics.jsonl", rows, tail), tmp_path / "curves.png")
    assert drawn["loss"]["loss"] == ([0, 1], [1.0, 2.0])


def test_whole_last_line_without_newline_counts(tmp_path, panels):
    drawn = panels(write(tmp_path / "m.jsonl", [{"step": 0, "loss": 1}], '{"step": 1, "loss": 2}'), tmp_path / "c.png")
    assert drawn["loss"]["loss"] == ([0, 1], [1, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 0, "loss": 1}\n{"step": 1, "lo\n{"step": 2, "loss": 1}\n', r"metrics\.jsonl, line 2: not JSON"),
        ('{"step": 0, "loss": 1}\n{"step": 1, "lo\n', "line 2: not JSON"),
        ('{"step": 0, "loss": 1}\n{"loss": 1}\n', 'line 2: must be an object with an integer "step"'),
        ("[1, 2]\n", "line 1: must be an object"),
        ('{"step": 0, "loss": "low"}\n', "line 1: 'loss' must be a number, got 'low'"),
        ("", r"metrics\.jsonl: no loss"),
        ('{"st', r"metrics\.jsonl: no loss"),
        ('{"step": 3, "clips_per_second": 1}\n', "no loss, accuracy, learning_rate, grad_norm or eval/ value"),
    ],
)
def test_bad_file_gets_one_clear_line(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", title="a run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "curves.png").exists()
