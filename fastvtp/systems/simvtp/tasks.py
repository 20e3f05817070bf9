"""SimVTP's tasks: pretraining on captioned videos, and fine-tuning for retrieval and for questions."""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastvtp.checkpoints.kinds import recognise
from fastvtp.checkpoints.reading import read_checkpoint
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.text import Tokenizer
from fastvtp.model_folder import weights_of
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.question_answering import VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.training.question_task import QuestionTask
from fastvtp.training.task import CaptionedTask, Loss

logger = logging.getLogger(__name__)


class PretrainSimVTP(CaptionedTask):
    """Four losses on captioned videos: hidden pixels, hidden words, the contrast and the matching of both."""

    name = "pretrain_simvtp"
    model_config = SimVTPConfig
    contrasts = matches = plans = True

    def plan(self, model: Any, batch: VideoTextBatch, *, own_pairs: bool = True, device: str | None = None) -> Any:
        return model.plan(
            batch.input_ids,
            batch.text_lengths,
            batch.sample_ids,
            seed=self.config.seed,
            step=batch.step,
            own_pairs=own_pairs,
            device=device,
        )


class FinetuneRetrieval(CaptionedTask):
    """The contrast of whole clips with their captions."""

    name = "finetune_retrieval"
    model_config = DualEncoderConfig
    contrasts = True

    def collect(self, model: Any, batch: VideoTextBatch, wanted: Wanted) -> Collected:
        return model.collect(*self.whole(model, batch), wanted=wanted)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        sample_ids = batch.sample_ids.to(model.device, non_blocking=True)
        output = compute(*self.whole(model, batch), sample_ids=sample_ids, rest=rest)
        return output.loss, output.terms


class FinetuneQA(QuestionTask):
    """Questions about videos, answered by SimVTP's encoder."""

    name = "finetune_qa"
    model_config = VideoQAConfig
    fresh = ("head",)

    def prepare(self, model: Any, tokenizer: Tokenizer | None) -> None:
        """Where answers are read as masked words, start their head from the word head of `init`, if it has one."""
        if self.vocabulary is None or self.config.init is None or model.config.readout != "mask":
            return
        assert tokenizer is not None  # the task reads texts
        if (words := word_head(self.config.init)) is not None:
            answers = [ids[1:-1].tolist() for ids in tokenizer.encode(self.vocabulary.answers, self.max_text_length)]
            model.start_from_words(*words, answers)
            logger.info("the head of %d answers starts from the word head of %s", len(answers), self.config.init)


def word_head(source: str) -> tuple[Tensor, Tensor] | None:
    """Return the weight [vocabulary, D] and bias of the word head of a SimVTP, released or of fastvtp, or None in what
    has none.

    source: as `init`. Raises CheckpointError with one line.
    """
    checkpoint = read_checkpoint(weights_of(source))
    kind = recognise(checkpoint)
    if kind.architecture != "simvtp":
        return None
    named = {kind.names(name): tensor for name, tensor in kind.prepare(checkpoint.weights).items()}
    return named["word_head.weight"], named["word_head.bias"]


TASKS = (PretrainSimVTP, FinetuneRetrieval, FinetuneQA)
