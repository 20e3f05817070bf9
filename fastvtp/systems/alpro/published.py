"""What ALPRO's recipes follow: the paper (arXiv:2112.09583) and the settings of its release."""

from collections.abc import Callable
from typing import Any

from fastvtp.training.published import Published, follows

_CAPTIONS = 2_500_000 + 3_000_000  # WebVid-2M and CC3M
_COMMON = {
    "model.": "release",
    "optimizer.": "release",
    "position_resize": "release",
    "data.sampling": "release",
    "data.framing": "release",
    "data.max_text_length": "release",
    "precision": "ours: the release has float32",
}
_PRETRAINING = {
    "data.image_frames": "release",
    "data.image_share": "release: batches take turns",
    "data.crop_scale": "release: a square of 224 from 256",
    "data.crop_ratio": "release",
    "data.augmentation.rand_augment": "release: two operations at magnitude 5 of 10",
    "data.flip": "ours: the release mirrors half of the pictures",
    "init": "release: vit_base_patch16_224 of ImageNet",
    "text_init": "release: bert-base-uncased",
    "steps": "release: 10 epochs of WebVid-2M and CC3M",
    "batch_size": "release: its clips a step",
}
SCOPES = {
    "micro_batch": "release: the clips of a GPU",
    "contrast_scope": "release: features of all GPUs are gathered",
    "matching_scope": "release: wrong pairs are drawn on each GPU",
}
_FINETUNING = {
    "init": "release: its pretraining",
    "steps": "release",
    "data.crop_scale": "release",
    "data.crop_ratio": "release",
    "data.test_sampling": "release",
}


def pretraining(script: str, differs: str, **scopes: str) -> Callable[[Any], Any]:
    """Return the mark of a pretraining. script: its settings in the release. differs: which pairs are compared there,
    and which under "fastvtp". scopes: sources of the settings that say so."""
    steps = 10 * _CAPTIONS // 256
    return _follows(script, "WebVid-2M and CC3M", 256, steps, _PRETRAINING | scopes, differs)


def retrieval(script: str, data: str, *, captions: int, epochs: int, batch: int) -> Callable[[Any], Any]:
    """Return the mark of a fine-tuning on `captions` captions."""
    differs = 'The release draws wrong pairs among those of each of its 8 GPUs; preset "fastvtp" among all of a step.'
    settings = _FINETUNING | {"data.flip": "release", "batch_size": "release"} | SCOPES
    return _follows(script, data, batch, epochs * captions // batch, settings, differs)


def question_answering(script: str, data: str, *, questions: int, epochs: int) -> Callable[[Any], Any]:
    """Return the mark of a fine-tuning on `questions` questions."""
    settings = _FINETUNING | {
        "data.augmentation.rand_augment": "release: two operations at magnitude 5 of 10",
        "data.flip": "release",
        "data.max_answers": "release",
        "batch_size": "release: its questions a step",
    }
    return _follows(script, data, 192, epochs * questions // 192, settings)


def _follows(
    script: str, data: str, batch: int, steps: int, settings: dict[str, str], *differs: str
) -> Callable[[Any], Any]:
    return follows(
        Published(
            paper="ALPRO, arXiv:2112.09583",
            release=f"salesforce/ALPRO, config_release/{script}.json",
            data=data,
            batch=batch,
            clips=batch * steps,
            settings=_COMMON | settings,
            differs=differs,
        )
    )
