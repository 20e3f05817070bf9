"""ALPRO from the prompter to its fine-tuned models, on a handful of clips."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastvtp import runs
from fastvtp.data.annotations import load_annotations
from fastvtp.data.entities import write_entities
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import ConfigError, UserError
from fastvtp.evaluation.scoring import evaluation_loader
from fastvtp.model_folder import read_weights
from fastvtp.systems.alpro.entities import PROMPT_TEMPLATES
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import get_recipe
from fastvtp.tensor_files import read_tensors
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loading import training_loader
from fastvtp.training.loop import train
from fastvtp.training.state import Progress
from fastvtp.training.task import build_task
from tests.training.labelled import (
    choices,
    rows_of,
    write_rows,
)

ENTITIES = ["circle", "square", "star", "triangle"]


def configure(recipe: str, data: Path, output_dir: Path, *more: str) -> TrainConfig:
    settings = [
        f"data.train={data}", f"output_dir={output_dir}", "data.test=none", "init=none", "device=cpu",
        "data.num_workers=0", "data.vocab_size=300", "data.flip=false", "tensorboard=false", "model.width=32",
        "model.depth=1", "model.num_heads=2", "model.text_depth=1", "model.fusion_depth=1", "model.text_num_heads=2",
        "model.text_hidden=64", "model.projection_dim=16", "model.image_size=32", "model.num_frames=2",
        "model.patch_size=8", "batch_size=4", "steps=6", "log_every=1", "checkpoint_every=100",
    ]  # fmt: skip
    if recipe == "alpro_pretrain_tiny":
        settings += ["model.num_entities=3", "prompter=none", "entities=none"]
    return apply_overrides(get_recipe(recipe), [*settings, *more])


def losses(run_dir: Path, term: str = "loss") -> list[float]:
    return [record[term] for record in rows_of(run_dir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def made(captioned_videos, tmp_path_factory) -> Path:
    """A folder with pictures and their captions, a list of entities and a trained prompter."""
    root = tmp_path_factory.mktemp("alpro")
    colours = ("red", "green", "blue", "yellow", "pink")
    for colour in colours:
        Image.new("RGB", (48, 40), colour).save(root / f"{colour}.png")
    write_rows(root / "images.jsonl", [{"image": f"{name}.png", "caption": f"A {name} square."} for name in colours])
    write_entities(root / "entities.txt", ENTITIES)
    config = configure("alpro_prompter_tiny", captioned_videos / "train.jsonl", root / "prompter", "steps=80")
    config = apply_overrides(config, [f"data.test={captioned_videos / 'test.jsonl'}"])
    runs.pretrain(config, progress_bar=False)
    return root


@pytest.fixture(scope="module")
def pretrained(captioned_videos, made) -> Path:
    """The run of a pretraining of 40 steps, a third of them on pictures, all kept that a resumed run might need."""
    config = pretraining(captioned_videos, made, made / "pretrained", "steps=40", "checkpoint_every=20")
    runs.pretrain(apply_overrides(config, [f"data.test={captioned_videos / 'test.jsonl'}"]), progress_bar=False)
    return made / "pretrained"


def pretraining(captioned_videos: Path, made: Path, output_dir: Path, *more: str) -> TrainConfig:
    return configure(
        "alpro_pretrain_tiny", captioned_videos / "train.jsonl", output_dir, f"prompter={made / 'prompter'}",
        f"entities={made / 'entities.txt'}", f"data.images={made / 'images.jsonl'}", "data.image_share=0.34",
        "model.ignore_rule=official", *more,
    )  # fmt: skip


def test_the_prompter_learns_and_is_scored(made):
    values = losses(made / "prompter")
    assert sum(values[-10:]) < 0.9 * sum(values[:10])
    assert set(json.loads((made / "prompter/report.json").read_text())["retrieval"]) == {"t2v", "v2t"}


def test_pretraining_learns_with_pictures_among_videos(pretrained):
    # soft labels of a prompter this small are close to even: little is to be learned beyond that
    for term, share in (("loss", 0.97), ("loss/word", 0.97), ("loss/entity", 0.998)):
        values = losses(pretrained, term)
        assert len(values) == 40
        assert sum(values[-10:]) < share * sum(values[:10]), term
    report = json.loads((pretrained / "report.json").read_text())
    assert report["top_k"] == 16
    assert report["num_test"] == 8
    assert (pretrained / "gallery.html").stat().st_size > 1000


def test_prompts_are_the_prompters_and_stay(made, pretrained):
    """Towers and prompts of the first and the last checkpoint are those that the prompter's own text tower gives."""
    prompter = runs.open_model(made / "prompter", torch.device("cpu"))
    own = load_file(made / "prompter/model/model.safetensors")
    for folder in ("checkpoints/step_00000020", "checkpoints/step_00000040", "model"):
        weights = read_weights(pretrained / folder)
        assert all(torch.equal(weights[f"prompter.{name}"], value) for name, value in own.items())
        for kind in ("video", "image"):
            prompts = weights[f"{kind}_prompts"]
            assert prompts.shape == (3, 16)
            for entity, row in zip(ENTITIES, prompts, strict=False):
                torch.testing.assert_close(row, mean_of_prompts(prompter, kind, entity), rtol=1e-4, atol=1e-5)
        assert (pretrained / folder / "entities.txt").read_text().split() == ENTITIES[:3]


def mean_of_prompts(opened: runs.OpenedModel, kind: str, entity: str) -> torch.Tensor:
    rows = []
    for template in PROMPT_TEMPLATES[kind]:
        (ids,) = opened.tokenizer.encode([template.format(entity)], 15)
        ends = torch.tensor([0, len(ids)], dtype=torch.int32)
        rows.append(opened.model.encode_text(torch.from_numpy(ids), ends, len(ids))[0])
    return torch.stack(rows).mean(0).detach()


def test_prompts_are_read_with_the_tokenizer_of_the_prompter(captioned_videos, made, tmp_path):
    """One in another order would make other sentences of the same ids."""
    theirs = load_tokenizer(made / "prompter/model")
    words = theirs.tokens(range(theirs.vocab_size))
    (tmp_path / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]))
    config = pretraining(captioned_videos, made, tmp_path / "run", f"data.tokenizer={tmp_path}", "steps=1")
    result = train(config, progress_bar=False)
    assert result.tokenizer.tokens(range(8)) != theirs.tokens(range(8))
    opened = runs.open_model(made / "prompter", torch.device("cpu"))
    expected = mean_of_prompts(opened, "video", ENTITIES[0])
    torch.testing.assert_close(result.model.video_prompts[0], expected, rtol=1e-4, atol=1e-5)


def test_pictures_are_compared_with_the_prompts_of_pictures(captioned_videos, made, pretrained, tmp_path):
    config = pretraining(captioned_videos, made, tmp_path)
    task, opened = build_task(config), runs.open_model(pretrained, torch.device("cpu"))
    opened.model.image_prompts.fill_(torch.nan)
    with training_loader(config, task, opened.tokenizer, torch.device("cpu"), Progress(), 1) as loader:
        batches = list(loader)
    assert [batch.kind for batch in batches] == ["video", "video", "image"] * 2
    for batch in batches:
        _, terms = task.loss(opened.model, opened.model, batch)
        assert terms["loss/entity"].isnan() == (batch.kind == "image")


def test_pictures_may_be_repeated_as_clips(captioned_videos, made, tmp_path):
    """As released; they are still compared with the prompts of pictures, and a run goes on with what it began with."""
    more = ["data.image_frames=repeat", "steps=4", "data.image_share=0.5", "checkpoint_every=1", "keep_checkpoints=9"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = pretraining(captioned_videos, made, whole, *more)
    result = train(config, progress_bar=False)
    with training_loader(config, build_task(config), result.tokenizer, torch.device("cpu"), Progress(), 1) as loader:
        shown = [(batch.kind, batch.video.shape[1]) for batch in loader]
    assert shown == [("video", 2), ("image", 2)] * 2
    assert json.loads((whole / "train_config.json").read_text())["data"]["image_frames"] == "repeat"

    shutil.copytree(whole, stopped)
    for folder in ("model", "checkpoints/step_00000003", "checkpoints/step_00000004"):
        shutil.rmtree(stopped / folder)
    config = apply_overrides(config, [f"output_dir={stopped}"])
    with pytest.raises(ConfigError, match=r"data\.image_frames: was .*, is "):
        train(apply_overrides(config, ["data.image_frames=one"]), resume=True, progress_bar=False)
    train(config, resume=True, progress_bar=False)
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_resumed_pretraining_equals_an_uninterrupted_one(captioned_videos, made, tmp_path):
    """Bit for bit, with pictures, dropout, micro-batches and averaged weights; prompter and list are gone."""
    mine = shutil.copytree(made, tmp_path / "made", ignore=shutil.ignore_patterns("pretrained"))
    more = ["steps=5", "checkpoint_every=2", "keep_checkpoints=9", "batch_size=8", "micro_batch=4", "ema_decay=0.8"]
    more += ["model.text_dropout=0.1", "model.drop_path=0.2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(pretraining(captioned_videos, mine, whole, *more), progress_bar=False)
    shutil.copytree(whole, stopped)
    for folder in ("model", "checkpoints/step_00000004", "checkpoints/step_00000005"):
        shutil.rmtree(stopped / folder)
    shutil.rmtree(mine / "prompter")
    (mine / "entities.txt").unlink()
    config = apply_overrides(pretraining(captioned_videos, mine, stopped, *more), ["prompter=none", "entities=none"])
    train(config, resume=True, progress_bar=False)
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = (read_tensors(run / "checkpoints/step_00000005") for run in (stopped, whole))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (stopped / "model/entities.txt").read_text() == (whole / "model/entities.txt").read_text()


def test_a_resumed_pretraining_keeps_its_entities(captioned_videos, made, tmp_path, caplog):
    """And says so where the list has changed since; further entities, which are not read, are no change."""
    listed = tmp_path / "entities.txt"
    write_entities(listed, ENTITIES)
    config = pretraining(captioned_videos, made, tmp_path / "run", f"entities={listed}", "steps=1")
    train(config, progress_bar=False)
    for entities, told in (([*ENTITIES, "moon"], False), (["moon", *ENTITIES], True)):
        write_entities(listed, entities)
        caplog.clear()
        train(config, resume=True, progress_bar=False)
        assert (f"{listed} has changed: the run keeps the 3 entities of" in caplog.text) == told
        assert (tmp_path / "run/model/entities.txt").read_text().split() == ENTITIES[:3]


def test_pretraining_without_entities_asks_for_no_prompter(captioned_videos, tmp_path):
    data = captioned_videos / "train.jsonl"
    config = configure("alpro_pretrain_tiny", data, tmp_path / "run", "model.entity_weight=0", "steps=2")
    assert "loss/entity" not in train(config, progress_bar=False).metrics
    assert not (tmp_path / "run/model/entities.txt").exists()
    opened = runs.open_model(tmp_path / "run", torch.device("cpu"))
    with pytest.raises(UserError, match="comes without a list of its entities"):
        runs.visualize(opened, str(data), tmp_path / "pictures")


def test_a_prompter_of_another_size_is_one_line(captioned_videos, made, tmp_path):
    config = pretraining(captioned_videos, made, tmp_path / "run", "model.projection_dim=8")
    with pytest.raises(UserError, match="does not fit AlproTowers") as raised:
        train(config, progress_bar=False)
    assert "\n" not in str(raised.value)


def test_retrieval_is_fine_tuned_and_scored_by_matching(captioned_videos, pretrained, tmp_path):
    test = captioned_videos / "test.jsonl"
    config = configure(
        "alpro_retrieval_tiny", captioned_videos / "train.jsonl", tmp_path / "run", f"init={pretrained}", "steps=30",
        "data.test_top_k=3", f"data.test={test}",
    )  # fmt: skip
    report = runs.pretrain(config, progress_bar=False)
    values = losses(tmp_path / "run")
    assert sum(values[-8:]) < 0.97 * sum(values[:8])
    assert report["top_k"] == 3

    for run in (tmp_path / "run", pretrained):  # fine-tuned, and as pretraining left it
        opened = runs.open_model(run, torch.device("cpu"))
        scores = [
            runs.evaluate(
                opened, str(test), protocol=runs.EvaluationProtocol(num_workers=0, top_k=k), progress_bar=False
            )
            for k in (None, 3, 8)
        ]
        assert scores[0]["retrieval"] == scores[2]["retrieval"]
        assert scores[0]["retrieval_contrast"] == scores[1]["retrieval_contrast"]
        assert run == pretrained or scores[1]["retrieval"] == report["retrieval"]
    with pytest.raises(UserError, match="the matching head reads one view of a clip"):
        runs.evaluate(opened, str(test), protocol=runs.EvaluationProtocol(views=(2, 1), num_workers=0))
    with pytest.raises(ConfigError, match=r"data.test_views=\(2, 1\)"):
        runs.pretrain(apply_overrides(config, ["data.test_views=2,1", f"output_dir={tmp_path / 'other'}"]))


@pytest.mark.parametrize("options", [False, True], ids=["open-ended", "multiple-choice"])
def test_questions_are_fine_tuned_and_scored(captioned_videos, pretrained, tmp_path, options):
    train_data, test = (
        choices(captioned_videos, split) if options else captioned_videos / f"{split}_questions.jsonl"
        for split in ("train", "test")
    )
    config = configure(
        "alpro_qa_tiny", train_data, tmp_path / "run", f"init={pretrained}", "steps=40", f"data.test={test}",
        "optimizer.learning_rate=2e-3",
    )  # fmt: skip
    report = runs.pretrain(config, progress_bar=False)
    values = losses(tmp_path / "run")
    assert sum(values[-10:]) < 0.95 * sum(values[:10])
    opened = runs.open_model(tmp_path / "run", torch.device("cpu"))
    assert (opened.answers is None) == options
    again = runs.evaluate(
        opened,
        str(test),
        protocol=runs.EvaluationProtocol(num_workers=0),
        train_data=str(train_data),
        progress_bar=False,
    )
    assert again["question_answering"] == report["question_answering"]


def test_the_picture_shows_a_crop_and_both_guesses(captioned_videos, pretrained, tmp_path):
    opened = runs.open_model(pretrained, torch.device("cpu"))
    assert opened.entities == ENTITIES[:3]
    data = str(captioned_videos / "test.jsonl")
    first, second, other = (
        runs.visualize(opened, data, tmp_path / name, num_clips=2, seed=seed)[0].read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == second != other
    assert Image.open(tmp_path / "a/entities.png").width > 600


def test_texts_are_cut_where_the_data_say_so(captioned_videos, tmp_path):
    data = captioned_videos / "train.jsonl"
    short = apply_overrides(configure("alpro_prompter_tiny", data, tmp_path), ["data.max_text_length=5"])
    tokenizer = CaptionTokenizer.train([row["caption"] for row in rows_of(data)], vocab_size=300)
    with training_loader(short, build_task(short), tokenizer, torch.device("cpu"), Progress(), 1) as loader:
        assert next(iter(loader)).text_lengths == (5, 5, 5, 5)
    opened = runs.OpenedModel(build_model(short.model), tokenizer)
    for length, expected in ((5, 5), (None, 64)):
        protocol = runs.EvaluationProtocol(num_workers=0, max_text_length=length)
        with evaluation_loader(opened, load_annotations(data), protocol) as loader:
            longest = next(iter(loader)).max_text_length
            assert longest == expected if length else 5 < longest <= expected
