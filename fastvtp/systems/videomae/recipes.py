"""Recipes of VideoMAE: pretraining, and the classification that starts from it."""

from dataclasses import replace
from typing import Any

from fastvtp.architecture import model_config
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videomae.tasks import ClassificationOptions
from fastvtp.training.config import TRAINING_READING, DataConfig, OptimizerConfig, TrainConfig

_TINY_READING = replace(TRAINING_READING, sampling="random_sorted", crop_scale=(0.8, 1.0))


def videomae_pretrain_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores: the videos of `fastvtp demo`, or any; captions are not read."""
    return TrainConfig(
        task="pretrain_videomae",
        model=model_config("videomae_tiny", width=128, num_heads=2, video_mask_ratio=0.75),
        data=DataConfig(train="runs/demo/data/train.jsonl", reading=_TINY_READING),
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
        data=DataConfig(
            train="data/train", num_workers=12, reading=replace(TRAINING_READING, flip=False, crop_scale=(0.44, 1.0))
        ),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-4 * batch_size / 256, final_learning_rate=1e-5 * batch_size / 256, warmup_steps=20_000
        ),
        output_dir="runs/videomae_base",
        steps=400_000,
        batch_size=batch_size,
        precision="bfloat16",
        checkpoint_every=2000,
    )


# the encoder of simvtp_demo
TINY_ENCODER: dict[str, Any] = {"num_frames": 8, "image_size": 96, "width": 128, "depth": 4, "num_heads": 2}


# timm's "rand-m7-n4-mstd0.5-inc1", of magnitudes to 10, without its spread
RAND_M7_N4_ERASING = ClipAugmentation(rand_augment=(4, 21), erasing=0.25)


def classification_finetune_tiny(preset: str = "fastvtp") -> TrainConfig:
    """A model for trying things: 8 frames of 96 pixels, any videos with classes."""
    return TrainConfig(
        task="finetune_classification",
        model=VideoClassifierConfig(**TINY_ENCODER),
        data=DataConfig(train="data/train", reading=_TINY_READING),
        optimizer=OptimizerConfig(learning_rate=1e-3, layer_decay=0.9, warmup_steps=30, betas=(0.9, 0.98)),
        output_dir="runs/classification_tiny",
        steps=400,
        batch_size=32,
        checkpoint_every=100,
        ema_decay=0.99,
        options=ClassificationOptions(label_smoothing=0.1),
    )


def classification_finetune(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's on Kinetics-400: 75 epochs of 240 000 clips, 5e-4 for 256 clips, 384 a step; without its CutMix."""
    return _classification(
        clips=240_000, epochs=75, output_dir="runs/classification", test_views=(5, 3), test_sampling="strided"
    )


def classification_finetune_ssv2(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's on Something-Something V2: 50 epochs of 168 913 clips, 5e-4 for 256 clips, 384 a step, for the release
    512; without its CutMix. Never mirrored: of the 174 classes some differ by direction alone."""
    return _classification(
        clips=168_913,
        epochs=50,
        output_dir="runs/classification_ssv2",
        num_classes=174,
        test_views=(2, 3),
        test_sampling="uniform",
        sampling="uniform",
        flip=False,
    )


def _classification(
    *,
    clips: int,
    epochs: int,
    output_dir: str,
    test_views: tuple[int, int],
    test_sampling: str,
    num_classes: int = 400,
    **reading: Any,
) -> TrainConfig:
    """Return what VideoMAE's two fine-tunings of ViT-B have in common. reading: settings of `ClipReading`."""
    batch_size, accumulate = 48, 8
    scale, epoch = batch_size * accumulate / 256, clips // (batch_size * accumulate)
    return TrainConfig(
        task="finetune_classification",
        model=VideoClassifierConfig(drop_path=0.1, num_classes=num_classes),
        data=DataConfig(
            train="data/train.csv",
            test_views=test_views,
            test_sampling=test_sampling,
            reading=replace(TRAINING_READING, crop_scale=(0.08, 1.0), augmentation=RAND_M7_N4_ERASING, **reading),
            num_workers=12,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4 * scale,
            final_learning_rate=1e-6 * scale,
            layer_decay=0.75,
            warmup_steps=5 * epoch,
            betas=(0.9, 0.999),
        ),
        output_dir=output_dir,
        steps=epochs * epoch,
        batch_size=batch_size,
        accumulate=accumulate,
        precision="bfloat16",
        options=ClassificationOptions(label_smoothing=0.1, mixup=0.8),
    )


RECIPES = (
    videomae_pretrain_tiny,
    videomae_pretrain_base,
    classification_finetune_tiny,
    classification_finetune,
    classification_finetune_ssv2,
)
