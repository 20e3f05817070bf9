"""The commands that train: demo, pretraining, fine-tuning, ablations; and the list that ALPRO's pretraining needs."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastvtp.cli.options import ListOptions, Quiet, add_commands
from fastvtp.cli.outputs import check_output_file, check_output_folder
from fastvtp.cli.together import alike, by_first, say, together
from fastvtp.errors import UserError, counted, few

if TYPE_CHECKING:
    from fastvtp.training.config import TrainConfig

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings of the run in place of the recipe's, e.g. batch_size=64 data.flip=false model.depth=6.",
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        help='Which variant of the objectives: "fastvtp", which is recommended, or "official", the released ones.'
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from the newest checkpoint in output_dir; where there is none the run starts anew, which is said. "
        "Other settings are given as before; a run may be given more steps so: steps=NUMBER.",
    ),
]


_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count: what is to follow on success does not follow."""


def demo(
    overrides: Overrides = None,
    preset: Preset = "fastvtp",
    compare_presets: Annotated[
        bool,
        typer.Option("--compare-presets", help="Train the other preset afterwards, for as long, on the same clips."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Make captioned videos, pretrain SimVTP on them, score it and draw pictures, in minutes on two CPU cores.

    A demo that was stopped goes on where it was.
    """
    from fastvtp import runs
    from fastvtp.data.synthetic import SyntheticConfig
    from fastvtp.evaluation.report import score_lines
    from fastvtp.systems.recipes import DEMO_RECIPE, get_recipe
    from fastvtp.training.config import apply_overrides

    if any(override.startswith(("data.train=", "data.test=")) for override in overrides or []):
        raise UserError("the demo makes its own videos; for yours: fastvtp pretrain RECIPE data.train=...")
    config = apply_overrides(get_recipe(DEMO_RECIPE, preset), overrides or [])
    report = runs.demo(config, SyntheticConfig(seed=config.seed), progress_bar=not quiet)
    _end_if_stopped(report, config)
    done = f"report, pictures and gallery are in {config.output_dir}"
    say(*score_lines(report), done)
    if compare_presets:
        from fastvtp.ablation import presets
        from fastvtp.architecture import PRESETS

        other = next(name for name in PRESETS if name != preset)
        other_config = apply_overrides(get_recipe(DEMO_RECIPE, other), overrides or [])
        found = presets.compare_presets(config, other_config, names=(preset, other), progress_bar=not quiet)
        say(*presets.preset_table(found))


def pretrain(
    recipe: Annotated[
        str,
        typer.Argument(help="Name of a recipe of pretraining, such as simvtp_tiny: see `fastvtp recipes`."),
    ],
    overrides: Overrides = None,
    resume: Resume = False,
    preset: Preset = "fastvtp",
    quiet: Quiet = False,
) -> None:
    """Pretrain a model by a recipe, on the videos of data.train, and score it on those of data.test if they are given.

    Checkpoints, the model, curves and report.json are written to output_dir.
    """
    _train("pretrain", recipe, overrides, resume=resume, preset=preset, quiet=quiet)


def finetune(
    recipe: Annotated[
        str,
        typer.Argument(help="Name of a recipe of fine-tuning, such as retrieval_finetune_tiny: see `fastvtp recipes`."),
    ],
    overrides: Overrides = None,
    resume: Resume = False,
    preset: Preset = "fastvtp",
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model by a recipe, from the weights of init=PATH, and score it on data.test if that is given.

    PATH is a run, a model folder or a released checkpoint. Checkpoints, the model, curves and report.json are written
    to output_dir.
    """
    _train("finetune", recipe, overrides, resume=resume, preset=preset, quiet=quiet)


def _train(command: str, recipe: str, overrides: list[str] | None, *, resume: bool, preset: str, quiet: bool) -> None:
    from fastvtp import processes, runs
    from fastvtp.evaluation.report import score_lines
    from fastvtp.systems.recipes import recipe_config
    from fastvtp.training.resuming import say_where_none

    config = recipe_config(recipe, preset, overrides or [], command=command, resume=resume)
    if resume and processes.launched()[0] == 0:
        say_where_none(Path(config.output_dir))
    report = runs.pretrain(config, resume=resume, progress_bar=not quiet)
    _end_if_stopped(report, config, with_option=" with --resume")
    bad_files = counted(report["bad_files"]["count"], "undecodable file")
    done = f"{counted(report['steps'], 'step')}, {bad_files}; see {config.output_dir}/report.json"
    say(*score_lines(report), done)


def _end_if_stopped(report: dict[str, Any], config: "TrainConfig", with_option: str = "") -> None:
    """End the command where a signal ended its run, with the exit code that the settings say, or 130 after Ctrl-C."""
    from fastvtp import processes
    from fastvtp.model_folder import list_checkpoints

    if (signal := report.get("stopped_by")) is None:
        return
    interrupted = signal == "SIGINT"
    saved = list_checkpoints(Path(config.output_dir))
    where = f"{saved[-1]} is its checkpoint" if saved else "it has no checkpoint yet"
    who = "Ctrl-C" if interrupted else signal
    say(f"stopped by {who} after step {report['steps']}; {where}: the same command{with_option} goes on")
    alone = processes.launched()[1] == 1  # torchrun takes another code of one of its processes for a failure
    raise typer.Exit(_INTERRUPTED if interrupted and alone else config.parallel.stop_exit_code)


def ablate(
    system: Annotated[str, typer.Argument(help="The system to take apart: simvtp, alpro or videoprism.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the videos, the runs, tables and plot. If it is not given, runs/ablation_SYSTEM, or "
            "runs/ablation_SYSTEM_quick with --quick."
        ),
    ] = None,
    study: Annotated[
        str,
        typer.Option(
            help='Which study to run: "objectives", of every system; "masks", "modalities" or "data", of simvtp; or '
            '"all" of the system\'s.'
        ),
    ] = "all",
    quick: Annotated[
        bool, typer.Option("--quick", help="Try the whole command in about a minute; the figures then mean nothing.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the weights of all runs, which are otherwise removed once scored.")
    ] = False,
    preset: Preset = "fastvtp",
    quiet: Quiet = False,
) -> None:
    """Train a system with one setting changed at a time, on synthetic clips, and report which settings matter.

    The report has tables of scores, a plot, and what they say of the paper's claims. An ablation that was stopped goes
    on where it was: runs that are done are not repeated.
    """
    from fastvtp.ablation.report import summary
    from fastvtp.ablation.runner import ablate as run_ablation
    from fastvtp.systems.recipes import find_study

    folder = output or Path(f"runs/ablation_{system}" + "_quick" * quick)

    def prepare() -> "tuple[Any, TrainConfig]":
        check_output_folder(folder)
        known = find_study(system, overrides or [])
        return known, known.base_config(preset, [*(overrides or []), f"output_dir={folder}"], quick=quick)

    known, config = alike(prepare)
    command = shlex.join(["fastvtp", *sys.argv[1:]])
    scale = known.quick if quick else known.scale
    with together(config.device):
        report = run_ablation(known, config, scale, study=study, keep=keep, progress_bar=not quiet, command=command)
        say(*summary(report.claims()), f"tables, plot and scores are in {folder}")


@by_first
def entities(
    captions: Annotated[
        str,
        typer.Argument(
            help='The captioned videos: a .jsonl file of {"video": path, "caption": text} lines, or a folder with a '
            ".txt file of captions beside each video."
        ),
    ],
    size: Annotated[int, typer.Option(min=1, help="How many nouns to list, at most.")] = 1000,
    output: Annotated[Path, typer.Option(help="Text file to write, one noun a line.")] = Path("entities.txt"),
    words: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the words that count as nouns, one a line. If it is not given, NLTK's tagger decides."
        ),
    ] = None,
    *,
    lists: ListOptions,
) -> None:
    """List the most frequent nouns of captions: the entities that ALPRO's pretraining looks for in clips."""
    from fastvtp.data.annotations import load_annotations
    from fastvtp.data.entities import build_entities, read_entities, write_entities

    check_output_file(output)
    texts = [caption for record in load_annotations(lists.of(captions)) for caption in record.captions]
    found = build_entities(texts, size, words=None if words is None else read_entities(words))
    write_entities(output, found)
    number = "1 entity" if len(found) == 1 else f"{len(found)} entities"
    typer.echo(f"{number} of {counted(len(texts), 'caption')} in {output}: {few(found, 10)}")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add_commands(app, "Training", demo, pretrain, finetune, ablate, entities)
