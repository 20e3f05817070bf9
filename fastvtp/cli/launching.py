"""The command that starts a run on several processes, or prints the line that does."""

import time
from dataclasses import dataclass
from typing import Annotated

import typer

from fastvtp.cli.options import add_commands
from fastvtp.cli.training import Overrides, Preset, Resume
from fastvtp.errors import ConfigError

AnyRecipe = Annotated[
    str, typer.Argument(help="Name of a recipe of pretraining or of fine-tuning: see `fastvtp recipes`.")
]


@dataclass(frozen=True)
class GroupOptions:
    """The processes that take part in a run."""

    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes on each machine, one a GPU; with device=cpu, or where there are no GPUs, processes on the "
            "CPU. If it is not given, as many as there are GPUs here.",
        ),
    ] = None
    nodes: Annotated[
        str,
        typer.Option(
            help="Machines that take part. A range such as 1:2 lets the run go on with fewer of them after a restart."
        ),
    ] = "1"
    rendezvous: Annotated[
        str | None,
        typer.Option(help="Where several machines meet, as HOST:PORT: one of them, and the same on all."),
    ] = None
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="How often all processes are started again after one has failed; they go on from the newest "
            "checkpoint.",
        ),
    ] = 0
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads of each process on the CPU. If it is not given, OMP_NUM_THREADS, or else the cores of this "
            "machine over its processes.",
        ),
    ] = None


def launch(
    recipe: AnyRecipe,
    overrides: Overrides = None,
    resume: Resume = False,
    preset: Preset = "fastvtp",
    run: Annotated[
        bool, typer.Option("--run", help="Run the line, with its exit status, instead of printing it.")
    ] = False,
    *,
    group: GroupOptions,
) -> None:
    """Print the line of torchrun that trains a recipe on several GPUs or machines, or run it.

    The settings are checked before: a mistake costs no allocation. On several machines the same line is to run on each
    of them.
    """
    from fastvtp.systems.recipes import recipe_config
    from fastvtp.training import launching

    config = recipe_config(recipe, preset, overrides or [], resume=resume, runs_here=run)
    processes = group.gpus or _gpus_here()
    nodes = launching.Nodes.read(group.nodes)
    launching.check_run(config, [processes * count for count in range(nodes.least, nodes.most + 1)], resume=resume)
    if group.max_restarts and not resume:
        typer.echo("with --max-restarts a run goes on from its own checkpoints: --resume is added", err=True)
        resume = True
    threads, why = (group.threads, "--threads") if group.threads else launching.threads_of(processes)
    if not group.threads:
        typer.echo(f"OMP_NUM_THREADS={threads}: {why}; --threads sets another", err=True)
    arguments = [config.command, recipe, *(overrides or []), *(["--resume"] if resume else [])]
    arguments += ["--preset", preset] if preset != "fastvtp" else []
    line = launching.Launch(
        arguments=arguments,
        processes=processes,
        nodes=nodes,
        rendezvous=group.rendezvous,
        run_id=launching.run_id_of(config.output_dir),
        max_restarts=group.max_restarts,
        threads=threads,
    )
    if not run:
        typer.echo(line.line())
        return
    started = time.time()
    status = line.run()
    if status and launching.stopped_by(config, started) not in (None, "SIGINT"):
        status = config.parallel.stop_exit_code
    raise typer.Exit(status)


def _gpus_here() -> int:
    import torch

    if not (count := torch.cuda.device_count()):
        raise ConfigError("torch sees no GPU here: say how many processes a machine has, --gpus 8")
    return count


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_commands(app, "Training", launch)
