"""docs/differences.md names settings and options that there are."""

import re
from dataclasses import fields
from pathlib import Path

from typer.main import get_command

from fastvtp.architecture import architectures
from fastvtp.cli import main as cli
from fastvtp.settings import setting_names
from fastvtp.systems.recipes import get_recipe, recipes

PAGE = (Path(__file__).parents[1] / "docs/differences.md").read_text()
CODE = re.findall(r"`([^`]+)`", PAGE)


def test_settings_of_the_page_exist():
    known = {name for recipe in recipes() for name in setting_names(get_recipe(recipe))}
    known |= {entry.name for architecture in architectures().values() for entry in fields(architecture.config)}
    named = {name for text in CODE for name in re.findall(r"(?<![\w-])([a-z][\w.]*)=", text)}
    assert len(named) > 25
    assert named <= known


def test_recipes_and_options_of_the_page_exist():
    commands = get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
    options = {option for command in commands.values() for entry in command.params for option in entry.opts}
    options |= {option for command in commands.values() for entry in command.params for option in entry.secondary_opts}
    assert {option for text in CODE for option in re.findall(r"--[a-z-]+", text)} <= options
    assert {text for text in CODE if text.startswith(("videoprism_", "simvtp_"))} <= set(recipes())
