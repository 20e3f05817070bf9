"""The README's Python blocks run as they stand, in order, in one namespace; its commands can be given."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from fastvtp import architecture
from fastvtp.cli.main import app
from fastvtp.cli.options import ReadingOptions
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from tests.toy_system.system import SYSTEM as TOY

try:
    import tomllib
except ImportError:  # of Python 3.10, where pytest brings it along
    import tomli as tomllib

README = Path(__file__).parents[1] / "README.md"
PAGES = [README, *sorted((README.parent / "docs").rglob("*.md"))]


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert len(blocks) >= 2
    assert namespace["visible"].shape == (2, 160, 768)
    conv, video, mask = namespace["conv"], namespace["video"], namespace["mask"]
    import torch

    mean, std = (torch.tensor(namespace[name]) for name in ("mean", "std"))
    pixels = ((video[:1].float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    usual = conv(pixels).flatten(2).mT + namespace["position"]
    torch.testing.assert_close(namespace["visible"][:1], usual[:, mask.visible[0].long()], rtol=1e-4, atol=1e-4)


def test_named_files_exist():
    for name in re.findall(r"`((?:fastvtp|kernels|tests)/[\w/.]*)`", README.read_text()):
        assert (README.parent / name).exists(), name


def test_the_section_on_installing_has_every_extra_and_the_versions_of_the_package():
    text = README.read_text().partition("\n## Install\n")[2].partition("\n## ")[0]
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`([\w-]+)`", row)) == sorted(extras)
    for group in re.findall(r'"\.\[([\w,-]+)\]"', text):
        assert set(group.split(",")) <= set(extras)
    torch = next(each for each in project["dependencies"] if each.startswith("torch>="))
    for said, required in (("Python", project["requires-python"]), ("PyTorch", torch), ("Triton", extras["gpu"][0])):
        assert f"{said} {re.findall(r'>=([0-9.]+)', required)[0]} or newer" in text


def commands_of(page: Path) -> Iterator[str]:
    """What follows `fastvtp` in the indented lines of a page, and in its blocks of commands."""
    text = page.read_text()
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", "")
    lines = re.findall(r"^    (fastvtp .*)$", text, flags=re.MULTILINE)
    for line in [*lines, *re.findall(r"^(fastvtp .*)$", blocks, flags=re.MULTILINE)]:
        for command in re.split(r"\s&&\s", line.partition(" #")[0]):
            program, _, rest = command.partition(" ")
            assert program == "fastvtp", line
            yield rest


@pytest.mark.parametrize("command", [command for page in PAGES for command in commands_of(page)])
def test_commands_are_understood(command, monkeypatch):
    """Their options and values are read, and the settings of a recipe; nothing runs. One page is about the toy."""
    monkeypatch.setattr(architecture, "_SYSTEMS", dict(architecture.systems()))
    architecture.register(TOY)
    name, *arguments = shlex.split(command)
    assert "fastvtp" not in arguments
    known: Any = get_command(app).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(known, TyperGroup):
        known = known.commands[arguments.pop(0)]
    context = known.make_context(name, list(arguments))
    if name in ("pretrain", "finetune", "launch", "plan"):
        apply_overrides(get_recipe(arguments[0]), context.params["overrides"] or [])


def test_several_views_are_read_as_the_recipe_they_follow_reads_them():
    (command,) = [command for command in commands_of(README) if "evaluate runs/retrieval" in command]
    name, *arguments = shlex.split(command)
    params = get_command(app).commands[name].make_context(name, arguments).params  # pyright: ignore[reportAttributeAccessIssue]
    data = get_recipe("retrieval_finetune").data
    assert params["views"] == "x".join(map(str, data.test_views))
    reading = ReadingOptions(frame_stride=params["frame_stride"], fps=params["fps"])
    assert (params["sampling"], reading.spacing["frame_stride"]) == (data.test_sampling, data.reading.frame_stride)
