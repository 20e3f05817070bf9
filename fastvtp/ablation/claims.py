"""The four claims of the SimVTP abstract (arXiv:2212.03490), each decided by a stated rule on an ablation's scores.

A rule compares weighted means of runs. The noise of the comparison is the half-width of its 95 % interval by Student's
t, from the spread of the base run over its seeds, which stands for the spread of every run: with three seeds, 4.3
standard deviations of the difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fastvtp.ablation import studies
from fastvtp.ablation.studies import Scale, base_runs, mask_run, share_run
from fastvtp.models.simvtp_config import SimVTPConfig

Scores = Mapping[str, Mapping[str, float]]  # run -> score -> value

HOLDS, FAILS, NOISE, MISSING = "holds", "does not hold", "within noise", "not measured"
IN_PART = "holds in part"
# two-sided 95 % of Student's t, by degrees of freedom
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}
# R@1 on MSR-VTT of SimVTP pretrained on 10 % of WebVid-2M over that on all of it: 43.8 / 53.6
KEPT_WITH_LITTLE_DATA = 0.8


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


def judge(scores: Scores, model: SimVTPConfig, scale: Scale) -> list[Claim]:
    """The four claims on the scores of the finished runs; a comparison whose runs are missing is not measured."""
    compare = Comparison(scores, [run.name for run in base_runs(scale)])
    return [
        _help_of_the_other(compare),
        _high_mask_ratios(compare, model, scale),
        _contrast_and_matching(compare),
        _data_efficiency(compare, scale),
    ]


def _help_of_the_other(compare: Comparison) -> Claim:
    with_it = studies.RECONSTRUCTION.name
    return Claim(
        "One modality is reconstructed better with the help of the other.",
        "Trained on reconstruction alone, the joint model has a lower held-out loss than the same model trained on "
        "shuffled captions, which tell it nothing of the clip; pixels also than a VideoMAE. Both modalities must gain.",
        [
            compare.part(
                "pixels: captions that fit against shuffled ones (loss)",
                "pixel_loss/given",
                {studies.SHUFFLED.name: 1, with_it: -1},
            ),
            compare.part(
                "words: clips that fit against shuffled ones (loss)",
                "word_loss/given",
                {studies.SHUFFLED.name: 1, with_it: -1},
            ),
            _against_videomae(compare, with_it),
        ],
    )


def _against_videomae(compare: Comparison, with_it: str) -> Part:
    """The two losses have different names: each model is scored with the input that it was trained on."""
    what = "pixels: with captions against VideoMAE (loss)"
    joint, alone = (
        compare.values(with_it, "pixel_loss/given"),
        compare.values(studies.VIDEO_ONLY.name, "pixel_loss/withheld"),
    )
    noise = compare.part(what, "pixel_loss/given", {with_it: 2**0.5}).noise
    return Part(what, alone[0] - joint[0], noise) if joint and alone else Part(what, None, None)


def _high_mask_ratios(compare: Comparison, model: SimVTPConfig, scale: Scale) -> Claim:
    parts = []
    for score in ("transfer", "retrieval/R1"):
        for side, ratios, cells in (
            ("video", scale.video_ratios, lambda ratio: [(text, ratio) for text in scale.text_ratios]),
            ("text", scale.text_ratios, lambda ratio: [(ratio, video) for video in scale.video_ratios]),
        ):
            parts.append(_highest_ratio(compare, score, side, ratios, _named(model, cells)))
    return Claim(
        "It wants a high video mask ratio (90 %) and a high text mask ratio (75 %, far above BERT's 15 %).",
        "The highest ratio, averaged over the other modality's ratios, beats the best of the lower ones, in transfer "
        "and in zero-shot retrieval.",
        parts,
    )


def _named(model: SimVTPConfig, cells: Callable[[float], list[tuple[float, float]]]) -> Callable[[float], list[str]]:
    return lambda ratio: [mask_run(model, text, video).name for text, video in cells(ratio)]


def _highest_ratio(
    compare: Comparison, score: str, side: str, ratios: Sequence[float], runs: Callable[[float], list[str]]
) -> Part:
    lower, highest = list(ratios[:-1]), ratios[-1]
    what = f"{side}: {highest:g} against the best of {', '.join(f'{ratio:g}' for ratio in lower)}"
    means = {ratio: [compare.values(run, score) for run in runs(ratio)] for ratio in ratios}
    if not all(values for cells in means.values() for values in cells):
        return Part(f"{what} ({score})", None, None)
    best = max(lower, key=lambda ratio: fmean(fmean(values) for values in means[ratio]))
    weights = {run: 1 / len(runs(highest)) for run in runs(highest)}
    weights |= {run: -1 / len(runs(best)) for run in runs(best)}
    return compare.part(f"{what}, which is {best:g} ({score})", score, weights)


def _contrast_and_matching(compare: Comparison) -> Claim:
    against = [run.name for run in (studies.RECONSTRUCTION, studies.NO_CONTRAST, studies.NO_MATCHING)]
    return Claim(
        "VTC and VTM on top of reconstruction improve transfer.",
        "All four losses beat reconstruction alone, and all without VTC, and all without VTM, in transfer.",
        [compare.part(f"all losses against {name} (transfer)", "transfer", {"base": 1, name: -1}) for name in against],
    )


def _data_efficiency(compare: Comparison, scale: Scale) -> Claim:
    few, kept = share_run(min(scale.shares)), KEPT_WITH_LITTLE_DATA
    # (few - untrained) - kept * (base - untrained)
    weights = {few.name: 1, "base": -kept, studies.UNTRAINED.name: kept - 1}
    parts = [
        compare.part(f"{few.name} against {100 * kept:g}% of the whole gain ({score})", score, weights)
        for score in ("transfer", "retrieval/R1")
    ]
    return Claim(
        "It is data-efficient: little data does surprisingly well.",
        f"At equal steps, {100 * min(scale.shares):g} % of the clips keep more than {100 * kept:g} % of what training "
        "on all of them gains over the untrained model (the paper's R@1 on MSR-VTT: 43.8 of 53.6), in transfer and in "
        "zero-shot retrieval.",
        parts,
    )
