"""The ablation's picture: what a figure holds, by intercepting it before it is written."""

import math

import pytest
from matplotlib.figure import Figure

from fastvtp.ablation.plot import (
    Bars,
    HeatMap,
    plot_ablation,
)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The visible axes of plot_ablation(panels) by title."""

    def draw(*panels):
        figures = []
        savefig = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k)))
        plot_ablation(tmp_path / "ablation.png", panels, title="a study", note="a note")
        assert (tmp_path / "ablation.png").stat().st_size > 1000
        return {axes.get_title(loc="left"): axes for axes in figures[0].axes if axes.get_visible()}

    return draw


def test_a_heat_map_shows_every_value_in_its_cell_and_leaves_gaps(drawn):
    panel = HeatMap("grid", ["0.1", "0.7"], ["0.5", "0.9"], [[1.0, None], [30.0, 4.0]], "text", "video")
    axes = drawn(panel)["grid"]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "1.000", (0, 1): "30.0", (1, 1): "4.000"
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.1", "0.7"]
    assert axes.images[0].origin == "lower"
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert colors == {"1.000": "black", "30.0": "white", "4.000": "black"}


@pytest.mark.parametrize("values", [[[None, None]], [[2.0, 2.0]]])
def test_a_grid_without_differences_is_drawn(drawn, values):
    axes = drawn(HeatMap("grid", ["a"], ["b", "c"], values, "", "", higher_is_better=False))["grid"]
    assert len(axes.texts) == sum(value is not None for value in values[0])


def test_bars_stand_in_order_with_whiskers_over_the_band(drawn):
    axes = drawn(Bars("bars", ["base", "other"], [10.0, 20.0], [1.5, None], reference=10.0, noise=1.5))["bars"]
    places = {label.get_text(): place for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    assert places["base"] > places["other"]
    band, first, second = axes.patches
    assert (band.get_x(), band.get_width()) == (8.5, 3.0)
    assert [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in (first, second)] == [
        (pytest.approx(places["base"]), 10.0), (pytest.approx(places["other"]), 20.0)
    ]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == ["10.0", "20.0"]


def test_points_need_no_zero(drawn):
    axes = drawn(Bars("losses", ["a", "b"], [0.93, 0.95], [None, None], from_zero=False))["losses"]
    assert axes.get_xlim()[0] > 0.9
    assert not axes.patches


def test_places_left_over_are_hidden_and_nothing_is_an_error(drawn, tmp_path):
    bars = Bars("bars", ["a"], [math.pi], [None])
    assert list(drawn(*[bars] * 4)) == ["bars"]
    with pytest.raises(ValueError, match="no panel"):
        plot_ablation(tmp_path / "none.png", [], title="")
