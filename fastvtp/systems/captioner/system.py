"""The captioner as the engines know it: a resampler between a frozen video model and a frozen language model."""

from fastvtp.architecture import Architecture, Runs, System
from fastvtp.systems.captioner.model import VideoCaptioner, VideoCaptionerConfig


def _runs() -> Runs:
    from fastvtp.systems.captioner import recipes, runs, tasks

    return Runs(tasks=tasks.TASKS, recipes=recipes.RECIPES, scorers={"captions": runs.score_captioner})


SYSTEM = System(
    name="captioner",
    architectures=(
        Architecture(
            name="video_captioner",
            config=VideoCaptionerConfig,
            model=VideoCaptioner,
            reads_text=False,
            scored_by="captions",
        ),
    ),
    runs=_runs,
)
