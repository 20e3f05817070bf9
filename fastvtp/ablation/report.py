"""What an ablation found, in words and pictures: what the reports of all systems share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fastvtp.ablation.plot import Bars, HeatMap
from fastvtp.ablation.studies import UNTRAINED, base_runs

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
        """Return the score of a run, of "base" with every seed; empty where there is none."""
        names = self._bases if run == "base" else [run]
        return [self._scores[name][score] for name in names if score in self._scores.get(name, {})]

    def spread(self, score: str) -> float | None:
        """Return the standard deviation over the seeds of the base run; None for fewer than two, or if all score the
        same."""
        values = self.values("base", score)
        return (stdev(values) or None) if len(values) > 1 else None

    def part(self, what: str, score: str, weights: Mapping[str, float]) -> Part:
        """Return the sum of weight times mean score over runs; nothing where a run has no such score."""
        values = {run: self.values(run, score) for run in weights}
        if not all(values.values()):
            return Part(what, None, None)
        margin = sum(weight * fmean(values[run]) for run, weight in weights.items())
        spread, seeds = self.spread(score), len(self.values("base", score))
        if spread is None:
            return Part(what, margin, None)
        variance = sum(weight**2 / len(values[run]) for run, weight in weights.items())
        return Part(what, margin, _T95.get(seeds - 1, 2.3) * spread * variance**0.5)


Section = tuple[str, list[str]]
"""A title and the lines below it; without lines it is left out."""


class Report(ABC):
    """Reads the state of an ablation, see `fastvtp.ablation.runner`.

    state: "commands", "about", "chance" and "runs", run -> {"scores", "train_seconds", ...} or {"error"}. model, scale:
    of the base run. system: as people write it. shown: the scores in the table of all runs. about_scores: how it was
    measured, filled with num_test, probe_clips and seeds.
    """

    system: str
    shown: Sequence[str]
    about_scores: str

    def __init__(self, state: Mapping[str, Any], model: Any, scale: Any):
        self.state, self.model, self.scale = state, model, scale
        self.scores = {name: run["scores"] for name, run in state["runs"].items() if "scores" in run}
        self.compare = Comparison(self.scores, [run.name for run in base_runs(scale)])

    @abstractmethod
    def claims(self) -> list[Claim]:
        """Return the paper's claims on the scores of the finished runs."""

    @abstractmethod
    def sections(self) -> list[Section]:
        """Return tables of what there is so far."""

    @abstractmethod
    def panels(self) -> list[HeatMap | Bars]:
        """Return what there is to draw so far."""

    def markdown(self) -> str:
        lines = [
            f"# Ablation of {self.system}",
            "",
            *(f"    {command}" for command in self.state["commands"]),
            "",
            "; ".join(f"{name} {value}" for name, value in self.state["about"].items()) + ".",
            "",
            "## The paper's claims at this scale",
            "",
            *self._claims(),
            "## How it was measured",
            "",
            self.about_scores.format(
                num_test=self.scale.num_test, probe_clips=self.scale.probe_clips, seeds=self.scale.seeds
            ),
        ]
        for title, table in (*self.sections(), ("All runs", self._all_runs())):
            if table:
                lines += [f"## {title}", "", *table, ""]
        return "\n".join(lines).rstrip() + "\n"

    # --- For sections and panels

    def with_bounds(self, runs: Iterable[str]) -> list[str]:
        """Return the base run, those of `runs` that are finished, and the untrained model; nothing where none is."""
        found = [name for name in runs if name in self.scores]
        return ["base", *found, *(name for name in (UNTRAINED.name,) if name in self.scores)] if found else []

    def mean(self, run: str, score: str) -> float | None:
        values = self.compare.values(run, score)
        return fmean(values) if values else None

    def table(self, runs: Sequence[str], scores: Sequence[str]) -> list[str]:
        """Return a row for each run, and one for knowing nothing."""
        if not runs:
            return []
        rows = [[run, *(self.cell(run, score) for score in scores)] for run in runs]
        if any(score in self.state["chance"] for score in scores):
            rows.append(["knowing nothing", *(number(self.state["chance"].get(score)) for score in scores)])
        return table(["run", *scores], rows)

    def cell(self, run: str, score: str) -> str:
        spread = self.compare.spread(score) if run == "base" else None
        return number(self.mean(run, score)) + ("" if spread is None else f" ± {number(spread)}")

    def bars(self, title: str, runs: Sequence[str], score: str) -> list[Bars]:
        """Return a bar for each run that has the score, over the noise of the base run; nothing for fewer than two."""
        runs = [run for run in runs if self.mean(run, score) is not None]
        if len(runs) < 2:
            return []
        spread = self.compare.spread(score)
        return [
            Bars(
                title,
                runs,
                [self.mean(run, score) or 0.0 for run in runs],
                [spread if run == "base" else None for run in runs],
                reference=self.mean("base", score),
                noise=spread,
            )
        ]

    # --- Parts of every report

    def _claims(self) -> Iterable[str]:
        for place, claim in enumerate(self.claims(), start=1):
            yield from (f"{place}. **{claim.claim}** → **{claim.verdict}**", "", f"   Rule: {claim.rule}", "")
            rows = [
                [part.what, number(part.margin, sign=True), number(part.noise), part.verdict] for part in claim.parts
            ]
            yield from ("   " + line for line in table(["comparison", "margin", "noise (95 %)", "verdict"], rows))
            yield ""

    def _all_runs(self) -> list[str]:
        rows = []
        for name, run in self.state["runs"].items():
            found = [f"{run['steps']}", f"{run['train_seconds']:.0f}"] if "scores" in run else ["", run["error"]]
            scores = run.get("scores", {})
            rows.append([name, *found, *(number(scores.get(score)) for score in self.shown)])
        return table(["run", "steps", "training (s)", *self.shown], rows)


def number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:+.3g}" if sign else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def summary(claims: Sequence[Claim]) -> list[str]:
    """Return a line for each claim, for the terminal."""
    return [f"{claim.verdict:>15}  {claim.claim}" for claim in claims]


def claim_record(claim: Claim) -> dict[str, Any]:
    """Return a claim as it stands in ablation.json."""

    def record(part: Part) -> dict[str, Any]:
        return {"what": part.what, "margin": part.margin, "noise": part.noise, "verdict": part.verdict}

    return {
        "claim": claim.claim,
        "rule": claim.rule,
        "verdict": claim.verdict,
        "comparisons": [record(part) for part in claim.parts],
    }
