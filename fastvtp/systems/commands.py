"""What systems add to the command line. Imports no torch, so that `fastvtp --help` is quick."""

from collections.abc import Callable

import typer

from fastvtp.systems.captioner import commands as captioner_commands

COMMANDS: tuple[Callable[[typer.Typer], None], ...] = (captioner_commands.register,)
"""Functions that add the commands of a system to an app."""
