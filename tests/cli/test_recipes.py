"""`fastvtp recipes`."""

import json

import pytest

from fastvtp.cli import main as cli
from fastvtp.settings import setting_names
from fastvtp.systems.recipes import get_recipe, recipes


def shown(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.app(["recipes", *arguments])
    assert not stopped.value.code
    return capsys.readouterr().out


def test_all_recipes_are_listed_under_their_commands(capsys):
    text = shown(capsys)
    before, _, after = text.partition("fastvtp finetune NAME")
    for name in recipes():
        place = before if get_recipe(name).task.startswith("pretrain") else after
        assert f"\n  {name} " in place


def test_every_setting_of_a_recipe_is_shown(capsys):
    text = shown(capsys, "simvtp_base")
    lines = dict(line.split(maxsplit=1) for line in text.partition("\nsetting ")[2].splitlines()[1:])
    assert list(lines) == setting_names(get_recipe("simvtp_base"))
    assert lines["optimizer.warmup_share"].split(maxsplit=1) == ["0.2", "release: 40 of 200 epochs"]
    assert "clips a step  1024, 64 at a time (published: 1024)" in text
    assert "clips seen    497.9 M in 486200 steps (published: 497.9 M)" in text
    assert "starts from   init=models/videomae_base text_init=models/bert_base" in text


def test_the_preset_and_json(capsys):
    found = json.loads(shown(capsys, "simvtp_base", "--preset", "official", "--json"))
    values = {row["name"]: row["value"] for row in found["settings"]}
    assert (values["model.matching_negatives"], found["preset"]) == ("random", "official")
    assert [entry["name"] for entry in json.loads(shown(capsys, "--json"))] == list(recipes())
