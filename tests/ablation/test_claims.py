"""The rules that decide the paper's claims, on made-up scores."""

import pytest

from fastvtp.ablation.report import (
    FAILS,
    HOLDS,
    IN_PART,
    MISSING,
    NOISE,
    Claim,
    Comparison,
    Part,
)
from fastvtp.ablation.studies import UNTRAINED
from fastvtp.systems.simvtp import ablation as studies
from fastvtp.systems.simvtp.ablation import SimVTPScale, plan_runs
from fastvtp.systems.simvtp.ablation_report import judge
from fastvtp.systems.simvtp.config import SimVTPConfig

MODEL = SimVTPConfig(video_mask_ratio=0.75, text_mask_ratio=0.5)
BASES = ["base", "base, seed +1", "base, seed +2"]


def test_noise_is_the_half_width_of_students_interval():
    scores = {"base": {"s": 1.0}, "base, seed +1": {"s": 2.0}, "base, seed +2": {"s": 3.0}, "other": {"s": 0.0}}
    part = Comparison(scores, BASES).part("", "s", {"base": 1, "other": -1})
    assert part.margin == 2
    assert part.noise == pytest.approx(4.30 * (1 / 3 + 1) ** 0.5)
    assert part.verdict == NOISE


def test_equal_seeds_tell_nothing_of_the_noise():
    scores = {name: {"s": 1.0} for name in BASES} | {"other": {"s": 0.0}}
    assert Comparison(scores, BASES).part("", "s", {"base": 1, "other": -1}).verdict == MISSING


@pytest.mark.parametrize(
    ("margins", "verdict"),
    [
        ((2, 3), HOLDS),
        ((2, 0.5), IN_PART),
        ((2, -2), IN_PART),
        ((0.5, -0.5), NOISE),
        ((-2, 0.5), FAILS),
        ((2, None), MISSING),
    ],
)
def test_a_claim_holds_where_all_its_comparisons_do(margins, verdict):
    assert Claim("", "", [Part("", margin, 1.0) for margin in margins]).verdict == verdict


def scores_of(**changes: dict[str, float]) -> dict[str, dict[str, float]]:
    """Equal scores for all runs but for a little noise of the base run and `changes` (run -> score -> change)."""
    usual = {"transfer": 50.0, "retrieval/R1": 20.0, "word_loss/given": 3.0, "pixel_loss/given": 0.8}
    runs = {run.name: dict(usual) for run in plan_runs("all", MODEL, SimVTPScale())}
    for place, name in enumerate(BASES):
        runs[name] = {score: value * (1 + 1e-4 * place) for score, value in usual.items()}
    runs[UNTRAINED.name] |= {"transfer": 30.0, "retrieval/R1": 1.0}
    runs[studies.VIDEO_ONLY.name] = {"transfer": 50.0, "pixel_loss/withheld": 0.8}
    for name, change in changes.items():
        for score, difference in change.items():
            runs[name][score] += difference
    return runs


def verdicts(scores) -> list[list[str]]:
    return [[part.verdict for part in claim.parts] for claim in judge(Comparison(scores, BASES), MODEL, SimVTPScale())]


def test_a_claim_without_a_difference_is_within_noise_and_equal_data_efficiency_holds():
    others, ratios, transfer, data = verdicts(scores_of())
    assert {*others, *ratios, *transfer} == {NOISE}
    assert data == [HOLDS, HOLDS]


def test_each_claim_reads_its_own_runs():
    worse = {"pixel_loss/given": 0.1, "word_loss/given": -0.3}
    assert verdicts(scores_of(**{studies.SHUFFLED.name: worse}))[0] == [HOLDS, FAILS, NOISE]
    assert verdicts(scores_of(**{studies.VIDEO_ONLY.name: {"pixel_loss/withheld": -0.1}}))[0] == [NOISE, NOISE, FAILS]

    high_video = {f"text {text}, video 0.9": {"transfer": 9.0} for text in (0.15, 0.5, 0.75)}
    assert verdicts(scores_of(**high_video))[1] == [HOLDS, NOISE, NOISE, NOISE]
    high_text = {f"text 0.75, video {video}": {"retrieval/R1": -9.0} for video in (0.5, 0.75, 0.9)}
    assert verdicts(scores_of(**high_text))[1] == [NOISE, NOISE, NOISE, FAILS]
    # 0.9 must beat the best of the others, not the lowest
    middle = {f"text {text}, video 0.75": {"transfer": 9.0} for text in (0.15, 0.75)}
    assert verdicts(scores_of(**high_video, **middle))[1][0] == HOLDS
    middle = {f"text {text}, video 0.75": {"transfer": 90.0} for text in (0.15, 0.75)}
    assert verdicts(scores_of(**high_video, **middle))[1][0] == FAILS

    without = {studies.NO_CONTRAST.name: {"transfer": -9.0}, studies.NO_MATCHING.name: {"transfer": 9.0}}
    assert verdicts(scores_of(**without))[2] == [NOISE, HOLDS, FAILS]

    # of the 20 points over the untrained model, 16 have to remain
    for lost, verdict in ((-3.0, HOLDS), (-5.0, FAILS)):
        assert verdicts(scores_of(**{"10% of the clips": {"transfer": lost}}))[3] == [verdict, HOLDS]


def test_claims_without_their_runs_are_not_measured():
    scores = {name: values for name, values in scores_of().items() if name in BASES}
    assert {claim.verdict for claim in judge(Comparison(scores, BASES), MODEL, SimVTPScale())} == {MISSING}
