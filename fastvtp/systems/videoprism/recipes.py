"""Recipes of VideoPrism's two stages, see `fastvtp.systems.recipes`: the tiny ones learn from the clips of
`fastvtp demo`, the others take the paper's settings (arXiv:2402.13217, table 10) at size base, for one GPU.

In order: `videoprism_stage1`, then `videoprism_stage2 teacher=runs/videoprism_stage1`. The released video-text models
come of a third run (appendix F.1), which trains text tower and pooler alone under the second stage's encoder:
`videoprism_stage1 init=runs/videoprism_stage1 video_init=runs/videoprism_stage2 model.frozen_video=true`.

The paper starts stage 1 from CoCa, which is not public: give `init=` an image tower (CLIP, ViT) for the blocks within
frames. A step is of 4096 clips as in the paper, 64 at a time: a clip is told apart from 63 others, not from 4095. Which
share of the batches each data set gave and how clips are cropped the paper does not say.
"""

from dataclasses import replace
from typing import Any

from fastvtp.architecture import model_config
from fastvtp.systems.videoprism.tasks import DistillationOptions
from fastvtp.training.config import TRAINING_READING, DataConfig, OptimizerConfig, TrainConfig

_ONE_GPU: dict[str, Any] = {"batch_size": 64, "accumulate": 64, "precision": "bfloat16", "checkpoint_every": 1000}
_TEST_SAMPLING = {"official": "starts", "fastvtp": "uniform"}  # frames of the release's demos; middles of equal parts
_TINY: dict[str, Any] = {"width": 128, "depth": 2, "temporal_depth": 2, "num_heads": 2, "mlp_hidden": 512}
_TINY_DATA: dict[str, Any] = {
    "train": "runs/demo/data/train.jsonl",
    "reading": replace(TRAINING_READING, sampling="uniform", crop_scale=(0.8, 1.0)),
}


def videoprism_stage1(preset: str = "fastvtp") -> TrainConfig:
    """The contrast of clips with their texts. The paper's text has a rate of 1e-4 for base, its table 10 one of 5e-4,
    which is taken; torch's Adafactor takes it relative to each tensor's size, which the paper leaves open.

    Give `data.tokenizer=` the released SentencePiece vocabulary; without it a WordPiece one of as many entries is
    trained on the captions.
    """
    return TrainConfig(
        task="pretrain_videoprism_contrastive",
        model=model_config(
            "videoprism_lvt_base", num_frames=8, auxiliary_depth=0, few_frames="crop", learnable_temperature=True
        ),
        data=_data("data/train.jsonl", vocab_size=32_000, test_sampling=_TEST_SAMPLING[preset]),
        optimizer=OptimizerConfig(
            algorithm="adafactor",
            learning_rate=5e-4,
            final_learning_rate=0.0,
            schedule="linear",
            warmup_steps=20_000,
            weight_decay=1e-4,
        ),
        output_dir="runs/videoprism_stage1",
        steps=200_000,
        **_ONE_GPU,
    )


def videoprism_stage1_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores: the captioned videos of `fastvtp demo`. AdamW: Adafactor's relative rates are slow to
    move what starts at zero, which a run this short cannot wait for."""
    return TrainConfig(
        task="pretrain_videoprism_contrastive",
        model=model_config(
            "videoprism_lvt_tiny", few_frames="crop", learnable_temperature=True, max_text_length=32, **_TINY
        ),
        data=DataConfig(**_TINY_DATA, test="runs/demo/data/test.jsonl"),
        optimizer=OptimizerConfig(
            learning_rate=5e-4, schedule="linear", warmup_steps=30, weight_decay=1e-4, betas=(0.9, 0.98), clip_norm=5.0
        ),
        output_dir="runs/videoprism_stage1_tiny",
        steps=300,
        batch_size=32,
        checkpoint_every=100,
    )


def videoprism_stage2(preset: str = "fastvtp") -> TrainConfig:
    """Masked clips, the features of stage 1; videos alone."""
    return TrainConfig(
        task="pretrain_videoprism_distillation",
        model=model_config("prism_student_base"),
        data=_data("data/train"),
        options=DistillationOptions(teacher="runs/videoprism_stage1"),
        optimizer=OptimizerConfig(
            algorithm="adafactor", learning_rate=5e-4, final_learning_rate=1e-5, warmup_steps=25_000, weight_decay=0.05
        ),
        output_dir="runs/videoprism_stage2",
        steps=300_000,
        **_ONE_GPU,
    )


def videoprism_stage2_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `videoprism_stage1_tiny`; AdamW, for the same reason."""
    return TrainConfig(
        task="pretrain_videoprism_distillation",
        model=model_config("prism_student_tiny", **_TINY),
        data=DataConfig(**_TINY_DATA),
        options=DistillationOptions(teacher="runs/videoprism_stage1_tiny"),
        optimizer=OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=30, clip_norm=5.0),
        output_dir="runs/videoprism_stage2_tiny",
        steps=300,
        batch_size=32,
        checkpoint_every=100,
    )


def _data(train: str, **settings: Any) -> DataConfig:
    return DataConfig(train=train, reading=replace(TRAINING_READING, sampling="uniform"), num_workers=12, **settings)


RECIPES = (
    videoprism_stage1_tiny,
    videoprism_stage1,
    videoprism_stage2_tiny,
    videoprism_stage2,
)
