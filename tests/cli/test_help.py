"""What the command line says of itself: quickly, in sentences, with names that exist."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from fastvtp.cli import main as cli

PACKAGE = Path(cli.__file__).parents[1]
COMMAND_FILES = tuple(sorted((PACKAGE / "cli").glob("*.py")))
TOP: dict[str, Any] = get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
COMMANDS = {name: command for name, command in TOP.items() if not isinstance(command, TyperGroup)} | {
    f"{group} {name}": command
    for group, of_group in TOP.items()
    if isinstance(of_group, TyperGroup)
    for name, command in of_group.commands.items()
}
MOST_PARAMETERS = 8


def helps(command: str) -> dict[str, str]:
    """Help of the command's parameters by their names."""
    return {parameter.name: parameter.help or "" for parameter in COMMANDS[command].params}


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_help_waits_for_no_library():
    code = (
        "import sys\n"
        "from fastvtp.cli import main\n"
        "sys.argv = ['fastvtp', '--help']\n"
        "try:\n"
        "    main.main()\n"
        "except SystemExit as stopped:\n"
        "    assert not stopped.code\n"
        "print('loaded:', *sorted({'torch', 'numpy', 'pydantic', 'PIL'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Pretrain, fine-tune" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_and_its_parameters_are_described_in_sentences(command):
    for paragraph in COMMANDS[command].help.split("\n\n"):
        assert re.fullmatch(r"[A-Z].*\.", paragraph), paragraph
    for name, text in helps(command).items():
        assert re.fullmatch(r"[A-Z].*\.", text), f"{command} {name}: {text}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_screen_shows_all_of_a_help(command, monkeypatch, capsys):
    """What looks like markup would be swallowed."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.app([*command.split(), "--help"])
    shown = re.sub(r"[\s│]+", "", capsys.readouterr().out)
    for text in (COMMANDS[command].help, *helps(command).values()):
        assert re.sub(r"\s+", "", text) in shown


def test_names_in_helps_exist():
    import fastvtp.systems  # noqa: F401
    from fastvtp.architecture import architectures, systems
    from fastvtp.checkpoints.kinds import origins
    from fastvtp.evaluation.zero_shot import TEMPLATES
    from fastvtp.frozen.probes import PROBES
    from fastvtp.frozen.recipes import RECIPES as PROBE_RECIPES

    convert = helps("convert")
    named = re.search(r"becomes: (.*?)\.", convert["architecture"])
    assert named
    assert words(named[1]) - {"or"} < set(architectures())
    named = re.search(r"checkpoint: (.*?)\.", convert["origin"])
    assert named
    assert words(named[1]) - {"or"} == set(origins())
    assert set(PROBES) == set(re.findall(r'"(\w+)"', helps("probe")["kind"]))
    assert set(PROBE_RECIPES) < words(helps("probe")["recipe"])
    assert set(TEMPLATES) == set(re.findall(r'"(\w+)"', helps("zeroshot")["templates"]))
    ablated = {name for name, system in systems().items() if system.runs().study is not None}
    assert ablated < words(helps("ablate")["system"])


def test_recipes_in_helps_exist():
    from fastvtp.systems.recipes import recipes

    for command in ("pretrain", "finetune"):
        named = {word for word in words(helps(command)["recipe"]) if "_" in word and word[0] != "_"}
        assert named
        assert named <= set(recipes())


def test_the_former_name_of_an_option_is_understood_and_not_shown(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("fastvtp.runs.visualize", lambda *_, **said: shown.append(said) or [])
    monkeypatch.setattr("fastvtp.systems.catalogue.open_model", lambda *_: None)  # runs has its own by now
    for option in ("--fit", "--framing"):
        with pytest.raises(SystemExit) as stopped:
            cli.app(["visualize", "model", "data", option, "squash", "--device", "cpu"])
        assert not stopped.value.code
    assert len(shown) == 2
    assert shown[0] == shown[1]
    assert "squash" in shown[0].values()
    with pytest.raises(SystemExit):
        cli.app(["visualize", "--help"])
    assert "--fit" not in capsys.readouterr().out


def test_functions_have_few_parameters():
    counts = {
        f"{path.name}: {node.name}": len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
        for path in COMMAND_FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: count for name, count in counts.items() if count > MOST_PARAMETERS} == {}


def test_every_module_says_what_it_is():
    for path in COMMAND_FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
