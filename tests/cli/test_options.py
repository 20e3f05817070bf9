"""Bundles of options: what the command line shows of them, and what a command gets."""

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from fastvtp.cli.options import Only, add_commands, spread_bundles


@dataclass(frozen=True)
class Paint:
    """How a fence is painted."""

    colour: Annotated[str, typer.Option(help="The colour.")] = "white"
    coats: Annotated[int, typer.Option(min=1, help="How many coats.")] = 2
    dry: Annotated[bool, typer.Option("--dry", help="Wait between coats.")] = False


DARK = Paint(colour="black", coats=3)


def paint(fence: str, *, paint: Paint, length: Annotated[float, typer.Option()] = 1.5) -> None:
    """Paint a fence.

    The paint is bought in a shop
    that is open.
    """
    typer.echo(f"{fence} {paint} {length}")


def darken(fence: str, paint: Annotated[Paint, Only("coats")] = DARK) -> None:
    """Paint a fence black."""
    typer.echo(f"{fence} {paint}")


@pytest.fixture
def run():
    app = typer.Typer()
    add_commands(app, "Fences", paint, darken)

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.output.strip()

    return call


def test_a_command_gets_its_bundle_built(run):
    assert run("paint", "north") == (0, f"north {Paint()} 1.5")
    arguments = ("--coats", "1", "north", "--dry", "--colour", "red", "--length", "2")
    assert run("paint", *arguments) == (0, f"north {Paint('red', 1, True)} 2.0")


def test_the_default_of_the_parameter_gives_those_of_the_options(run):
    assert run("darken", "north") == (0, f"north {DARK}")
    assert run("darken", "north", "--coats", "4") == (0, f"north {Paint('black', 4)}")


def test_options_that_a_command_does_not_have_are_unknown(run):
    status, output = run("darken", "north", "--colour", "red")
    assert status == 2
    assert "No such option: --colour" in output


def test_bounds_of_options_are_kept(run):
    status, output = run("paint", "north", "--coats", "0")
    assert status == 2
    assert "--coats" in output


def test_help_has_the_options_in_order_and_paragraphs_without_the_source_s_lines(run):
    _, output = run("paint", "--help")
    assert "The paint is bought in a shop that is open." in output
    places = [output.index(shown) for shown in ("--colour", "--coats", "--dry", "--length")]
    assert places == sorted(places)
    assert "Fences" in run("--help")[1]


def test_spread_options_are_a_function_s_parameters():
    parameters = inspect.signature(spread_bundles(paint)).parameters
    assert list(parameters) == ["fence", "colour", "coats", "dry", "length"]
    assert parameters["coats"].default == 2
    assert parameters["fence"].default is inspect.Parameter.empty


def test_only_what_a_bundle_has_can_be_asked_for():
    def wrong(paint: Annotated[Paint, Only("color")]) -> None: ...

    with pytest.raises(ValueError, match="Paint has no option 'color'"):
        spread_bundles(wrong)


def test_an_option_twice_is_refused():
    def wrong(paint: Paint, coats: int = 1) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'coats'"):
        spread_bundles(wrong)
