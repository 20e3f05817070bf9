"""Whole studies of seconds: what lands on the disk, and that a second call does only what is missing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastvtp.ablation import runner
from fastvtp.ablation.runner import ablate as run_ablation
from fastvtp.data.annotations import load_annotations
from fastvtp.errors import UserError
from fastvtp.model_folder import read_weights
from fastvtp.settings import from_json
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import find_study
from fastvtp.systems.simvtp.ablation import QUICK, base_config

SCALE = replace(QUICK, num_train=24, num_test=8, probe_clips=16)


def ablate(*arguments, **options):
    return run_ablation(find_study("simvtp", []), *arguments, **options)


def settings(folder, *more: str):
    return base_config("fastvtp", [f"output_dir={folder}", "device=cpu", "steps=2", *more], quick=True)


@pytest.fixture
def trained(monkeypatch):
    """Names of the folders of the runs that are trained from now on."""
    names = []
    train = runner.train
    monkeypatch.setattr(runner, "train", lambda config, **k: (names.append(config.output_dir), train(config, **k))[1])
    return names


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with all studies."""
    folder = tmp_path_factory.mktemp("ablation") / "all"
    ablate(settings(folder), SCALE, command="fastvtp ablate", progress_bar=False)
    return folder


def test_all_studies_are_reported(finished):
    state = json.loads((finished / "ablation.json").read_text())
    assert len(state["runs"]) == 14
    assert all(np.isfinite(list(run["scores"].values())).all() for run in state["runs"].values())
    steps = {name: run["steps"] for name, run in state["runs"].items()}
    assert steps.pop("untrained") == 0
    assert set(steps.values()) == {2}
    assert len(state["claims"]) == 4
    text = (finished / "ablation.md").read_text()
    for title in ("## Mask ratios", "## Objectives", "## Reconstruction", "## Data", "    fastvtp ablate\n"):
        assert title in text
    with Image.open(finished / "ablation.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_weights_are_deleted_and_finished_runs_not_repeated(finished, trained):
    assert not [*finished.glob("runs/*/checkpoints"), *finished.glob("runs/*/model")]
    before = json.loads((finished / "ablation.json").read_text())
    ablate(settings(finished), SCALE, study="masks", command="fastvtp ablate", progress_bar=False)
    assert trained == []
    assert json.loads((finished / "ablation.json").read_text()) == before


def test_an_interrupted_study_continues_to_the_same_scores(finished, tmp_path, trained):
    folder, score = tmp_path / "cut", find_study("simvtp", []).score
    calls = iter([False, False, True])

    def interrupted(*arguments):
        if next(calls, False):
            raise KeyboardInterrupt
        return score(*arguments)

    with pytest.raises(KeyboardInterrupt):
        run_ablation(
            replace(find_study("simvtp", []), score=interrupted),
            settings(folder),
            SCALE,
            study="data",
            progress_bar=False,
        )
    assert len(json.loads((folder / "ablation.json").read_text())["runs"]) == 2
    ablate(settings(folder), SCALE, study="data", keep=True, progress_bar=False)
    assert [name.rpartition("/")[2] for name in trained] == [
        "base", "base_seed_+1", "untrained", "untrained", "25pc_of_the_clips"
    ]  # fmt: skip
    again, whole = (json.loads((place / "ablation.json").read_text())["runs"] for place in (folder, finished))
    assert {name: run["scores"] for name, run in again.items()} == {name: whole[name]["scores"] for name in again}
    # kept weights, and an untrained model that is as it was initialised
    weights = read_weights(folder / "runs/untrained/model")
    config = json.loads((folder / "runs/untrained/model/config.json").read_text())["config"]
    torch.manual_seed(0)
    fresh = build_model(from_json(type(settings(folder).model), config)).state_dict()
    assert len(weights) > 40
    assert all(torch.equal(weights[name], fresh[name]) for name in weights)


def test_lists_of_shares_and_of_shuffled_captions(finished):
    whole, shuffled, few = (
        load_annotations(finished / "lists" / f"train_{name}.jsonl") for name in ("1", "1_shuffled", "0.25")
    )
    assert few == whole[:6]
    assert [record.video for record in shuffled] == [record.video for record in whole]
    assert sorted(record.captions for record in shuffled) == sorted(record.captions for record in whole)
    assert not any(one.captions == other.captions for one, other in zip(shuffled, whole, strict=True))


def test_other_settings_in_the_folder_are_refused(finished):
    with pytest.raises(UserError, match=r"holds an ablation with other settings \(scale.num_train, batch_size\)"):
        ablate(settings(finished, "batch_size=4"), replace(SCALE, num_train=32), progress_bar=False)


def test_a_run_that_diverges_is_noted_and_the_others_go_on(tmp_path, monkeypatch):
    train = runner.train

    def diverging(config, **options):
        if config.seed == 1:
            raise FloatingPointError("loss is nan")
        return train(config, **options)

    monkeypatch.setattr(runner, "train", diverging)
    report = ablate(settings(tmp_path / "a"), SCALE, study="data", progress_bar=False)
    assert report.state["runs"]["base, seed +1"]["error"] == "loss is nan"
    assert "loss is nan" in (tmp_path / "a/ablation.md").read_text()
    assert "25% of the clips" in report.scores
    assert {claim.verdict for claim in report.claims()} == {"not measured"}  # one seed has no spread
