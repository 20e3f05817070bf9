"""RandAugment (arXiv:1909.13719): which operations change a clip, and how much. Numpy only; no state.

What the operations do to pixels is in `fastvtp.data.dali_operations`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastvtp.errors import UserError

OPERATIONS = (
    *("identity", "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "mirror"),
)
MOST_MAGNITUDE = 10.0
_UNIFORM = 100  # the spread from which on timm takes uniform magnitudes

_TIMM = OPERATIONS[1:-1]
_ONE_WAY = (
    *("identity", "contrast", "brightness", "sharpness", "shear_x", "shear_y"),
    *("translate_x", "translate_y", "rotate"),
)
_KEYS = {"rand": ("m", "n", "p", "mstd", "inc"), "oneway": ("m", "n", "flip")}
_EXAMPLE = "rand-m7-n4-mstd0.5-inc1"

# An operation's argument of a level from 0 to 1 and a sign, 1 or -1. Rotations are in degrees, counterclockwise; shears
# and translations say where a pixel comes from: x + argument * y, or x + argument * width.
_Argument = Callable[[float, int], float]
_PLAIN: dict[str, _Argument] = {
    "rotate": lambda level, sign: sign * level * 30,
    "posterize": lambda level, sign: max(1, int(level * 4)),  # of no bits nothing would be left
    "solarize": lambda level, sign: int(level * 256),
    "solarize_add": lambda level, sign: int(level * 110),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), lambda level, sign: level * 1.8 + 0.1),
    **dict.fromkeys(("shear_x", "shear_y"), lambda level, sign: sign * level * 0.3),
    **dict.fromkeys(("translate_x", "translate_y"), lambda level, sign: sign * level * 0.45),
}
_INCREASING: dict[str, _Argument] = {
    **_PLAIN,
    "posterize": lambda level, sign: max(1, 4 - int(level * 4)),
    "solarize": lambda level, sign: 256 - int(level * 256),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), lambda level, sign: 1 + sign * level * 0.9),
}
_PUSHED: dict[str, _Argument] = {
    **_PLAIN,
    **dict.fromkeys(("shear_x", "shear_y"), lambda level, sign: -level * 0.3),
    **dict.fromkeys(("translate_x", "translate_y"), lambda level, sign: level * 10 / 224),
}


@dataclass(frozen=True)
class RandAugment:
    """A policy of RandAugment, the same for all frames of a clip.

    Attributes:
        number: operations drawn for a clip.
        magnitude: their mean magnitude, from 0 to 10.
        spread: standard deviation of a normal noise on the magnitude of each, which is then clipped to 0 to 10.
        probability: how often each that was drawn acts.
        operations: those drawn from, names out of `OPERATIONS`.
        repeats: whether one may be drawn more than once.
        signed: whether half of the rotations, shears, translations and (of "increasing") enhancements go the other way.
        arguments: what magnitudes mean: "plain", "increasing" or "pushed", see `parse`.

    Raises:
        UserError: a value out of range.
    """

    number: int
    magnitude: float
    spread: float = 0.0
    probability: float = 1.0
    operations: tuple[str, ...] = _TIMM
    repeats: bool = True
    signed: bool = True
    arguments: str = "increasing"

    def __post_init__(self) -> None:
        most = np.inf if self.repeats else len(self.operations)
        for name, value, low, high in (
            ("number of operations", self.number, 1, most),
            ("magnitude", self.magnitude, 0, MOST_MAGNITUDE),
            ("spread", self.spread, 0, np.inf),
            ("probability", self.probability, 0, 1),
        ):
            if not low <= value <= high:
                bounds = f"at least {low}" if high == np.inf else f"from {low} to {high:g}"
                raise UserError(f"rand_augment: expected a {name} {bounds}, got {value:g}")

    @classmethod
    def parse(cls, text: object) -> RandAugment:
        """Read a policy as timm spells it, "rand-m7-n4-mstd0.5-inc1", or a one-way one, "oneway-m5-n2-flip1".

        In "rand", `m` is the magnitude (10 if not given), `n` the number of operations (2), `mstd` the spread (0), `p`
        the probability (0.5), and `inc1` says that all operations grow stronger with the magnitude; without it, or with
        `inc0`, posterising and solarising grow weaker and enhancements go from 0.1 to 1.9 of the original. Sets of
        operations and meanings of magnitudes are timm's (timm.data.auto_augment), which VideoMAE's fine-tuning has
        taken over, but that posterising leaves at least one bit. A spread of 100 or more, by which timm draws uniform
        magnitudes, is refused.

        "oneway" is ALPRO's: `n` different ones of nine operations, the identity among them, that always act, never
        with a minus; translations reach 10 of 224 pixels, and enhancements, from 0.1 to 1.9 of the original, do nothing
        at magnitude 5. `flip1` adds a tenth operation that mirrors.

        Raises UserError for any other text.
        """
        kind, *parts = str(text).split("-")
        found = [re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part) for part in parts]
        given = {match[1]: float(match[2]) for match in found if match}
        if kind not in _KEYS or len(given) < len(parts) or not set(given) <= set(_KEYS[kind]):
            raise _unreadable(text)
        number = given.get("n", 2.0)
        if number != int(number) or not {given.get(key, 0.0) for key in ("inc", "flip")} <= {0.0, 1.0}:
            raise _unreadable(text)
        number, magnitude = int(number), given.get("m", MOST_MAGNITUDE)
        if kind == "oneway":
            operations = (*_ONE_WAY, "mirror") if given.get("flip") else _ONE_WAY
            how = {"operations": operations, "repeats": False, "signed": False, "arguments": "pushed"}
            return cls(number, magnitude, **how)
        if given.get("mstd", 0.0) >= _UNIFORM:
            raise UserError(
                f"rand_augment: {text}: a spread (mstd) of {_UNIFORM} or more, which means uniform "
                f"magnitudes in timm, is not known here: give a smaller one"
            )
        arguments = "increasing" if given.get("inc") else "plain"
        return cls(number, magnitude, given.get("mstd", 0.0), given.get("p", 0.5), arguments=arguments)

    def draw(self, rng: np.random.Generator, *, may_mirror: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Draw the operations for a clip.

        may_mirror: False leaves out a mirroring, for a clip in which directions matter.

        Returns:
            Places in `OPERATIONS`, int32 `[number]`, the identity's for one that does not act, and the arguments of the
            operations, float32 `[number]`: degrees, bits kept, thresholds, shares of the original, or as in `parse`.
        """
        chosen = rng.choice(len(self.operations), self.number, replace=self.repeats)
        acts = rng.random(self.number) < self.probability
        levels = np.clip(rng.normal(self.magnitude, self.spread, self.number), 0, MOST_MAGNITUDE) / MOST_MAGNITUDE
        signs = np.where(rng.random(self.number) < 0.5, -1, 1) if self.signed else np.ones(self.number, int)
        table = {"plain": _PLAIN, "increasing": _INCREASING, "pushed": _PUSHED}[self.arguments]
        places, arguments = np.zeros(self.number, np.int32), np.zeros(self.number, np.float32)
        for slot in np.flatnonzero(acts):
            name = self.operations[chosen[slot]]
            if name == "mirror" and not may_mirror:
                continue
            places[slot] = OPERATIONS.index(name)
            if name in table:
                arguments[slot] = table[name](float(levels[slot]), int(signs[slot]))
        return places, arguments


def _unreadable(text: object) -> UserError:
    """Return the error for a policy that cannot be read, with what it is today where earlier versions knew it."""
    earlier = re.fullmatch(r"[\[(]?\s*(\d+)\s*[,x]\s*(\d+)\s*[\])]?", str(text))
    if earlier:
        number, magnitude = int(earlier[1]), int(earlier[2]) / 3
        return UserError(
            f"rand_augment: {text} is now spelled as in timm: rand-m{magnitude:g}-n{number}-p1-inc1 draws and always "
            f"applies {number} operations, the releases' policy is {_EXAMPLE}"
        )
    return UserError(
        f'rand_augment: expected timm\'s spelling, such as "{_EXAMPLE}" (m, n, p, mstd, inc), or "oneway-m5-n2" '
        f"(m, n, flip), got {str(text)!r}"
    )
