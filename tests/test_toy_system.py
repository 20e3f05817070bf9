"""A system from outside is the equal of those inside: registered by one call, it is created, trained, scored, read."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fastvtp.systems
from fastvtp import architecture
from fastvtp.architecture import Architecture, NamedModel, Runs, System, architecture_of, build_model, register
from fastvtp.errors import ConfigError, UserError
from fastvtp.evaluation.scoring import evaluate, find_scorer
from fastvtp.systems.catalogue import create_model, list_models, open_model
from fastvtp.systems.conversion import convert
from fastvtp.systems.recipes import get_recipe, recipe_config, recipes
from fastvtp.training.config import apply_overrides, tasks
from fastvtp.training.loop import train
from fastvtp.training.task import Task
from tests.toy_system.model import Toy, ToyConfig
from tests.toy_system.system import SYSTEM, PretrainToy


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The toy is known within a test, and to no other test of the same process."""
    monkeypatch.setattr(architecture, "_SYSTEMS", dict(architecture.systems()))
    fastvtp.register(SYSTEM)


@pytest.fixture
def config(captioned_videos, tmp_path):
    settings = ["device=cpu", "batch_size=4", "log_every=1", "checkpoint_every=2", "data.num_workers=0"]
    data = [f"data.{part}={captioned_videos / f'{part}.jsonl'}" for part in ("train", "test")]
    return recipe_config("toy_tiny", "fastvtp", [*data, *settings, f"output_dir={tmp_path / 'run'}", "brightness=0.5"])


def test_it_is_created_and_listed_by_name():
    assert {"toy_base", "toy_tiny"} <= set(list_models())
    assert create_model("toy_tiny").config == ToyConfig(width=8)
    assert create_model("toy_base").config.width == 64
    assert create_model("toy_base", preset="official").config.width == 16
    with pytest.raises(UserError, match="did you mean 'toy_tiny'"):
        create_model("toy_tny")


def test_its_own_settings_are_no_others(config):
    assert config.options.brightness == 0.5
    with pytest.raises(ConfigError, match="brightness is for pretrain_toy, the task is pretrain_simvtp"):
        apply_overrides(get_recipe("simvtp_tiny"), ["brightness=2"])
    with pytest.raises(ConfigError, match="batch_size must be at least 2"):
        apply_overrides(config, ["batch_size=1"])
    with pytest.raises(ConfigError, match=r"data\.images is for .*pretrain_alpro.*, the task is pretrain_toy"):
        apply_overrides(config, ["data.images=x.jsonl"])


def test_it_is_pretrained_resumed_and_evaluated(config, captioned_videos, tmp_path):
    whole = train(config, progress_bar=False)
    for folder in ("model", "checkpoints/step_00000004"):  # as if killed after the second step
        path = tmp_path / "run" / folder
        path.rename(path.with_name(f"partial_{path.name}"))
    resumed = train(config, resume=True, progress_bar=False)
    for before, after in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(before, after)
    opened = open_model(tmp_path / "run", torch.device("cpu"))
    assert isinstance(opened.model, Toy)
    scores = evaluate(opened, str(captioned_videos / "test.jsonl"), progress_bar=False)
    assert scores["num_test"] == 8
    assert 0 <= scores["retrieval"]["t2v"]["R1"] <= 100


def test_micro_batches_are_contrasted_as_one_batch(config, tmp_path):
    """Through `collect` and `rest`: losses, gradients and weights are those of the batch that is read at once."""
    found = []
    for settings in ("micro_batch=8", "micro_batch=2", "contrast_scope=micro_batch"):
        more = ["batch_size=8", "micro_batch=2", settings, f"output_dir={tmp_path / settings}"]
        result = train(apply_overrides(config, more), progress_bar=False)
        records = [json.loads(line) for line in (tmp_path / settings / "metrics.jsonl").read_text().splitlines()]
        found.append(([record["loss"] for record in records], result.model.state_dict()))
    (losses, weights), (in_parts, theirs), (apart, _) = found
    assert in_parts == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(theirs, weights, rtol=1e-4, atol=1e-6)
    assert apart[0] < losses[0] - 0.1  # among two clips instead of eight


class Silent(PretrainToy):
    name = "pretrain_silent"
    collect = Task.collect


def test_a_task_that_hands_out_no_features_is_not_contrasted_apart_in_silence(config, tmp_path):
    register(System(name="silent", architectures=(), runs=lambda: Runs(tasks=(Silent,))))
    silent = replace(config, task="pretrain_silent", micro_batch=2, output_dir=str(tmp_path / "silent"))
    with pytest.raises(ConfigError, match="the task hands out no features; set contrast_scope=micro_batch"):
        train(silent, progress_bar=False)
    assert not (tmp_path / "silent").exists()
    train(replace(silent, contrast_scope="micro_batch"), progress_bar=False)


def test_its_published_weights_are_converted(tmp_path):
    weights = {
        "vision.proj.weight": torch.ones(6, 3),
        "vision.proj.bias": torch.ones(6),
        "words.weight": torch.ones(9, 6),
    }
    torch.save({"model": weights}, tmp_path / "toy.pth")
    done = convert(tmp_path / "toy.pth", tmp_path / "toy")
    assert (done.architecture, len(done.report.loaded)) == ("toy", 3)
    model = fastvtp.load_pretrained(tmp_path / "toy")
    assert (model.config.width, model.config.vocab_size) == (6, 9)
    assert all((parameter == 1).all() for parameter in model.parameters())


def test_a_run_starts_from_its_published_weights(config, tmp_path):
    first = train(config, progress_bar=False).model.state_dict()
    names = {"video_projection": "vision.proj", "word_embeddings": "words"}
    published = {names[name.partition(".")[0]] + name[name.index(".") :]: weight for name, weight in first.items()}
    torch.save(published, tmp_path / "toy.pth")
    still = ["steps=1", "optimizer.learning_rate=1e-30", f"init={tmp_path / 'toy.pth'}"]
    started = apply_overrides(config, [*still, "seed=5", f"output_dir={tmp_path / 'second'}"])
    for name, weight in train(started, progress_bar=False).model.state_dict().items():
        assert torch.equal(weight, first[name])


def test_the_command_finds_it_by_its_entry_point(captioned_videos, tmp_path):
    """A package that is installed with an entry point is known to every command, without a line of code."""
    info = tmp_path / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fastvtp.systems]\ntoy = tests.toy_system.system:SYSTEM\nbroken = no_such_package:SYSTEM\n"
        "half = half_a_system:SYSTEM\n"
    )
    (tmp_path / "half_a_system.py").write_text(
        "from fastvtp.architecture import System\n\n\ndef runs():\n    import no_such_library\n\n\n"
        "SYSTEM = System(name='half', architectures=(), runs=runs)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])

    def command(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "fastvtp", *arguments],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
        )  # fmt: skip

    lists = [f"data.{part}={captioned_videos / f'{part}.jsonl'}" for part in ("train", "test")]
    done = command("pretrain", "toy_tiny", *lists, "device=cpu", "batch_size=4", "data.num_workers=0", "brightness=0.5")
    assert "the system 'broken' of no_such_package:SYSTEM cannot be used" in done.stderr
    assert "nothing of the system 'half' can be trained: ModuleNotFoundError" in done.stderr
    report = json.loads((tmp_path / "runs" / "toy_tiny" / "report.json").read_text())
    done = command("evaluate", "runs/toy_tiny", str(captioned_videos / "test.jsonl"), "--output", "scores")
    scores = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert scores["retrieval"] == report["retrieval"]


def test_names_are_taken_once():
    toy = Architecture(name="toy", config=ToyConfig, model=Toy, reads_text=True)
    for name, system, fault in (
        ("toy", System(name="toy", architectures=()), "a system 'toy' is registered already"),
        ("other", System(name="other", architectures=(toy,)), "toy already has the architecture 'toy'"),
        (
            "third",
            System(name="third", architectures=(), models={"toy_tiny": NamedModel("toy")}),
            "the model 'toy_tiny'",
        ),
    ):
        with pytest.raises(UserError, match=fault):
            register(system)
        assert name == "toy" or name not in architecture.systems()
    assert architecture_of(ToyConfig()).model is Toy


class Forgetful(Toy):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("grey", torch.tensor(0.5))


def test_a_model_says_what_its_init_weights_leaves_without_a_value():
    class ForgetfulConfig(ToyConfig):
        pass

    kind = Architecture(name="forgetful", config=ForgetfulConfig, model=Forgetful, reads_text=True)
    register(System(name="forgetful", architectures=(kind,)))
    with pytest.raises(ValueError, match=r"Forgetful\.init_weights fills no grey: it must fill every parameter and"):
        build_model(ForgetfulConfig())


def simvtp_tiny(preset):
    raise AssertionError(preset)


class Aligned(PretrainToy):
    name = "align_toy"


@pytest.mark.parametrize(
    ("runs", "look", "fault"),
    [
        (Runs(tasks=(PretrainToy,)), tasks, "'second': toy already has the task 'pretrain_toy'"),
        (Runs(tasks=(Aligned,)), tasks, "task 'align_toy': expected a name that begins with the command"),
        (Runs(recipes=(simvtp_tiny,)), recipes, "'second': simvtp already has the recipe 'simvtp_tiny'"),
        (Runs(scorers={"retrieval": print}), lambda: find_scorer("x"), "fastvtp itself already has the way of scoring"),
    ],
)
def test_what_a_system_brings_has_names_of_its_own(runs, look, fault):
    register(System(name="second", architectures=(), runs=lambda: runs))
    with pytest.raises(UserError, match=fault):
        look()


def test_no_engine_knows_it(request):
    """Neither its model nor its task is named in any file of fastvtp."""
    root = request.config.rootpath / "fastvtp"
    knowing = [
        path for path in root.rglob("*.py") if "toy_tiny" in path.read_text() or "pretrain_toy" in path.read_text()
    ]
    assert json.dumps([str(path.relative_to(root)) for path in knowing]) == "[]"
