"""The `fastvtp` command: thin, every command is a function elsewhere."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from fastvtp.errors import UserError

try:
    import typer
except ImportError:
    sys.exit("fastvtp: the command needs its extras: pip install 'fastvtp[train,dali]'")

app = typer.Typer(
    help="Masked video-text pretraining.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. data.flip=false.")
]
Preset = Annotated[str, typer.Option(help='"fastvtp" (recommended) or "official" (the released objectives).')]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _print_scores(report: dict) -> None:
    for way, scores in report.get("retrieval", {}).items():
        typer.echo(f"{way}: " + "  ".join(f"{name} {value:.1f}" for name, value in scores.items()))


@app.command()
def demo(overrides: Overrides = None, preset: Preset = "fastvtp", quiet: Quiet = False) -> None:
    """Make captioned videos, pretrain SimVTP on them, score and draw: minutes on two CPU cores."""
    from fastvtp.data.synthetic import SyntheticConfig
    from fastvtp.runs import demo as run_demo
    from fastvtp.training.config import apply_overrides
    from fastvtp.training.recipes import get_recipe

    if any(override.startswith(("data.train=", "data.test=")) for override in overrides or []):
        raise UserError("the demo makes its own videos; for yours: fastvtp pretrain RECIPE data.train=...")
    config = apply_overrides(get_recipe("simvtp_demo", preset), overrides or [])
    report = run_demo(config, SyntheticConfig(seed=config.seed), progress_bar=not quiet)
    _print_scores(report)
    typer.echo(f"chance R1 {report['chance_R1']:.2f}; report, pictures and gallery are in {config.output_dir}")


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="simvtp_demo, simvtp_tiny, simvtp_small or simvtp_base.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in output_dir.")] = False,
    preset: Preset = "fastvtp",
    quiet: Quiet = False,
) -> None:
    """Pretrain by a recipe; scores on data.test where it is given."""
    from fastvtp.runs import pretrain as run_pretrain
    from fastvtp.runs import recipe_config

    config = recipe_config(recipe, preset, overrides or [])
    report = run_pretrain(config, resume=resume, progress_bar=not quiet)
    _print_scores(report)
    bad_files = report["bad_files"]["count"]
    typer.echo(f"{report['steps']} steps, {bad_files} undecodable files; see {config.output_dir}/report.json")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Run, checkpoint or model folder.")],
    data: Annotated[str, typer.Argument(help="Captioned videos: .jsonl or folder.")],
    output: Annotated[Path | None, typer.Option(help="Write report.json and gallery.html here.")] = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda".')] = "auto",
    quiet: Quiet = False,
) -> None:
    """Zero-shot text-video retrieval, both ways."""
    from fastvtp import runs
    from fastvtp.training.loop import choose_device

    network, tokenizer = runs.open_model(model, choose_device(device))
    gallery = None if output is None else output / "gallery.html"
    report = runs.evaluate(network, tokenizer, data, gallery=gallery, progress_bar=not quiet)
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
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda".')] = "auto",
) -> None:
    """Input, visible part and reconstruction, with masked and predicted words."""
    from fastvtp import runs
    from fastvtp.training.loop import choose_device

    network, tokenizer = runs.open_model(model, choose_device(device))
    for path in runs.visualize(network, tokenizer, data, output, num_clips=clips, seed=seed):
        typer.echo(path)


@app.command()
def doctor() -> None:
    """Versions, devices, and the backend that each op will use here, with the reason."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fastvtp import doctor as findings

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
