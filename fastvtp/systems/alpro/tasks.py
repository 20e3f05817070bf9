"""ALPRO's tasks: the prompter, pretraining with its prompts, and fine-tuning for retrieval and questions."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastvtp.checkpoints.loading import LoadReport, load_checkpoint
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.data.entities import read_entities, write_entities
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.text import Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.model_folder import ENTITIES_NAME, tokenizer_beside, weights_of
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.systems.alpro.entities import average_prompts, entity_prompts
from fastvtp.systems.alpro.finetuning import AlproQAConfig, AlproRetrievalConfig
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.towers import AlproConfig, AlproPrompterConfig, AlproTowers
from fastvtp.training.config import TrainConfig, a_path
from fastvtp.training.question_task import QuestionTask
from fastvtp.training.task import CaptionedTask, Loss

logger = logging.getLogger(__name__)

_PROMPT_LENGTH, _PROMPTS_PER_CALL = 15, 512


class PretrainPrompter(CaptionedTask):
    """The contrast alone, of clips or pictures with their captions."""

    name = "pretrain_prompter"
    model_config = AlproPrompterConfig
    contrasts = True
    data_settings = ("images",)

    def collect(self, model: Any, batch: VideoTextBatch, wanted: Wanted) -> Collected:
        return model.collect(*self.whole(model, batch), wanted=wanted)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        sample_ids = batch.sample_ids.to(model.device, non_blocking=True)
        loss = compute(*self.whole(model, batch), sample_ids=sample_ids, rest=rest)
        return loss, {"loss/contrastive": loss.detach(), "temperature": 1 / model.logit_scale().detach()}


@dataclass(frozen=True, kw_only=True)
class PrompterOptions:
    """What is set for the pretraining that asks a prompter."""

    prompter: str | None = field(default=None, metadata=a_path("a checkpoint file or folder", free_on_resume=True))
    """The run or checkpoint of the prompter that names what crops show."""
    entities: str | None = field(default=None, metadata=a_path("a list from `fastvtp entities`", free_on_resume=True))
    """A list of entities as `fastvtp entities` writes it; the first `model.num_entities` are taken."""


class PretrainAlpro(CaptionedTask):
    """Contrast, matching, masked words, and the entities that a frozen prompter finds in crops."""

    name = "pretrain_alpro"
    model_config = AlproConfig
    options = PrompterOptions
    contrasts = matches = plans = True
    data_settings = ("images",)

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        self.entities: list[str] = []
        if not config.model.entity_weight:
            return
        if checkpoint is not None:
            self.entities = self._entities_of(checkpoint)
            return
        if config.model.max_text_length < _PROMPT_LENGTH:
            raise ConfigError(
                f"model.max_text_length must be at least {_PROMPT_LENGTH}, the tokens of a prompt, "
                f"got {config.model.max_text_length}"
            )
        for name, what in (("prompter", "a prompter's run"), ("entities", "a list from `fastvtp entities`")):
            if getattr(config.options, name) is None:
                raise ConfigError(f"pretrain_alpro needs {name}=PATH, {what}, or model.entity_weight=0")
        self.entities = read_entities(str(config.options.entities), limit=config.model.num_entities)
        logger.info("%d entities of %s", len(self.entities), config.options.entities)

    def _entities_of(self, checkpoint: Path) -> list[str]:
        """Return the entities that a resumed run learned, whatever the list says by now."""
        entities, path = read_entities(checkpoint / ENTITIES_NAME), self.config.options.entities
        limit = self.config.model.num_entities
        if path is not None and Path(path).is_file() and read_entities(path, limit) != entities:
            logger.warning("%s has changed: the run keeps the %d entities of %s", path, len(entities), checkpoint)
        return entities

    @property
    def leaves_out(self) -> bool:
        model = self.config.model
        return super().leaves_out or not (model.entity_weight and model.word_weight)

    def tokenizer_sources(self) -> dict[str, str]:
        prompter = self.config.options.prompter
        return super().tokenizer_sources() | ({} if prompter is None else {"prompter": prompter})

    def complete(self, tokenizer: Tokenizer | None) -> Any:
        model = super().complete(tokenizer)
        return dataclasses.replace(model, num_entities=len(self.entities)) if self.entities else model

    def prepare(self, model: Any, tokenizer: Tokenizer | None) -> None:
        if self.entities:
            source = weights_of(str(self.config.options.prompter))
            load_prompter(model, source, position_resize=self.config.position_resize)
            # prompts are read as the prompter learned to read, which need not be how the student does
            reader = tokenizer_beside(source) or tokenizer
            assert reader is not None  # the task reads texts
            encode_prompts(model, reader, self.entities)

    def collect(self, model: Any, batch: VideoTextBatch, wanted: Wanted) -> Collected:
        return model.collect(batch.video, self.planned(model, batch), wanted, kind=batch.kind)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        plan = self.planned(model, batch) if rest.kept is None else rest.kept
        output = compute(batch.video, plan, kind=batch.kind, rest=rest)
        return output.loss, output.terms

    def write_labels(self, folder: Path) -> None:
        if self.entities:
            write_entities(folder / ENTITIES_NAME, self.entities)


class FinetuneAlproRetrieval(CaptionedTask):
    """The contrast and the matching of whole clips with their captions."""

    name = "finetune_alpro_retrieval"
    model_config = AlproRetrievalConfig
    contrasts = matches = plans = True


class FinetuneAlproQA(QuestionTask):
    """Questions about videos, answered from the fused [CLS]."""

    name = "finetune_alpro_qa"
    model_config = AlproQAConfig
    fresh = ("classifier",)

    @property
    def leaves_out(self) -> bool:
        return True  # what contrast and matching read


def encode_prompts(model: Alpro, tokenizer: Tokenizer, entities: list[str]) -> None:
    """Fill `video_prompts` and `image_prompts` by what the prompter makes of all templates with all entities."""
    for kind, prompts in (("video", model.video_prompts), ("image", model.image_prompts)):
        texts = entity_prompts(entities, kind)
        calls = range(0, len(texts), _PROMPTS_PER_CALL)
        features = [
            _text_features(model.prompter, tokenizer, texts[start : start + _PROMPTS_PER_CALL])
            for start in tqdm(calls, desc=f"{kind} prompts", unit="call", leave=False, disable=len(calls) < 10)
        ]
        prompts.copy_(average_prompts(torch.cat(features), len(entities)))


@torch.no_grad()
def _text_features(prompter: AlproTowers, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    packed = tokenizer.encode_packed(texts, _PROMPT_LENGTH)
    cu_seqlens = torch.tensor([0, *packed.lengths]).cumsum(0).int()
    input_ids = torch.from_numpy(packed.input_ids).to(prompter.device)
    return prompter.encode_text(input_ids, cu_seqlens.to(prompter.device), max(packed.lengths))


def load_prompter(
    model: Alpro,
    source: str | Path | Mapping[str, Tensor] | Checkpoint,
    *,
    origin: str | None = None,
    position_resize: str = "bicubic",
) -> LoadReport:
    """Copy ALPRO's towers from `source` into `model.prompter`: from a prompter trained alone, from the prompter inside
    a pretraining checkpoint, or from the towers of a retrieval checkpoint. The entities' prompts, `video_prompts` and
    `image_prompts`, are left: encode them anew with these towers. Arguments and errors as `load_checkpoint`.
    """
    return load_checkpoint(model.prompter, source, origin=origin, position_resize=position_resize)


TASKS = (PretrainPrompter, PretrainAlpro, FinetuneAlproRetrieval, FinetuneAlproQA)
