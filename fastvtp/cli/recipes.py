"""The command that lists the recipes and shows where their settings come from."""

import json
from typing import Annotated, Any

import typer

from fastvtp.cli.options import add_commands
from fastvtp.cli.together import by_first

_Name = Annotated[str | None, typer.Argument(help="Name of a recipe. If it is not given, all are listed.")]
_Preset = Annotated[str, typer.Option(help='The preset whose values are shown: "fastvtp" or "official".')]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@by_first
def recipes(name: _Name = None, preset: _Preset = "fastvtp", as_json: _Json = False) -> None:
    """List the recipes, or show every setting of one with its source: a paper, a released code, or ours.

    Also shown are the clips of a step and of the whole training, beside those of the publication, and what a recipe
    does otherwise.
    """
    from fastvtp.systems import recipes as known

    if name is None:
        found = known.recipe_summaries(preset)
        typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_overview(found)))
        return
    description = known.describe_recipe(name, preset)
    typer.echo(json.dumps(description, indent=2) if as_json else "\n".join(_page(description)))


def _overview(found: list[dict[str, Any]]) -> list[str]:
    widest = max(len(entry["name"]) for entry in found)
    lines = []
    for command in dict.fromkeys(entry["command"] for entry in found):
        lines += ["", f"fastvtp {command} NAME"]
        for entry in found:
            if entry["command"] == command:
                size = f"{entry['clips_a_step']:>5} a step, {_millions(entry['clips']):>7} clips"
                lines.append(f"  {entry['name']:<{widest}}  {size}  {entry['what']}")
    return [*lines[1:], "", "fastvtp recipes NAME shows every setting of one, with its source"]


def _page(recipe: dict[str, Any]) -> list[str]:
    published = recipe["published"] or {}
    facts = {
        "paper": published.get("paper"),
        "release": published.get("release"),
        "data": published.get("data"),
        "starts from": " ".join(f"{name}={value}" for name, value in recipe["starts_from"].items()) or "random weights",
        "clips a step": f"{recipe['clips_a_step']}, {recipe['clips_at_a_time']} at a time"
        + (f" (published: {published['batch']})" if published else ""),
        "clips seen": f"{_millions(recipe['clips'])} in {recipe['steps']} steps"
        + (f" (published: {_millions(published['clips'])})" if published else ""),
    }
    lines = [f"fastvtp {recipe['command']} {recipe['name']} --preset {recipe['preset']}", *recipe["about"], ""]
    lines += [f"{name:<13} {value}" for name, value in facts.items() if value]
    lines += [
        f"{'differs' if place == 0 else '':<13} {text}" for place, text in enumerate(published.get("differs", ()))
    ]
    rows = [("setting", "value", "source"), *((row["name"], row["text"], row["source"]) for row in recipe["settings"])]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [*lines, "", *(f"{name:<{names}}  {value:<{values}}  {source}" for name, value, source in rows)]


def _millions(clips: int) -> str:
    return f"{clips / 1e6:.1f} M" if clips >= 1e6 else f"{clips / 1e3:.0f} k"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_commands(app, "Training", recipes)
