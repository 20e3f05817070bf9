"""Recipes of fine-tuning, see `fastvtp.training.recipes`: the tiny ones start from `fastvtp demo`, the others take the
published settings and want `init=` a pretrained model."""

from typing import Any

from fastvtp.data.sampling import ClipAugmentation
from fastvtp.models.classification import VideoClassifierConfig
from fastvtp.models.dual_encoder import DualEncoderConfig
from fastvtp.models.video_qa import VideoQAConfig
from fastvtp.training.config import DataConfig, OptimizerConfig, TrainConfig

# the encoder of simvtp_demo
_TINY: dict[str, Any] = {"num_frames": 8, "image_size": 96, "width": 128, "depth": 4, "num_heads": 2}
_TINY_TEXT: dict[str, Any] = {**_TINY, "max_text_length": 64}
# timm's "rand-m7-n4-mstd0.5-inc1", of magnitudes to 10, without its spread
_RAND_M7_N4_ERASING = ClipAugmentation(rand_augment=(4, 21), erasing=0.25)


def retrieval_finetune_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `fastvtp demo`."""
    return TrainConfig(
        task="finetune_retrieval",
        model=_dual_encoder(preset, projection_dim=128, **_TINY_TEXT),
        data=DataConfig(
            train="runs/demo/data/train.jsonl",
            test="runs/demo/data/test.jsonl",
            sampling="random_sorted",
            crop_scale=(0.8, 1.0),
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
            crop_scale=(0.08, 1.0),
            augmentation=_RAND_M7_N4_ERASING,
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
            sampling="random_sorted",
            crop_scale=(0.8, 1.0),
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
            sampling="random_sorted",
            crop_scale=(0.5, 1.0),
            augmentation=ClipAugmentation(rand_augment=(2, 15)),
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


def classification_finetune_tiny(preset: str = "fastvtp") -> TrainConfig:
    """A model for trying things: 8 frames of 96 pixels, any videos with classes."""
    return TrainConfig(
        task="finetune_classification",
        model=VideoClassifierConfig(**_TINY),
        data=DataConfig(train="data/train", sampling="random_sorted", crop_scale=(0.8, 1.0)),
        optimizer=OptimizerConfig(learning_rate=1e-3, layer_decay=0.9, warmup_steps=30, betas=(0.9, 0.98)),
        output_dir="runs/classification_tiny",
        steps=400,
        batch_size=32,
        checkpoint_every=100,
        ema_decay=0.99,
        label_smoothing=0.1,
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
        clips=168_913, epochs=50, output_dir="runs/classification_ssv2", num_classes=174,
        sampling="uniform", flip=False, test_views=(2, 3), test_sampling="uniform",
    )  # fmt: skip


def _classification(*, clips: int, epochs: int, output_dir: str, num_classes: int = 400, **data: Any) -> TrainConfig:
    """What VideoMAE's two fine-tunings of ViT-B have in common. data: settings of `DataConfig`."""
    batch_size, accumulate = 48, 8
    scale, epoch = batch_size * accumulate / 256, clips // (batch_size * accumulate)
    return TrainConfig(
        task="finetune_classification",
        model=VideoClassifierConfig(drop_path=0.1, num_classes=num_classes),
        data=DataConfig(
            train="data/train.csv",
            crop_scale=(0.08, 1.0),
            augmentation=_RAND_M7_N4_ERASING,
            num_workers=12,
            **data,
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
        label_smoothing=0.1,
        mixup=0.8,
    )


def _dual_encoder(preset: str, *, projection_dim: int = 256, **sizes: Any) -> DualEncoderConfig:
    """SimVTP's retrieval model. "fastvtp" takes over what its table recommends for the contrast in pretraining."""
    if preset == "fastvtp":
        sizes |= {
            "pad_text": False,
            "contrastive_directions": "mean",
            "projection_dim": projection_dim,
            "learnable_temperature": True,
            "gather_negatives": True,
        }
    return DualEncoderConfig(**sizes)
