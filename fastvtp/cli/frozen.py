"""The commands on frozen models: features, probes, zero-shot scores, localisation."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvtp.cli.options import (
    VIEWS,
    ClassNames,
    FeatureOptions,
    Framing,
    ListOptions,
    Model,
    Only,
    ReadingOptions,
    RunOptions,
    WindowOptions,
    add_commands,
    protocol_settings,
)
from fastvtp.cli.outputs import check_output_folder
from fastvtp.cli.together import alike, say, show, together
from fastvtp.errors import UserError, counted

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings of the training and of the head, e.g. steps=2000 learning_rate=1e-3 num_heads=8.",
    ),
]
Trained = Annotated[
    Path | None, typer.Option(help="Folder to keep what was trained in, with its scores in report.json.")
]


@dataclass(frozen=True)
class ProbedVideoOptions(ListOptions):
    """How a model reads the videos that a probe is trained on, where there are no features of them."""

    train: Annotated[
        str | None,
        typer.Option(help="The training videos with their classes, for a model; of the same forms as for `extract`."),
    ] = None
    adapter_dim: Annotated[
        int | None,
        typer.Option(min=1, help="Train adapters of this inner width in the frozen model, beside the probe."),
    ] = None
    class_names: ClassNames = None
    views: Annotated[str | None, VIEWS] = None
    framing: Framing = None


# a split would be of both lists
PROBED_VIDEO_OPTIONS = tuple(entry.name for entry in fields(ProbedVideoOptions) if entry.name != "split")


@dataclass(frozen=True)
class PromptOptions:
    """The texts that videos are compared with."""

    templates: Annotated[
        str,
        typer.Option(
            help='The prompts for a class: "video" (one), "kinetics" (28), or a text file with one a line, in which '
            "{} stands for the class."
        ),
    ] = "video"
    form: Annotated[str, typer.Option(help="The text made of an option of a question, e.g. '{question} {option}'.")] = (
        "{option}"
    )
    temperature: Annotated[
        float,
        typer.Option(help="What similarities are divided by to make the probabilities that are averaged over views."),
    ] = 0.01


def extract(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help="The videos, with classes or without: a folder of videos, or with one subfolder per class; a .jsonl "
            'file of {"video": path} lines, which may say "label": "run" or "labels": ["run", "jump"]; or a .csv file '
            "of `path,number` lines; or a published list, such as Kinetics' train.csv."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder to write the features to. An extraction that was stopped goes on there.")
    ],
    features: FeatureOptions,
    class_names: ClassNames = None,
    *,
    lists: ListOptions,
    reading: ReadingOptions,
    run: RunOptions,
) -> None:
    """Write a frozen model's features of videos to disk, for probes and localisation heads to be trained on."""
    from fastvtp import processes
    from fastvtp.frozen import runs as frozen_runs
    from fastvtp.frozen.features import FeatureSettings

    cut = features.windows()

    def prepare() -> tuple[Any, FeatureSettings, Any, Any]:
        check_output_folder(output)
        opened = _open(model, device)
        settings = FeatureSettings(
            _layers(features.layers, opened), features.pool, features.dtype, shard_size=features.shard_size
        )
        return opened, settings, _protocol(reading, run), lists.of(data)

    with together(run.device) as device:
        opened, settings, protocol, listed = processes.all_or_none(prepare)
        done = frozen_runs.extract(
            opened,
            listed,
            output,
            settings,
            protocol=protocol,
            windows=cut,
            names_file=class_names,
            progress_bar=not run.quiet,
        )
        shape = " x ".join(map(str, (done.num_views, *done[0].shape[1:])))
        say(f"{counted(len(done), 'clip')} of {shape} in {output}; {counted(len(done.left_out), 'undecodable file')}")


def probe(
    source: Annotated[
        str,
        typer.Argument(
            help="What the probe is trained on: a folder of features that `fastvtp extract` wrote; or a model, as "
            "`extract` takes it, that reads the videos of --train."
        ),
    ],
    overrides: Overrides = None,
    kind: Annotated[
        str,
        typer.Option(
            help='The probe: "attentive" pools tokens by attention, "linear" by their mean, "mlap" reads the tokens of '
            "several blocks by attention."
        ),
    ] = "attentive",
    test: Annotated[
        str | None,
        typer.Option(help="What the probe is scored on: a folder of features, or for a model a list of videos."),
    ] = None,
    output: Trained = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Take VideoGLUE's settings for a data set: k400, moments, diving48, ssv2 or charades. Settings that "
            "are given come before them."
        ),
    ] = None,
    *,
    videos: Annotated[ProbedVideoOptions, Only(*PROBED_VIDEO_OPTIONS)],
    run: Annotated[RunOptions, Only("num_workers", "device", "quiet")],
) -> None:
    """Train a classifier, a probe, on what a frozen model gives, and score it.

    From a folder of features it takes minutes. From a model and videos it takes longer, and training clips are
    augmented; --train, --adapter-dim, --class-names, --views and --framing are for this alone. Test clips are then read
    in the views of the recipe, or in one, unless --views is given.
    """
    from fastvtp import processes
    from fastvtp.data.reading import ClipReading, one_spacing
    from fastvtp.frozen import runs as frozen_runs
    from fastvtp.frozen.adapters import TowerTap
    from fastvtp.frozen.features import DESCRIPTION_NAME
    from fastvtp.frozen.probes import ProbeConfig
    from fastvtp.frozen.recipes import ProbeRecipe, probe_recipe
    from fastvtp.frozen.training_heads import HeadTraining
    from fastvtp.settings import split_settings

    def prepare() -> Callable[[], dict[str, Any]]:
        check_output_folder(output)
        cached = (Path(source) / DESCRIPTION_NAME).is_file()
        classes: list[type] = [HeadTraining, ProbeConfig] if cached else [HeadTraining, ProbeConfig, ClipReading]
        # sizes that follow from elsewhere, and what clips are read by that has no option here or one of its own
        without = ("width", "num_outputs", "num_layers", "kind", "framing", "augmentation")
        training, sizes, *clips = split_settings(overrides or [], *classes, without=without)
        published = ProbeRecipe(HeadTraining(), ClipReading(), (1, 1)) if recipe is None else probe_recipe(recipe)
        settings = replace(published.training, **training)
        common = {"kind": kind, "progress_bar": not run.quiet, **sizes}
        if cached:
            if videos != ProbedVideoOptions():
                options = "--train, --adapter-dim, --class-names, --views, --framing"
                raise UserError(f"{source} holds features: {options} are for a model, and so are options of lists")
            common |= {"device": device, "num_workers": run.num_workers}
            return lambda: frozen_runs.train_probe(source, test, output, settings, **common)
        if videos.train is None:
            raise UserError(f"{source} is no feature folder; to read videos with a model, give --train")
        opened = _open(source, device)
        drawn = replace(published.reading, **one_spacing(clips[0]))
        views = videos.views or "x".join(map(str, published.views))
        reading = ReadingOptions(views, drawn.sampling, drawn.frame_stride, videos.framing, drawn.fps)
        listed = frozen_runs.ProbeVideos(
            train=videos.of(videos.train),
            test=None if test is None else videos.of(test),
            names_file=videos.class_names,
        )
        common |= {
            "tap": TowerTap(_layers("mlap" if kind == "mlap" else "", opened), videos.adapter_dim),
            "reading": drawn,
            "protocol": _protocol(reading, replace(run, batch_size=settings.batch_size)),
        }
        return lambda: frozen_runs.train_on_videos(opened, listed, output, settings, **common)

    with together(run.device) as device:
        work = processes.all_or_none(prepare)
        show(work(), output)


def classify(
    model: Model,
    probe: Annotated[Path, typer.Argument(help="Folder of a probe that `fastvtp probe --output` trained.")],
    videos: Annotated[
        str,
        typer.Argument(
            help='The videos: a folder of video files, a .jsonl file of {"video": path} lines, or a .csv file of '
            "`path,number` lines."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many of the likeliest classes are printed for a video.")] = 3,
    *,
    lists: ListOptions,
    windows: WindowOptions,
    reading: Annotated[ReadingOptions, Only("views", "framing")],
    run: Annotated[RunOptions, Only("num_workers", "batch_size", "device", "quiet")],
) -> None:
    """Print what videos show, by a probe on its frozen model: a line of JSON a video.

    Frames are sampled as the probe's clips were, and framed so unless --framing is given.
    """
    from fastvtp import processes
    from fastvtp.frozen import runs as frozen_runs
    from fastvtp.frozen.probe_files import read_probe_description

    listed = alike(lambda: lists.of(videos))

    def prepare() -> tuple[Any, Any]:
        known = read_probe_description(probe).reading
        spacing = {"frame_stride": known.frame_stride, "fps": known.fps}
        protocol = _protocol(replace(reading, sampling=known.sampling, **spacing), run)
        return protocol, _open(model, device)

    with together(run.device) as device:
        protocol, opened = processes.all_or_none(prepare)
        found = frozen_runs.classify(
            opened, probe, listed, protocol=protocol, windows=windows.windows(), progress_bar=not run.quiet
        )
        for video, row in found.items():
            shown = {name: round(score, 4) for name, score in list(row.items())[:top]}
            say(json.dumps({"video": video, "classes": shown}, ensure_ascii=False))


def zeroshot(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help="Videos with named classes: a folder with one subfolder per class, a .jsonl file of "
            '{"video": path, "label": class} lines, or a .csv file of `path,number` lines with --class-names. Or '
            'questions with options: a .jsonl file of lines such as {"video": path, "question": "what colour is it?", '
            '"answer": "red", "options": ["red", "blue"]}.'
        ),
    ],
    prompts: PromptOptions,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write report.json to, and the answers to questions.")
    ] = None,
    class_names: ClassNames = None,
    *,
    lists: ListOptions,
    reading: ReadingOptions,
    run: RunOptions,
) -> None:
    """Classify videos by the text that fits best, or answer multiple choice, without training, and print the scores."""
    from fastvtp import processes
    from fastvtp.evaluation.scoring import PREDICTIONS_NAME
    from fastvtp.evaluation.zero_shot import Prompts, read_templates, zero_shot

    listed = alike(lambda: lists.of(data))

    def prepare() -> tuple[Any, Any, Prompts]:
        protocol = _protocol(reading, run)
        check_output_folder(output)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        opened = _open(model, device)
        return protocol, opened, Prompts(read_templates(prompts.templates), prompts.temperature, prompts.form)

    with together(run.device) as device:
        protocol, opened, asked = processes.all_or_none(prepare)
        report = zero_shot(
            opened,
            listed,
            prompts=asked,
            names_file=class_names,
            protocol=protocol,
            predictions=None if output is None else output / PREDICTIONS_NAME,
            progress_bar=not run.quiet,
        )
        show(report, output)


def localize(
    features: Annotated[
        str, typer.Argument(help="Folder of the training videos' features, as `fastvtp extract` wrote it.")
    ],
    annotations: Annotated[
        str,
        typer.Argument(
            help='What happens in them, a .jsonl file with one video a line. Segments: {"video": path, "duration": '
            '12.5, "segments": [{"start": 1, "end": 3.5, "label": "jump"}]}. Boxes, by left, top, right and bottom: '
            '{"video": path, "width": 640, "height": 480, "boxes": [{"box": [20, 10, 120, 210], "labels": ["stand", '
            '"talk"]}]}.'
        ),
    ],
    test_features: Annotated[str, typer.Argument(help="Folder of the test videos' features.")],
    test_annotations: Annotated[str, typer.Argument(help="What happens in the test videos, in the same form.")],
    overrides: Overrides = None,
    detections: Annotated[
        str | None,
        typer.Option(
            help='Boxes that a detector found in the test videos, in the form of the annotations and with a "score" '
            "each. If they are not given, the true boxes are classified."
        ),
    ] = None,
    output: Trained = None,
    *,
    run: Annotated[RunOptions, Only("device", "quiet")],
) -> None:
    """Train and score a head that finds segments in time, or that says what is done in boxes of the picture."""
    from fastvtp import processes
    from fastvtp.frozen import localization_runs
    from fastvtp.frozen.heads import BoxHeadConfig, SegmentHeadConfig
    from fastvtp.frozen.spans import load_spans
    from fastvtp.frozen.training_heads import HeadTraining
    from fastvtp.settings import split_settings

    def prepare() -> tuple[HeadTraining, dict[str, Any]]:
        check_output_folder(output)
        config = SegmentHeadConfig if load_spans(annotations).kind == "segments" else BoxHeadConfig
        without = ("width", "num_classes", "grid")
        training, sizes = split_settings(overrides or [], HeadTraining, config, without=without)
        return HeadTraining(**training), sizes

    with together(run.device) as device:
        training, sizes = processes.all_or_none(prepare)
        report = localization_runs.localize(
            localization_runs.AnnotatedFeatures(features, annotations),
            localization_runs.AnnotatedFeatures(test_features, test_annotations),
            output,
            training,
            detections=detections,
            device=device,
            progress_bar=not run.quiet,
            **sizes,
        )
        show(report, output)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add_commands(app, "Frozen models", extract, probe, classify, zeroshot, localize)


def _open(model: str, device: Any) -> Any:
    from fastvtp.systems.catalogue import open_model

    return open_model(model, device)


def _protocol(reading: ReadingOptions, run: RunOptions) -> Any:
    from fastvtp.evaluation.protocol import EvaluationProtocol

    return EvaluationProtocol(**protocol_settings(reading, run))


def _layers(text: str, opened: Any) -> tuple[int, ...]:
    """Return blocks by their numbers, or those that an MLAP probe reads by default."""
    from fastvtp.frozen.runs import mlap_layers
    from fastvtp.settings import parse_value

    if text == "mlap":
        return mlap_layers(opened)
    return parse_value(text, tuple[int, ...], "--layers") if text else ()
