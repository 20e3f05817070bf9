"""The four claims of the SimVTP abstract (arXiv:2212.03490)."""

from collections.abc import Callable, Sequence
from statistics import fmean

from fastvtp.ablation import simvtp_studies as studies
from fastvtp.ablation.claims import Claim, Comparison, Part
from fastvtp.ablation.simvtp_studies import SimVTPScale, mask_run, share_run
from fastvtp.ablation.studies import UNTRAINED
from fastvtp.models.simvtp_config import SimVTPConfig

# R@1 on MSR-VTT of SimVTP pretrained on 10 % of WebVid-2M over that on all of it: 43.8 / 53.6
KEPT_WITH_LITTLE_DATA = 0.8


def judge(compare: Comparison, model: SimVTPConfig, scale: SimVTPScale) -> list[Claim]:
    """The four claims on the scores of the finished runs; a comparison whose runs are missing is not measured."""
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


def _high_mask_ratios(compare: Comparison, model: SimVTPConfig, scale: SimVTPScale) -> Claim:
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


def _data_efficiency(compare: Comparison, scale: SimVTPScale) -> Claim:
    few, kept = share_run(min(scale.shares)), KEPT_WITH_LITTLE_DATA
    # (few - untrained) - kept * (base - untrained)
    weights = {few.name: 1, "base": -kept, UNTRAINED.name: kept - 1}
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
