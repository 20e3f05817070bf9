"""What frozen video features know: linear read-out of the attributes that made a synthetic clip.

Shape legend: N = clips, D = width, C = values that an attribute can take.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastvtp.data.synthetic import scene as vocabulary

RIDGE = 1e-3  # of the number of clips, on standardised features

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": vocabulary.SHAPES,
    "colour": vocabulary.COLOURS,
    "texture": vocabulary.TEXTURES,
    "size": vocabulary.SIZES,
    "motion": vocabulary.MOTIONS,
    "background colour": vocabulary.BACKGROUND_COLOURS,
    "background pattern": vocabulary.PATTERNS,
    "background behaviour": vocabulary.BEHAVIOURS,
}


def scene_labels(scenes: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Tell which values each clip shows, of each of `ATTRIBUTES`: bool [N, C].

    scenes: the "scene" fields of a synthetic list; with two objects a clip may show two values.
    """
    return {
        name: torch.tensor([[value in _shown(scene, name) for value in values] for scene in scenes])
        for name, values in ATTRIBUTES.items()
    }


def _shown(scene: Mapping[str, Any], name: str) -> set[str]:
    if name.startswith("background "):
        return {scene["background"][name.removeprefix("background ")]}
    return {item[name] for item in scene["objects"]}


def fit_ridge(features: Tensor, targets: Tensor) -> Tensor:
    """Return weights of ridge regression with an unpenalised intercept: [N, D], [N, C] -> float64 [D + 1, C]."""
    count, width = features.shape
    inputs = torch.cat([features.double(), torch.ones(count, 1, dtype=torch.float64)], dim=1)
    penalty = torch.eye(width + 1, dtype=torch.float64)[:width] * (RIDGE * count) ** 0.5
    outputs = torch.cat([targets.double(), torch.zeros(width, targets.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(torch.cat([inputs, penalty]), outputs).solution


def probe(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """Return the accuracy in percent of ridge regression from features [N, D] to labels bool [N, C] on other clips.

    A clip with n true values scores the share of them among its n highest predictions.
    """
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    weights = fit_ridge((features - mean) / scale, labels)
    scores = ((test_features - mean) / scale).double() @ weights[:-1] + weights[-1]
    return top_share(scores, test_labels)


def majority(labels: Tensor, test_labels: Tensor) -> float:
    """Return the accuracy of `probe` without features: the most frequent values of the training clips for every
    clip."""
    return top_share(labels.double().mean(0).expand(test_labels.shape), test_labels)


def top_share(scores: Tensor, labels: Tensor) -> float:
    """Return the percentage of the true values, bool [N, C], among as many highest scores [N, C] of their clip, mean
    over clips."""
    places = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    counts = labels.sum(1, keepdim=True)
    return 100.0 * (((places < counts) & labels).sum(1) / counts[:, 0]).double().mean().item()
