"""What an ablation of ALPRO found, and the paper's claims about its two new objectives (arXiv:2112.09583)."""

from fastvtp.ablation.alpro_studies import NEITHER, NO_CONTRAST, NO_ENTITIES
from fastvtp.ablation.claims import Claim
from fastvtp.ablation.report import Report, Section
from fastvtp.visualization.ablation import Bars, HeatMap

_RETRIEVAL = ("retrieval/R1", "t2v/R1", "t2v/R5", "v2t/R1", "v2t/R5", "contrast/R1")
_FEATURES = ("transfer", "probe/shape", "probe/colour", "probe/texture", "probe/background colour", "probe/motion")
_OBJECTIVES = (
    "matching_accuracy", "word_loss", "word_accuracy", "entity_loss", "entity_hit", "entity_hit/prompter"
)  # fmt: skip
_ABOUT_SCORES = """\
All runs have the same steps, batch size, tokenizer and seed (the repetitions of the base run: the next seeds), and \
start from the same prompter, trained by contrast alone on the same clips, whose towers stand in for the paper's \
ImageNet ViT and BERT; *untrained* is that start. All are scored on the same {num_test} clips that none trained on.

- **retrieval/R1**: zero-shot R@1 in percent, the mean of both directions, every pair by the matching head; t2v, v2t: \
each direction. **contrast/R1**: the same by the contrast of the towers.
- **transfer**: percent of the attributes of a clip (shape, colour, texture, size, motion; the background's colour, \
pattern and behaviour) that ridge regression reads from the mean patch of the video tower, frozen, fitted on \
{probe_clips} training clips; the mean over the eight. **probe/...**: some of them.
- **matching_accuracy**: of one right and two evenly drawn wrong pairs a clip; who always says no has 66.7.
- **word_loss, word_accuracy**: of masked words, the whole clip given. **entity_loss, entity_hit**: of crops; a hit is \
a crop whose likeliest entity is somewhere in the clip, by the model's head and by the prompter that labels crops.
- **±**: standard deviation of the base run over its {seeds} seeds. It stands for the noise of every run; it does not \
know the noise of having only {num_test} test clips.
"""


class AlproReport(Report):
    """All objectives, without prompted entities, without the contrast, and without both."""

    system, shown, about_scores = "ALPRO", ("retrieval/R1", "contrast/R1", "transfer"), _ABOUT_SCORES

    def claims(self) -> list[Claim]:
        retrieval, transfer = "retrieval/R1", "transfer"
        return [
            Claim(
                "The contrast before fusion (VTC) improves retrieval.",
                "Zero-shot R@1 by the matching head is higher with the contrast than without, whether entities are "
                "prompted or not.",
                [
                    self.compare.part("with PEM: VTC against none", retrieval, {"base": 1, NO_CONTRAST.name: -1}),
                    self.compare.part(
                        "without PEM: VTC against none", retrieval, {NO_ENTITIES.name: 1, NEITHER.name: -1}
                    ),
                ],
            ),
            Claim(
                "Prompted entities (PEM) improve retrieval and what the video features know.",
                "All objectives beat all without PEM in zero-shot R@1 by the matching head, and in transfer.",
                [
                    self.compare.part(f"with against without ({score})", score, {"base": 1, NO_ENTITIES.name: -1})
                    for score in (retrieval, transfer)
                ],
            ),
        ]

    def sections(self) -> list[Section]:
        return [
            ("Retrieval", self.table(self._runs(), _RETRIEVAL)),
            ("What the video features know", self.table(self._runs(), _FEATURES)),
            ("The objectives on held-out clips", self.table(self._runs(), _OBJECTIVES)),
        ]

    def panels(self) -> list[HeatMap | Bars]:
        runs = self._runs()
        return [
            *self.bars("zero-shot R@1 by matching, both ways (%)", runs, "retrieval/R1"),
            *self.bars("zero-shot R@1 by contrast, both ways (%)", runs, "contrast/R1"),
            *self.bars("transfer (%)", runs, "transfer"),
            *self.bars("matching accuracy (%)", runs, "matching_accuracy"),
            *self.bars("masked words found (%)", runs, "word_accuracy"),
            *self.bars("crops whose likeliest entity is right (%)", runs, "entity_hit"),
        ]

    def _runs(self) -> list[str]:
        return self.with_bounds([run.name for run in (NO_ENTITIES, NO_CONTRAST, NEITHER)])
