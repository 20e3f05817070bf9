"""The `fastvtp` command: thin, every command is a function elsewhere."""

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from fastvtp.errors import UserError

try:
    import typer

    from fastvtp.cli import convert as cli_convert
    from fastvtp.cli import frozen as cli_frozen
    from fastvtp.command_options import (
        Device,
        Fit,
        NumWorkers,
        Quiet,
    )
    from fastvtp.systems.captioner import commands as cli_captioning
except ImportError:
    sys.exit("fastvtp: the command needs its extras: pip install 'fastvtp[train,dali]'")

app = typer.Typer(
    help="Masked video-text pretraining, and fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. data.flip=false.")
]
Preset = Annotated[str, typer.Option(help='"fastvtp" (recommended) or "official" (the released objectives).')]


@app.command()
def demo(
    overrides: Overrides = None,
    preset: Preset = "fastvtp",
    compare_presets: Annotated[
        bool, typer.Option("--compare-presets", help="Then train the other preset for as long, on the same clips.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Make captioned videos, pretrain SimVTP on them, score and draw: minutes on two CPU cores."""
    from fastvtp import runs
    from fastvtp.data.synthetic import SyntheticConfig
    from fastvtp.systems.recipes import get_recipe
    from fastvtp.training.config import apply_overrides

    if any(override.startswith(("data.train=", "data.test=")) for override in overrides or []):
        raise UserError("the demo makes its own videos; for yours: fastvtp pretrain RECIPE data.train=...")
    config = apply_overrides(get_recipe("simvtp_demo", preset), overrides or [])
    report = runs.demo(config, SyntheticConfig(seed=config.seed), progress_bar=not quiet)
    typer.echo("\n".join(runs.score_lines(report)))
    typer.echo(f"chance R1 {report['chance_R1']:.2f}; report, pictures and gallery are in {config.output_dir}")
    if compare_presets:
        from fastvtp.ablation import presets
        from fastvtp.systems.catalogue import PRESETS

        other = next(name for name in PRESETS if name != preset)
        other_config = apply_overrides(get_recipe("simvtp_demo", other), overrides or [])
        found = presets.compare_presets(config, other_config, names=(preset, other), progress_bar=not quiet)
        for line in presets.preset_table(found):
            typer.echo(line)


def _train(command: str, recipe: str, overrides: list[str] | None, *, resume: bool, preset: str, quiet: bool) -> None:
    from fastvtp import runs

    config = runs.recipe_config(recipe, preset, overrides or [], command=command, resume=resume)
    report = runs.pretrain(config, resume=resume, progress_bar=not quiet)
    bad_files = report["bad_files"]["count"]
    done = f"{report['steps']} steps, {bad_files} undecodable files; see {config.output_dir}/report.json"
    typer.echo("\n".join([*runs.score_lines(report), done]))


Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in output_dir.")]


@app.command()
def pretrain(
    recipe: Annotated[
        str,
        typer.Argument(
            help="simvtp_{demo,tiny,...}, videomae_pretrain_..., alpro_{prompter,pretrain}..., videoprism_stage{1,2}..."
        ),
    ],
    overrides: Overrides = None,
    resume: Resume = False,
    preset: Preset = "fastvtp",
    quiet: Quiet = False,
) -> None:
    """Pretrain by a recipe; scores on data.test where it is given."""
    _train("pretrain", recipe, overrides, resume=resume, preset=preset, quiet=quiet)


@app.command()
def finetune(
    recipe: Annotated[
        str, typer.Argument(help="{retrieval,qa,classification}_finetune..., videoprism_captioning, alpro_msvd_qa, ...")
    ],
    overrides: Overrides = None,
    resume: Resume = False,
    preset: Preset = "fastvtp",
    quiet: Quiet = False,
) -> None:
    """Fine-tune by a recipe, from init=PATH: a run, a model folder or a released checkpoint; scores on data.test."""
    _train("finetune", recipe, overrides, resume=resume, preset=preset, quiet=quiet)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Run, checkpoint or model folder.")],
    data: Annotated[str, typer.Argument(help="What the model is for: captioned videos, questions, or classes.")],
    output: Annotated[Path | None, typer.Option(help="Write report.json, and gallery or answers, here.")] = None,
    views: Annotated[str, typer.Option(metavar="SxC", help="Segments and crops of each clip to average.")] = "1x1",
    sampling: Annotated[str, typer.Option(help='Frames: "uniform", or "strided" segments.')] = "uniform",
    frame_stride: Annotated[int, typer.Option(min=1, help="Distance of the frames of a strided segment.")] = 4,
    fit: Fit = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Let a matching head score only the pairs that the contrast ranks first.")
    ] = None,
    add_similarity: Annotated[
        bool, typer.Option("--add-similarity", help="Add the contrast to the matching head's scores, as LAVIS does.")
    ] = False,
    max_text_length: Annotated[int | None, typer.Option(min=3, help="Tokens to keep of a text.")] = None,
    train_data: Annotated[str | None, typer.Option(help="Training questions, for a baseline by their kind.")] = None,
    num_workers: NumWorkers = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Most views of clips at a time.")] = 32,
    precision: Annotated[str, typer.Option(help='"float32", or "bfloat16" (autocast).')] = "float32",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Score a model: text-video retrieval both ways, question answering, or classification."""
    from fastvtp import runs
    from fastvtp.data.reading import ClipReading
    from fastvtp.settings import choose_device, parse_value

    protocol = runs.EvaluationProtocol(
        reading=ClipReading(sampling=sampling, frame_stride=frame_stride, framing=fit),
        views=parse_value(views, tuple[int, int], "--views"),
        num_workers=num_workers,
        batch_size=batch_size,
        top_k=top_k,
        max_text_length=max_text_length,
        precision=precision,
        add_similarity=add_similarity,
    )
    opened = runs.open_model(model, choose_device(device))
    report = runs.evaluate(
        opened, data, protocol=protocol, output=output, train_data=train_data, progress_bar=not quiet
    )
    if output is not None:
        runs.write_report(output / runs.REPORT_NAME, report)
    typer.echo(json.dumps(report, indent=2))


@app.command()
def visualize(
    model: Annotated[str, typer.Argument(help="Run, checkpoint or model folder.")],
    data: Annotated[str, typer.Argument(help="Captioned videos: .jsonl or folder.")],
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/pictures"),
    clips: Annotated[int, typer.Option(min=1, help="How many clips to show.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the masks.")] = 0,
    fit: Fit = None,
    device: Device = "auto",
) -> None:
    """Of a SimVTP input, visible part and reconstruction, with its words; of an ALPRO what it sees in crops."""
    from fastvtp import runs
    from fastvtp.settings import choose_device

    opened = runs.open_model(model, choose_device(device))
    for path in runs.visualize(opened, data, output, num_clips=clips, seed=seed, framing=fit):
        typer.echo(path)


@app.command()
def ablate(
    system: Annotated[str, typer.Argument(help="simvtp, alpro or videoprism.")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Default runs/ablation_SYSTEM.")] = None,
    study: Annotated[str, typer.Option(help="objectives; simvtp also: masks, modalities, data; or all.")] = "all",
    quick: Annotated[bool, typer.Option("--quick", help="A minute's smoke: its figures mean nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the weights of all runs.")] = False,
    preset: Preset = "fastvtp",
    quiet: Quiet = False,
) -> None:
    """Which settings matter, on synthetic clips: tables, a plot, the paper's claims. Continues what is begun."""
    from fastvtp.ablation.report import summary
    from fastvtp.ablation.runner import ablate as run_ablation
    from fastvtp.systems.studies import find_system

    known = find_system(system, overrides or [])
    folder = output or Path(f"runs/ablation_{system}" + "_quick" * quick)
    config = known.base_config(preset, [*(overrides or []), f"output_dir={folder}"], quick=quick)
    report = run_ablation(
        known, config, known.quick if quick else known.scale, study=study, keep=keep, progress_bar=not quiet,
        command=shlex.join(["fastvtp", *sys.argv[1:]]),
    )  # fmt: skip
    for line in summary(report.claims()):
        typer.echo(line)
    typer.echo(f"tables, plot and scores are in {folder}")


@app.command()
def entities(
    captions: Annotated[str, typer.Argument(help="Captioned videos: .jsonl or folder.")],
    size: Annotated[int, typer.Option(min=1, help="How many.")] = 1000,
    output: Annotated[Path, typer.Option(help="File to write, one a line.")] = Path("entities.txt"),
    words: Annotated[
        Path | None, typer.Option(help="List of what counts as a noun, one a line; else NLTK's tagger decides.")
    ] = None,
) -> None:
    """The most frequent nouns of captions: the entities that ALPRO's prompts ask for."""
    from fastvtp.data.annotations import load_annotations
    from fastvtp.data.entities import (
        build_entities,
        read_entities,
        write_entities,
    )

    texts = [caption for record in load_annotations(captions) for caption in record.captions]
    found = build_entities(texts, size, words=None if words is None else read_entities(words))
    write_entities(output, found)
    first = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
    typer.echo(f"{len(found)} entities of {len(texts)} captions are in {output}: {first}")


@app.command()
def doctor() -> None:
    """Versions, devices, and the backend that each op will use here, with the reason."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fastvtp.cli import doctor as findings

    console = Console()
    for columns, rows in (
        (("package", "version", ""), findings.package_findings()),
        (("device", "found", "why"), findings.device_findings()),
        (("op", "backend", "why, and what is missing"), findings.backend_findings()),
    ):
        table = Table(*columns)
        for row in rows:
            table.add_row(row.subject, row.value, escape(row.reason))
        console.print(table)


cli_convert.register(app)
cli_captioning.register(app)
cli_frozen.register(app)


def _stop(message: object, status: int) -> NoReturn:
    print(f"fastvtp: {message}", file=sys.stderr)
    sys.exit(status)


def main() -> None:
    """Entry point: user errors become one line on stderr and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except (UserError, FloatingPointError, OSError) as error:
        _stop(error, 2)
    except (RuntimeError, ValueError) as error:
        # not imported above: `fastvtp --help` should not wait for torch
        from fastvtp_kernels.dispatch import BackendUnavailableError, UnknownBackendError

        if not isinstance(error, (BackendUnavailableError, UnknownBackendError)):
            raise
        _stop(error, 2)
    except KeyboardInterrupt:
        _stop("interrupted; checkpoints written so far are kept", 130)


if __name__ == "__main__":
    main()
