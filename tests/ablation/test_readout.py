import pytest
import torch

from fastvtp.ablation.readout import (
    fit_ridge,
    majority,
    probe,
    scene_labels,
    top_share,
)

OBJECT = {"shape": "star", "colour": "red", "texture": "solid", "size": "small", "motion": "left"}
SCENE = {
    "objects": [OBJECT, {**OBJECT, "shape": "ring", "colour": "blue"}],
    "background": {"colour": "teal", "pattern": "grid", "behaviour": "still"},
}


def test_labels_hold_what_both_objects_and_the_background_show():
    labels = scene_labels([SCENE])
    assert {name: int(values.sum()) for name, values in labels.items()} == {
        "shape": 2, "colour": 2, "texture": 1, "size": 1, "motion": 1,
        "background colour": 1, "background pattern": 1, "background behaviour": 1,
    }  # fmt: skip


def test_a_probe_reads_what_is_linear_in_the_features_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(4, (600,), generator=generator)
    labels = torch.nn.functional.one_hot(classes, 4).bool()
    noise = torch.randn(600, 16, generator=generator)
    told = noise + 50 * labels.float() @ torch.randn(4, 16, generator=generator)
    assert probe(told[:400], labels[:400], told[400:], labels[400:]) == 100
    blind = probe(noise[:400], labels[:400], noise[400:], labels[400:])
    assert blind == pytest.approx(25, abs=8)
    assert majority(labels[:400], labels[400:]) == pytest.approx(25, abs=8)


def test_ridge_meets_its_normal_equations_and_leaves_the_intercept_free():
    generator = torch.Generator().manual_seed(1)
    features, targets = torch.randn(50, 3, generator=generator), torch.randn(50, 2, generator=generator) + 100
    weights = fit_ridge(features, targets)
    inputs = torch.cat([features.double(), torch.ones(50, 1)], dim=1)
    residual = inputs.T @ (targets.double() - inputs @ weights)
    torch.testing.assert_close(residual[:3], 0.05 * weights[:3])
    torch.testing.assert_close(residual[3], torch.zeros(2, dtype=torch.float64), atol=1e-8, rtol=0)


def test_a_clip_with_two_values_scores_the_share_among_its_two_highest():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    labels = torch.tensor([[True, False, True], [True, False, False]])
    assert top_share(scores, labels) == 75
