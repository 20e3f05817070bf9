"""What an ablation found, in words and pictures: tables, claims and the panels of its plot."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from fastvtp.ablation import studies
from fastvtp.ablation.claims import Claim, Comparison, Part, judge
from fastvtp.ablation.studies import Scale, base_runs, mask_run, share_run
from fastvtp.models.simvtp_config import SimVTPConfig
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


class Report:
    """Reads the state of an ablation, see `fastvtp.ablation.runner`.

    state: "commands", "about", "chance" and "runs", run -> {"scores", "train_seconds", ...} or {"error"}.
    """

    def __init__(self, state: Mapping[str, Any], model: SimVTPConfig, scale: Scale):
        self.state, self.model, self.scale = state, model, scale
        self.scores = {name: run["scores"] for name, run in state["runs"].items() if "scores" in run}
        self.compare = Comparison(self.scores, [run.name for run in base_runs(scale)])

    def claims(self) -> list[Claim]:
        return judge(self.scores, self.model, self.scale)

    def markdown(self) -> str:
        about = self.state["about"]
        lines = [
            "# Ablation of SimVTP",
            "",
            *(f"    {command}" for command in self.state["commands"]),
            "",
            "; ".join(f"{name} {value}" for name, value in about.items()) + ".",
            "",
            "## The paper's claims at this scale",
            "",
            *self._claims(),
            "## How it was measured",
            "",
            _ABOUT_SCORES.format(
                num_test=self.scale.num_test, probe_clips=self.scale.probe_clips, seeds=self.scale.seeds
            ),
        ]
        for title, table in (
            ("Mask ratios", self._mask_tables()),
            ("Objectives", self._table(self._objectives(), TRANSFER_SCORES)),
            ("Reconstruction with and without the other modality", self._modalities()),
            ("Data, at equal steps", self._table(self._shares(), TRANSFER_SCORES)),
            ("All runs", self._all_runs()),
        ):
            if table:
                lines += [f"## {title}", "", *table, ""]
        return "\n".join(lines).rstrip() + "\n"

    def panels(self) -> list[HeatMap | Bars]:
        """What there is to draw so far."""
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
        panels += self._bars("objectives: transfer (%)", self._objectives(), "transfer")
        panels += self._modality_bars("pixel_loss", "held-out pixel loss, trained on")
        panels += self._modality_bars("word_loss", "held-out word loss, trained on")
        panels += self._bars("data: transfer (%)", self._shares(), "transfer")
        panels += self._bars("data: zero-shot R@1, both ways (%)", self._shares(), "retrieval/R1")
        return panels

    # --- Rows

    def _objectives(self) -> list[str]:
        variants = (studies.NO_CONTRAST, studies.NO_MATCHING, studies.RECONSTRUCTION, studies.CONTRAST_ONLY)
        return self._with_bounds([run.name for run in variants])

    def _shares(self) -> list[str]:
        return self._with_bounds([share_run(share).name for share in sorted(self.scale.shares)])

    def _with_bounds(self, runs: Iterable[str]) -> list[str]:
        """The base run, those of `runs` that are finished, and the untrained model; nothing where none is."""
        found = [name for name in runs if name in self.scores]
        return ["base", *found, *(name for name in (studies.UNTRAINED.name,) if name in self.scores)] if found else []

    def _mean(self, run: str, score: str) -> float | None:
        values = self.compare.values(run, score)
        return fmean(values) if values else None

    def _grid(self, score: str) -> list[list[float | None]]:
        """Mean score by text ratio, then video ratio; the base run alone makes no grid."""
        names = [
            [mask_run(self.model, text, video).name for video in self.scale.video_ratios]
            for text in self.scale.text_ratios
        ]
        if not any(name != "base" and name in self.scores for row in names for name in row):
            return []
        return [[self._mean(name, score) for name in row] for row in names]

    # --- Tables

    def _claims(self) -> Iterable[str]:
        for number, claim in enumerate(self.claims(), start=1):
            yield from (f"{number}. **{claim.claim}** → **{claim.verdict}**", "", f"   Rule: {claim.rule}", "")
            rows = [
                [part.what, _number(part.margin, sign=True), _number(part.noise), part.verdict] for part in claim.parts
            ]
            yield from ("   " + line for line in _table(["comparison", "margin", "noise (95 %)", "verdict"], rows))
            yield ""

    def _table(self, runs: Sequence[str], scores: Sequence[str]) -> list[str]:
        if not runs:
            return []
        rows = [[run, *(self._cell(run, score) for score in scores)] for run in runs]
        if any(score in self.state["chance"] for score in scores):
            rows.append(["knowing nothing", *(_number(self.state["chance"].get(score)) for score in scores)])
        return _table(["run", *scores], rows)

    def _cell(self, run: str, score: str) -> str:
        spread = self.compare.spread(score) if run == "base" else None
        return _number(self._mean(run, score)) + ("" if spread is None else f" ± {_number(spread)}")

    def _mask_tables(self) -> list[str]:
        lines: list[str] = []
        for score in ("transfer", "retrieval/R1", "pixel_loss/given", "word_loss/given"):
            grid = self._grid(score)
            if not grid:
                return []
            header = [f"{score}: text \\ video", *(f"{ratio:g}" for ratio in self.scale.video_ratios)]
            rows = [[f"{ratio:g}", *map(_number, row)] for ratio, row in zip(self.scale.text_ratios, grid, strict=True)]
            lines += [*_table(header, rows), ""]
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
        return _table(["", *runs], [[label, *(self._cell(run, score) for run in runs)] for label, score in pairs])

    def _all_runs(self) -> list[str]:
        rows = []
        for name, run in self.state["runs"].items():
            found = [f"{run['steps']}", f"{run['train_seconds']:.0f}"] if "scores" in run else ["", run["error"]]
            scores = run.get("scores", {})
            rows.append([name, *found, *(_number(scores.get(score)) for score in ("transfer", "t2v/R1", "v2t/R1"))])
        return _table(["run", "steps", "training (s)", "transfer", "t2v/R1", "v2t/R1"], rows)

    # --- Panels

    def _bars(self, title: str, runs: Sequence[str], score: str) -> list[Bars]:
        runs = [run for run in runs if self._mean(run, score) is not None]
        if len(runs) < 2:
            return []
        spread = self.compare.spread(score)
        return [
            Bars(
                title, runs, [self._mean(run, score) or 0.0 for run in runs],
                [spread if run == "base" else None for run in runs], reference=self._mean("base", score), noise=spread,
            )
        ]  # fmt: skip

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
            if (value := self._mean(name, f"{kind}/{world}")) is not None
        ]  # fmt: skip
        if not found:
            return []
        spread, reference = (
            self.compare.spread(f"{kind}/given"),
            self._mean(studies.RECONSTRUCTION.name, f"{kind}/given"),
        )
        return [Bars(title, *zip(*found, strict=True), reference=reference, noise=spread, from_zero=False)]


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:+.3g}" if sign else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def summary(claims: Sequence[Claim]) -> list[str]:
    """A line for each claim, for the terminal."""
    return [f"{claim.verdict:>15}  {claim.claim}" for claim in claims]


def claim_record(claim: Claim) -> dict[str, Any]:
    """A claim as it stands in ablation.json."""

    def record(part: Part) -> dict[str, Any]:
        return {"what": part.what, "margin": part.margin, "noise": part.noise, "verdict": part.verdict}

    return {
        "claim": claim.claim,
        "rule": claim.rule,
        "verdict": claim.verdict,
        "comparisons": [record(part) for part in claim.parts],
    }
