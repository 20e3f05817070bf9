"""The commands `fastvtp data check` and `fastvtp data show`: what is in a data set, and what a model will see of it."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvtp.cli.options import ListOptions, Quiet, add_commands
from fastvtp.cli.outputs import check_output_file
from fastvtp.cli.together import by_first
from fastvtp.errors import UserError, counted

DataSet = Annotated[
    str,
    typer.Argument(help="The data set: a list or a folder of videos, as data.train=... of a recipe takes it."),
]


@dataclass(frozen=True)
class SheetOptions:
    """Which clips are shown, and where."""

    output: Annotated[Path, typer.Option(help="The picture to write, a .png file.")] = Path("sheet.png")
    json_path: Annotated[
        Path | None, typer.Option("--json", help="File to write what was drawn for each clip to, as JSON.")
    ] = None
    clips: Annotated[int, typer.Option(min=1, help="How many clips to show, from the first of the epoch on.")] = 8
    epoch: Annotated[int, typer.Option(min=0, help="The epoch of the training that they are of.")] = 0
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the run. If it is not given, the recipe's, or 0 for a data set.")
    ] = None


@dataclass(frozen=True)
class ProbeOptions:
    """Which files are opened, and how."""

    probe: Annotated[
        str,
        typer.Option(
            metavar="N|all",
            help="How many of the videos to open and decode a clip of, evenly spread over the list, or all of them. "
            "Files of the same bytes are then looked for among all local ones.",
        ),
    ] = "0"
    file_seconds: Annotated[
        float,
        typer.Option(help="With --probe: a file that takes longer, twice in a row, counts as undecodable."),
    ] = 60.0
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="With --probe: files opened at a time, by default one for each core, up to 8."),
    ] = None


@by_first
def check(
    data: DataSet,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another data set that should share no video with it, such as the test split; repeatable."),
    ] = None,
    against_split: Annotated[
        list[str] | None,
        typer.Option(help="Another split of the same list that should share no video with it; repeatable."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer's file or folder, to count the tokens of captions, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON instead of tables.")] = False,
    quiet: Quiet = False,
    *,
    probing: ProbeOptions,
    lists: ListOptions,
) -> None:
    """Count what is in a data set and name what is missing, damaged or there twice, before a run meets it.

    The list is read as a run reads it: what becomes of missing videos, by --missing as by data.missing, is said. Ends
    with the exit code 1 where a line, a file or a span of it cannot be used.
    """
    from fastvtp.data.survey import read_any, survey
    from fastvtp.data.tokenizers import load_tokenizer

    number = _number_to_probe(probing.probe)
    if not probing.file_seconds > 0:
        raise UserError(f"--file-seconds {probing.file_seconds:g}: expected more than 0")
    words = None if tokenizer is None else load_tokenizer(tokenizer)
    others = replace(lists, split=None)
    named = [lists.of(data), *map(others.of, against or ())]
    named += [replace(lists, split=name).of(data) for name in against_split or ()]
    sets = [read_any(named[0], forgiving=True), *map(read_any, named[1:])]
    report = survey(
        sets[0],
        against=sets[1:],
        probe=number,
        file_seconds=probing.file_seconds,
        workers=probing.workers,
        tokenizer=words,
        progress=not quiet,
    )
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        from fastvtp.cli.survey_tables import tables

        console = Console()
        for table in tables(report):
            console.print(table)
    if report["unusable"]:
        raise typer.Exit(1)


def _number_to_probe(text: str) -> int:
    from fastvtp.data.survey import ALL

    if text != "all" and not text.isdecimal():
        raise UserError(f"--probe {text}: expected a number of videos, or all")
    return ALL if text == "all" else int(text)


@by_first
def show(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_DATASET",
            help="A recipe, whose data.train is shown at the size and by the reading of its clips, or a data set, by "
            "default as 16 frames of 224 pixels.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings in place of the recipe's, e.g. data.train=list.jsonl data.fps=8; of a data set those of its "
            "clips, e.g. num_frames=8 image_size=112 sampling=strided fps=4 crop_scale=0.5,1 rand_augment=rand-m7-n4.",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help='Which variant of the recipe: "fastvtp", which is recommended, or "official".')
    ] = "fastvtp",
    *,
    sheet: SheetOptions,
    lists: ListOptions,
) -> None:
    """Draw what a model will see of a data set: its training clips, after crop, mirroring and augmentation.

    A row of the picture is a clip, with its caption below. The clips are those of a run of the same seed, in its order,
    and --json says what was drawn for each of them: its span, frames, times, window, mirroring and caption.
    """
    from fastvtp.data.draws import draws_of
    from fastvtp.visualization.contact_sheet import can_be_written, contact_sheet

    check_output_file(sheet.output)
    check_output_file(sheet.json_path, "--json")
    if not can_be_written(sheet.output):
        raise UserError(f"--output {sheet.output}: expected the name of a picture, such as sheet.png")
    shown = _shown(source, overrides or [], preset, lists)
    seed = shown["seed"] if sheet.seed is None else sheet.seed
    draws = list(
        draws_of(shown["records"], shown["shape"], shown["reading"], seed=seed, epoch=sheet.epoch, clips=sheet.clips)
    )
    size = "whole pictures" if shown["shape"].size is None else "{} x {} pixels".format(*shown["shape"].size)
    heading = f"{source}: epoch {sheet.epoch}, seed {seed}, {shown['shape'].num_frames} frames of {size}"
    sheet.output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([_sheet_clip(draw) for draw in draws], heading).save(sheet.output)
    if sheet.json_path is not None:
        sheet.json_path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(draw.said, ensure_ascii=False)}" for draw in draws)
        sheet.json_path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    also = "" if sheet.json_path is None else f", the draws in {sheet.json_path}"
    typer.echo(f"{counted(len(draws), 'clip')} of {counted(len(shown['records']), 'record')} in {sheet.output}{also}")


def _shown(source: str, overrides: list[str], preset: str, lists: ListOptions) -> dict[str, Any]:
    """Return the records, the shape, the reading and the seed of what is to be shown."""
    from fastvtp.systems.recipes import get_recipe, recipes

    if source not in recipes():
        if re.fullmatch(r"\w+", source) and not Path(source).exists():
            get_recipe(source)  # raises, with the nearest recipe
        if preset != "fastvtp":
            raise UserError(f"--preset {preset} is for recipes, {source} is a data set")
        return _of_data_set(lists.of(source), overrides)

    from fastvtp.data.reading import ClipShape
    from fastvtp.training.config import apply_overrides
    from fastvtp.training.task import build_task

    if lists != ListOptions():
        raise UserError("--format, --split, --videos, --missing and --column are for data sets; give data.format=...")
    config = apply_overrides(get_recipe(source, preset), overrides)
    if config.data.features is not None:
        raise UserError(
            f"data.features={config.data.features}: the run reads features and no clips; data.features=none"
        )
    return {
        "records": build_task(config).records,
        "shape": ClipShape(config.model.num_frames, config.model.image_size),
        "reading": config.data.reading,
        "seed": config.seed,
    }


def _of_data_set(listed: Any, overrides: list[str]) -> dict[str, Any]:
    from fastvtp.data.reading import ClipReading, ClipShape, one_spacing
    from fastvtp.data.sampling import ClipAugmentation
    from fastvtp.data.survey import read_any
    from fastvtp.settings import split_settings

    given = [text.removeprefix("data.").removeprefix("augmentation.") for text in overrides]
    kinds = (ClipShape, ClipReading, ClipAugmentation)
    shape, reading, augmentation = split_settings(given, *kinds, without=("augmentation",))
    settings = one_spacing(reading) | {"augmentation": ClipAugmentation(**augmentation)}
    return {
        "records": read_any(listed).records,
        "shape": ClipShape(**{"num_frames": 16, **shape}),
        "reading": replace(ClipReading(), **settings),
        "seed": 0,
    }


def _sheet_clip(draw: Any) -> Any:
    from fastvtp.visualization.contact_sheet import SheetClip

    said = draw.said
    window = " ".join(f"{side:.3f}" for side in said["window"])
    marks = [str(frame) for frame in said["frames"]]
    if said["seconds"] is not None:
        marks = [f"{time:.2f} s" for time in said["seconds"]]
    details = [f"frames {said['frames'][0]} to {said['frames'][-1]}", f"window {window}"]
    details += ["mirrored"] if said["flip"] else []
    details += [f"{name} {argument:.2g}" for name, argument in said.get("operations", ())]
    details += [f"in place of {len(said['replaces'])} undecodable"] if said["replaces"] else []
    return SheetClip(draw.frames, marks, draw.record.id, ", ".join(details), said["caption"])


def register(app: typer.Typer) -> None:
    """Add the commands to the command line, as `data ...`."""
    group = typer.Typer(help="Look at a data set before it is trained on.", no_args_is_help=True)
    add_commands(group, "Data", check, show)
    app.add_typer(group, name="data", rich_help_panel="Data")
