"""docs/settings.md has the settings that one needs first, with the defaults of the code."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from fastvtp.cli import main as cli
from fastvtp.settings import setting_defaults, setting_values
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.data_config import TRAINING_READING
from fastvtp.training.published import shown

PAGE = (Path(__file__).parents[1] / "docs/settings.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]
SETTINGS = [row for row in ROWS if not row[0].startswith("`--")]
FIRST = (
    *("steps", "batch_size", "micro_batch", "checkpoint_every", "optimizer.learning_rate", "data.train", "data.test"),
    *("data.num_workers", "seed", "output_dir", "model.num_frames", "model.image_size", "device", "init"),
)


def code(text: str) -> str:
    return f"`{text}`"


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row[0].strip("`"))
def test_a_setting_has_the_default_and_the_value_that_the_page_says(row):
    config = get_recipe("simvtp_tiny")
    reading = {f"data.{name}": value for name, value in setting_values(TRAINING_READING).items()}
    defaults, values = {**setting_defaults(config), **reading}, setting_values(config)
    name = row[0].strip("`")
    expected = code(shown(defaults[name])) if name in defaults else ""
    assert row[1:3] == [expected, code(shown(values[name]))]
    assert len(row) == 5
    assert row[4]


def test_the_page_has_what_one_needs_first_once():
    names = [row[0].strip("`") for row in SETTINGS]
    assert set(FIRST) <= set(names)
    assert len(set(names)) == len(names)


def test_other_settings_and_options_that_the_page_names_exist():
    config = get_recipe("simvtp_tiny")
    named = set(re.findall(r"`((?:data|optimizer|model)\.\w+)`", PAGE))
    assert named <= set(setting_values(config))
    command = get_command(cli.app).commands["pretrain"]  # pyright: ignore[reportAttributeAccessIssue]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {row[0].strip("`") for row in ROWS if row not in SETTINGS} == options - {"recipe", "overrides", "--help"}
