"""Every tiny recipe at a second's size, for runs on several processes: what they learn from, and their settings."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fastvtp.data.entities import write_entities
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import TrainConfig, apply_overrides
from tests.training.labelled import choices, classes, rows_of, write_rows

_COMMON = [
    "data.test=none", "init=none", "device=cpu", "data.num_workers=0", "data.vocab_size=300", "tensorboard=false",
    "batch_size=8", "micro_batch=2", "steps=12", "log_every=1", "checkpoint_every=100", "optimizer.warmup_steps=2",
    "optimizer.algorithm=adamw",
]  # fmt: skip
_SIZES = ["model.width=32", "model.depth=1", "model.num_heads=2", "model.image_size=32"]
_VIDEOMAE = [*_SIZES, "model.num_frames=4", "model.tubelet=2,8,8"]
_DECODER = ["model.decoder_width=16", "model.decoder_num_heads=2", "model.decoder_depth=1"]
_ALPRO = [
    *_SIZES, "model.text_depth=1", "model.fusion_depth=1", "model.text_num_heads=2", "model.text_hidden=64",
    "model.projection_dim=16", "model.num_frames=2", "model.patch_size=8",
]  # fmt: skip
_PRISM = [*_SIZES, "model.temporal_depth=1", "model.mlp_hidden=64", "model.patch_size=8", "model.num_frames=4"]
_PRISM_DECODER = [
    "model.decoder_width=32", "model.decoder_depth=1", "model.decoder_num_heads=2", "model.decoder_hidden=64",
    "model.mask_min_cells=2",
]  # fmt: skip


@dataclass(frozen=True)
class TinyRun:
    """A recipe, which list of the folder it learns from, and its settings; "{}" in one of these is the folder."""

    recipe: str
    data: str
    settings: tuple[str, ...]

    def config(self, root: Path, output_dir: Path, *more: str) -> TrainConfig:
        given = [setting.format(root) for setting in self.settings]
        data = [f"data.train={root / self.data}", f"output_dir={output_dir}"]
        return apply_overrides(get_recipe(self.recipe), [*_COMMON, *data, *given, *more])


def _run(recipe: str, data: str, *settings: str) -> TinyRun:
    return TinyRun(recipe, data, settings)


_PICTURES = ["data.images={}/images.jsonl", "data.image_share=0.3"]
RUNS = {
    "simvtp": _run("simvtp_tiny", "train.jsonl", *_VIDEOMAE, *_DECODER, "model.text_dropout=0.1"),
    "simvtp-hard": _run(
        "simvtp_tiny", "train.jsonl", *_VIDEOMAE, *_DECODER, "model.matching_negatives=hard", "model.drop_path=0.1",
        "model.projection_dim=16", "model.learnable_temperature=true", "ema_decay=0.8", "optimizer.clip_norm=1",
    ),
    "videomae": _run("videomae_pretrain_tiny", "videos/train", *_VIDEOMAE, *_DECODER),
    "retrieval": _run("retrieval_finetune_tiny", "train.jsonl", *_VIDEOMAE, "optimizer.layer_decay=0.7"),
    "questions": _run("qa_finetune_tiny", "train_questions.jsonl", *_VIDEOMAE),
    "choices": _run("qa_finetune_tiny", "train_choices.jsonl", *_VIDEOMAE),
    "classes": _run(
        "classification_finetune_tiny", "train_classes.jsonl", *_VIDEOMAE, "mixup=0.8", "label_smoothing=0.1",
        "model.drop_path=0.2", "model.head_dropout=0.1", "ema_decay=0.8",
    ),
    "prompter": _run("alpro_prompter_tiny", "train.jsonl", *_ALPRO, *_PICTURES),
    "alpro": _run(
        "alpro_pretrain_tiny", "train.jsonl", *_ALPRO, *_PICTURES, "model.num_entities=3", "prompter={}/prompter",
        "entities={}/entities.txt", "model.text_dropout=0.1",
    ),
    "alpro-words": _run(
        "alpro_pretrain_tiny", "train.jsonl", *_ALPRO, "model.entity_weight=0", "prompter=none", "entities=none",
        "matching_scope=micro_batch",
    ),
    "alpro-retrieval": _run("alpro_retrieval_tiny", "train.jsonl", *_ALPRO),
    "alpro-questions": _run("alpro_qa_tiny", "train_questions.jsonl", *_ALPRO),
    "prism-1": _run(
        "videoprism_stage1_tiny", "train.jsonl", *_PRISM, *_PICTURES, "model.text_depth=1", "data.more={}/test.jsonl",
    ),
    "prism-2": _run("videoprism_stage2_tiny", "videos/train", *_PRISM, *_PRISM_DECODER, "teacher={}/teacher"),
    "prism-classes": _run("videoprism_classification_tiny", "train_classes.jsonl", *_PRISM, "mixup=0.8"),
    "prism-retrieval": _run("videoprism_retrieval_tiny", "train.jsonl", *_PRISM, "model.text_depth=1"),
}  # fmt: skip
"""By what they are called in tests."""


def prepare(root: Path) -> Path:
    """Add to the folder of captioned videos all that `RUNS` read; returns it."""
    choices(root, "train")
    classes(root, "train")
    colours = ("red", "green", "blue", "yellow", "pink")
    for colour in colours:
        Image.new("RGB", (48, 40), colour).save(root / f"{colour}.png")
    write_rows(root / "images.jsonl", [{"image": f"{name}.png", "caption": f"A {name} square."} for name in colours])
    write_entities(root / "entities.txt", ["circle", "square", "star", "triangle"])
    CaptionTokenizer.train([row["caption"] for row in rows_of(root / "train.jsonl")], vocab_size=300).save(
        _folder(root / "prompter") / "tokenizer.json"
    )
    torch.manual_seed(5)
    prompter = RUNS["prompter"].config(root, root / "unused").model
    tokenizer = load_tokenizer(root / "prompter")
    prompter = type(prompter)(**{**vars(prompter), **tokenizer.settings_of(prompter)})
    write_model_folder(root / "prompter", build_model(prompter), "alpro_prompter")
    teacher = RUNS["prism-1"].config(root, root / "unused").model
    write_model_folder(root / "teacher", build_model(teacher), "videoprism_video_text")
    return root


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path
