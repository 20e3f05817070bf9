"""The command that makes training-ready shards of videos."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvtp.cli.options import Device, ListOptions, Quiet, add_commands
from fastvtp.cli.together import by_first
from fastvtp.errors import UserError, counted

_SHOWN = 5  # clips that were rejected


@dataclass(frozen=True)
class EncodingOptions:
    """How clips are written."""

    short_side: Annotated[
        int | None,
        typer.Option(help="Pixels of the shorter side, 224 by default; nothing is enlarged, proportions stay."),
    ] = None
    fps: Annotated[
        float | None,
        typer.Option(help="Frames a second, at most. If it is not given, every frame is kept, with its time."),
    ] = None
    gop: Annotated[
        int | None, typer.Option(help="Frames from one keyframe to the next. By default 3 of h264, 8 of other codecs.")
    ] = None
    codec: Annotated[
        str,
        typer.Option(
            help='Codec of the mp4 files: "h264", "hevc", "vp9" or "av1"; or "copy", which cuts from keyframe on and '
            "encodes nothing."
        ),
    ] = "h264"
    crf: Annotated[
        int | None,
        typer.Option(help="Constant quality of the encoder, smaller is better. By default 22, 26, 32 or 32."),
    ] = None
    scenes: Annotated[bool, typer.Option("--scenes", help="Make each scene a sample, found by PySceneDetect.")] = False
    scene_threshold: Annotated[float, typer.Option(help="Change of picture that counts as a cut.")] = 27.0
    scene_seconds: Annotated[float, typer.Option(help="The shortest scene.")] = 1.0
    samples_per_shard: Annotated[int, typer.Option(help="Videos, or spans, that a shard is made of.")] = 256


@dataclass(frozen=True)
class FilterOptions:
    """Which clips are kept."""

    min_seconds: Annotated[float | None, typer.Option(help="The shortest clip that is kept.")] = None
    max_seconds: Annotated[float | None, typer.Option(help="The longest clip that is kept.")] = None
    min_side: Annotated[int | None, typer.Option(help="The smallest shorter side of a source, in pixels.")] = None
    min_motion: Annotated[
        float | None,
        typer.Option(help="The least motion: mean difference of grey pictures 1/8 s apart, in levels of 255."),
    ] = None
    max_motion: Annotated[float | None, typer.Option(help="The most motion.")] = None
    min_words: Annotated[int | None, typer.Option(help="The fewest words of a text that is kept.")] = None
    max_words: Annotated[int | None, typer.Option(help="The most words of a text that is kept.")] = None
    duplicates: Annotated[
        str,
        typer.Option(
            help='How clips that look like an earlier one are found, which go: "hash", by perceptual hashes of four '
            'frames, or "embeddings", by those of --model.'
        ),
    ] = ""
    duplicate_bits: Annotated[int, typer.Option(help="Bits of 256 in which the hashes of duplicates differ.")] = 12
    duplicate_cosine: Annotated[float, typer.Option(help="Cosine of the embeddings of duplicates, at least.")] = 0.95
    model: Annotated[str, typer.Option(help="Model folder or run that embeds clips for --duplicates embeddings.")] = ""
    similarity: Annotated[
        str, typer.Option(help="Model folder or run that scores how well the best text of a clip fits it.")
    ] = ""
    min_similarity: Annotated[float | None, typer.Option(help="The least such cosine that is kept.")] = None


@dataclass(frozen=True)
class RunningOptions:
    """Who does the work, of which nothing is seen in the shards."""

    engine: Annotated[
        str, typer.Option(help='Who does the work: "pool", processes of this machine, or "ray", tasks of Ray Data.')
    ] = "pool"
    workers: Annotated[int | None, typer.Option(min=1, help="Shards at a time; by default one for each core.")] = None
    ray_address: Annotated[
        str, typer.Option(help='Address of a Ray cluster that there is, or "auto"; by default this machine alone.')
    ] = ""
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do the shards I, I + N, I + 2 N ... alone, I from 0: for an array of jobs, e.g. of Slurm, "
            "--shard $SLURM_ARRAY_TASK_ID/16. The job that finds all shards done writes dataset.json.",
        ),
    ] = None
    finish: Annotated[
        bool, typer.Option("--finish", help="Do no shard, and write dataset.json and the report of those of all jobs.")
    ] = False
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Make shards anew with videos that could not be read, or are other files now."),
    ] = False
    file_seconds: Annotated[
        float, typer.Option(help="What a video may take to be opened, and each clip of it to be written.")
    ] = 600.0
    device: Device = "auto"
    quiet: Quiet = False


@by_first
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="The videos: any list of captions, questions, classes or bare videos, a folder of videos, or tars.",
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(metavar="OUT", help="The folder of the shards, on disk. What was interrupted goes on there."),
    ],
    *,
    lists: ListOptions,
    encoding: EncodingOptions,
    filters: FilterOptions,
    running: RunningOptions,
) -> None:
    """Make training-ready shards of videos: cut out, scaled, with many keyframes, filtered, with all that lists say.

    The same videos and settings give the same shards, by whatever engine; finished shards are never made again.
    """
    from fastvtp.data.workers.child_processes import cores
    from fastvtp.preparation import preparing
    from fastvtp.preparation.engines import Engine
    from fastvtp.preparation.settings import ClipEncoding, ClipFilters, Preparation, SceneCuts

    given, listed = dict(vars(encoding)), lists.of(source)
    cuts = SceneCuts(**{name: given.pop(name) for name in ("scenes", "scene_threshold", "scene_seconds")})
    per_shard = given.pop("samples_per_shard")
    settings = Preparation(
        encoding=ClipEncoding(**given), filters=ClipFilters(**vars(filters)), cuts=cuts, samples_per_shard=per_shard
    )
    if running.finish:
        report = preparing.conclude(listed, output, settings)
    else:
        how = preparing.Running(
            engine=Engine(running.engine, running.workers or cores(), running.ray_address),
            part=_part(running.shard),
            file_seconds=running.file_seconds,
            retry=running.retry,
            open_model=lambda folder: _open(folder, running.device),
            progress=not running.quiet,
        )
        report = preparing.prepare(listed, output, settings, how)
    if report is not None:
        _print(report, Path(output))


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise UserError(f"--shard must be I/N, such as 0/16, got {text!r}")
    return int(number), int(count)


def _open(folder: str, device: str) -> Any:
    from fastvtp.settings import choose_device
    from fastvtp.systems.catalogue import open_model

    return open_model(folder, choose_device(device))


def _print(report: dict[str, Any], output: Path) -> None:
    rejected, sizes, decoding = report["rejected"], report["bytes"], report["decoding"]
    clips, shards = counted(report["samples"], "clip"), counted(report["shards"], "shard")
    typer.echo(f"{clips} in {shards}, {report['seconds'] / 3600:.2f} hours")
    if missing := report["data"].get("missing"):
        typer.echo(f"missing: {missing['videos']} of {counted(missing['of'], 'listed video')}")
    if rejected["count"]:
        rules = ", ".join(f"{rule} {count}" for rule, count in rejected["by_rule"].items())
        typer.echo(f"rejected {rejected['count']}: {rules}")
        for each in rejected["clips"][:_SHOWN]:
            typer.echo(f"  {each['id']}: {each['reason']}")
        if (more := rejected["count"] - _SHOWN) > 0:
            typer.echo(f"  and {more} more, in {output / 'report.html'}")
    if slower := report["slower_sources"]:
        typer.echo(f"sources with fewer than --fps frames a second: {counted(slower, 'clip')}, where none is repeated")
    typer.echo(f"sources {sizes['sources'] / 1e6:.1f} MB, clips {sizes['clips'] / 1e6:.1f} MB")
    if copied := report.get("copied"):
        typer.echo(
            f"copied from keyframes on, not encoded: {copied['seconds'] / 3600:.2f} hours in the files, of which the "
            "lists show what was asked for"
        )
    if decoding["clips"]:
        before, after = decoding["cpu_ms_before"], decoding["cpu_ms_after"]
        typer.echo(f"16 frames take {before:.1f} CPU-ms to decode before, {after:.1f} after")
    if classes := report["data"].get("classes"):
        typer.echo(f"classes: {classes}, numbered as in {output / 'class_names.txt'}, which is found by itself")
    typer.echo(f"see {output / 'report.html'}")
    typer.echo(f"next: fastvtp plan RECIPE data.train={output}")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_commands(app, "Data", prepare)
