"""Options that several commands share."""

from typing import Annotated

import typer

NumWorkers = Annotated[int, typer.Option(min=0, help="Decoding processes; 0: none beside this one.")]
Fit = Annotated[str | None, typer.Option(help='Frames to squares: "crop" or "squash"; else as in training, or crop.')]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda".')]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
