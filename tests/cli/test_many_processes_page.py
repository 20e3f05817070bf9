"""The commands of docs/many_processes.md can be given: those of scripts and of manifests, and those of torchrun."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser
from typer.main import get_command

from fastvtp.cli.main import app
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.launching import Nodes, check_run

PAGE = (Path(__file__).parents[2] / "docs/many_processes.md").read_text()
VALUES = {"$SLURM_NNODES": "4", "$head": "node1"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def in_scripts() -> Iterator[list[str]]:
    """The words of each command of fastvtp in the shell scripts, without that word."""
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in VALUES.items():
                line = line.replace(name, value)
            words = shlex.split(line, comments=True)
            if "fastvtp" in words:
                yield words[words.index("fastvtp") + 1 :]


def in_manifests() -> Iterator[list[str]]:
    for block in blocks("yaml"):
        for listed in re.findall(r"command: \[fastvtp, (.*)\]", block):
            yield [word.strip().strip('"') for word in listed.split(",")]


def in_lines() -> Iterator[list[str]]:
    for line in re.findall(r"^    fastvtp (.*)$", PAGE, flags=re.MULTILINE):
        yield shlex.split(line, comments=True)


def understood(words: list[str]):
    """What the command line reads."""
    return get_command(app).commands[words[0]].make_context(words[0], list(words[1:])).params  # pyright: ignore


@pytest.mark.parametrize("words", [*in_scripts(), *in_manifests(), *in_lines()], ids=" ".join)
def test_a_command_is_understood_and_its_run_would_start(words, tmp_path):
    params = understood(words)
    if words[0] not in ("launch", "plan"):
        return
    config = apply_overrides(get_recipe(params["recipe"]), [*(params["overrides"] or []), f"output_dir={tmp_path}"])
    nodes = Nodes.read(params.get("nodes", "1"))
    check_run(config, [count * params["gpus"] for count in range(nodes.least, nodes.most + 1)])


def test_there_are_such_commands():
    assert {words[0] for words in in_scripts()} == {"launch", "evaluate", "extract"}
    assert [words[0] for words in in_manifests()] == ["launch"]


def test_torchrun_reads_what_is_its_own():
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("torchrun")]
    assert len(lines) == 2
    for line in lines:
        read = get_args_parser().parse_args(shlex.split(line)[1:])
        assert (read.standalone, read.nproc_per_node, read.module, read.training_script) == (True, "8", True, "fastvtp")


def test_files_that_the_page_names_exist():
    for name in re.findall(r"`((?:fastvtp|tests|benchmarks)/[\w/.]*)`", PAGE):
        assert (Path(__file__).parents[2] / name).exists(), name


def test_messages_that_the_page_explains_are_those_of_the_code():
    """Rows whose first cell is a message of fastvtp; numbers and dots stand for what varies."""
    package = Path(__file__).parents[2] / "fastvtp"
    code = re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text() for path in sorted(package.rglob("*.py"))))
    messages = re.findall(r"^\| `([^`|]*)` \|", PAGE[PAGE.index("## What went wrong") :], flags=re.MULTILINE)
    assert len(messages) == 8
    for message in messages:
        fragments = [part.strip(" :") for part in re.split(r"\d+|\.\.\.", message)]
        assert any(fragments), message
        for fragment in filter(None, fragments):
            assert fragment in code, f"{message}: {fragment!r}"
