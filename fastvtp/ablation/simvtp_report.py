"""What an ablation of SimVTP found."""

from fastvtp.ablation import simvtp_studies as studies
from fastvtp.ablation.claims import Claim
from fastvtp.ablation.report import Report, Section, number, table
from fastvtp.ablation.simvtp_claims import judge
from fastvtp.ablation.simvtp_studies import mask_run, share_run
from fastvtp.visualization.ablation import Bars, HeatMap

TRANSFER_SCORES = ("transfer", "probe/motion", "t2v/R1", "t2v/R5", "v2t/R1", "v2t/R5")
WORLDS = ("given", "withheld", "foreign")
_ABOUT_SCORES = """\
All runs have the same steps, batch size, tokenizer and seed (the repetitions of the base run: the next seeds), and so \
see equally many clips; losses of weight 0 are computed all the same, so wall time says little about them. All are \
scored on the same {num_test} clips that none trained on, with the same masks (those of the base run's ratios).

- **transfer**: percent of the attributes of a clip (shape, colour, texture, size, motion; the background's colour, \
pattern and behaviour) that ridge regression reads from the mean encoded token of the whole clip, frozen, fitted on \
{probe_clips} training clips; the mean over the eight. No text takes part, so runs without a contrast are compared too.
- **t2v, v2t**: zero-shot retrieval in percent, text to video and video to text; only of runs with a contrast.
- **pixels, words**: loss of the hidden tubelets and words, with the other modality *given*, *withheld* (not in the \
sequence, which training never showed where pixels or words are scored) or *foreign* (another clip's).
- **±**: standard deviation of the base run over its {seeds} seeds. It stands for the noise of every run; it does not \
know the noise of having only {num_test} test clips.
"""


class SimVTPReport(Report):
    """Grids of mask ratios, objectives, reconstruction with and without the other modality, shares of the data."""

    system, shown, about_scores = "SimVTP", ("transfer", "t2v/R1", "v2t/R1"), _ABOUT_SCORES

    def claims(self) -> list[Claim]:
        return judge(self.compare, self.model, self.scale)

    def sections(self) -> list[Section]:
        return [
            ("Mask ratios", self._mask_tables()),
            ("Objectives", self.table(self._objectives(), TRANSFER_SCORES)),
            ("Reconstruction with and without the other modality", self._modalities()),
            ("Data, at equal steps", self.table(self._shares(), TRANSFER_SCORES)),
        ]

    def panels(self) -> list[HeatMap | Bars]:
        panels: list[HeatMap | Bars] = []
        grid = self._grid("transfer")
        if any(value is not None for row in grid for value in row):
            for title, score, up in (
                ("transfer (%)", "transfer", True),
                ("zero-shot R@1, both ways (%)", "retrieval/R1", True),
                ("held-out word loss", "word_loss/given", False),
            ):
                panels.append(
                    HeatMap(
                        title, [f"{ratio:g}" for ratio in self.scale.text_ratios],
                        [f"{ratio:g}" for ratio in self.scale.video_ratios], self._grid(score),
                        row_label="text mask ratio", column_label="video mask ratio", higher_is_better=up,
                    )
                )  # fmt: skip
        panels += self.bars("objectives: transfer (%)", self._objectives(), "transfer")
        panels += self._modality_bars("pixel_loss", "held-out pixel loss, trained on")
        panels += self._modality_bars("word_loss", "held-out word loss, trained on")
        panels += self.bars("data: transfer (%)", self._shares(), "transfer")
        panels += self.bars("data: zero-shot R@1, both ways (%)", self._shares(), "retrieval/R1")
        return panels

    # --- Rows

    def _objectives(self) -> list[str]:
        variants = (
            studies.NO_CONTRAST,
            studies.NO_MATCHING,
            studies.RECONSTRUCTION,
            studies.CONTRAST_ONLY,
        )
        return self.with_bounds([run.name for run in variants])

    def _shares(self) -> list[str]:
        return self.with_bounds([share_run(share).name for share in sorted(self.scale.shares)])

    def _grid(self, score: str) -> list[list[float | None]]:
        """Mean score by text ratio, then video ratio; the base run alone makes no grid."""
        names = [
            [mask_run(self.model, text, video).name for video in self.scale.video_ratios]
            for text in self.scale.text_ratios
        ]
        if not any(name != "base" and name in self.scores for row in names for name in row):
            return []
        return [[self.mean(name, score) for name in row] for row in names]

    # --- Tables

    def _mask_tables(self) -> list[str]:
        lines: list[str] = []
        for score in ("transfer", "retrieval/R1", "pixel_loss/given", "word_loss/given"):
            grid = self._grid(score)
            if not grid:
                return []
            header = [f"{score}: text \\ video", *(f"{ratio:g}" for ratio in self.scale.video_ratios)]
            rows = [[f"{ratio:g}", *map(number, row)] for ratio, row in zip(self.scale.text_ratios, grid, strict=True)]
            lines += [*table(header, rows), ""]
        return lines[:-1]

    def _modalities(self) -> list[str]:
        names = [run.name for run in (studies.RECONSTRUCTION, studies.SHUFFLED, studies.VIDEO_ONLY)]
        if not any(name in self.scores for name in names[1:]):
            return []
        runs = ["base", *(name for name in names if name in self.scores)]
        pairs = [
            (f"{kind}, {world}", f"{kind}/{world}")
            for kind in ("pixel_loss", "word_loss", "word_accuracy")
            for world in WORLDS
        ]
        return table(["", *runs], [[label, *(self.cell(run, score) for run in runs)] for label, score in pairs])

    # --- Panels

    def _modality_bars(self, kind: str, title: str) -> list[Bars]:
        """Every run's loss with each input that it has, and as the noise that of the base run."""
        trained = {
            studies.RECONSTRUCTION.name: "pairs",
            studies.SHUFFLED.name: "shuffled pairs",
            studies.VIDEO_ONLY.name: "video alone",
        }
        if not any(name in self.scores for name in list(trained)[1:]):
            return []
        found = [
            (f"{label}: other {world}", value, None)
            for name, label in trained.items() for world in WORLDS
            if (value := self.mean(name, f"{kind}/{world}")) is not None
        ]  # fmt: skip
        if not found:
            return []
        spread, reference = (
            self.compare.spread(f"{kind}/given"),
            self.mean(studies.RECONSTRUCTION.name, f"{kind}/given"),
        )
        return [Bars(title, *zip(*found, strict=True), reference=reference, noise=spread, from_zero=False)]
