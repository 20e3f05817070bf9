"""What a synthetic clip contains: named attributes only, sampled so that no two clips of a data set share them.

A scene holds one or two objects over a background. With two objects, the first of the tuple acts first and the second
only when it has finished. Where things are and how fast they go is not named in captions: it follows from
`layout_seed`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "pink", "white")
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "large")

OPPOSITE_MOTION = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "grow": "shrink",
    "shrink": "grow",
    "appear": "vanish",
    "vanish": "appear",
    "clockwise": "anticlockwise",
    "anticlockwise": "clockwise",
}
MOTIONS = tuple(OPPOSITE_MOTION)
# The size named in a caption is the one at the start, so these two motions decide it.
STARTING_SIZE = {"grow": "small", "shrink": "large"}
# Two objects share the frame side by side or one above the other; each must act without leaving its half.
PAIR_MOTIONS = {
    "rows": ("left", "right", "grow", "shrink", "appear", "vanish"),
    "columns": ("up", "down", "grow", "shrink", "appear", "vanish"),
}

BACKGROUND_COLOURS = ("grey", "brown", "navy", "olive", "maroon", "teal")
# What can be seen in one place of a clip and named by a noun.
ENTITIES = (*SHAPES, *COLOURS, *BACKGROUND_COLOURS)
PATTERNS = ("plain", "checkerboard", "wavy", "grainy", "grid")
BEHAVIOURS = ("still", "drifting left", "drifting right", "flickering")
# Still, drifting and flickering come equally often; a drift is split between its two directions.
_BEHAVIOUR_WEIGHTS = (2, 1, 1, 2)


@dataclass(frozen=True)
class SceneObject:
    """One object: a value from each of SHAPES, COLOURS, TEXTURES, SIZES (at the start) and MOTIONS."""

    shape: str
    colour: str
    texture: str
    size: str
    motion: str


@dataclass(frozen=True)
class Background:
    """A value from each of BACKGROUND_COLOURS, PATTERNS and BEHAVIOURS; a plain background never drifts."""

    colour: str
    pattern: str
    behaviour: str


@dataclass(frozen=True)
class Scene:
    """Objects in the order in which they act, over a background; equal when all named attributes are equal."""

    objects: tuple[SceneObject, ...]
    background: Background
    arrangement: str = field(compare=False)  # "single", or for two objects "rows" or "columns"
    layout_seed: int = field(compare=False)


def sample_scene(rng: random.Random) -> Scene:
    """Draw a scene; half of them hold two objects that differ in shape and in colour."""
    background = _sample_background(rng)
    layout_seed = rng.getrandbits(32)
    arrangement = rng.choice(("single", "single", "rows", "columns"))
    motions = MOTIONS if arrangement == "single" else PAIR_MOTIONS[arrangement]
    count = 1 if arrangement == "single" else 2
    shapes, colours = rng.sample(SHAPES, count), rng.sample(COLOURS, count)
    objects = tuple(_sample_object(rng, shape, colour, motions) for shape, colour in zip(shapes, colours, strict=True))
    return Scene(objects, background, arrangement, layout_seed)


def temporal_twin(scene: Scene) -> Scene:
    """Return the same appearance and layout with time turned round: opposite motion, or with two objects the other
    order."""
    if len(scene.objects) == 2:
        return replace(scene, objects=scene.objects[::-1])
    (only,) = scene.objects
    motion = OPPOSITE_MOTION[only.motion]
    return replace(scene, objects=(replace(only, motion=motion, size=STARTING_SIZE.get(motion, only.size)),))


def sample_scenes(seed: int, split: str, count: int, twin_fraction: float, taken: set[Scene]) -> Iterator[Scene]:
    """Yield `count` scenes, none of them in `taken`, and add each to `taken`.

    About `twin_fraction` of the scenes come in pairs of neighbours that are temporal twins of each other.
    """
    twin = None
    for index in range(count):
        rng = random.Random(f"{seed}/{split}/{index}")
        scene, twin = twin, None
        if scene is None or scene in taken:
            scene = sample_scene(rng)
            while scene in taken:
                scene = sample_scene(rng)
            # A pair takes two places, so starting one at f/(2-f) of the other places puts the fraction f into pairs.
            if rng.random() < twin_fraction / (2 - twin_fraction):
                twin = temporal_twin(scene)
        taken.add(scene)
        yield scene


def _sample_object(rng: random.Random, shape: str, colour: str, motions: tuple[str, ...]) -> SceneObject:
    texture, size, motion = rng.choice(TEXTURES), rng.choice(SIZES), rng.choice(motions)
    return SceneObject(shape, colour, texture, STARTING_SIZE.get(motion, size), motion)


def _sample_background(rng: random.Random) -> Background:
    behaviour = rng.choices(BEHAVIOURS, _BEHAVIOUR_WEIGHTS)[0]
    # A uniform surface that slides looks exactly like one that stands.
    patterns = PATTERNS[1:] if behaviour.startswith("drifting") else PATTERNS
    return Background(rng.choice(BACKGROUND_COLOURS), rng.choice(patterns), behaviour)
