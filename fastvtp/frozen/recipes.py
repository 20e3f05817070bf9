"""Published settings of probes, by data set."""

from dataclasses import dataclass

from fastvtp.data.reading import ClipReading
from fastvtp.errors import unknown_name
from fastvtp.frozen.training_heads import HeadTraining


@dataclass(frozen=True)
class ProbeRecipe:
    """How a probe was trained and scored in publications.

    training: of the probe. reading: how clips are read in training. views: segments and crops of a test clip.
    """

    training: HeadTraining
    reading: ClipReading
    views: tuple[int, int]


def _training(steps: int, warmup_steps: int) -> HeadTraining:
    return HeadTraining(steps=steps, warmup_steps=warmup_steps, batch_size=256, learning_rate=1e-4)


def _strided(stride: int) -> ClipReading:
    return ClipReading(sampling="strided", frame_stride=stride)


# VideoGLUE's for frozen VideoMAE (tensorflow/models, official/projects/videoglue, vmae/frozen/vc_*.yaml), 256 clips a
# step; its crops cover other shares of the picture, and of Diving48 it decays the loss's weights, too.
RECIPES = {
    "k400": ProbeRecipe(_training(138_101, 4600), _strided(4), (4, 3)),
    "moments": ProbeRecipe(_training(154_550, 7727), _strided(4), (4, 3)),
    "diving48": ProbeRecipe(_training(5869, 293), _strided(4), (4, 3)),
    "ssv2": ProbeRecipe(_training(60_000, 2000), ClipReading(sampling="uniform", flip=False), (1, 3)),
    "charades": ProbeRecipe(_training(40_896, 2044), _strided(1), (4, 3)),
}


def probe_recipe(name: str) -> ProbeRecipe:
    """Find the published settings for a data set. Raises UserError with the nearest known name."""
    if name not in RECIPES:
        raise unknown_name("probe recipe", name, RECIPES)
    return RECIPES[name]
