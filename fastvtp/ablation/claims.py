"""Claims about a system, each decided by a stated rule on an ablation's scores.

A rule compares weighted means of runs. The noise of the comparison is the half-width of its 95 % interval by Student's
t, from the spread of the base run over its seeds, which stands for the spread of every run: with three seeds, 4.3
standard deviations of the difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Scores = Mapping[str, Mapping[str, float]]  # run -> score -> value

HOLDS, FAILS, NOISE, MISSING = "holds", "does not hold", "within noise", "not measured"
IN_PART = "holds in part"
# two-sided 95 % of Student's t, by degrees of freedom
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: it speaks for the claim where margin > noise, against it where margin < -noise."""

    what: str
    margin: float | None
    noise: float | None

    @property
    def verdict(self) -> str:
        if self.margin is None or self.noise is None:
            return MISSING
        if abs(self.margin) <= self.noise:
            return NOISE
        return HOLDS if self.margin > 0 else FAILS


@dataclass(frozen=True)
class Claim:
    """A claim, the rule that decides it, and the comparisons that the rule is made of."""

    claim: str
    rule: str
    parts: Sequence[Part]

    @property
    def verdict(self) -> str:
        found = {part.verdict for part in self.parts}
        if MISSING in found:
            return MISSING
        if len(found) == 1:
            return found.pop()
        if HOLDS in found:
            return IN_PART
        return FAILS


class Comparison:
    """Weighted sums of scores over runs, with their noise.

    scores: of the finished runs. bases: names of the base run's repetitions, whose mean is the score of "base".
    """

    def __init__(self, scores: Scores, bases: Sequence[str]):
        self._scores, self._bases = scores, bases

    def values(self, run: str, score: str) -> list[float]:
        """The score of a run, of "base" with every seed; empty where there is none."""
        names = self._bases if run == "base" else [run]
        return [self._scores[name][score] for name in names if score in self._scores.get(name, {})]

    def spread(self, score: str) -> float | None:
        """Standard deviation over the seeds of the base run; None for fewer than two, or if all score the same."""
        values = self.values("base", score)
        return (stdev(values) or None) if len(values) > 1 else None

    def part(self, what: str, score: str, weights: Mapping[str, float]) -> Part:
        """The sum of weight times mean score over runs; nothing where a run has no such score."""
        values = {run: self.values(run, score) for run in weights}
        if not all(values.values()):
            return Part(what, None, None)
        margin = sum(weight * fmean(values[run]) for run, weight in weights.items())
        spread, seeds = self.spread(score), len(self.values("base", score))
        if spread is None:
            return Part(what, margin, None)
        variance = sum(weight**2 / len(values[run]) for run, weight in weights.items())
        return Part(what, margin, _T95.get(seeds - 1, 2.3) * spread * variance**0.5)
