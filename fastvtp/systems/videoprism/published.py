"""What VideoPrism's recipes follow: the paper (arXiv:2402.13217), whose training code was never released."""

from collections.abc import Callable
from typing import Any

from fastvtp.training.published import Published, follows

_STEP = 4096
_STAGE = {
    "model.": "release: of the inference code",
    "data.sampling": "paper",
    "optimizer.algorithm": "paper",
    "optimizer.learning_rate": "paper: table 10",
    "optimizer.final_learning_rate": "paper",
    "optimizer.schedule": "paper",
    "optimizer.warmup_steps": "paper",
    "optimizer.weight_decay": "paper",
    "steps": "paper",
    "batch_size": "paper",
}
_CONTRAST = {
    **_STAGE,
    "model.temperature": "ours: the paper does not say",
    "model.learnable_temperature": "ours: the paper does not say",
    "model.auxiliary_depth": "paper: the released models have 2",
    "model.few_frames": "paper: the released code resizes",
    "model.token_drop": "paper",
    "model.contrastive_directions": "paper",
    "model.gather_negatives": "paper",
}
_CORPORA = "36 million clips with captions, 582 million with noisy texts, WebLI"


def contrast(*differs: str, **settings: str) -> Callable[[Any], Any]:
    """Return the mark of a training by contrast. settings: sources beside those of the first stage."""
    return _stage(_CORPORA, 200_000, _CONTRAST | settings, *differs)


def distillation() -> Callable[[Any], Any]:
    """Return the mark of the second stage."""
    gaps = dict.fromkeys(
        ("model.shuffle_per", "model.decoder_num_heads", "model.projector"), "ours: the paper leaves it open"
    )
    masks = dict.fromkeys(("model.mask", "model.mask_ratio", "model.shuffle_tokens"), "paper")
    decoders = dict.fromkeys(("model.decoder_width", "model.decoder_depth", "model.decoder_hidden"), "paper")
    weights = dict.fromkeys(("model.token_weight", "model.global_weight", "teacher"), "paper")
    blocks = dict.fromkeys(("model.mask_min_cells", "model.mask_aspect", "model.mask_run"), "release: BEVT's")
    own = dict.fromkeys(("model.positions", "model.trained_frames", "model.trained_image_size"), "ours")
    settings = _STAGE | own | gaps | masks | decoders | weights | blocks
    return _stage("the clips of the first stage, without pictures", 300_000, settings)


def classification(data: str, steps: int, *differs: str) -> Callable[[Any], Any]:
    """Return the mark of a classifier that is trained end to end."""
    settings = {
        "model.": "release: of the inference code",
        "model.head_dropout": "release",
        **dict.fromkeys(("data.sampling", "data.frame_stride", "data.crop_scale", "data.flip"), "release"),
        **dict.fromkeys(("data.augmentation.rand_augment", "data.test_views", "data.test_sampling"), "release"),
        "optimizer.": "release",
        "init": "paper: the released encoder",
        "steps": "release",
        "batch_size": "release",
        "label_smoothing": "release",
        "mixup": "release",
        "precision": "ours: the release does not say",
    }
    differs = (
        "VideoPrism's own end-to-end settings are not published: these are VideoGLUE's for VideoMAE.",
        "VideoGLUE adds CutMix and stochastic depth of 0.2, and reads 224 pixels.",
        *differs,
    )
    release = "tensorflow/models, official/projects/videoglue/configs/yaml/vmae/ft (arXiv:2307.03166)"
    return follows(
        Published(release=release, data=data, batch=256, clips=256 * steps, settings=settings, differs=differs)
    )


def _stage(data: str, steps: int, settings: dict[str, str], *differs: str) -> Callable[[Any], Any]:
    return follows(
        Published(
            paper="VideoPrism, arXiv:2402.13217, table 10",
            data=data,
            batch=_STEP,
            clips=_STEP * steps,
            settings=settings,
            differs=(*differs, "How clips are cropped and which share of the steps each corpus has it does not say."),
        )
    )
