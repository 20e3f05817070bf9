"""How many rows of a clip and its text the blocks of ALPRO's models read in a step of training."""

from collections.abc import Mapping

from fastvtp.systems.alpro.towers import AlproConfig


def tower_rows(config: AlproConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `AlproTowers`, see `fastvtp.architecture.Architecture`."""
    return {"video_encoder.blocks": 1 + config.num_frames * config.num_patches, "text_encoder.layers": words}


def matching_rows(config: AlproConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `Alpro` and `AlproRetrieval`: every text once more with words masked where these are
    predicted; a matched pair, two wrong ones, and that of the masked text. The prompter keeps nothing."""
    masked = 1 if config.word_weight else 0
    return {
        **tower_rows(config, words * (1 + masked)),
        "fusion_encoder.layers": (3 + masked) * (words + 1 + config.num_patches),
    }


def question_rows(config: AlproConfig, words: float) -> Mapping[str, float]:
    """Return the rows of `AlproQA`, with one question a clip."""
    return {**tower_rows(config, words), "fusion_encoder.layers": words + 1 + config.num_patches}
