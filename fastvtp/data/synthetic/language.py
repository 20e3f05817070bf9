"""A scene in words: one caption that names every attribute, and questions whose answers can be seen.

Wording varies, but each attribute value keeps its own word, so a vocabulary of a few hundred pieces is enough.
Directions are the viewer's.
"""

import random
import re
from dataclasses import dataclass

from fastvtp.data.synthetic.scene import (
    STARTING_SIZE,
    Background,
    Scene,
    SceneObject,
)

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_OBJECT_PHRASES = {
    "solid": ("a {size} solid {colour} {shape}",),
    "striped": ("a {size} striped {colour} {shape}", "a {size} {colour} {shape} with stripes"),
    "dotted": ("a {size} dotted {colour} {shape}", "a {size} {colour} {shape} with dots"),
    "checkered": ("a {size} checkered {colour} {shape}", "a {size} {colour} {shape} with checks"),
}
_MOTION_PHRASES = {
    "left": ("moves left", "slides left", "glides left", "travels left"),
    "right": ("moves right", "slides right", "glides right", "travels right"),
    "up": ("moves up", "slides up", "glides up", "rises up"),
    "down": ("moves down", "slides down", "glides down", "sinks down"),
    "grow": ("grows", "grows bigger", "expands", "gets bigger"),
    "shrink": ("shrinks", "shrinks down", "contracts", "gets smaller"),
    "appear": ("appears", "suddenly appears", "pops up", "shows up"),
    "vanish": ("vanishes", "suddenly vanishes", "disappears", "goes away"),
    "clockwise": ("orbits clockwise", "circulates clockwise", "travels around clockwise"),
    "anticlockwise": ("orbits anticlockwise", "circulates anticlockwise", "travels around anticlockwise"),
}
_SURFACES = {
    "plain": "plain {colour} background",
    "checkerboard": "{colour} checkerboard background",
    "wavy": "wavy {colour} background",
    "grainy": "grainy {colour} background",
    "grid": "{colour} grid background",
}
_BEHAVIOUR_PHRASES = {
    "still": ("a still {surface}", "a {surface} that stays still"),
    "drifting left": ("a {surface} drifting left", "a {surface} that drifts left"),
    "drifting right": ("a {surface} drifting right", "a {surface} that drifts right"),
    "flickering": ("a flickering {surface}", "a {surface} that flickers"),
}
_ONE_EVENT = "{a} {does_a}"
_TWO_EVENTS = (
    "{a} {does_a}, then {b} {does_b}",
    "first {a} {does_a}, then {b} {does_b}",
    "{a} {does_a} and then {b} {does_b}",
    "{a} {does_a} before {b} {does_b}",
    "after {a} {does_a}, {b} {does_b}",
    "{b} {does_b} after {a} {does_a}",
)
_SENTENCES = (
    "{events} over {background}",
    "{events} in front of {background}",
    "{events} against {background}",
    "{events} on {background}",
    "over {background}, {events}",
    "in front of {background}, {events}",
    "against {background}, {events}",
    "on {background}, {events}",
    "here {events} over {background}",
    "here {events} against {background}",
)

_TRAVEL = ("left", "right", "up", "down")
_CHANGE_ANSWERS = {"grow": "grows", "shrink": "shrinks", "appear": "appears", "vanish": "vanishes"}


@dataclass(frozen=True)
class Question:
    """A question about one clip; `kind` says which attribute it asks for (colour, direction, order, ...)."""

    question: str
    answer: str
    kind: str


def describe(scene: Scene, rng: random.Random) -> str:
    """Return an English caption of 12 to 28 words; captions of different scenes are different."""
    first, last = scene.objects[0], scene.objects[-1]
    events = rng.choice(_TWO_EVENTS if len(scene.objects) == 2 else (_ONE_EVENT,)).format(
        a=_object_phrase(first, rng),
        does_a=rng.choice(_MOTION_PHRASES[first.motion]),
        b=_object_phrase(last, rng),
        does_b=rng.choice(_MOTION_PHRASES[last.motion]),
    )
    sentence = rng.choice(_SENTENCES).format(events=events, background=_background_phrase(scene.background, rng))
    return f"{sentence[0].upper()}{sentence[1:]}."


def ask(scene: Scene, rng: random.Random) -> list[Question]:
    """Return three questions of different kinds: one only time can answer, one for a colour, one for anything else."""
    subject = rng.choice(scene.objects)
    everything = _object_questions(subject) + _motion_questions(subject) + _background_questions(scene.background)
    temporal = rng.choice(_motion_questions(subject))
    if len(scene.objects) == 2:
        listed = rng.sample([item.shape for item in scene.objects], 2)
        temporal = Question(f"Which acts first, the {listed[0]} or the {listed[1]}?", scene.objects[0].shape, "order")
    colour = Question(f"What colour is the {subject.shape}?", subject.colour, "colour")
    other = rng.choice([question for question in everything if question.kind != temporal.kind])
    return [temporal, colour, other]


def _object_phrase(item: SceneObject, rng: random.Random) -> str:
    phrase, size = rng.choice(_OBJECT_PHRASES[item.texture]), rng.choice(_SIZE_WORDS[item.size])
    return phrase.format(size=size, colour=item.colour, shape=item.shape)


def _background_phrase(background: Background, rng: random.Random) -> str:
    surface = _SURFACES[background.pattern].format(colour=background.colour)
    phrase = rng.choice(_BEHAVIOUR_PHRASES[background.behaviour]).format(surface=surface)
    return re.sub(r"\ba olive\b", "an olive", phrase)


def _motion_questions(item: SceneObject) -> list[Question]:
    name = f"the {item.colour} {item.shape}"
    if item.motion in _CHANGE_ANSWERS:
        return [Question(f"What does {name} do?", _CHANGE_ANSWERS[item.motion], "motion")]
    verb = "moves" if item.motion in _TRAVEL else "orbits"
    return [
        Question(f"What does {name} do?", verb, "motion"),
        Question(f"Which way does {name} move?", item.motion, "direction"),
    ]


def _object_questions(item: SceneObject) -> list[Question]:
    questions = [
        Question(f"What shape is the {item.colour} object?", item.shape, "shape"),
        Question(f"What texture does the {item.shape} have?", item.texture, "texture"),
    ]
    if item.motion not in STARTING_SIZE:
        questions.append(Question(f"What size is the {item.shape}?", item.size, "size"))
    return questions


def _background_questions(background: Background) -> list[Question]:
    return [
        Question("What colour is the background?", background.colour, "background colour"),
        Question("What pattern does the background have?", background.pattern, "background pattern"),
        Question("How does the background behave?", background.behaviour, "background behaviour"),
    ]
