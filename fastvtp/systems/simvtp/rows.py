"""How many rows of a clip and its text the blocks of SimVTP's models read in a step of training."""

from collections.abc import Mapping

from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.question_answering import VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videomae.rows import decoder_rows, visible_tokens


def pretraining_rows(config: SimVTPConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `SimVTP`, see `fastvtp.architecture.Architecture`: clip and text together and each alone, and
    a wrong pair."""
    return {"encoder.blocks": 3 * (visible_tokens(config) + words), **decoder_rows(config)}


def retrieval_rows(config: DualEncoderConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `DualEncoder`, see `fastvtp.architecture.Architecture`."""
    if config.shared_encoder:
        return {"video_encoder.blocks": config.num_tokens + words}
    return {"video_encoder.blocks": config.num_tokens, "text_encoder.blocks": words}


def question_rows(config: VideoQAConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `VideoQA`, see `fastvtp.architecture.Architecture`, with one text a clip."""
    return {"encoder.blocks": config.num_tokens + words}
