"""What a run starts from: tokenizer and weights of an earlier one, of a released checkpoint, or new ones."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastvtp.architecture import architecture_of
from fastvtp.checkpoints.kinds import recognise
from fastvtp.checkpoints.loading import load_recognised, parts_without
from fastvtp.checkpoints.names import WORD_TABLES
from fastvtp.checkpoints.opening import whole_parts
from fastvtp.checkpoints.reading import read_checkpoint
from fastvtp.checkpoints.sizes import log_heads
from fastvtp.data.text import Tokenizer
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import ConfigError
from fastvtp.model_folder import tokenizer_beside, weights_of
from fastvtp.modules.bounds import warn_beyond_bounds
from fastvtp.modules.positions import GridPositionsConfig
from fastvtp.training.config import TrainConfig
from fastvtp.training.task import Task

logger = logging.getLogger(__name__)


def prepare_tokenizer(config: TrainConfig, task: Task, checkpoint: Path | None) -> Tokenizer | None:
    """Return the tokenizer of the run's `checkpoint`, else the configured one, else that of the weights that the run
    starts from, else one trained on the task's texts; None for a task that reads no text.

    Raises ConfigError where the weights know words and nobody knows which.
    """
    if not task.reads_text:
        return None
    if (tokenizer := given_tokenizer(config, task, checkpoint)) is not None:
        return tokenizer
    tokenizer = CaptionTokenizer.train(task.texts, vocab_size=config.data.vocab_size)
    logger.info("trained a tokenizer of %d entries on %d texts", tokenizer.vocab_size, len(task.texts))
    return tokenizer


def given_tokenizer(config: TrainConfig, task: Task, checkpoint: Path | None) -> Tokenizer | None:
    """Return the tokenizer of `prepare_tokenizer` where there is one already; None where one is to be trained."""
    if checkpoint is not None:
        return load_tokenizer(checkpoint)
    if config.data.tokenizer is not None:
        return load_tokenizer(config.data.tokenizer)
    sources = {name: weights_of(source) for name, source in task.tokenizer_sources().items()}
    for weights in sources.values():
        if (tokenizer := tokenizer_beside(weights)) is not None:
            logger.info("tokenizer of %s", weights)
            return tokenizer
    for name, weights in sources.items():
        if any(entry.endswith(WORD_TABLES) for entry in read_checkpoint(weights).weights):
            raise ConfigError(
                f"{name}={config.path(name)} has text embeddings and no tokenizer beside it: "
                "give data.tokenizer=FILE (for released weights the vocab.txt of bert-base-uncased, "
                "of VideoPrism the SentencePiece .model)"
            )
    return None


def load_initial_weights(model: Any, config: TrainConfig, task: Task) -> None:
    """Load what the task starts a fresh model from, `config.init` first, and log what became of each, where its heads
    come from, and which parts of the model nothing filled.

    Random are what such a checkpoint cannot have and, where it is of the model's own architecture, the task's head.
    Raises CheckpointError with one line for what does not fit.
    """
    filled: set[int] = set()
    for source, origin, part in task.initial_weights(model):
        if source is None:
            continue
        checkpoint = read_checkpoint(weights_of(source))
        kind = recognise(checkpoint, origin)
        fresh = parts_without(part, checkpoint, kind)
        if kind.architecture == architecture_of(model).name:
            fresh += task.fresh
        report = load_recognised(part, checkpoint, kind, fresh=fresh, position_resize=config.position_resize)
        for verb, names in (("loaded", report.loaded), ("left fresh", report.fresh), ("ignored", report.ignored)):
            logger.info("init from %s: %d tensors %s%s", checkpoint.name, len(names), verb, _parts(names))
        warn_beyond_bounds(part, checkpoint.name)
        log_heads(checkpoint, kind, part.config)
        own = part.state_dict(keep_vars=True)
        filled |= {id(own[name]) for name in report.loaded}
    random = [name for name, tensor in model.named_parameters() if tensor.requires_grad and id(tensor) not in filled]
    if filled and random:
        logger.info("begin at random, as no checkpoint fills them: %s", ", ".join(whole_parts(model, random)))
    if isinstance(model.config, GridPositionsConfig) and model.config.positions == "rebuild":
        # what training is about to teach the weights are the positions of the run's own clips
        model.config = replace(model.config, trained_frames=None, trained_image_size=None)


def _parts(names: Sequence[str]) -> str:
    """Return the parts of a model that `names` belong to, behind a colon."""
    parts = sorted({name.split(".")[0] for name in names})
    return f": {', '.join(parts)}" if parts else ""
