"""VideoPrism fine-tuned end to end on a handful of clips: from released layouts, converted folders and own runs."""

import dataclasses
import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from fastvtp import runs
from fastvtp.architecture import architecture_of
from fastvtp.checkpoints.loading import absent_parts, load_checkpoint
from fastvtp.cli import main as cli
from fastvtp.data.augmentation import soft_targets
from fastvtp.data.classes import load_classes
from fastvtp.data.reading import ClipReading
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import ConfigError, UserError
from fastvtp.evaluation.scoring import evaluation_loader
from fastvtp.model_folder import open_model, write_model_folder
from fastvtp.systems.catalogue import build_model, create_model
from fastvtp.systems.conversion import convert
from fastvtp.systems.recipes import get_recipe, recipe_config
from fastvtp.systems.videoprism.encoder import PrismClassifierConfig
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loading import training_loader
from fastvtp.training.loop import train
from fastvtp.training.state import Progress
from fastvtp.training.task import build_task
from tests.parity.prism_folders import draw, encoder_shapes, pooler_shapes, stack, text_shapes
from tests.systems.videoprism.make_hf_arrays import ARRAYS
from tests.training.labelled import classes, rows_of, write_rows

# what `tests.parity.prism_folders` calls these sizes, by which released checkpoints are made
RELEASED = {
    "patch_size": 8, "pos_emb_shape": [4, 4, 4], "model_dim": 24, "num_spatial_layers": 2, "num_temporal_layers": 1,
    "num_heads": 3, "mlp_dim": 40, "num_auxiliary_layers": 2, "num_unimodal_layers": 1,
    "norm_policy": "pre", "num_classes": 4,
}  # fmt: skip
SIZES = [
    "model.width=24", "model.depth=2", "model.temporal_depth=1", "model.num_heads=3", "model.mlp_hidden=40",
    "model.image_size=32", "model.patch_size=8", "model.num_frames=4",
]  # fmt: skip
TEXT = ["model.text_depth=1", "model.max_text_length=32"]
CLASSIFICATION, RETRIEVAL = "videoprism_classification_tiny", "videoprism_retrieval_tiny"


def configure(recipe: str, data: Path, output_dir: Path, *more: str) -> TrainConfig:
    settings = [
        f"data.train={data}", f"output_dir={output_dir}", "data.test=none", "init=none", "device=cpu",
        "data.num_workers=0", "tensorboard=false", *SIZES, *(TEXT if "retrieval" in recipe else []), "batch_size=4",
        "steps=5", "log_every=1", "checkpoint_every=100", "optimizer.warmup_steps=2", "precision=float32",
    ]  # fmt: skip
    return apply_overrides(get_recipe(recipe), [*settings, *more])


def released(path: Path, kind: str, words: int) -> Path:
    """A checkpoint as released, tiny: "encoder", "lvt" or "classifier". words: entries of the vocabulary."""
    c, width = RELEASED | {"vocabulary_size": words}, RELEASED["model_dim"]
    if kind == "encoder":
        shapes = encoder_shapes(c)
    elif kind == "classifier":
        head = {"projection/linear/kernel": (width, c["num_classes"]), "projection/linear/bias": (c["num_classes"],)}
        shapes = encoder_shapes(c, "encoder/") | pooler_shapes(c, "atten_pooler", width) | head
    else:
        layers = c["num_auxiliary_layers"], width, c["mlp_dim"], c["num_heads"]
        shapes = encoder_shapes(c, "vision_encoder/") | stack("auxiliary_encoder/transformers_stack", *layers)
        shapes |= pooler_shapes(c, "contrastive_vision_pooler", 4 * width) | text_shapes(c)
    arrays = draw(torch.Generator().manual_seed(len(kind)), shapes)
    np.savez(path, **{f"params/{name}": array.detach().numpy() for name, array in arrays.items()})
    return path


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model/model.safetensors")


@pytest.fixture(scope="module")
def lists(captioned_videos) -> dict[str, Path]:
    return {
        CLASSIFICATION: classes(captioned_videos, "train"),
        RETRIEVAL: captioned_videos / "train.jsonl",
        "test": classes(captioned_videos, "test"),
    }


@pytest.fixture(scope="module")
def sources(lists, tmp_path_factory) -> dict[str, Path]:
    """What the recipes may start from."""
    root = tmp_path_factory.mktemp("sources")
    stage1 = [*TEXT, "data.vocab_size=300"]
    common = ["data.test=none", "device=cpu", "data.num_workers=0", "tensorboard=false", *SIZES, "batch_size=4"]
    common += ["steps=2", "optimizer.warmup_steps=1", f"data.train={lists[RETRIEVAL]}"]
    more = [*common, *stage1, f"output_dir={root / 'stage1'}"]
    train(apply_overrides(get_recipe("videoprism_stage1_tiny"), more), progress_bar=False)
    more = [*common, f"output_dir={root / 'stage2'}", f"teacher={root / 'stage1'}", "model.mask_min_cells=2"]
    more += [f"model.decoder_{part}" for part in ("width=24", "depth=1", "num_heads=2", "hidden=32")]
    train(apply_overrides(get_recipe("videoprism_stage2_tiny"), more), progress_bar=False)
    words = load_tokenizer(root / "stage1/model").vocab_size
    found = {kind: released(root / f"{kind}.npz", kind, words) for kind in ("encoder", "lvt", "classifier")}
    for kind in ("encoder", "lvt"):
        convert(found[kind], root / f"{kind}_folder")
        found[f"{kind} folder"] = root / f"{kind}_folder"
    shutil.copytree(ARRAYS / "hf_videoprism", root / "hf.folder")
    return found | {"stage 1": root / "stage1", "stage 2": root / "stage2", "transformers": root / "hf.folder"}


@pytest.mark.parametrize(
    "source", ["encoder", "lvt", "classifier", "encoder folder", "lvt folder", "stage 1", "stage 2", "transformers"]
)
def test_every_kind_of_weights_starts_a_classification(lists, sources, tmp_path, source):
    """At rates of nothing, so that what was loaded is what remains; the encoder's patches stand for all of it."""
    still = ["optimizer.learning_rate=1e-30", "optimizer.weight_decay=0", "steps=1", "ema_decay=none"]
    if source == "transformers":
        still += ["model.image_size=24", "model.patch_size=6", "model.num_frames=3"]
    config = configure(CLASSIFICATION, lists[CLASSIFICATION], tmp_path / "run", f"init={sources[source]}", *still)
    train(config, progress_bar=False)
    found, encoder = weights(tmp_path / "run"), created(sources[source])
    for name, tensor in encoder.items():
        assert torch.equal(found[f"encoder.{name}"], tensor), name
    assert found["head.weight"].shape == (2, 24)
    assert (tmp_path / "run/model/classes.json").is_file()


def created(source: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors of a source, by its own names."""
    folder = source.with_suffix("")
    if not folder.exists():
        convert(source, folder)
    model = open_model(folder, torch.device("cpu")).model
    encoder = next((getattr(model, name) for name in ("video_encoder", "encoder") if hasattr(model, name)), model)
    return encoder.state_dict()


@pytest.mark.parametrize("source", ["lvt", "lvt folder", "stage 1", "stage 2", "encoder"])
def test_every_kind_of_weights_starts_a_retrieval(lists, sources, tmp_path, source):
    still = ["optimizer.learning_rate=1e-30", "optimizer.weight_decay=0", "steps=1"]
    more = [f"model.auxiliary_depth={2 if 'lvt' in source else 0}", "data.vocab_size=300"]
    if "lvt" in source:  # its words are those of a tokenizer that the file does not hold
        more.append(f"data.tokenizer={sources['stage 1'] / 'model/tokenizer.json'}")
    config = configure(RETRIEVAL, lists[RETRIEVAL], tmp_path / "run", f"init={sources[source]}", *more, *still)
    train(config, progress_bar=False)
    found = weights(tmp_path / "run")
    for name, tensor in created(sources[source]).items():
        assert torch.equal(found[f"video_encoder.{name}"], tensor), name


def test_the_second_stage_s_encoder_takes_the_place_of_the_first_s(lists, sources, tmp_path):
    still = ["optimizer.learning_rate=1e-30", "optimizer.weight_decay=0", "steps=1", "model.auxiliary_depth=0"]
    more = [f"init={sources['stage 1']}", f"video_init={sources['stage 2']}"]
    train(configure(RETRIEVAL, lists[RETRIEVAL], tmp_path / "run", *more, *still), progress_bar=False)
    found, second, first = weights(tmp_path / "run"), created(sources["stage 2"]), weights(sources["stage 1"])
    assert all(torch.equal(found[f"video_encoder.{name}"], tensor) for name, tensor in second.items())
    assert torch.equal(found["text_encoder.cls_token"], first["text_encoder.cls_token"])
    assert torch.equal(found["pooler.queries"], first["pooler.queries"])


def test_a_classifier_learns_is_kept_and_is_scored_again_by_the_command(lists, sources, tmp_path, monkeypatch, capsys):
    """Framing, class names and average are in the folder; three crops of two segments give the report's figures."""
    more = [
        f"init={sources['stage 1']}", f"data.test={lists['test']}", "steps=30", "batch_size=6", "ema_decay=0.5",
        "data.framing=squash", "data.test_views=2,1", "data.test_sampling=strided", "data.frame_stride=2",
        "optimizer.learning_rate=3e-3", "mixup=0.2", "label_smoothing=0.05", "model.head_dropout=0.1",
    ]  # fmt: skip
    config = configure(CLASSIFICATION, lists[CLASSIFICATION], tmp_path / "run", *more)
    report = runs.pretrain(config, progress_bar=False)
    values = [record["loss"] for record in rows_of(tmp_path / "run/metrics.jsonl")]
    assert sum(values[-10:]) < 0.95 * sum(values[:10])
    assert set(report["classification"]["top"]) == {"top1"}
    arguments = ["--views", "2x1", "--sampling", "strided", "--frame-stride", "2", "--num-workers", "0", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["fastvtp", "evaluate", str(tmp_path / "run"), str(lists["test"]), *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out = capsys.readouterr().out
    assert not stopped.value.code
    assert json.loads(out)["classification"] == report["classification"]
    assert open_model(tmp_path / "run", torch.device("cpu")).framing == "squash"


def test_top_five_of_more_classes_over_several_views(captioned_videos, tmp_path):
    """Against logits of every view by hand."""
    rows = [{"video": row["video"], "label": i % 7} for i, row in enumerate(rows_of(captioned_videos / "test.jsonl"))]
    data = write_rows(captioned_videos / "sevens.jsonl", rows)
    torch.manual_seed(0)
    sizes = {"num_frames": 4, "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "temporal_depth": 1}
    config = PrismClassifierConfig(**sizes, num_heads=3, mlp_hidden=40, num_classes=7, head_dropout=0.9)
    model = build_model(config)
    with torch.no_grad():
        model.head.weight.mul_(50)
    write_model_folder(tmp_path / "model", model, "prism_classifier")
    protocol = runs.EvaluationProtocol(views=(2, 1), num_workers=0, reading=ClipReading(sampling="strided"))
    opened = open_model(tmp_path / "model", torch.device("cpu"))
    top = runs.evaluate(opened, str(data), protocol=protocol, progress_bar=False)["classification"]["top"]
    found, probabilities = load_classes(data), {}
    with torch.no_grad(), evaluation_loader(opened, found.records, protocol) as loader:
        for batch in loader:
            for index, row in zip(batch.sample_ids.tolist(), opened.model(batch.video).softmax(1), strict=True):
                probabilities[index] = probabilities.get(index, 0) + row
    places = [
        int((row > row[label]).sum()) for row, label in ((probabilities[i], found.labels[i]) for i in range(len(rows)))
    ]
    assert top == pytest.approx({f"top{k}": 100 * sum(place < k for place in places) / len(rows) for k in (1, 5)})


def test_the_loss_is_cross_entropy_of_the_pooled_tokens(lists, tmp_path):
    """The released classifier's arithmetic: pooler, then a linear layer, without dropout here."""
    config = configure(CLASSIFICATION, lists[CLASSIFICATION], tmp_path, "label_smoothing=0.2")
    task = build_task(config)
    model = build_model(task.complete(None))
    video = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8)
    batch = type("Batch", (), {"video": video, "sample_ids": torch.tensor([2, 0, 5]), "step": 0})
    loss, terms = task.loss(model, model, batch)
    labels = torch.tensor([task.labels[1][i] for i in (2, 0, 5)])
    logits = model.head(model.pooler(model.encoder(video))[:, 0])
    torch.testing.assert_close(loss, cross_entropy(logits, labels, label_smoothing=0.2))
    torch.testing.assert_close(loss, cross_entropy(logits, soft_targets(labels, 2, 0.2)))
    assert terms["accuracy"] == (logits.argmax(1) == labels).float().mean()


def test_logits_are_float32_in_bfloat16_runs():
    model = create_classifier()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)).dtype == torch.float32


def create_classifier():
    sizes = {"num_frames": 4, "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "temporal_depth": 1}
    return build_model(PrismClassifierConfig(**sizes, num_heads=3, mlp_hidden=40, num_classes=3))


def test_a_retrieval_run_contrasts_whole_clips(lists, tmp_path):
    """InfoNCE of both directions over the cosines of whole clips, by torch's cross-entropy."""
    config = configure(RETRIEVAL, lists[RETRIEVAL], tmp_path, "data.vocab_size=300")
    task = build_task(config)
    tokenizer = CaptionTokenizer.train(task.texts, vocab_size=300)
    model = build_model(task.complete(tokenizer))
    with training_loader(config, task, tokenizer, torch.device("cpu"), Progress(), 1) as loader:
        batch = next(iter(loader))
    loss, terms = task.loss(model, model, batch)
    text = model.encode_text(batch.input_ids, batch.cu_seqlens, batch.max_text_length)
    logits = text @ model.encode_video(batch.video).T / 0.07
    right = torch.arange(len(logits))
    torch.testing.assert_close(loss, (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2)
    assert terms["temperature"] == pytest.approx(0.07)
    dropped = build_task(apply_overrides(config, ["model.token_drop=0.5"]))
    other = build_model(dropped.complete(tokenizer))
    other.load_state_dict(model.state_dict())
    assert abs(dropped.loss(other, other, batch)[0] - loss) > 1e-4


def test_a_retrieval_run_is_scored_by_retrieval(captioned_videos, lists, sources, tmp_path):
    more = [f"init={sources['stage 1']}", "model.auxiliary_depth=0", f"data.test={captioned_videos / 'test.jsonl'}"]
    report = runs.pretrain(configure(RETRIEVAL, lists[RETRIEVAL], tmp_path / "run", *more), progress_bar=False)
    assert set(report["retrieval"]) == {"t2v", "v2t"}
    before, after = weights(sources["stage 1"]), weights(tmp_path / "run")
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("fc1.weight"))


@pytest.mark.parametrize("recipe", [CLASSIFICATION, RETRIEVAL])
def test_a_resumed_run_equals_an_uninterrupted_one(lists, sources, tmp_path, recipe):
    """Bit for bit, with average, layer decay and micro-batches; of classes also mixup and dropout."""
    more = ["steps=5", "checkpoint_every=2", "keep_checkpoints=9", "batch_size=8", "micro_batch=4", "ema_decay=0.8"]
    more += [f"init={sources['stage 1']}", "optimizer.layer_decay=0.7"]
    more += ["mixup=0.8", "model.head_dropout=0.2"] if recipe == CLASSIFICATION else ["model.auxiliary_depth=0"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(configure(recipe, lists[recipe], whole, *more), progress_bar=False)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "model")
    for step in (4, 5):
        shutil.rmtree(stopped / f"checkpoints/step_{step:08d}")
    train(configure(recipe, lists[recipe], stopped, *more), resume=True, progress_bar=False)
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def test_all_parts_are_trained_and_the_deepest_least(lists, sources, tmp_path):
    more = [f"init={sources['encoder']}", "optimizer.layer_decay=0.1", "ema_decay=none", "optimizer.weight_decay=0"]
    train(configure(CLASSIFICATION, lists[CLASSIFICATION], tmp_path / "run", *more), progress_bar=False)
    found, moved = weights(tmp_path / "run"), {}
    for name, tensor in created(sources["encoder"]).items():
        moved[name] = float((found[f"encoder.{name}"] - tensor).abs().mean())
    order = ["weight", "spatial.blocks.0.mlp.fc2.weight", "spatial.blocks.1.mlp.fc2.weight"]
    order += ["temporal.blocks.0.mlp.fc2.weight", "temporal.norm.bias"]
    steps = [moved[name] for name in order]
    assert steps == sorted(steps)
    assert min(upper / lower for lower, upper in pairwise(steps)) > 4
    assert steps[0] > 0


@pytest.mark.parametrize("name", ["prism_student", "videoprism"])
def test_a_model_without_scores_says_what_scores_it(lists, tmp_path, name):
    sizes = {"num_frames": 4, "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "temporal_depth": 1}
    small = {"decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2} if name == "prism_student" else {}
    model = create_model(f"{name}_tiny", **sizes, **small, num_heads=3)
    write_model_folder(tmp_path / name, model, name)
    opened = open_model(tmp_path / name, torch.device("cpu"))
    with pytest.raises(UserError) as error:
        runs.evaluate(opened, str(lists["test"]))
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith(f"{name} has no scores of its own: `fastvtp probe MODEL --train DATA --test DATA` ")
    assert "`fastvtp zeroshot` cannot take it" in said
    named = said.partition("RECIPE one of ")[2].partition(";")[0].split(", ")
    assert {"videoprism_classification", RETRIEVAL} < set(named)
    for recipe in named:  # each takes such a model indeed, by the command that is named
        assert get_recipe(recipe).task in ("finetune_videoprism_classification", "finetune_videoprism_retrieval")


def test_recipes_of_published_size_ask_for_the_released_weights(lists):
    for recipe, file in (
        ("videoprism_classification", "flax_base_f16r288_repeated.npz"),
        ("videoprism_classification_ssv2", "flax_base_f16r288_repeated.npz"),
        ("videoprism_retrieval", "flax_lvt_base_f16r288_repeated.npz"),
    ):
        with pytest.raises(ConfigError, match=rf"init=weights/{file} does not exist; give .*, or init=none"):
            recipe_config(recipe, "fastvtp", [f"data.train={lists[RETRIEVAL]}"], command="finetune")
    config = get_recipe("videoprism_classification")
    assert (config.steps, config.batch_size) == (138_101, 256)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 1e-5)
    assert (config.model.width, config.model.pooler_hidden, config.model.num_frames) == (768, 0, 16)
    assert get_recipe("videoprism_retrieval").model.token_drop == 0


@pytest.mark.parametrize(
    ("recipe", "source", "more", "message"),
    [
        (CLASSIFICATION, "encoder", ["model.depth=1"], r"set model\.depth=2"),
        (RETRIEVAL, "lvt folder", ["model.auxiliary_depth=0"], r"set model\.auxiliary_depth=2"),
        (RETRIEVAL, "lvt", ["model.auxiliary_depth=2"], "has text embeddings and no tokenizer beside it"),
    ],
)
def test_weights_that_do_not_fit_say_what_to_set(lists, sources, tmp_path, recipe, source, more, message):
    if source == "lvt folder":
        more = [*more, f"data.tokenizer={sources['stage 1'] / 'model/tokenizer.json'}"]
    config = configure(recipe, lists[recipe], tmp_path / "run", f"init={sources[source]}", *more)
    with pytest.raises(UserError, match=message):
        train(config, progress_bar=False)


@pytest.mark.parametrize(
    ("recipe", "checkpoint"),
    [("videoprism_classification", "videoprism_base"), ("videoprism_retrieval", "videoprism_lvt_base")],
)
def test_recipes_of_published_size_take_the_released_arrays(recipe, checkpoint):
    """By the public names and shapes, without memory: nothing is missing but what no release has, nothing left over."""
    shapes = json.loads((ARRAYS / "videoprism_shapes.json").read_text())[checkpoint]["shapes"]
    with torch.device("meta"):
        arrays = {name: torch.empty(shape) for name, shape in shapes.items()}
        config = get_recipe(recipe).model
        model = architecture_of(config).model(config)
    report = load_checkpoint(model, arrays, fresh=absent_parts(model, arrays))
    assert not report.ignored
    assert not report.resized
    assert {name.partition(".")[0] for name in report.fresh} <= {"pooler", "head", "contrast"}
    assert ("pooler.queries" in report.loaded) == ("lvt" in checkpoint)


def test_the_tiny_recipes_start_from_the_tiny_first_stage():
    """As they are, without a setting."""
    stage1 = get_recipe("videoprism_stage1_tiny")
    for recipe in (CLASSIFICATION, RETRIEVAL):
        config = get_recipe(recipe)
        assert config.init == stage1.output_dir
        model = build_model(config.model)
        source = build_model(stage1.model)
        report = load_checkpoint(model, source.state_dict(), fresh=absent_parts(model, source.state_dict()))
        assert not report.resized
    assert config.model == dataclasses.replace(stage1.model, token_drop=0.0)
