"""Recipes of VideoMAE: pretraining, and the classification that starts from it.

They follow the released scripts, see `fastvtp.systems.videomae.schedules`, whose steps are of many GPUs' clips: here
one process takes as many, one part after the other (`micro_batch`).
"""

from dataclasses import replace
from typing import Any

from fastvtp.architecture import model_config
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videomae.schedules import FINETUNING, PRETRAINING, Schedule
from fastvtp.training.class_task import ClassificationOptions
from fastvtp.training.config import OptimizerConfig, TrainConfig
from fastvtp.training.data_config import TRAINING_READING, DataConfig

# Sides of the release's windows are 1, .875, .75 or .66 of the shorter side of the frame, next to each other in this
# list: 44 % of the largest square to all of it, from 6:7 to 7:6. In a frame of 7:6 and wider, or of 6:7 and taller, the
# largest window of these shapes is 7 / 6 of that square.
MULTI_SCALE_CROP: dict[str, Any] = {"crop_scale": (0.66**2 * 6 / 7, 6 / 7), "crop_ratio": (6 / 7, 7 / 6)}
_TINY_READING = replace(TRAINING_READING, sampling="random_sorted", crop_scale=(0.8, 1.0))


def videomae_pretrain_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores: the videos of `fastvtp demo`, or any; captions are not read."""
    return TrainConfig(
        task="pretrain_videomae",
        model=model_config("videomae_tiny", preset=preset, width=128, num_heads=2, video_mask_ratio=0.75),
        data=DataConfig(train="runs/demo/data/train.jsonl", reading=_TINY_READING),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50, clip_norm=5.0),
        output_dir="runs/videomae_tiny",
        steps=600,
        batch_size=32,
        checkpoint_every=100,
    )


@PRETRAINING["small"].published()
def videomae_pretrain_small(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-S on Kinetics-400: 1600 epochs, 1024 clips a step."""
    return _pretraining(preset, PRETRAINING["small"], "runs/videomae_small", micro_batch=128)


@PRETRAINING["base"].published()
def videomae_pretrain_base(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-B on Kinetics-400: 1600 epochs, 2048 clips a step."""
    return _pretraining(preset, PRETRAINING["base"], "runs/videomae_base")


@PRETRAINING["large"].published()
def videomae_pretrain_large(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-L on Kinetics-400, with a decoder of 12 layers: 1600 epochs, 512 clips a step."""
    return _pretraining(preset, PRETRAINING["large"], "runs/videomae_large", micro_batch=32, decoder_depth=12)


@PRETRAINING["huge"].published("The release recomputes activations to save memory.")
def videomae_pretrain_huge(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-H on Kinetics-400, with a decoder of 12 layers: 1600 epochs, 1024 clips a step."""
    return _pretraining(preset, PRETRAINING["huge"], "runs/videomae_huge", micro_batch=16, decoder_depth=12)


@PRETRAINING["ssv2"].published()
def videomae_pretrain_ssv2(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-B on every second frame of Something-Something V2: 2400 epochs, 2048 clips a step."""
    return _pretraining(preset, PRETRAINING["ssv2"], "runs/videomae_ssv2", frame_stride=2)


@PRETRAINING["ssv2_small"].published("Its script says 32 GPUs of 32 clips, which is taken, and starts 64.")
def videomae_pretrain_ssv2_small(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-S on every second frame of Something-Something V2: 2400 epochs, 1024 clips a step."""
    return _pretraining(preset, PRETRAINING["ssv2_small"], "runs/videomae_ssv2_small", micro_batch=128, frame_stride=2)


@PRETRAINING["ucf101"].published()
def videomae_pretrain_ucf101(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-B on split 1 of UCF101, of which 75 % is masked: 3200 epochs, 192 clips a step."""
    return _pretraining(preset, PRETRAINING["ucf101"], "runs/videomae_ucf101", video_mask_ratio=0.75)


def _pretraining(
    preset: str,
    schedule: Schedule,
    output_dir: str,
    *,
    micro_batch: int = 64,
    frame_stride: int = 4,
    **model: Any,
) -> TrainConfig:
    """Return a pretraining. micro_batch: clips at a time. model: settings beside those of its size."""
    reading = replace(TRAINING_READING, frame_stride=frame_stride, flip=False, **MULTI_SCALE_CROP)
    return TrainConfig(
        task="pretrain_videomae",
        model=model_config(f"videomae_{schedule.size}", preset=preset, **model),
        data=DataConfig(train="data/train", num_workers=12, reading=reading),
        optimizer=OptimizerConfig(
            learning_rate=schedule.scaled(schedule.rate),
            final_learning_rate=schedule.scaled(schedule.final_rate),
            warmup_share=schedule.warmup_share,
        ),
        output_dir=output_dir,
        steps=schedule.steps,
        batch_size=schedule.clips_a_step,
        micro_batch=micro_batch,
        precision="bfloat16",
        checkpoint_every=2000,
    )


# the encoder of simvtp_demo
TINY_ENCODER: dict[str, Any] = {"num_frames": 8, "image_size": 96, "width": 128, "depth": 4, "num_heads": 2}


RAND_M7_N4_ERASING = ClipAugmentation(rand_augment="rand-m7-n4-mstd0.5-inc1", erasing=0.25)


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


@FINETUNING["small"].published()
def classification_finetune_small(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-S on Kinetics-400: 150 epochs of 384 videos a step, each twice."""
    return _classification(FINETUNING["small"], "small", micro_batch=96)


@FINETUNING["base"].published()
def classification_finetune(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-B on Kinetics-400: 75 epochs of 384 videos a step, each twice."""
    return _classification(FINETUNING["base"], "base")


@FINETUNING["large"].published()
def classification_finetune_large(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-L on Kinetics-400: 35 epochs of 128 videos a step, each twice."""
    return _classification(FINETUNING["large"], "large", micro_batch=16)


@FINETUNING["huge"].published("The release recomputes activations to save memory.")
def classification_finetune_huge(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-H on Kinetics-400: 50 epochs of 512 videos a step, each twice."""
    return _classification(FINETUNING["huge"], "huge", micro_batch=8, drop_path=0.2, head_dropout=0.5)


@FINETUNING["ssv2"].published()
def classification_finetune_ssv2(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-B on Something-Something V2: 30 epochs of 384 videos a step, each twice.

    Never mirrored: of the 174 classes some differ by direction alone.
    """
    return _classification(FINETUNING["ssv2"], "ssv2", num_classes=174)


@FINETUNING["ssv2_small"].published()
def classification_finetune_ssv2_small(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-S on Something-Something V2: 40 epochs of 384 videos a step, each twice.

    Never mirrored, for the same reason.
    """
    return _classification(FINETUNING["ssv2_small"], "ssv2_small", micro_batch=96, layer_decay=0.7, num_classes=174)


@FINETUNING["ucf101"].published("The release recomputes activations to save memory.")
def classification_finetune_ucf101(preset: str = "fastvtp") -> TrainConfig:
    """VideoMAE's ViT-B on split 1 of UCF101: 100 epochs of 128 videos a step, each twice."""
    return _classification(
        FINETUNING["ucf101"],
        "ucf101",
        micro_batch=32,
        layer_decay=0.7,
        drop_path=0.2,
        head_dropout=0.5,
        num_classes=101,
    )


def _classification(
    schedule: Schedule,
    pretraining: str,
    *,
    micro_batch: int = 48,
    layer_decay: float = 0.75,
    num_classes: int = 400,
    **model: Any,
) -> TrainConfig:
    """Return a fine-tuning. pretraining: the recipe it starts from, by the end of its name. micro_batch: clips at a
    time. model: settings beside those of its size."""
    pretrained = model_config(f"videomae_{schedule.size}")
    encoder = {name: getattr(pretrained, name) for name in ("width", "depth", "num_heads")}
    reading = replace(TRAINING_READING, crop_scale=(0.08, 1.0), augmentation=RAND_M7_N4_ERASING)
    if schedule.data == "ssv2":
        reading = replace(reading, sampling="uniform", flip=False)
    return TrainConfig(
        task="finetune_classification",
        model=VideoClassifierConfig(**{**encoder, "drop_path": 0.1, "num_classes": num_classes, **model}),
        data=DataConfig(
            train="data/train.csv",
            test_views=(2, 3) if schedule.data == "ssv2" else (5, 3),
            test_sampling="starts" if schedule.data == "ssv2" else reading.sampling,
            reading=reading,
            num_workers=12,
        ),
        init=f"runs/videomae_{pretraining}",
        optimizer=OptimizerConfig(
            learning_rate=schedule.scaled(schedule.rate),
            final_learning_rate=schedule.scaled(schedule.final_rate),
            layer_decay=layer_decay,
            warmup_share=schedule.warmup_share,
            betas=(0.9, 0.999),
        ),
        output_dir=f"runs/classification_{pretraining}".removesuffix("_base"),
        steps=schedule.steps,
        batch_size=schedule.clips_a_step,
        micro_batch=micro_batch,
        precision="bfloat16",
        options=ClassificationOptions(label_smoothing=0.1, mixup=0.8),
    )


RECIPES = (
    videomae_pretrain_tiny,
    videomae_pretrain_small,
    videomae_pretrain_base,
    videomae_pretrain_large,
    videomae_pretrain_huge,
    videomae_pretrain_ssv2,
    videomae_pretrain_ssv2_small,
    videomae_pretrain_ucf101,
    classification_finetune_tiny,
    classification_finetune_small,
    classification_finetune,
    classification_finetune_large,
    classification_finetune_huge,
    classification_finetune_ssv2,
    classification_finetune_ssv2_small,
    classification_finetune_ucf101,
)
