"""The commands on frozen models: features, probes, zero-shot scores, localisation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvtp.command_options import (
    Device,
    Fit,
    NumWorkers,
    Quiet,
)
from fastvtp.errors import UserError

Model = Annotated[str, typer.Argument(help="Run, checkpoint or model folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. steps=2000 learning_rate=1e-3.")
]
Output = Annotated[Path | None, typer.Option(help="Folder for what was trained, and report.json.")]
Views = Annotated[str, typer.Option(metavar="SxC", help="Segments and crops of each clip.")]
Sampling = Annotated[str, typer.Option(help='Frames: "uniform", or "strided" segments.')]
FrameStride = Annotated[int, typer.Option(min=1, help="Distance of the frames of a strided segment.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Most views of clips at a time.")]
Precision = Annotated[str, typer.Option(help='"float32", or "bfloat16" (autocast).')]
ClassNames = Annotated[Path | None, typer.Option(help="File that names the classes.")]


def extract(
    model: Model,
    data: Annotated[str, typer.Argument(help="Videos, with classes or without: a folder, .jsonl or .csv.")],
    output: Annotated[Path, typer.Option(help="Folder of the features; a killed extraction is continued.")],
    layers: Annotated[
        str, typer.Option(help='Blocks beside the output, e.g. 2,5,8; "mlap": three in even steps.')
    ] = "",
    pool: Annotated[str, typer.Option(help='"none": all tokens; "frames": one a time slot; "mean": one.')] = "none",
    dtype: Annotated[str, typer.Option(help='On disk: "float32", "float16" or "bfloat16".')] = "float16",
    shard_size: Annotated[int, typer.Option(min=1, help="Videos in a file.")] = 64,
    class_names: ClassNames = None,
    views: Views = "1x1",
    sampling: Sampling = "uniform",
    frame_stride: FrameStride = 4,
    fit: Fit = None,
    num_workers: NumWorkers = 1,
    batch_size: BatchSize = 16,
    precision: Precision = "float32",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Write a frozen model's features of videos, from which probes train in minutes."""
    from fastvtp.frozen import runs as probing
    from fastvtp.frozen.features import FeatureSettings

    opened = _open(model, device)
    settings = FeatureSettings(_layers(layers, opened), pool, dtype, shard_size)
    protocol = _protocol(views, sampling, frame_stride, fit, num_workers, batch_size, precision)
    done = probing.extract(
        opened, data, output, settings, protocol=protocol, names_file=class_names, progress_bar=not quiet
    )
    shape = " x ".join(map(str, (done.num_views, *done[0].shape[1:])))
    typer.echo(f"{len(done)} clips of {shape} are in {output}; {len(done.left_out)} undecodable files")


def probe(
    source: Annotated[str, typer.Argument(help="A feature folder; or a model, which then reads --train.")],
    overrides: Overrides = None,
    kind: Annotated[str, typer.Option(help='"attentive", "linear" or "mlap".')] = "attentive",
    test: Annotated[str | None, typer.Option(help="Features, or videos, to score.")] = None,
    output: Output = None,
    train: Annotated[str | None, typer.Option(help="Videos with classes, for a model.")] = None,
    adapter_dim: Annotated[int | None, typer.Option(min=1, help="Adapters of this inner width; for a model.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="VideoGLUE's settings: k400, moments, diving48, ssv2, charades.")
    ] = None,
    class_names: ClassNames = None,
    views: Annotated[str | None, typer.Option(metavar="SxC", help="Segments and crops of each test clip.")] = None,
    fit: Fit = None,
    num_workers: NumWorkers = 1,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train a probe on frozen features, extracted before or on the fly, and score it."""
    from fastvtp.data.reading import ClipReading
    from fastvtp.evaluation.report import REPORT_NAME, write_report
    from fastvtp.frozen import runs as probing
    from fastvtp.frozen.adapters import TowerTap
    from fastvtp.frozen.features import DESCRIPTION_NAME
    from fastvtp.frozen.probes import ProbeConfig
    from fastvtp.frozen.recipes import ProbeRecipe, probe_recipe
    from fastvtp.frozen.training_heads import HeadTraining
    from fastvtp.settings import choose_device, split_settings

    cached = (Path(source) / DESCRIPTION_NAME).is_file()
    classes: list[type] = [HeadTraining, ProbeConfig] if cached else [HeadTraining, ProbeConfig, ClipReading]
    # sizes that follow from elsewhere, and what clips are read by that has no option here or one of its own
    without = ("width", "num_outputs", "num_layers", "kind", "framing", "augmentation")
    fitting, sizes, *clips = split_settings(overrides or [], *classes, without=without)
    published = ProbeRecipe(HeadTraining(), ClipReading(), (1, 1)) if recipe is None else probe_recipe(recipe)
    settings, common = replace(published.training, **fitting), {"kind": kind, "progress_bar": not quiet, **sizes}
    if cached:
        if (train, adapter_dim, class_names, views, fit) != (None,) * 5:
            options = "--train, --adapter-dim, --class-names, --views, --fit"
            raise UserError(f"{source} holds features: {options} are for a model")
        report = probing.train_probe(
            source, test, output, settings, device=choose_device(device), num_workers=num_workers, **common
        )
    else:
        if train is None:
            raise UserError(f"{source} is no feature folder; to read videos with a model, give --train")
        opened = _open(source, device)
        drawn = replace(published.reading, **clips[0])
        shown = views or "x".join(map(str, published.views))
        report = probing.train_on_videos(
            opened,
            probing.ProbeVideos(train=train, test=test, names_file=class_names),
            output,
            settings,
            tap=TowerTap(_layers("mlap" if kind == "mlap" else "", opened), adapter_dim),
            reading=drawn,
            protocol=_protocol(
                shown, drawn.sampling, drawn.frame_stride, fit, num_workers, settings.batch_size, "float32"
            ),
            **common,
        )
    if output is not None:
        write_report(output / REPORT_NAME, report)
    typer.echo(json.dumps(report, indent=2))


def classify(
    model: Model,
    probe: Annotated[Path, typer.Argument(help="Folder of a trained probe.")],
    videos: Annotated[str, typer.Argument(help="Videos: a folder, .jsonl or .csv.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 3,
    views: Views = "1x1",
    fit: Fit = None,
    num_workers: NumWorkers = 1,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Say what videos show, by a probe on its frozen model: a line of JSON a video."""
    from fastvtp.frozen import runs as probing
    from fastvtp.frozen.probe_files import read_probe_description

    reading = read_probe_description(probe).reading
    protocol = _protocol(views, reading.sampling, reading.frame_stride, fit, num_workers, batch_size, "float32")
    found = probing.classify(_open(model, device), probe, videos, protocol=protocol, progress_bar=not quiet)
    for video, row in found.items():
        shown = {name: round(score, 4) for name, score in list(row.items())[:top]}
        typer.echo(json.dumps({"video": video, "classes": shown}, ensure_ascii=False))


def zeroshot(
    model: Model,
    data: Annotated[str, typer.Argument(help="Videos with named classes, or questions with options.")],
    templates: Annotated[str, typer.Option(help='Prompts: "video", "kinetics" (28), or a file, one a line.')] = "video",
    form: Annotated[str, typer.Option(help="Text of an option, e.g. '{question} {option}'.")] = "{option}",
    temperature: Annotated[float, typer.Option(help="Of the probabilities that views are averaged by.")] = 0.01,
    output: Annotated[Path | None, typer.Option(help="Write report.json, and the answers to questions, here.")] = None,
    class_names: ClassNames = None,
    views: Views = "1x1",
    sampling: Sampling = "uniform",
    frame_stride: FrameStride = 4,
    fit: Fit = None,
    num_workers: NumWorkers = 1,
    batch_size: BatchSize = 16,
    precision: Precision = "float32",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Classify videos by prompts, or answer multiple choice, without training."""
    from fastvtp.evaluation.report import REPORT_NAME, write_report
    from fastvtp.evaluation.scoring import PREDICTIONS_NAME
    from fastvtp.evaluation.zero_shot import Prompts, read_templates, zero_shot

    prompts = Prompts(read_templates(templates), temperature, form)
    protocol = _protocol(views, sampling, frame_stride, fit, num_workers, batch_size, precision)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    report = zero_shot(
        _open(model, device),
        data,
        prompts=prompts,
        names_file=class_names,
        protocol=protocol,
        predictions=None if output is None else output / PREDICTIONS_NAME,
        progress_bar=not quiet,
    )
    if output is not None:
        write_report(output / REPORT_NAME, report)
    typer.echo(json.dumps(report, indent=2))


def localize(
    features: Annotated[str, typer.Argument(help="Feature folder of the training videos.")],
    annotations: Annotated[str, typer.Argument(help="Their segments or boxes, .jsonl.")],
    test_features: Annotated[str, typer.Argument(help="Feature folder of the test videos.")],
    test_annotations: Annotated[str, typer.Argument(help="Their segments or boxes, .jsonl.")],
    overrides: Overrides = None,
    detections: Annotated[
        str | None, typer.Option(help="A detector's boxes in the test videos; else the true ones.")
    ] = None,
    output: Output = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train and score a head that finds segments in time, or says what is done in boxes."""
    from fastvtp.evaluation.report import REPORT_NAME, write_report
    from fastvtp.frozen.heads import BoxHeadConfig, SegmentHeadConfig
    from fastvtp.frozen.runs import AnnotatedFeatures
    from fastvtp.frozen.runs import localize as run
    from fastvtp.frozen.spans import load_spans
    from fastvtp.frozen.training_heads import HeadTraining
    from fastvtp.settings import choose_device, split_settings

    config = SegmentHeadConfig if load_spans(annotations).kind == "segments" else BoxHeadConfig
    fitting, sizes = split_settings(overrides or [], HeadTraining, config, without=("width", "num_classes", "grid"))
    report = run(
        AnnotatedFeatures(features, annotations),
        AnnotatedFeatures(test_features, test_annotations),
        output,
        HeadTraining(**fitting),
        detections=detections,
        device=choose_device(device),
        progress_bar=not quiet,
        **sizes,
    )
    if output is not None:
        write_report(output / REPORT_NAME, report)
    typer.echo(json.dumps(report, indent=2))


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (extract, probe, classify, zeroshot, localize):
        app.command()(command)


def _open(model: str, device: str) -> Any:
    from fastvtp.evaluation.scoring import open_model
    from fastvtp.settings import choose_device

    return open_model(model, choose_device(device))


def _protocol(
    views: str, sampling: str, stride: int, fit: str | None, num_workers: int, batch_size: int, precision: str
) -> Any:
    from fastvtp.data.reading import ClipReading
    from fastvtp.evaluation.scoring import EvaluationProtocol
    from fastvtp.settings import parse_value

    return EvaluationProtocol(
        reading=ClipReading(sampling=sampling, frame_stride=stride, framing=fit),
        views=parse_value(views, tuple[int, int], "--views"),
        num_workers=num_workers,
        batch_size=batch_size,
        precision=precision,
    )


def _layers(text: str, opened: Any) -> tuple[int, ...]:
    """Blocks by their numbers, or those that MLAP reads by default."""
    from fastvtp.frozen.runs import mlap_layers
    from fastvtp.settings import parse_value

    if text == "mlap":
        return mlap_layers(opened)
    return parse_value(text, tuple[int, ...], "--layers") if text else ()
