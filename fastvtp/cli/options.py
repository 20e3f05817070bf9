"""Options that several commands share, each declared once, and how a command takes many of them by few parameters.

An option of the command line is an annotated type: its help, its bounds, its metavar. Options that belong together are
the fields of a dataclass, a bundle, and a command has one parameter for the whole bundle:

    def classify(
        model: Model,
        *,
        reading: Annotated[ReadingOptions, Only("views", "framing")],
        run: RunOptions = SMALL_RUN,
    ) -> None: ...

`add_commands` shows typer the options themselves (`--views`, `--framing`, `--num-workers`, ...) in place of the bundles
and calls the function with the bundles built. `Only` names the options of a bundle that the command has; the other
fields keep their defaults. The defaults are those of the fields, or, where the parameter has a default, those of that
object.

Nothing here imports torch, so that `fastvtp --help` is quick.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from fastvtp.errors import UserError

# --- Options and arguments

Model = Annotated[
    str,
    typer.Argument(
        help="The model: a folder of a training run, one of its checkpoints, or a model folder as `fastvtp convert` "
        "writes it."
    ),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        help="File with the names of the classes, one a line in the order of their numbers; or a .json file with a "
        "list of names, or with an object {name: number}."
    ),
]
VIEWS = typer.Option(
    metavar="SxC",
    help="The views that are read of each clip, whose scores are averaged: S segments in time by C crops of each, "
    "e.g. 4x3.",
)
Sampling = Annotated[
    str,
    typer.Option(
        help='How frames are chosen. "uniform": the middles of equal parts of the video. "starts": the first frames of '
        'these parts, as in the demos of VideoPrism. "strided": a segment of frames that stand --frame-stride apart. '
        '"whole_steps": from the first frame on in whole steps, as ALPRO is evaluated.'
    ),
]
FrameStride = Annotated[
    int | None,
    typer.Option(
        min=1,
        help='Distance between the frames of a segment; used with "--sampling strided" alone. If neither it nor --fps '
        "is given, 4.",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        help="Frames a second, in place of --frame-stride: the frames of a segment lie so far apart in time whatever "
        "the rate of the video, and equal parts of the video are of time."
    ),
]
Framing = Annotated[
    str | None,
    typer.Option(
        help='How frames become squares. "crop": cut to the centre, or to several crops. "squash": shrunk as a whole, '
        "without regard to proportions. If it is not given, it is done as in the model's training, or by crops where "
        "that is not known."
    ),
]
NumWorkers = Annotated[
    int, typer.Option(min=0, help="Processes that decode videos; with 0 the command's own process decodes them.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="How many views of clips the model sees at a time, at most.")]
Precision = Annotated[str, typer.Option(help='Arithmetic of the model: "float32", or "bfloat16" by autocast.')]
Device = Annotated[
    str,
    typer.Option(help='Where the model runs: "cpu", "cuda", "cuda:1", or "auto", which is cuda where there is one.'),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.")]


@dataclass(frozen=True)
class ReadingOptions:
    """How clips are read from videos."""

    views: Annotated[str, VIEWS] = "1x1"
    sampling: Sampling = "uniform"
    frame_stride: FrameStride = None
    framing: Framing = None
    fps: Fps = None

    @property
    def spacing(self) -> dict[str, Any]:
        """The settings of a `ClipReading` that say how far frames are apart."""
        return {"frame_stride": self.frame_stride or (4 if self.fps is None else 1), "fps": self.fps}


@dataclass(frozen=True)
class ListOptions:
    """How a list of videos is read."""

    list_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="The format of the list, of those that docs/lists.md names, e.g. didemo_moments. If it is not given, "
            "what the content looks like.",
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            help='The split, of a list that holds several, e.g. test, 1k-A; "all" takes every one.',
        ),
    ] = None
    video_folder: Annotated[
        str | None,
        typer.Option(
            "--videos",
            help="The folder or URL where the videos of the list lie. If it is not given, the folder of the list.",
        ),
    ] = None
    missing: Annotated[
        str | None,
        typer.Option(
            help='What becomes of videos that are not there: "drop" leaves them out and says how many, "keep" leaves '
            'them to the decoder, "refuse" ends the command. If it is not given, those of published lists are dropped.'
        ),
    ] = None
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=NAME",
            help="The name of a column of a table or of a field of JSON objects, e.g. video=path caption=title; the "
            "fields are video, caption, label, question, answer, options, type, id, start, end, start_frame, end_frame "
            "and split. May be given several times.",
        ),
    ] = None

    def of(self, path: str) -> Any:
        """Return the list at `path`, a `VideoList`. Raises UserError for a wrong option."""
        from fastvtp.data.formats.catalogue import AUTO, find_format
        from fastvtp.data.formats.lists import ListColumns, VideoList
        from fastvtp.settings import split_settings

        if self.list_format not in (None, AUTO):
            find_format(self.list_format)
        if unnamed := [text for text in self.column or () if "=" not in text]:
            raise UserError(f"--column {unnamed[0]}: expected FIELD=NAME, such as video=path")
        (columns,) = split_settings(self.column or [], ListColumns, what="column")
        names = ListColumns(**columns)
        return VideoList(path, self.list_format, self.split, self.video_folder, self.missing, names)


@dataclass(frozen=True)
class WindowOptions:
    """How long videos are cut into windows."""

    window: Annotated[
        float | None,
        typer.Option(
            help="Cut each video into windows of so many seconds, every one of which is read as a clip of its own. The "
            "last is moved back to end with the video; what is shorter than a window is one as it is."
        ),
    ] = None
    hop: Annotated[
        float | None,
        typer.Option(
            help="Seconds from the beginning of a window to that of the next, with --window. If it is not given, "
            "windows touch."
        ),
    ] = None

    def windows(self) -> Any:
        """Return the `Windows` that these options ask for, or None. Raises UserError for a hop without a window."""
        from fastvtp.data.windows import Windows  # here, because it imports numpy

        if self.window is None and self.hop is not None:
            raise UserError(f"--hop {self.hop:g} needs --window")
        return None if self.window is None else Windows(self.window, self.hop)


@dataclass(frozen=True)
class FeatureOptions(WindowOptions):
    """What is kept of each clip, and whether clips are windows of the videos."""

    layers: Annotated[
        str,
        typer.Option(
            help="The blocks of the model whose tokens are kept beside its output, counted from 0, e.g. 2,5,8; "
            '"mlap" takes the three, at even distances, that an MLAP probe reads.'
        ),
    ] = ""
    pool: Annotated[
        str,
        typer.Option(
            help='What is kept of the tokens: "none" pools nothing and keeps all, "frames" keeps their mean in each '
            'slot of time, "mean" their mean over the clip.'
        ),
    ] = "none"
    dtype: Annotated[
        str, typer.Option(help='Number format of the features on disk: "float32", "float16" or "bfloat16".')
    ] = "float16"
    shard_size: Annotated[int, typer.Option(min=1, help="How many videos a file holds the features of.")] = 64


@dataclass(frozen=True)
class RunOptions:
    """How a command runs: processes, memory, arithmetic, machine, noise."""

    num_workers: NumWorkers = 1
    batch_size: BatchSize = 16
    precision: Precision = "float32"
    device: Device = "auto"
    quiet: Quiet = False


def protocol_settings(reading: ReadingOptions, run: RunOptions) -> dict[str, Any]:
    """Return the fields of an `EvaluationProtocol` that these options give.

    Raises ConfigError where --views is not two numbers.
    """
    from fastvtp.data.reading import ClipReading  # here, because these import torch
    from fastvtp.settings import parse_value

    return {
        "reading": ClipReading(sampling=reading.sampling, framing=reading.framing, **reading.spacing),
        "views": parse_value(reading.views, tuple[int, int], "--views"),
        "num_workers": run.num_workers,
        "batch_size": run.batch_size,
        "precision": run.precision,
    }


# --- Bundles of options


class Only:
    """Beside the type of a bundle in `Annotated`: the names of those of its options that the command has."""

    def __init__(self, *names: str):
        self.names = names


def add_commands(app: typer.Typer, panel: str, *commands: Callable[..., None]) -> None:
    """Make functions commands of `app`, with their bundles spread, under the heading `panel` of its help."""
    for command in commands:
        paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
        description = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
        # what looks like an option and is none comes to the settings, which say how one is written
        passed = {"ignore_unknown_options": "overrides" in inspect.signature(command).parameters}
        app.command(rich_help_panel=panel, help=description, context_settings=passed)(spread_bundles(command))


def spread_bundles(command: Callable[..., None]) -> Callable[..., None]:
    """Return a function that does what `command` does and has, in place of each bundle, the options in it.

    All its parameters are passed by keyword, as typer does.
    """
    hints = get_type_hints(command, include_extras=True)
    flat: list[inspect.Parameter] = []
    bundles: dict[str, tuple[Any, list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        annotation = hints[parameter.name]
        kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if not dataclasses.is_dataclass(kind):
            flat.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        preset = kind() if parameter.default is parameter.empty else parameter.default  # pyright: ignore[reportCallIssue]
        options = list(_options(annotation, preset))
        bundles[parameter.name] = (preset, [option.name for option in options])
        flat.extend(options)

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        built = {
            name: dataclasses.replace(preset, **{option: values.pop(option) for option in options})
            for name, (preset, options) in bundles.items()
        }
        command(**values, **built)

    spread.__signature__ = inspect.Signature(flat)  # pyright: ignore[reportAttributeAccessIssue]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return spread


def _options(annotation: Any, preset: Any) -> Iterator[inspect.Parameter]:
    """Return the options of a bundle, as parameters of a command. Raises ValueError for a name in `Only` that is
    none."""
    hints = get_type_hints(type(preset), include_extras=True)
    wanted = next((note.names for note in get_args(annotation)[1:] if isinstance(note, Only)), tuple(hints))
    if unknown := [name for name in wanted if name not in hints]:
        raise ValueError(f"{type(preset).__name__} has no option {unknown[0]!r}")
    for name in hints:
        if name in wanted:
            yield inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=getattr(preset, name), annotation=hints[name]
            )
