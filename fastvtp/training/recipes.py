"""Recipes: functions that return a complete run configuration.

`fastvtp pretrain NAME key=value ...` and `fastvtp finetune NAME key=value ...` start one. A preset is SimVTP's and
ALPRO's affair: what the others do without it is the same for both.
"""

from collections.abc import Callable

from fastvtp.errors import unknown_name
from fastvtp.models.registry import PRESETS, model_config
from fastvtp.training.alpro_recipes import (
    alpro_didemo_retrieval,
    alpro_msrvtt_qa,
    alpro_msrvtt_retrieval,
    alpro_msvd_qa,
    alpro_pretrain,
    alpro_pretrain_tiny,
    alpro_prompter,
    alpro_prompter_tiny,
    alpro_qa_tiny,
    alpro_retrieval_tiny,
)
from fastvtp.training.captioning_recipes import videoprism_captioning, videoprism_captioning_tiny
from fastvtp.training.config import DataConfig, OptimizerConfig, TrainConfig
from fastvtp.training.finetuning_recipes import (
    classification_finetune,
    classification_finetune_ssv2,
    classification_finetune_tiny,
    qa_finetune,
    qa_finetune_tiny,
    retrieval_finetune,
    retrieval_finetune_tiny,
)
from fastvtp.training.prism_recipes import (
    videoprism_stage1,
    videoprism_stage1_tiny,
    videoprism_stage2,
    videoprism_stage2_tiny,
)


def simvtp_demo(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores: the synthetic captioned videos of `fastvtp demo`.

    Of a frame of only 6 x 6 tubelets, a mask of 0.9 would leave 4 to learn from.
    """
    return TrainConfig(
        task="pretrain_simvtp",
        model=model_config(
            "simvtp_tiny", preset=preset, width=128, num_heads=2, video_mask_ratio=0.75, text_mask_ratio=0.5
        ),
        data=DataConfig(
            train="runs/demo/data/train.jsonl",
            test="runs/demo/data/test.jsonl",
            sampling="random_sorted",
            crop_scale=(0.8, 1.0),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50, betas=(0.9, 0.98), clip_norm=5.0),
        output_dir="runs/demo",
        steps=600,
        batch_size=32,
        checkpoint_every=100,
    )


def simvtp_tiny(preset: str = "fastvtp") -> TrainConfig:
    """A model for trying things: 8 frames of 96 pixels, any captioned videos."""
    return TrainConfig(
        task="pretrain_simvtp",
        model=model_config("simvtp_tiny", preset=preset),
        data=DataConfig(train="data/train.jsonl"),
        optimizer=OptimizerConfig(learning_rate=5e-4, clip_norm=5.0),
        output_dir="runs/simvtp_tiny",
    )


def simvtp_small(preset: str = "fastvtp") -> TrainConfig:
    """ViT-S width, 16 frames of 224 pixels; one GPU."""
    return TrainConfig(
        task="pretrain_simvtp",
        model=model_config("simvtp_small", preset=preset),
        data=DataConfig(train="data/train.jsonl", num_workers=8),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2000),
        output_dir="runs/simvtp_small",
        steps=100_000,
        precision="bfloat16",
    )


def simvtp_base(preset: str = "fastvtp") -> TrainConfig:
    """The paper's model with its rate rule: 1.5e-4 for 256 clips, here scaled to the batch of one GPU."""
    batch_size = 64
    return TrainConfig(
        task="pretrain_simvtp",
        model=model_config("simvtp_base", preset=preset),
        data=DataConfig(train="data/train.jsonl", num_workers=12, flip=False),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-4 * batch_size / 256, final_learning_rate=1e-5 * batch_size / 256, warmup_steps=20_000
        ),
        output_dir="runs/simvtp_base",
        steps=400_000,
        batch_size=batch_size,
        precision="bfloat16",
        checkpoint_every=2000,
    )


def videomae_pretrain_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores: the videos of `fastvtp demo`, or any; captions are not read."""
    return TrainConfig(
        task="pretrain_videomae",
        model=model_config("videomae_tiny", width=128, num_heads=2, video_mask_ratio=0.75),
        data=DataConfig(train="runs/demo/data/train.jsonl", sampling="random_sorted", crop_scale=(0.8, 1.0)),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50, clip_norm=5.0),
        output_dir="runs/videomae_tiny",
        steps=600,
        batch_size=32,
        checkpoint_every=100,
    )


def videomae_pretrain_base(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's on Kinetics-400: 1.5e-4 for 256 clips, here scaled to the batch of one GPU."""
    batch_size = 64
    return TrainConfig(
        task="pretrain_videomae",
        model=model_config("videomae_base"),
        data=DataConfig(train="data/train", num_workers=12, flip=False, crop_scale=(0.44, 1.0)),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-4 * batch_size / 256, final_learning_rate=1e-5 * batch_size / 256, warmup_steps=20_000
        ),
        output_dir="runs/videomae_base",
        steps=400_000,
        batch_size=batch_size,
        precision="bfloat16",
        checkpoint_every=2000,
    )


RECIPES: dict[str, Callable[[str], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        simvtp_demo, simvtp_tiny, simvtp_small, simvtp_base,
        videomae_pretrain_tiny, videomae_pretrain_base,
        retrieval_finetune_tiny, retrieval_finetune,
        qa_finetune_tiny, qa_finetune,
        classification_finetune_tiny, classification_finetune, classification_finetune_ssv2,
        videoprism_captioning_tiny, videoprism_captioning,
        alpro_prompter_tiny, alpro_prompter, alpro_pretrain_tiny, alpro_pretrain,
        alpro_retrieval_tiny, alpro_msrvtt_retrieval, alpro_didemo_retrieval,
        alpro_qa_tiny, alpro_msrvtt_qa, alpro_msvd_qa,
        videoprism_stage1_tiny, videoprism_stage1, videoprism_stage2_tiny, videoprism_stage2,
    )
}  # fmt: skip


def get_recipe(name: str, preset: str = "fastvtp") -> TrainConfig:
    """The configuration of a recipe. Raises UserError with the nearest known name."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return RECIPES[name](preset)
