"""Recipes of ALPRO, see `fastvtp.systems.recipes`: the tiny ones learn from the clips of `fastvtp demo`, the others
take the published settings, for one GPU or several.

In order: `alpro_prompter`, then `alpro_pretrain prompter=runs/alpro_prompter entities=FILE`, the list being made by
`fastvtp entities`, then a fine-tuning, whose `init` is runs/alpro_pretrain. Both pretrainings begin with `init=` an
ImageNet ViT and `text_init=` a BERT folder. To begin at random says `init=none`, and `text_init=none` there.

Preset "official" has no weight decay: the release writes 1e-3 in its settings and never hands it to the optimizer.
"fastvtp" applies those 1e-3. All else about the optimizer is the release's, but that its AdamW adds eps before the
correction of the second moment, torch's after it, which shows in the first steps. Patch positions of weights that were
trained on other pictures are resized as the release does it, too; "fastvtp" resizes them on their grid. Around its crop
the prompter of "official" sees black, see `hidden_patches`. The published recipes of "official" repeat a picture (CC3M)
as the 4 frames of a clip, which "fastvtp" takes as a clip of one frame, a quarter of the work (`data.image_frames`);
they squash whole frames to squares, in training and for scores, where "fastvtp" takes squares from anywhere in training
and the centred ones for scores (`data.framing`); and they are scored on frames at whole steps from the first one on,
which leave out the end of most videos, where "fastvtp" takes the middles of equal parts (`data.test_sampling`). Squares
are 224 of 256 pixels wide in pretraining and as large as fit in fine-tuning. Clips go through two different ones of ten
operations, as released: of these contrast, brightness and sharpness do nothing at magnitude 5, and mirroring spares
clips whose text names a direction.

What a picture goes through differs from the release under both presets:

| | release | here |
|---|---|---|
| window of a picture | 20 % of it or more, half of them mirrored | as a clip's |
| RandAugment of pictures | 2 of 8 operations at 7 of 10, each left out half of the time | as a clip's |
"""

from dataclasses import replace
from typing import Any

from fastvtp.architecture import model_config
from fastvtp.data.reading import ClipReading
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.systems.alpro import published
from fastvtp.systems.alpro.finetuning import AlproQAConfig, AlproRetrievalConfig
from fastvtp.systems.alpro.tasks import PrompterOptions
from fastvtp.training.config import OptimizerConfig, TrainConfig
from fastvtp.training.data_config import TRAINING_READING, DataConfig

_RESIZE = {"official": "official", "fastvtp": "bicubic"}
_HIDDEN_PATCHES = {"official": "black", "fastvtp": "grey"}
_IMAGE_FRAMES = {"official": "repeat", "fastvtp": "one"}
_FRAMING = {"official": "squash", "fastvtp": "crop"}
_FIRST_WEIGHTS: dict[str, Any] = {"init": "models/vit_base", "text_init": "models/bert_base"}
_TEST_SAMPLING = {"official": "whole_steps", "fastvtp": "uniform"}
_RAND_M5_N2 = ClipAugmentation(rand_augment="oneway-m5-n2-flip1")
_TINY: dict[str, Any] = {
    "num_frames": 4,
    "image_size": 96,
    "width": 128,
    "depth": 2,
    "num_heads": 2,
    "drop_path": 0.0,
    "text_depth": 2,
    "fusion_depth": 2,
    "text_num_heads": 2,
    "text_hidden": 512,
    "max_text_length": 64,
    "projection_dim": 128,
    "text_dropout": 0.0,
}
_TINY_READING = replace(TRAINING_READING, sampling="random_sorted", crop_scale=(0.8, 1.0))
_TINY_CAPTIONS: dict[str, Any] = {
    "train": "runs/demo/data/train.jsonl",
    "test": "runs/demo/data/test.jsonl",
    "reading": _TINY_READING,
}


def alpro_prompter_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores: the captioned videos of `fastvtp demo`. After 90 steps it tells no entity from another,
    after 200 the colours of backgrounds, after 600 also many of objects."""
    return TrainConfig(
        task="pretrain_prompter",
        model=model_config("alpro_prompter_tiny", preset=preset, **_TINY),
        data=DataConfig(**_TINY_CAPTIONS),
        optimizer=_optimizer(preset, 1e-3, warmup_share=0.05, clip_norm=5.0),
        output_dir="runs/alpro_prompter_tiny",
        steps=600,
        batch_size=32,
        checkpoint_every=100,
    )


@published.pretraining(
    "pretrain_prompter",
    'The release contrasts 128 pairs, those of 8 GPUs, and a step is of 2 such; preset "fastvtp" the 256 of a step.',
    micro_batch="release: the clips of all GPUs",
    contrast_scope="release: twice a step",
)
def alpro_prompter(preset: str = "fastvtp") -> TrainConfig:
    """10 epochs of WebVid-2M and CC3M (`data.images`), 256 a step, each of which is contrasted with all others.

    Preset "official" contrasts 128 clips twice, as the release does: so many at a time are for one or two GPUs, with
    `recompute=blocks` where they fill one.

    Give `init=` a ViT-B/16 of ImageNet and `text_init=` a folder of bert-base-uncased."""
    released = preset == "official"
    return TrainConfig(
        task="pretrain_prompter",
        model=model_config("alpro_prompter_base", preset=preset),
        data=_pretraining_data(preset),
        position_resize=_RESIZE[preset],
        optimizer=_optimizer(preset, 1e-4, warmup_share=0.05, clip_norm=20.0),
        output_dir="runs/alpro_prompter",
        **_FIRST_WEIGHTS,
        **_PRETRAINING,
        micro_batch=128 if released else 64,
        contrast_scope="micro_batch" if released else "global",
    )


def alpro_pretrain_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `alpro_prompter_tiny`, whose towers stand in for ImageNet's and BERT's, and
    `fastvtp entities runs/demo/data/train.jsonl --words runs/demo/data/words.txt --output runs/demo/data/entities.txt`.

    "fastvtp" draws wrong pairs less sharply than the contrast would, which the prompter has taught already: the fusion
    layers begin at random, and of the hardest pairs alone they learned nothing in 100 steps. It also masks twice BERT's
    share of words.
    """
    easier: dict[str, Any] = {"word_mask_ratio": 0.3, "negative_temperature": 0.2} if preset == "fastvtp" else {}
    return TrainConfig(
        task="pretrain_alpro",
        model=model_config("alpro_tiny", preset=preset, **easier, **_TINY),
        data=DataConfig(**_TINY_CAPTIONS, test_top_k=16),
        init="runs/alpro_prompter_tiny",
        options=PrompterOptions(prompter="runs/alpro_prompter_tiny", entities="runs/demo/data/entities.txt"),
        optimizer=_optimizer(preset, 1e-3, warmup_share=0.05, clip_norm=5.0),
        output_dir="runs/alpro_tiny",
        steps=300,
        batch_size=32,
        checkpoint_every=100,
    )


@published.pretraining(
    "pretrain_alpro",
    'The release draws wrong pairs among the 16 of each of its GPUs; preset "fastvtp" among the 64 read at a time.',
    **published.SCOPES,
)
def alpro_pretrain(preset: str = "fastvtp") -> TrainConfig:
    """10 epochs of WebVid-2M and CC3M (`data.images`), 256 a step, each of which is contrasted with all others.

    Wrong pairs are of the clips that are read at a time, as released: 16 under preset "official", 64 under "fastvtp",
    for one to four GPUs. Those of all 256 (`matching_scope=global`) cost the video tower another pass.

    Give `init=` and `text_init=` as for `alpro_prompter`, which is not where it starts: that is its `prompter=`."""
    return TrainConfig(
        task="pretrain_alpro",
        model=model_config("alpro_base", preset=preset, hidden_patches=_HIDDEN_PATCHES[preset]),
        data=_pretraining_data(preset),
        position_resize=_RESIZE[preset],
        options=PrompterOptions(prompter="runs/alpro_prompter", entities="data/entities.txt"),
        optimizer=_optimizer(preset, 1e-4, warmup_share=0.05, clip_norm=20.0),
        output_dir="runs/alpro_pretrain",
        **_FIRST_WEIGHTS,
        **_PRETRAINING,
        micro_batch=16 if preset == "official" else 64,
        contrast_scope="global",
        matching_scope="micro_batch",
    )


def alpro_retrieval_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `alpro_pretrain_tiny`; wrong pairs are now the hardest."""
    return TrainConfig(
        task="finetune_alpro_retrieval",
        model=AlproRetrievalConfig(**_TINY),
        data=DataConfig(**_TINY_CAPTIONS, test_top_k=16),
        init="runs/alpro_tiny",
        optimizer=_optimizer(preset, 5e-4, warmup_share=0.1, clip_norm=5.0),
        output_dir="runs/alpro_retrieval_tiny",
        steps=150,
        batch_size=32,
        checkpoint_every=100,
    )


@published.retrieval("msrvtt_ret", "MSR-VTT, 7010 videos of 20 captions", captions=7010 * 20, epochs=5, batch=64)
def alpro_msrvtt_retrieval(preset: str = "fastvtp") -> TrainConfig:
    """5 epochs of 7010 clips with 20 captions each, 64 a step; "official" draws wrong pairs among 8 of them."""
    return _retrieval(
        preset,
        captions=7010 * 20,
        epochs=5,
        batch_size=64,
        max_text_length=40,
        learning_rate=2.5e-5,
        clip_norm=5.0,
        output_dir="runs/alpro_msrvtt_retrieval",
    )


@published.retrieval("didemo_ret", "DiDeMo, 8395 videos of one paragraph", captions=8395, epochs=10, batch=96)
def alpro_didemo_retrieval(preset: str = "fastvtp") -> TrainConfig:
    """10 epochs of 8395 clips, each with its sentences as one paragraph, 96 a step; "official" draws wrong pairs among
    12 of them."""
    return _retrieval(
        preset,
        captions=8395,
        epochs=10,
        batch_size=96,
        max_text_length=50,
        learning_rate=4e-5,
        clip_norm=20.0,
        output_dir="runs/alpro_didemo_retrieval",
    )


def alpro_qa_tiny(preset: str = "fastvtp") -> TrainConfig:
    """Minutes on two CPU cores, after `alpro_pretrain_tiny`."""
    return TrainConfig(
        task="finetune_alpro_qa",
        model=AlproQAConfig(**_TINY),
        data=DataConfig(
            train="runs/demo/data/train_questions.jsonl",
            test="runs/demo/data/test_questions.jsonl",
            reading=_TINY_READING,
        ),
        init="runs/alpro_tiny",
        optimizer=_optimizer(preset, 1e-3, warmup_share=0.1, clip_norm=5.0),
        output_dir="runs/alpro_qa_tiny",
        steps=250,
        batch_size=32,
        checkpoint_every=100,
    )


@published.question_answering("msrvtt_qa", "MSRVTT-QA, 158581 questions", questions=158_581, epochs=10)
def alpro_msrvtt_qa(preset: str = "fastvtp") -> TrainConfig:
    """10 epochs of 158 581 questions with 1500 answers, 192 a step."""
    return _qa(preset, questions=158_581, epochs=10, answers=1500, clip_norm=5.0, output_dir="runs/alpro_msrvtt_qa")


@published.question_answering("msvd_qa", "MSVD-QA, 30933 questions", questions=30_933, epochs=15)
def alpro_msvd_qa(preset: str = "fastvtp") -> TrainConfig:
    """15 epochs of 30 933 questions with 2423 answers, 192 a step."""
    return _qa(preset, questions=30_933, epochs=15, answers=2423, clip_norm=20.0, output_dir="runs/alpro_msvd_qa")


_PRETRAINING: dict[str, Any] = {
    "steps": 10 * (2_500_000 + 3_000_000) // 256,
    "batch_size": 256,
    "precision": "bfloat16",
    "checkpoint_every": 2000,
}


def _optimizer(
    preset: str, learning_rate: float, *, warmup_share: float, clip_norm: float, weight_decay: float = 1e-3
) -> OptimizerConfig:
    """Return ALPRO's optimizer. weight_decay: what its settings say; "official" does not apply it, as the release does
    not."""
    return OptimizerConfig(
        learning_rate=learning_rate,
        final_learning_rate=1e-8,
        schedule="linear",
        warmup_share=warmup_share,
        weight_decay=0.0 if preset == "official" else weight_decay,
        betas=(0.9, 0.98),
        eps=1e-6,
        clip_norm=clip_norm,
    )


def _pretraining_data(preset: str) -> DataConfig:
    """Return settings that cut squares of (224 / 256)^2 of the largest one, or of the squashed frame."""
    reading = replace(
        TRAINING_READING,
        sampling="head_tail",
        crop_scale=((224 / 256) ** 2, (224 / 256) ** 2),
        crop_ratio=(1.0, 1.0),
        flip=False,
        framing=_FRAMING[preset],
        augmentation=_RAND_M5_N2,
    )
    return DataConfig(
        train="data/train.jsonl",
        max_text_length=30,
        reading=reading,
        num_workers=12,
        image_frames=_IMAGE_FRAMES[preset],
        test_sampling=_TEST_SAMPLING[preset],
    )


def _finetuning_reading(preset: str) -> ClipReading:
    """Return the reading of whole frames, squashed, or of the largest squares, anywhere."""
    return replace(
        TRAINING_READING,
        sampling="random_sorted",
        crop_scale=(1.0, 1.0),
        crop_ratio=(1.0, 1.0),
        flip=False,
        framing=_FRAMING[preset],
    )


def _retrieval(
    preset: str,
    *,
    captions: int,
    epochs: int,
    batch_size: int,
    max_text_length: int,
    learning_rate: float,
    clip_norm: float,
    output_dir: str,
) -> TrainConfig:
    """Return the settings of retrieval: whole frames or the largest squares, else not augmented; the release makes a
    RandAugment, too, and never applies it.

    Its 8 GPUs contrast all clips of a step and each draws wrong pairs among its own, which is "official"; "fastvtp"
    reads the step at once and draws among all of it."""
    of_a_gpu = {"micro_batch": batch_size // 8, "contrast_scope": "global", "matching_scope": "micro_batch"}
    scopes: dict[str, Any] = of_a_gpu if preset == "official" else {}
    return TrainConfig(
        task="finetune_alpro_retrieval",
        model=AlproRetrievalConfig(num_frames=8),
        init="runs/alpro_pretrain",
        data=DataConfig(
            train="data/train.jsonl",
            max_text_length=max_text_length,
            reading=_finetuning_reading(preset),
            test_sampling=_TEST_SAMPLING[preset],
            num_workers=12,
        ),
        position_resize=_RESIZE[preset],
        optimizer=_optimizer(preset, learning_rate, warmup_share=0.1, clip_norm=clip_norm),
        output_dir=output_dir,
        steps=epochs * captions // batch_size,
        batch_size=batch_size,
        precision="bfloat16",
        **scopes,
    )


def _qa(preset: str, *, questions: int, epochs: int, answers: int, clip_norm: float, output_dir: str) -> TrainConfig:
    batch_size = 192
    return TrainConfig(
        task="finetune_alpro_qa",
        model=AlproQAConfig(num_frames=16, num_answers=answers),
        init="runs/alpro_pretrain",
        data=DataConfig(
            train="data/train_questions.jsonl",
            max_text_length=40,
            max_answers=answers,
            num_workers=12,
            reading=replace(_finetuning_reading(preset), augmentation=_RAND_M5_N2),
            test_sampling=_TEST_SAMPLING[preset],
        ),
        position_resize=_RESIZE[preset],
        optimizer=_optimizer(preset, 5e-5, warmup_share=0.1, clip_norm=clip_norm),
        output_dir=output_dir,
        steps=epochs * questions // batch_size,
        batch_size=batch_size,
        micro_batch=24,
        precision="bfloat16",
    )


RECIPES = (
    alpro_prompter_tiny,
    alpro_prompter,
    alpro_pretrain_tiny,
    alpro_pretrain,
    alpro_retrieval_tiny,
    alpro_msrvtt_retrieval,
    alpro_didemo_retrieval,
    alpro_qa_tiny,
    alpro_msrvtt_qa,
    alpro_msvd_qa,
)
