"""VideoPrism's two stages on a handful of clips."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastvtp import runs
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import CheckpointError, ConfigError
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loading import training_loader
from fastvtp.training.loop import train
from fastvtp.training.optimizer import build_optimizer
from fastvtp.training.state import Progress
from fastvtp.training.task import build_task
from tests.training.labelled import rows_of, write_rows

SIZES = [
    "model.width=32", "model.depth=1", "model.temporal_depth=1", "model.num_heads=2", "model.mlp_hidden=64",
    "model.image_size=32", "model.patch_size=8", "model.num_frames=4",
]  # fmt: skip
DECODERS = [
    "model.decoder_width=32", "model.decoder_depth=1", "model.decoder_num_heads=2", "model.decoder_hidden=64",
    "model.mask_min_cells=2",
]  # fmt: skip


def configure(recipe: str, data: Path, output_dir: Path, *more: str) -> TrainConfig:
    settings = [
        f"data.train={data}", f"output_dir={output_dir}", "data.test=none", "device=cpu", "data.num_workers=0",
        "data.vocab_size=300", "tensorboard=false", *SIZES, "batch_size=4", "steps=6", "log_every=1",
        "checkpoint_every=100", "optimizer.warmup_steps=2",
    ]  # fmt: skip
    settings += ["model.text_depth=1"] if recipe.startswith("videoprism_stage1") else [*DECODERS, "teacher=none"]
    return apply_overrides(get_recipe(recipe), [*settings, *more])


def losses(run_dir: Path, term: str = "loss") -> list[float]:
    return [record[term] for record in rows_of(run_dir / "metrics.jsonl")]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model/model.safetensors")


def assert_same_file(first: Path, second: Path) -> None:
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture(scope="module")
def captions(captioned_videos) -> Path:
    return captioned_videos / "train.jsonl"


@pytest.fixture(scope="module")
def stage1(captioned_videos, captions, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("prism") / "stage1"
    more = [f"data.test={captioned_videos / 'test.jsonl'}", "batch_size=8", "steps=100", "optimizer.learning_rate=2e-3"]
    runs.pretrain(configure("videoprism_stage1_tiny", captions, run_dir, *more), progress_bar=False)
    return run_dir


def test_the_first_stage_learns_and_is_scored(stage1):
    values = losses(stage1)
    assert sum(values[-10:]) < 0.9 * sum(values[:10])
    temperatures = losses(stage1, "temperature")
    assert temperatures[0] == pytest.approx(0.07, rel=0.01)
    assert temperatures[-1] != temperatures[0]
    assert set(json.loads((stage1 / "report.json").read_text())["retrieval"]) == {"t2v", "v2t"}


def test_half_of_the_places_are_dropped_in_all_frames(captions, tmp_path):
    config = configure("videoprism_stage1_tiny", captions, tmp_path)
    task, model = build_task(config), build_model(config.model)
    video = torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8)
    plan = model.plan(video, torch.tensor([3, 8]), seed=0, step=1)
    places = plan.index.view(2, 4, -1) - 16 * torch.arange(4, dtype=torch.int32)[:, None]
    assert places.shape[2] == 8
    assert (places == places[:, :1]).all()
    assert not torch.equal(plan.index, model.plan(video, torch.tensor([3, 8]), seed=0, step=2).index)
    assert model.plan(video[:, :1], torch.tensor([3, 8]), seed=0, step=1).index.shape == (2, 8)
    seen = []
    model.video_encoder.spatial.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    with training_loader(config, task, _tokenizer(task), torch.device("cpu"), Progress(), 1) as loader:
        task.loss(model, model, next(iter(loader)))
    assert seen == [4 * 4 * 8]
    whole = build_model(apply_overrides(config, ["model.token_drop=0"]).model)
    assert whole.plan(video, torch.tensor([3, 8]), seed=0, step=1) is None


def _tokenizer(task) -> CaptionTokenizer:
    return CaptionTokenizer.train(task.texts, vocab_size=300)


@pytest.mark.parametrize("algorithm", ["adamw", "adafactor"])
def test_a_resumed_first_stage_equals_an_uninterrupted_one(captioned_videos, captions, tmp_path, algorithm):
    """Bit for bit, with two sets of videos and pictures among them."""
    for colour in ("red", "green", "blue", "white"):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{colour}.png")
    rows = [{"image": f"{name}.png", "caption": f"All {name}."} for name in ("red", "green", "blue", "white")]
    images = write_rows(tmp_path / "images.jsonl", rows)
    more = [f"data.images={images}", "data.image_share=0.3", f"data.more={captioned_videos / 'test.jsonl'}"]
    more += ["steps=7", "checkpoint_every=2", f"optimizer.algorithm={algorithm}", "keep_checkpoints=9"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(configure("videoprism_stage1_tiny", captions, whole, *more), progress_bar=False)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "model")
    for step in (6, 7):
        shutil.rmtree(stopped / f"checkpoints/step_{step:08d}")
    train(configure("videoprism_stage1_tiny", captions, stopped, *more), resume=True, progress_bar=False)
    assert_same_file(whole / "model/model.safetensors", stopped / "model/model.safetensors")
    assert_same_file(whole / "metrics.jsonl", stopped / "metrics.jsonl")


def test_adafactor_keeps_rows_and_columns_and_a_first_moment(captions, tmp_path):
    pytest.importorskip("pytorch_optimizer")
    model = build_model(configure("videoprism_stage1_tiny", captions, tmp_path).model)
    config = get_recipe("videoprism_stage1").optimizer
    assert (config.algorithm, config.schedule, config.warmup_steps) == ("adafactor", "linear", 20_000)
    optimizer = build_optimizer(model, config)
    weight = model.video_encoder.spatial.blocks[0].mlp.fc1.weight
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = weight.detach().clone()
    optimizer.step()
    kept = {name: value for name, value in optimizer.state[weight].items() if isinstance(value, torch.Tensor)}
    assert kept.pop("exp_avg").shape == weight.shape
    assert sum(value.numel() for value in kept.values()) < 2 * sum(weight.shape)
    assert not torch.equal(before, weight)


def test_batches_alternate_between_sets_by_their_shares(captioned_videos, captions, tmp_path):
    more = [f"data.more={captioned_videos / 'test.jsonl'}", "data.shares=1,3", "steps=8"]
    config = configure("videoprism_stage1_tiny", captions, tmp_path, *more)
    task = build_task(config)
    assert len(task.more) == 1
    assert set(task.texts) >= {record.captions[0] for record in task.more[0]}
    known = {caption for record in task.more[0] for caption in record.captions}
    only = known - {caption for record in task.records for caption in record.captions}
    with training_loader(config, task, _tokenizer(task), torch.device("cpu"), Progress(), 1) as loader:
        of_second = [set(batch.captions) <= known and bool(set(batch.captions) & only) for batch in loader]
    assert sum(of_second) == 6
    changed = build_task(apply_overrides(config, ["data.more=[]", "data.shares=[]"]))
    assert changed.digest() != task.digest()


def test_a_frozen_video_tower_stays_what_it_was(captions, stage1, tmp_path):
    """LiT: text tower and pooler learn; no optimizer state, no gradient, evaluation mode."""
    more = [f"init={stage1}", "model.frozen_video=true", "steps=4", "checkpoint_every=4"]
    result = train(configure("videoprism_stage1_tiny", captions, tmp_path / "lit", *more), progress_bar=False)
    before, after = weights(stage1), weights(tmp_path / "lit")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"pooler", "text_encoder", "contrast"}
    model = result.model.train()
    assert not model.video_encoder.training
    assert model.text_encoder.training
    optimizer = build_optimizer(model, get_recipe("videoprism_stage1_tiny").optimizer)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held.isdisjoint(map(id, model.video_encoder.parameters()))
    assert held >= set(map(id, model.pooler.parameters()))


@pytest.fixture(scope="module")
def stage2(captions, stage1, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("prism") / "stage2"
    more = [f"teacher={stage1}", "steps=40", "checkpoint_every=20", "keep_checkpoints=9"]
    train(configure("videoprism_stage2_tiny", captions, run_dir, *more), progress_bar=False)
    return run_dir


def test_the_second_stage_learns_from_a_teacher_that_does_not(stage1, stage2):
    for term in ("loss", "loss/token", "loss/global"):
        values = losses(stage2, term)
        assert sum(values[-10:]) < 0.9 * sum(values[:10]), term
    before, after = weights(stage1), weights(stage2)
    taught = {name.removeprefix("teacher.") for name in after if name.startswith("teacher.")}
    assert taught == {name for name in before if name.startswith(("video_encoder.", "pooler."))}
    assert all(torch.equal(after[f"teacher.{name}"], before[name]) for name in taught)
    assert not torch.equal(after["encoder.weight"], before["video_encoder.weight"])


def test_the_student_starts_as_its_teacher_and_the_teacher_is_not_optimised(captions, stage1, tmp_path):
    config = configure("videoprism_stage2_tiny", captions, tmp_path, f"teacher={stage1}")
    task, model = build_task(config), build_model(config.model)
    task.prepare(model, _tokenizer(build_task(configure("videoprism_stage1_tiny", captions, tmp_path))))
    before = weights(stage1)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, before[f"video_encoder.{name}"])
    held = {id(p) for group in build_optimizer(model, config.optimizer).param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if not name.startswith("teacher.")}


@pytest.mark.parametrize("algorithm", ["adamw", "adafactor"])
def test_a_resumed_second_stage_equals_an_uninterrupted_one(captions, stage1, tmp_path, algorithm):
    """Bit for bit, and without the first stage's folder."""
    teacher = shutil.copytree(stage1, tmp_path / "teacher")
    more = ["steps=5", "checkpoint_every=2", "keep_checkpoints=9", f"optimizer.algorithm={algorithm}"]
    config = configure("videoprism_stage2_tiny", captions, tmp_path / "whole", f"teacher={teacher}", *more)
    train(config, progress_bar=False)
    shutil.rmtree(teacher)
    stopped = shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(stopped / "model")
    for step in (4, 5):
        shutil.rmtree(stopped / f"checkpoints/step_{step:08d}")
    train(configure("videoprism_stage2_tiny", captions, stopped, *more), resume=True, progress_bar=False)
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert_same_file(tmp_path / "whole" / name, stopped / name)


def test_a_student_gives_its_encoder_to_other_models(captions, stage1, stage2, tmp_path):
    """To the third run (its texts and pooler from the first stage), and to a second student as its teacher's."""
    more = [f"init={stage1}", f"video_init={stage2}", "model.frozen_video=true", "steps=2"]
    train(configure("videoprism_stage1_tiny", captions, tmp_path / "third", *more), progress_bar=False)
    first, second, third = weights(stage1), weights(stage2), weights(tmp_path / "third")
    encoder = {name.removeprefix("encoder.") for name in second if name.startswith("encoder.")}
    assert all(torch.equal(third[f"video_encoder.{name}"], second[f"encoder.{name}"]) for name in encoder)
    assert not torch.equal(third["video_encoder.weight"], first["video_encoder.weight"])
    assert (third["pooler.queries"] - first["pooler.queries"]).abs().max() < 0.01
    again = configure("videoprism_stage2_tiny", captions, tmp_path / "again", f"teacher={stage2}", "steps=1")
    model = train(again, progress_bar=False).model
    assert torch.equal(model.teacher.video_encoder.weight, second["teacher.video_encoder.weight"])


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ("videoprism_stage2_tiny", [], "needs teacher=PATH"),
        ("videoprism_stage1_tiny", ["teacher=x"], "teacher is for pretrain_videoprism_distillation"),
        ("videoprism_stage2_tiny", ["video_init=x"], "video_init is for .*pretrain_videoprism_contrastive"),
        ("videoprism_stage2_tiny", ["data.images=x.jsonl"], "data.images is for .*pretrain_videoprism_contrastive"),
        ("videoprism_stage1_tiny", ["data.shares=1,2"], r"data.shares must be 1 positive numbers .*, got \(1.0, 2.0\)"),
        ("videoprism_stage1_tiny", ["optimizer.algorithm=adam"], "algorithm must be 'adamw' or 'adafactor'"),
        ("videoprism_stage1_tiny", ["model.token_drop=1"], r"token_drop must be in \[0, 1\), got 1.0"),
        ("videoprism_stage1_tiny", ["batch_size=1"], "batch_size must be at least 2"),
    ],
)
def test_wrong_settings_are_one_line(captions, tmp_path, recipe, more, message):
    with pytest.raises(ConfigError, match=message):
        build_task(configure(recipe, captions, tmp_path, *more))


def test_one_data_set_is_the_rule():
    with pytest.raises(ConfigError, match=r"data\.more is for pretrain_videoprism_contrastive and"):
        apply_overrides(get_recipe("simvtp_tiny"), ["data.more=x.jsonl"])


def test_a_teacher_of_another_size_says_what_to_set(captions, stage1, tmp_path):
    more = [f"teacher={stage1}", "model.depth=2"]
    with pytest.raises(CheckpointError, match=r"does not fit PrismTeacher: .* set model.depth=1"):
        train(configure("videoprism_stage2_tiny", captions, tmp_path, *more), progress_bar=False)


def test_the_second_stage_has_no_scores(captioned_videos, captions, stage1, tmp_path):
    more = [f"teacher={stage1}", f"data.test={captioned_videos / 'test.jsonl'}"]
    with pytest.raises(ConfigError, match="pretrain_videoprism_distillation has no scores"):
        runs.pretrain(configure("videoprism_stage2_tiny", captions, tmp_path, *more), progress_bar=False)


@pytest.mark.parametrize("recipe", ["videoprism_stage1", "videoprism_stage2"])
def test_published_settings(recipe):
    config = get_recipe(recipe)
    assert (config.batch_size, config.model.num_frames, config.model.image_size) == (4096, 8, 288)
    assert config.optimizer.learning_rate == 5e-4
