"""Recipes of fine-tuning, see `fastvtp.systems.recipes`: the tiny ones start from `fastvtp demo`, the others take the
published settings and want `init=` a pretrained model."""

from dataclasses import replace
from typing import Any

from fastvtp.architecture import model_config
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.systems.simvtp.question_answering import VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videomae.recipes import (
    RAND_M7_N4_ERASING,
    TINY_ENCODER,
)
from fastvtp.training.config import TRAINING_READING, DataConfig, OptimizerConfig, TrainConfig

_TINY_TEXT: dict[str, Any] = {**TINY_ENCODER, "max_text_length": 64}


def retrieval_finetune_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `fastvtp demo`."""
    return TrainConfig(
        task="finetune_retrieval",
        model=_dual_encoder(preset, projection_dim=128, **_TINY_TEXT),
        data=DataConfig(
            train="runs/demo/data/train.jsonl",
            test="runs/demo/data/test.jsonl",
            reading=replace(TRAINING_READING, sampling="random_sorted", crop_scale=(0.8, 1.0)),
        ),
        init="runs/demo",
        optimizer=OptimizerConfig(learning_rate=5e-4, layer_decay=0.9, warmup_steps=30, betas=(0.9, 0.98)),
        output_dir="runs/retrieval_tiny",
        steps=200,
        batch_size=32,
        checkpoint_every=100,
    )


def retrieval_finetune(preset: str = "fastvtp") -> TrainConfig:
    """SimVTP's on MSR-VTT: 100 epochs of 9000 clips, 3e-4 for 256 clips, here 64.

    preset "fastvtp" decays the rate by layer, which the release meant to do and did not, and contrasts projections.
    """
    batch_size, epoch = 64, 9000 // 64
    return TrainConfig(
        task="finetune_retrieval",
        model=_dual_encoder(preset, drop_path=0.1),
        data=DataConfig(
            train="data/train.jsonl",
            test_views=(3, 3),
            test_sampling="strided",
            reading=replace(TRAINING_READING, crop_scale=(0.08, 1.0), augmentation=RAND_M7_N4_ERASING),
            num_workers=12,
        ),
        optimizer=OptimizerConfig(
            learning_rate=3e-4 * batch_size / 256,
            layer_decay=1.0 if preset == "official" else 0.75,
            warmup_steps=5 * epoch,
            betas=(0.9, 0.999),
        ),
        output_dir="runs/retrieval",
        steps=100 * epoch,
        batch_size=batch_size,
        precision="bfloat16",
    )


def qa_finetune_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `fastvtp demo`.

    Minutes of pretraining leave some words, shapes above all, without effect: the rate is high for all layers, to
    bring these back, where fine-tuning else treads softly.
    """
    return TrainConfig(
        task="finetune_qa",
        model=VideoQAConfig(readout="mask", **_TINY_TEXT),
        data=DataConfig(
            train="runs/demo/data/train_questions.jsonl",
            test="runs/demo/data/test_questions.jsonl",
            reading=replace(TRAINING_READING, sampling="random_sorted", crop_scale=(0.8, 1.0)),
        ),
        init="runs/demo",
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=30, betas=(0.9, 0.98)),
        output_dir="runs/qa_tiny",
        steps=150,
        batch_size=32,
        checkpoint_every=50,
    )


def qa_finetune(preset: str = "fastvtp") -> TrainConfig:
    """ALPRO's on MSRVTT-QA (SimVTP's was never released): 10 epochs of 158 581 questions, 192 a step."""
    batch_size, accumulate = 24, 8
    steps = 10 * 158_581 // (batch_size * accumulate)
    return TrainConfig(
        task="finetune_qa",
        model=VideoQAConfig(max_text_length=40, drop_path=0.1),
        data=DataConfig(
            train="data/train_questions.jsonl",
            reading=replace(
                TRAINING_READING,
                sampling="random_sorted",
                crop_scale=(0.5, 1.0),
                augmentation=ClipAugmentation(rand_augment=(2, 15)),
            ),
            num_workers=12,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-5, final_learning_rate=1e-8, warmup_steps=steps // 10, betas=(0.9, 0.98), clip_norm=5.0
        ),
        output_dir="runs/qa",
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        precision="bfloat16",
    )


def _dual_encoder(preset: str, *, projection_dim: int = 256, **sizes: Any) -> DualEncoderConfig:
    """Return SimVTP's retrieval model. "fastvtp" takes over what its table recommends for the contrast in
    pretraining."""
    if preset == "fastvtp":
        sizes |= {
            "pad_text": False,
            "contrastive_directions": "mean",
            "projection_dim": projection_dim,
            "learnable_temperature": True,
            "gather_negatives": True,
        }
    return DualEncoderConfig(**sizes)


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
            reading=replace(TRAINING_READING, sampling="random_sorted", crop_scale=(0.8, 1.0)),
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
        data=DataConfig(train="data/train.jsonl", num_workers=12, reading=replace(TRAINING_READING, flip=False)),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-4 * batch_size / 256, final_learning_rate=1e-5 * batch_size / 256, warmup_steps=20_000
        ),
        output_dir="runs/simvtp_base",
        steps=400_000,
        batch_size=batch_size,
        precision="bfloat16",
        checkpoint_every=2000,
    )


RECIPES = (
    simvtp_demo,
    simvtp_tiny,
    simvtp_small,
    simvtp_base,
    retrieval_finetune_tiny,
    retrieval_finetune,
    qa_finetune_tiny,
    qa_finetune,
)
