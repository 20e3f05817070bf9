"""The command that computes what a run of many processes would take."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvtp.cli.launching import AnyRecipe
from fastvtp.cli.options import Quiet, add_commands
from fastvtp.cli.outputs import check_output_file
from fastvtp.cli.training import Overrides, Preset
from fastvtp.errors import counted


@dataclass(frozen=True)
class MachineOptions:
    """The machines of a plan."""

    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="GPUs of the run, one process each. By default as many of 8 as the micro-batches of a step divide "
            "among.",
        ),
    ] = None
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a machine.")] = 8
    gpu_memory: Annotated[float, typer.Option(help="Memory of a GPU, in GiB.")] = 80.0
    network: Annotated[float, typer.Option(help="What a machine sends to the others, in GB a second.")] = 50.0
    storage: Annotated[float, typer.Option(help="What all machines together write, in GB a second.")] = 5.0
    failures: Annotated[float, typer.Option(help="How often a machine fails in a month.")] = 1.0
    restart_minutes: Annotated[float, typer.Option(help="Minutes from a failure to the next step.")] = 10.0


@dataclass(frozen=True)
class LookOptions:
    """How much of the data is looked at."""

    probe: Annotated[
        int, typer.Option(min=0, help="How many videos of data.train to open, evenly spread over the list.")
    ] = 20
    reading_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds for which the run's loader is tried on data.train here, to count the clips that it makes; "
            "0: it is not tried.",
        ),
    ] = 10.0


@dataclass(frozen=True)
class DataOptions:
    """The clips of a plan, and how quickly they are trained on."""

    step_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a step takes, which you have measured; without it nothing that needs a time is computed."
        ),
    ] = None
    clips_per_second_per_gpu: Annotated[
        float | None, typer.Option(help="In its place, clips a second that a GPU trains on, which you have measured.")
    ] = None
    clips: Annotated[
        int | None, typer.Option(min=1, help="Clips of the data set. If it is not given, those of data.train.")
    ] = None
    clip_mb: Annotated[
        float | None,
        typer.Option(
            help="What is read of the storage for a clip, in MB. If it is not given, what the videos that are opened "
            "have for a clip, or 1."
        ),
    ] = None
    decoded_frames: Annotated[
        float | None,
        typer.Option(
            help="Frames that are decoded for a clip. If it is not given, those from the first to the last that a "
            "strided clip takes; of other clips those of the videos that are opened."
        ),
    ] = None
    words: Annotated[
        float | None,
        typer.Option(help="Tokens of a text, on average. If it is not given, those of texts of data.train, or 24."),
    ] = None


def plan(
    recipe: AnyRecipe,
    overrides: Overrides = None,
    preset: Preset = "fastvtp",
    output: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="A .json file to write the plan to, too.")
    ] = None,
    quiet: Quiet = False,
    *,
    look: LookOptions,
    machines: MachineOptions,
    data: DataOptions,
) -> None:
    """Compute what a recipe takes on many GPUs: memory, traffic, reading, checkpoints, failures.

    Parameters and state are counted exactly; all else is a model of stated assumptions, each of which an option
    changes. Where data.train is there, its clips, its vocabulary, some of its texts and some of its videos are looked
    at in place of what is assumed of them, and the loader is tried for some seconds. Nothing is trained.
    """
    from fastvtp.errors import ConfigError, UserError
    from fastvtp.files import write_atomically
    from fastvtp.systems.recipes import get_recipe
    from fastvtp.training.config import apply_overrides
    from fastvtp.training.paths import missing_paths
    from fastvtp.training.plan import Assumptions, describe
    from fastvtp.training.planned_data import look_at_data

    check_output_file(output, "--json")
    config = apply_overrides(get_recipe(recipe, preset), overrides or [])
    micro_batches = config.batch_size // config.clips_at_a_time
    gpus = machines.gpus or max(number for number in range(1, 9) if micro_batches % number == 0)
    options = {**vars(machines), "gpus": gpus, **vars(data)}
    given = {name: value for name, value in options.items() if value is not None}
    Assumptions(**given)  # raises before data are read
    missing = missing_paths(config)
    if own := [said for name, said in missing.items() if name in _names(overrides)]:
        raise ConfigError(". ".join(own))
    seen = None
    if not missing.keys() & {"data.train", "data.more", "data.images", "data.class_names", "data.features"}:
        config.data.use_storage()
        try:
            seen = look_at_data(config, files=look.probe, seconds=look.reading_seconds, progress=not quiet)
        except (UserError, OSError) as error:
            if missing.keys() <= _NOT_NEEDED:
                raise
            missing["data.train"] = f"data.train={config.data.train} was not looked at: {error}"
    measured = {} if seen is None else {name: seen.measured[name] for name in seen.measured if name not in given}
    sources = {} if seen is None else {name: seen.sources[name] for name in measured}
    found = describe(config, Assumptions(**{**measured, **given}), seen, sources)
    found["missing"] = missing
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, (json.dumps({"recipe": recipe, "preset": preset, **found}, indent=2) + "\n").encode())
    _print(found)


_NOT_NEEDED = {"data.test", "init", "text_init"}
"""Settings without whose files data.train can be looked at as the run will read it."""


def _names(overrides: list[str] | None) -> set[str]:
    return {override.partition("=")[0] for override in overrides or ()}


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from fastvtp.training.planned_data import data_lines

    console, data = Console(), found["data"]
    measured = "Measured are the data, the loader here, and the assumptions that say so."
    end = "Nothing is measured." if data is None else measured
    console.print(f"All figures are models, of the configuration and of the assumptions below. {end}")
    for setting, said in found["missing"].items():
        is_assumed = data is None and setting.startswith("data.") and setting not in _NOT_NEEDED
        kept = ": its clips, files and texts are assumed" if is_assumed else ""
        console.print(f"not here{kept}: {said}", markup=False, highlight=False)
    for columns, rows in (
        *(() if data is None else ((("data", "found"), data_lines(data)),)),
        (("run", ""), _run(found["run"])),
        (("memory of a process", *found["strategies"]), _memory(found)),
        (("sent in a step", *found["strategies"]), _traffic(found)),
        (("reading, checkpoints, failures", ""), _pace(found)),
        (("assumed", "value", "set by"), _assumed(found["assumptions"])),
        (("model", "what it says"), list(found["models"].items())),
    ):
        table = Table(*(Column(name, overflow="fold") for name in columns))
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)


def _run(run: dict[str, Any]) -> Iterable[Sequence[str]]:
    yield "task", run["task"]
    yield "processes", f"{run['processes']}, on {run['machines']} machine{'s' * (run['machines'] > 1)}"
    yield (
        "a step",
        (
            f"{run['clips_a_step']} clips, {run['clips_at_a_time']} at a time: {run['micro_batches_a_process']} "
            f"micro-batch{'es' * (run['micro_batches_a_process'] > 1)} a process"
        ),
    )
    yield "parameters", f"{run['parameters']:,}, of which {run['trained']:,} are trained"
    yield "strategy", f"{run['strategy']}: {run['why']}"


def _memory(found: dict[str, Any]) -> Iterable[Sequence[str]]:
    columns = list(found["strategies"].values())
    for name in columns[0]["memory"]:
        values = [column["memory"][name] for column in columns]
        if name == "total" or any(value != 0 for value in values):
            yield _MEMORY[name], *("not told" if value is None else _gib(value) for value in values)
    yield "of a GPU's", *(f"{column['share_of_gpu']:.1%}" for column in columns)
    yield "copy shared by", *(f"{column['shared_by']}" for column in columns)
    fitting = [column["largest_micro_batch"] for column in columns]
    yield "largest micro_batch", *("not told" if size is None else f"{size}" if size else "none" for size in fitting)


_MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "averaged weights",
    "gathered": "gathered weights",
    "summed": "gradients being summed",
    "casts": "bfloat16 copies",
    "activations": "activations (model)",
    "total": "total",
}


def _traffic(found: dict[str, Any]) -> Iterable[Sequence[str]]:
    columns = list(found["strategies"].values())
    yield "by a process", *(_bytes(column["sent_by_process"]) for column in columns)
    yield "by a machine to others", *(_bytes(column["sent_by_machine"]) for column in columns)
    yield "takes, if nothing overlaps", *(_time(column["network_seconds"]) for column in columns)
    for name, text in (("features", "features, to a process"), ("wrong_clips", "wrong clips, to a process")):
        if found["exchange"][name]:
            yield text, *(_bytes(found["exchange"][name]) for _ in columns)


def _pace(found: dict[str, Any]) -> Iterable[Sequence[str]]:
    reading, checkpoints, failures = found["reading"], found["checkpoints"], found["failures"]
    untimed = "give --step-seconds or --clips-per-second-per-gpu"
    yield (
        "clips seen",
        f"{reading['clips_seen']:,} in {found['run']['steps']:,} steps"
        + (f", {reading['epochs']:.2f} epochs" if reading["epochs"] is not None else ""),
    )
    if reading["stored_bytes"] is not None:
        yield "stored", _bytes(reading["stored_bytes"])
    yield "read in a step", _bytes(reading["bytes_a_step"])
    yield (
        "frames decoded in a step",
        (f"{reading['frames_a_step']:,.0f}" if reading["frames_a_step"] else "give --decoded-frames"),
    )
    timed = reading["seconds"] is not None
    yield "steps take", _time(reading["seconds"]) if timed else untimed
    if timed:
        yield (
            "clips",
            (f"{reading['clips_a_second']:,.0f} a second, {reading['clips_a_second_a_machine']:,.1f} on a machine"),
        )
        yield "read", f"{_bytes(reading['bytes_a_second'])} a second"
        if reading["frames_a_second"]:
            yield "frames decoded", f"{reading['frames_a_second']:,.0f} a second"
    yield "reading here", _keeps_up(reading.get("loader"))
    yield "checkpoint", f"{_bytes(checkpoints['bytes'])}, {_bytes(checkpoints['bytes_a_process'])} a process"
    yield "is written in", _time(checkpoints["write_seconds"])
    if timed:
        yield "every", _time(checkpoints["period_seconds"])
    if failures["between_seconds"] is not None:
        yield "between two failures", _time(failures["between_seconds"])
    if failures["expected"] is not None:
        yield "failures of the run", f"{failures['expected']:.1f}, which lose {failures['lost_share']:.1%} of the time"


def _keeps_up(loader: dict[str, Any] | None) -> str:
    """Say how many clips the loader makes on this machine, and whether they suffice."""
    if loader is None or "why_not" in loader:
        why = "data.train was not looked at" if loader is None else loader["why_not"]
        return f"not known whether it keeps up: {why}"
    made, needed, workers = loader["clips_a_second"], loader["needed"], loader["workers"]
    by = counted(workers, "worker") if workers else "no worker"
    said = f"{made:,.1f} clips a second of a process with {by}, on {counted(loader['cores'], 'core')}"
    if needed is None:
        return f"{said}; not known whether it keeps up: give --step-seconds or --clips-per-second-per-gpu"
    if made >= needed:
        return f"{said}; it keeps up with the {needed:,.1f} that are trained on"
    enough = math.ceil(max(1, workers) * needed / made)
    cure = f"data.num_workers={enough} may suffice, with as many cores, or `fastvtp prepare` makes clips cheap"
    return f"{said}; {needed:,.1f} are trained on: training would wait {1 - made / needed:.0%} of the time; {cure}"


def _assumed(assumptions: dict[str, Any]) -> Iterable[Sequence[str]]:
    for assumption in assumptions.values():
        value = assumption["value"]
        shown = "not given" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"
        measured = f"measured: {assumption['measured']}; " if "measured" in assumption else ""
        yield assumption["what"], shown, f"{measured}{assumption['option']}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 or not size else f"{size / 2**20:.2f} MiB"


def _bytes(size: float) -> str:
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_commands(app, "Training", plan)
