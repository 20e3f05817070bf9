"""`fastvtp recipes`."""

import json

import pytest

from fastvtp.cli import main as cli
from fastvtp.settings import setting_names
from fastvtp.systems.recipes import first_sentence, get_recipe, recipes


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Some runners of tests tell a width, by which lines would be wrapped."""
    monkeypatch.delenv("COLUMNS", raising=False)


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


@pytest.mark.parametrize("width", [80, 120])
def test_what_is_shown_is_wrapped_to_the_terminal_and_whole(capsys, monkeypatch, width):
    """Whole sentences: what every recipe says of itself is there, word by word."""
    monkeypatch.setenv("COLUMNS", f"{width}")
    overview = shown(capsys)
    assert max(map(len, overview.splitlines())) <= width
    known = {entry["name"]: entry["what"] for entry in json.loads(shown(capsys, "--json"))}
    assert all(said.endswith((".", "`")) for said in known.values())
    words = " ".join(overview.split())
    assert [name for name, said in known.items() if f"{name} (" not in words or f"clips) {said}" not in words] == []
    for name in ("simvtp_base", "alpro_prompter_tiny", "videoprism_captioning_tiny"):
        page = shown(capsys, name)
        long_values = [line for line in page.splitlines() if len(line) > width]
        assert long_values == [], name
        told = json.loads(shown(capsys, name, "--json"))
        for sentence in (told["published"] or {}).get("differs", ()):
            assert sentence in " ".join(page.split())


def test_lines_for_another_program_stay_whole(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    (line,) = [line for line in shown(capsys, "simvtp_base").splitlines() if line.startswith("optimizer.warmup_share")]
    assert line.split(maxsplit=2)[1:] == ["0.2", "release: 40 of 200 epochs"]


def test_a_sentence_goes_on_behind_a_point_within_it():
    text = "Of 1.5 M clips, e.g. of films, at 0.9.\nAnother one. A third."
    assert first_sentence(text) == "Of 1.5 M clips, e.g. of films, at 0.9."
    assert first_sentence("After this:\n\n    make demo\n\nMore.") == "After this: `make demo`"
