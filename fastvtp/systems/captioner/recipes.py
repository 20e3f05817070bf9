"""Recipes of captioning, see `fastvtp.systems.recipes`: a resampler between a frozen video model and a frozen language
model."""

from dataclasses import replace

from fastvtp.systems.captioner.model import VideoCaptionerConfig
from fastvtp.training.config import OptimizerConfig, TrainConfig
from fastvtp.training.data_config import TRAINING_READING, DataConfig
from fastvtp.training.published import Published, follows


def videoprism_captioning_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `fastvtp demo` and, for plain captions and a language model,

        python -m fastvtp.systems.captioner.toy runs/demo/data runs/captioning_toy

    Any pretrained run will do as `model.backbone`, and any local folder of `transformers` as `model.language_model`.
    """
    return TrainConfig(
        task="finetune_captioning",
        model=VideoCaptionerConfig(
            backbone="runs/demo",
            language_model="runs/captioning_toy/language_model",
            num_frames=8,
            image_size=96,
            num_queries=16,
            num_heads=4,
            max_tokens=64,
        ),
        data=DataConfig(
            train="runs/captioning_toy/train.jsonl",
            test="runs/captioning_toy/test.jsonl",
            reading=replace(TRAINING_READING, sampling="uniform", crop_scale=(0.8, 1.0)),
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            final_learning_rate=0.0,
            warmup_steps=50,
            schedule="linear",
            weight_decay=1e-4,
            betas=(0.9, 0.98),
            clip_norm=1.0,
        ),
        output_dir="runs/captioning_tiny",
        steps=500,
        batch_size=32,
        checkpoint_every=200,
    )


@follows(
    Published(
        paper="VideoPrism, arXiv:2402.13217, appendix G",
        data="captions of several corpora, 4.4 million clips of an academic one, VQAv2",
        batch=256,
        clips=256 * 200_000,
        settings={
            "model.num_queries": "paper",
            "data.crop_scale": "paper: 288 of 346 pixels",
            "data.crop_ratio": "paper",
            "optimizer.": "paper",
            "optimizer.betas": "ours: the paper does not say",
            "optimizer.eps": "ours: the paper does not say",
            "steps": "paper",
            "batch_size": "paper",
        },
        differs=(
            "The paper's language model, PaLM-2 1B, is not public: `model.language_model` takes a local folder.",
            "The paper's crops lie in the middle 346 pixels of a frame; here anywhere in it.",
        ),
    )
)
def videoprism_captioning(preset: str = "fastvtp") -> TrainConfig:
    """VideoPrism's with PaLM-2 1B (appendix G): 200 000 steps of 256 clips, here in 8 batches each, the optimizer
    being AdamW. Wants `model.backbone=FOLDER` and `model.language_model=FOLDER`.

    Its training crops are squares of 288 pixels from the middle 346 of a frame whose shorter side that is: 69 % of the
    area of the largest square, here anywhere in the frame. What the betas are it does not say.
    """
    return TrainConfig(
        task="finetune_captioning",
        model=VideoCaptionerConfig(),
        data=DataConfig(
            train="data/train.jsonl",
            reading=replace(
                TRAINING_READING, sampling="uniform", crop_scale=(0.69, 0.69), crop_ratio=(1.0, 1.0), flip=False
            ),
            num_workers=12,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            final_learning_rate=0.0,
            warmup_steps=10_000,
            schedule="linear",
            weight_decay=1e-4,
            betas=(0.9, 0.999),
        ),
        output_dir="runs/captioning",
        steps=200_000,
        batch_size=256,
        micro_batch=32,
        precision="bfloat16",
        checkpoint_every=2000,
    )


RECIPES = (
    videoprism_captioning_tiny,
    videoprism_captioning,
)
