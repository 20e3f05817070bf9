"""How many rows of a clip the blocks of VideoMAE's models read in a step of training."""

from collections.abc import Mapping

from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videomae.model import VideoMAEConfig


def visible_tokens(config: VideoMAEConfig) -> int:
    """Return how many tubelets of a clip the encoder sees."""
    slots, height, width = config.grid
    return slots * (height * width - int(config.video_mask_ratio * height * width))


def decoder_rows(config: VideoMAEConfig) -> Mapping[str, float]:
    """Return what the decoder reads of a clip: visible and predicted tubelets, or the latter alone where they look at
    the former as at a memory."""
    visible = visible_tokens(config)
    predicted = config.num_tokens - visible
    if config.prediction != "all":
        predicted -= int((1 - config.prediction_ratio) * predicted)
    return {"decoder.transformer.blocks": predicted + (visible if config.decoder == "joint" else 0)}


def pretraining_rows(config: VideoMAEConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `VideoMAE`, see `fastvtp.architecture.Architecture`."""
    return {"encoder.blocks": visible_tokens(config), **decoder_rows(config)}


def classifier_rows(config: VideoClassifierConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `VideoClassifier`, see `fastvtp.architecture.Architecture`."""
    return {"encoder.blocks": config.num_tokens}
