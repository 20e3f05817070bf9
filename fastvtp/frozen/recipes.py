"""Published settings of probes, by data set."""

from dataclasses import dataclass

from fastvtp.errors import unknown_name
from fastvtp.frozen.runs import TrainingClips
from fastvtp.frozen.training_heads import FitSettings


@dataclass(frozen=True)
class ProbeRecipe:
    """fit: the training. clips: how its videos are read. views: segments and crops of a test clip."""

    fit: FitSettings
    clips: TrainingClips
    views: tuple[int, int]


def _fit(steps: int, warmup_steps: int) -> FitSettings:
    return FitSettings(steps=steps, warmup_steps=warmup_steps, batch_size=256, learning_rate=1e-4)


def _strided(stride: int) -> TrainingClips:
    return TrainingClips(sampling="strided", frame_stride=stride)


# VideoGLUE's for frozen VideoMAE (tensorflow/models, official/projects/videoglue, vmae/frozen/vc_*.yaml), 256 clips a
# step; its crops cover other shares of the picture, and of Diving48 it decays the loss's weights, too.
RECIPES = {
    "k400": ProbeRecipe(_fit(138_101, 4600), _strided(4), (4, 3)),
    "moments": ProbeRecipe(_fit(154_550, 7727), _strided(4), (4, 3)),
    "diving48": ProbeRecipe(_fit(5869, 293), _strided(4), (4, 3)),
    "ssv2": ProbeRecipe(_fit(60_000, 2000), TrainingClips(sampling="uniform", flip=False), (1, 3)),
    "charades": ProbeRecipe(_fit(40_896, 2044), _strided(1), (4, 3)),
}


def probe_recipe(name: str) -> ProbeRecipe:
    """Raises UserError with the nearest known name."""
    if name not in RECIPES:
        raise unknown_name("probe recipe", name, RECIPES)
    return RECIPES[name]
