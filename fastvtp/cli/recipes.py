"""The command that lists the recipes and shows where their settings come from."""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Annotated, Any

import typer

from fastvtp.cli.options import add_commands
from fastvtp.cli.together import by_first

_Name = Annotated[str | None, typer.Argument(help="Name of a recipe. If it is not given, all are listed.")]
_Preset = Annotated[str, typer.Option(help='The preset whose values are shown: "fastvtp" or "official".')]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_WIDEST_VALUE, _NARROWEST = 24, 20


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
    width, lines = _width(), []
    for command in dict.fromkeys(entry["command"] for entry in found):
        lines += ["", f"fastvtp {command} NAME"]
        for entry in found:
            if entry["command"] == command:
                lines.append(f"  {entry['name']}  ({entry['clips_a_step']} a step, {_millions(entry['clips'])} clips)")
                lines += _columns([("", entry["what"])], (5,), width)
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
    width = _width()
    lines = [f"fastvtp {recipe['command']} {recipe['name']} --preset {recipe['preset']}"]
    lines += [*_about(recipe["about"], width), ""]
    told = [(name, value) for name, value in facts.items() if value]
    told += [("differs" if place == 0 else "", text) for place, text in enumerate(published.get("differs", ()))]
    lines += [*_columns(told, (13,), width), ""]
    rows = [("setting", "value", "source"), *((row["name"], row["text"], row["source"]) for row in recipe["settings"])]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [*lines, *_columns(rows, (names + 1, values if width is None else min(values, _WIDEST_VALUE)), width)]


def _about(lines: list[str], width: int | None) -> list[str]:
    """Return the lines of a docstring, whose paragraphs fill the terminal; commands stay on lines of their own."""
    if width is None:
        return lines
    text = re.sub(r"(?<=\S)\n(?=\S)", " ", "\n".join(lines))
    return _columns(((line,) for line in text.split("\n")), (), width)


def _width() -> int | None:
    """Return the columns of the terminal; None where lines go to a file or another program, which takes them whole."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None


def _columns(rows: Iterable[Sequence[str]], widths: Sequence[int], width: int | None) -> list[str]:
    """Return rows of cells as lines: each cell but the last in a column of its width, all of them wrapped where they
    are wider, the last one at the end of the terminal, `width`."""
    before = sum(widths) + len(widths)
    last = None if width is None else max(width - before, _NARROWEST)
    lines = []
    for row in rows:
        wrapped = [_wrapped(cell, most) for cell, most in zip(row, (*widths, last), strict=True)]
        for parts in zip_longest(*wrapped, fillvalue=""):
            cells = [f"{part:<{most}} " for part, most in zip(parts, widths, strict=False)]
            lines.append("".join([*cells, parts[-1]]).rstrip())
    return lines


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None or len(text) <= width:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()))  # of a command in a docstring
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _millions(clips: int) -> str:
    return f"{clips / 1e6:.1f} M" if clips >= 1e6 else f"{clips / 1e3:.0f} k"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_commands(app, "Training", recipes)
