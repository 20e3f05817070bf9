"""Recipes of VideoPrism's two stages and of fine-tuning it, see `fastvtp.systems.recipes`: the tiny ones learn from
the clips of `fastvtp demo`, the others take the paper's settings (arXiv:2402.13217, table 10) at size base, for one
GPU or several.

In order: `videoprism_stage1`, then `videoprism_stage2 teacher=runs/videoprism_stage1`. The released video-text models
come of a third run (appendix F.1), which trains text tower and pooler alone under the second stage's encoder:
`videoprism_video_text`.

The paper starts stage 1 from CoCa, which is not public: give `init=` an image tower (CLIP, ViT) for the blocks within
frames. A step is of 4096 clips as in the paper, read 64 at a time, and a clip is told apart from the 4095 others. Which
share of the batches each data set gave and how clips are cropped the paper does not say.

Fine-tuning was never released. The paper reports scores of classifiers that are trained end to end
without their settings; those here are VideoGLUE's for VideoMAE (arXiv:2307.03166, tensorflow/models,
official/projects/videoglue/configs/yaml/vmae/ft/vc_*.yaml). Of retrieval it reports zero-shot scores alone.
"""

from dataclasses import replace
from typing import Any

from fastvtp.architecture import model_config
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.systems.videoprism import published
from fastvtp.systems.videoprism.encoder import PrismClassifierConfig
from fastvtp.systems.videoprism.tasks import ContrastOptions, DistillationOptions
from fastvtp.training.class_task import ClassificationOptions
from fastvtp.training.config import OptimizerConfig, TrainConfig
from fastvtp.training.data_config import TRAINING_READING, DataConfig

RELEASED_ENCODER = "weights/flax_base_f16r288_repeated.npz"
RELEASED_VIDEO_TEXT = "weights/flax_lvt_base_f16r288_repeated.npz"
"""Where the recipes look for google/videoprism-base-f16r288 and google/videoprism-lvt-base-f16r288, of the Hugging Face
hub, under the names that the files have there."""

_ONE_GPU: dict[str, Any] = {"batch_size": 4096, "micro_batch": 64, "precision": "bfloat16", "checkpoint_every": 1000}
_TEST_SAMPLING = {"official": "starts", "fastvtp": "uniform"}  # frames of the release's demos; middles of equal parts
_ADAFACTOR: dict[str, Any] = {"algorithm": "adafactor", "scale_by_parameter": False, "momentum": 0.9}
_TINY: dict[str, Any] = {"width": 128, "depth": 2, "temporal_depth": 2, "num_heads": 2, "mlp_hidden": 512}
_TINY_CLIPS: dict[str, Any] = {"num_frames": 8, "image_size": 96, "patch_size": 12}
_TINY_DATA: dict[str, Any] = {
    "train": "runs/demo/data/train.jsonl",
    "reading": replace(TRAINING_READING, sampling="uniform", crop_scale=(0.8, 1.0)),
}


@published.contrast(
    "The paper starts from CoCa, which is not public; here from the image tower that `init` names, or at random.",
    init="ours: the paper starts from CoCa",
)
def videoprism_stage1(preset: str = "fastvtp") -> TrainConfig:
    """The contrast of clips with their texts. The paper's text has a rate of 1e-4 for base, its table 10 one of 5e-4,
    which is taken.

    Of its Adafactor the paper says no more. Here it does not scale by parameter and has a first moment of 0.9, as
    Google's ViTs have it (arXiv:2106.04560); CoCa (arXiv:2205.01917), which the paper starts from, has that first
    moment, too. At 5e-4 the scaling of Adafactor's own paper would move matrices by 1 % in 50 steps and what starts at
    0 hardly at all. That, torch's, is `optimizer.scale_by_parameter=true optimizer.momentum=none`.

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
            **_ADAFACTOR,
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
    """Minutes on two CPU cores: the captioned videos of `fastvtp demo`. AdamW, which needs no
    further library."""
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


@published.distillation()
def videoprism_stage2(preset: str = "fastvtp") -> TrainConfig:
    """Masked clips, the features of stage 1; videos alone. Adafactor is the first stage's, for the same reasons."""
    return TrainConfig(
        task="pretrain_videoprism_distillation",
        model=model_config("prism_student_base"),
        data=_data("data/train"),
        options=DistillationOptions(teacher="runs/videoprism_stage1"),
        optimizer=OptimizerConfig(
            **_ADAFACTOR, learning_rate=5e-4, final_learning_rate=1e-5, warmup_steps=25_000, weight_decay=0.05
        ),
        output_dir="runs/videoprism_stage2",
        steps=300_000,
        **_ONE_GPU,
    )


@published.contrast(
    "The last epoch of the paper's run is of one corpus alone.",
    init="paper: the first stage",
    video_init="paper: the second stage",
    **{"model.frozen_video": "paper: appendix F.1"},
)
def videoprism_video_text(preset: str = "fastvtp") -> TrainConfig:
    """Text tower and pooler of the first stage under the frozen encoder of the second, on the first stage's data and
    schedule: how the released video-text models were made."""
    first = videoprism_stage1(preset)
    return replace(
        first,
        model=replace(first.model, frozen_video=True),
        init="runs/videoprism_stage1",
        options=ContrastOptions(video_init="runs/videoprism_stage2"),
        output_dir="runs/videoprism_video_text",
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


@published.classification("Kinetics-400, 235693 clips", 138_101)
def videoprism_classification(preset: str = "fastvtp") -> TrainConfig:
    """VideoGLUE's end-to-end training on Kinetics-400: 150 epochs of 235 693 clips, 256 a step, AdamW at 1e-4, label
    smoothing, mixup, dropout before the head, 4 x 3 views; on the released encoder, give `init=` its file.

    Not as there: no CutMix beside mixup; no stochastic depth, which VideoPrism's blocks do not have; 288 pixels, the
    encoder's own, where VideoGLUE's VideoMAE reads 224. It has one rate for all layers: for fewer clips try
    `optimizer.layer_decay=0.75`, which is VideoMAE's.
    """
    return _classification(
        steps=138_101,
        warmup_steps=4600,
        output_dir="runs/videoprism_classification",
        test_views=(4, 3),
        test_sampling="strided",
    )


@published.classification(
    "Something-Something V2, 168913 clips", 32_990, "VideoGLUE also decays the loss's weights, by 5e-5."
)
def videoprism_classification_ssv2(preset: str = "fastvtp") -> TrainConfig:
    """VideoGLUE's end-to-end training on Something-Something V2: 50 epochs of 168 913 clips, as
    `videoprism_classification` else. Never mirrored: of the 174 classes some differ by direction alone. 1 x 3 views.
    VideoGLUE also decays the loss's weights, by 5e-5."""
    return _classification(
        steps=32_990,
        warmup_steps=6598,
        output_dir="runs/videoprism_classification_ssv2",
        test_views=(1, 3),
        test_sampling="uniform",
        num_classes=174,
        sampling="uniform",
        flip=False,
    )


def _classification(
    *,
    steps: int,
    warmup_steps: int,
    output_dir: str,
    test_views: tuple[int, int],
    test_sampling: str,
    num_classes: int = 400,
    **reading: Any,
) -> TrainConfig:
    """Return what the two classifications of size base have in common. reading: settings of `ClipReading`."""
    return TrainConfig(
        task="finetune_videoprism_classification",
        model=PrismClassifierConfig(num_classes=num_classes, head_dropout=0.5),
        data=DataConfig(
            train="data/train.csv",
            test_views=test_views,
            test_sampling=test_sampling,
            reading=replace(
                TRAINING_READING,
                crop_scale=(0.08, 1.0),
                augmentation=ClipAugmentation(rand_augment="rand-m9-n2-mstd0.5-inc1"),
                **reading,
            ),
            num_workers=12,
        ),
        init=RELEASED_ENCODER,
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            final_learning_rate=0.0,
            warmup_steps=warmup_steps,
            weight_decay=1e-5,
            betas=(0.9, 0.999),
        ),
        output_dir=output_dir,
        steps=steps,
        batch_size=256,
        micro_batch=16,
        precision="bfloat16",
        options=ClassificationOptions(label_smoothing=0.1, mixup=0.8),
    )


def videoprism_classification_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `videoprism_stage1_tiny`; any videos with classes."""
    return TrainConfig(
        task="finetune_videoprism_classification",
        model=PrismClassifierConfig(**_TINY_CLIPS, **_TINY),
        data=DataConfig(train="data/train", reading=_TINY_DATA["reading"]),
        init="runs/videoprism_stage1_tiny",
        optimizer=OptimizerConfig(
            learning_rate=1e-3, layer_decay=0.9, warmup_steps=30, betas=(0.9, 0.98), clip_norm=5.0
        ),
        output_dir="runs/videoprism_classification_tiny",
        steps=300,
        batch_size=32,
        checkpoint_every=100,
        ema_decay=0.99,
        options=ClassificationOptions(label_smoothing=0.1),
    )


def videoprism_retrieval(preset: str = "fastvtp") -> TrainConfig:
    """The released video-text model on the 9000 videos of MSR-VTT, both towers end to end, for 10 epochs; give `init=`
    its file and `data.tokenizer=` its SentencePiece vocabulary. All settings are ours, since none are published; the
    temperature starts from the released demo's.

    A contrast wants many clips in one batch: with `micro_batch=64` a larger `batch_size` takes time alone, and no
    memory. From a run of the first stage, which has no joint blocks and 8 frames: `init=runs/videoprism_stage1
    model.auxiliary_depth=0 model.num_frames=8`; with the second stage's encoder `video_init=runs/videoprism_stage2` as
    well.
    """
    batch_size, epoch = 64, 9000 // 64
    return TrainConfig(
        task="finetune_videoprism_retrieval",
        model=model_config("videoprism_lvt_base", token_drop=0.0, learnable_temperature=True, temperature=0.01),
        data=_data("data/train.jsonl"),
        init=RELEASED_VIDEO_TEXT,
        optimizer=OptimizerConfig(
            learning_rate=1e-5,
            final_learning_rate=0.0,
            layer_decay=0.85,
            warmup_share=0.1,
            weight_decay=0.01,
            betas=(0.9, 0.98),
            clip_norm=1.0,
        ),
        output_dir="runs/videoprism_retrieval",
        steps=10 * epoch,
        batch_size=batch_size,
        precision="bfloat16",
    )


def videoprism_retrieval_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `videoprism_stage1_tiny`: whole clips, where that drops half of the places."""
    return TrainConfig(
        task="finetune_videoprism_retrieval",
        model=model_config(
            "videoprism_lvt_tiny",
            few_frames="crop",
            learnable_temperature=True,
            max_text_length=32,
            token_drop=0.0,
            **_TINY,
        ),
        data=DataConfig(**_TINY_DATA, test="runs/demo/data/test.jsonl"),
        init="runs/videoprism_stage1_tiny",
        optimizer=OptimizerConfig(
            learning_rate=5e-4, layer_decay=0.9, warmup_steps=20, betas=(0.9, 0.98), clip_norm=5.0
        ),
        output_dir="runs/videoprism_retrieval_tiny",
        steps=200,
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
    videoprism_video_text,
    videoprism_classification_tiny,
    videoprism_classification,
    videoprism_classification_ssv2,
    videoprism_retrieval_tiny,
    videoprism_retrieval,
)
