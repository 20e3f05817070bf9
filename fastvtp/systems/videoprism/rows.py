"""How many rows of a clip and its text the blocks of VideoPrism's models read in a step of training."""

import math
from collections.abc import Mapping

from fastvtp.systems.videoprism.distillation import PrismStudentConfig
from fastvtp.systems.videoprism.encoder import VideoPrismConfig
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig


def encoder_rows(config: VideoPrismConfig, rows: float, inside: str = "encoder.") -> Mapping[str, float]:
    """Return the rows of an encoder at the path `inside` that sees `rows` tokens of a clip, in both of its stages."""
    return {f"{inside}spatial.blocks": rows, f"{inside}temporal.blocks": rows}


def whole_rows(config: VideoPrismConfig, words: float) -> Mapping[str, float]:
    """Return the rows of a `VideoPrismEncoder` by itself, see `fastvtp.architecture.Architecture`."""
    return encoder_rows(config, math.prod(config.grid), "")


def classifier_rows(config: VideoPrismConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `PrismClassifier`, see `fastvtp.architecture.Architecture`."""
    return encoder_rows(config, math.prod(config.grid))


def contrast_rows(config: VideoTextPrismConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `VideoTextPrism`: the places of a frame that are not dropped, in all frames, and texts with
    their class token. A frozen video tower keeps nothing."""
    texts = {"text_encoder.transformer.blocks": words + 1}
    if config.frozen_video:
        return texts
    frames, height, width = config.grid
    rows = frames * (height * width - int(config.token_drop * height * width))
    return {**encoder_rows(config, rows, "video_encoder."), "auxiliary.blocks": rows, **texts}


def student_rows(config: PrismStudentConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `PrismStudent`: the visible tokens, and in the local decoder all. The teacher keeps
    nothing."""
    tokens = math.prod(config.grid)
    visible = tokens - round(config.mask_ratio * tokens)
    if config.mask == "tube":
        frames, height, width = config.grid
        visible = tokens - frames * int(config.mask_ratio * height * width)
    rows = dict(encoder_rows(config, visible))
    if config.token_weight:
        rows["local_decoder.transformer.blocks"] = tokens
    if config.global_weight:
        rows["global_decoder.transformer.blocks"] = visible
    return rows
