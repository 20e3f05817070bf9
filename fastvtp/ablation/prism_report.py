"""What an ablation of VideoPrism found, and the paper's claims about its second stage (arXiv:2402.13217, figure 4)."""

from fastvtp.ablation.claims import Claim
from fastvtp.ablation.prism_scoring import SEEDS
from fastvtp.ablation.prism_studies import LONGER, NO_GLOBAL, NO_SHUFFLE, STAGE1
from fastvtp.ablation.report import Report, Section
from fastvtp.visualization.ablation import Bars, HeatMap

_MOTION = ("motion", "motion/seeds", "direction", "order")
_LOOKS = ("transfer", "probe/shape", "probe/colour", "probe/texture", "probe/background colour", "probe/motion")
_ABOUT_SCORES = f"""\
All runs of the second stage have the same steps, batch size and seed (the repetitions of the base run: the next \
seeds) and the same teacher, *stage 1*, a contrast of the same clips with their captions; they begin as that teacher. \
*stage 1 for longer* goes on with the contrast, its rates warmed up anew, for as many steps as cost what the second \
stage costs, counted in multiplications of the blocks. All are scored on the same {{num_test}} clips that none trained \
on.

- **motion**: percent of the clips of which an attentive probe on the frozen tokens, fitted on {{probe_clips}} \
training clips, says what the object that acts first does (left, right, up, down, grows, shrinks, appears, vanishes, \
clockwise, anticlockwise); the mean of {SEEDS} probes, **motion/seeds** their standard deviation. Frames in any order \
tell half of it at best. **direction**: the clips with one object; **order**: those with two, of which one acts after \
the other.
- **transfer**: percent of the attributes of a clip (shape, colour, texture, size, motion; the background's colour, \
pattern and behaviour) that ridge regression reads from the mean token; the mean over the eight. **probe/...**: some.
- **±**: standard deviation of the base run over its {{seeds}} seeds. It stands for the noise of every run; it does \
not know the noise of having only {{num_test}} test clips.
"""


class PrismReport(Report):
    """The second stage, without shuffling, without global distillation; the first stage, and that for longer."""

    system, shown, about_scores = "VideoPrism", ("motion", "transfer"), _ABOUT_SCORES

    def claims(self) -> list[Claim]:
        def against(run: str, score: str = "motion"):
            return self.compare.part(f"the second stage against {run} ({score})", score, {"base": 1, run: -1})

        return [
            Claim(
                "The second stage adds motion to the features of the first.",
                "A probe of motion finds more after the second stage than before it, and than after as much more work "
                "in the first stage.",
                [against(STAGE1.name), against(LONGER.name)],
            ),
            Claim(
                "Shuffling the decoder's tokens helps.",
                "Motion, and what a linear read-out knows, are higher with shuffling than without.",
                [against(NO_SHUFFLE.name), against(NO_SHUFFLE.name, "transfer")],
            ),
            Claim(
                "Global distillation keeps what the first stage knew.",
                "What a linear read-out knows is higher with global distillation than without.",
                [against(NO_GLOBAL.name, "transfer")],
            ),
        ]

    def sections(self) -> list[Section]:
        return [("Motion", self.table(self._runs(), _MOTION)), ("Looks", self.table(self._runs(), _LOOKS))]

    def panels(self) -> list[HeatMap | Bars]:
        return [
            *self.bars("motion, attentive probe (%)", self._runs(), "motion"),
            *self.bars("direction, one object (%)", self._runs(), "direction"),
            *self.bars("order of two events (%)", self._runs(), "order"),
            *self.bars("all attributes, linear read-out (%)", self._runs(), "transfer"),
        ]

    def _runs(self) -> list[str]:
        return self.with_bounds([run.name for run in (STAGE1, LONGER, NO_GLOBAL, NO_SHUFFLE)])
