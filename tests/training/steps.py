"""Steps of tiny models of all tasks that look at other micro-batches, for tests of their gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import normalize

from fastvtp import processes
from fastvtp.data.loader import VideoTextBatch
from fastvtp.modules.rest_of_step import ALONE
from fastvtp.systems.alpro.entities import crop_patches
from fastvtp.systems.alpro.finetuning import AlproRetrievalConfig
from fastvtp.systems.alpro.towers import AlproConfig, AlproPrompterConfig
from fastvtp.systems.captioner.language_model import LanguageModel
from fastvtp.systems.captioner.model import VideoCaptionerConfig
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig
from fastvtp.training.config import TrainConfig, find_task
from fastvtp.training.data_config import DataConfig
from fastvtp.training.gradients import Gradients, computes_twice
from fastvtp.training.parallel import Parallel
from fastvtp.training.task import Task

CPU, CLIPS, SEED, STEP = torch.device("cpu"), 16, 5, 3
FRAMES, SIDE, WORDS = 4, 16, 40
MASK, SPECIAL = 4, (0, 1, 2, 3, 4)
# tokens of each caption, its two special ones included: the third and fourth have no word that could be hidden
LENGTHS = (4, 12, 2, 2, 7, 3, 9, 2, 11, 5, 3, 8, 6, 12, 3, 4)
# three clips stand in several places of the batch, in the same micro-batch or not
IDS = (0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 3, 12, 12, 14, 0)

_TEXT = {"vocab_size": WORDS, "max_text_length": 12, "text_dropout": 0.0}
_MASKS = {"mask_token_id": MASK, "special_token_ids": SPECIAL}
_TUBES = {"num_frames": FRAMES, "image_size": SIDE, "tubelet": (2, 8, 8), "width": 32, "depth": 2, "num_heads": 2}
_SIMVTP = {
    **_TUBES, **_TEXT, **_MASKS, "decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2,
    "video_mask_ratio": 0.5, "text_mask_ratio": 0.5, "pad_text": False,
}  # fmt: skip
_ALPRO = {
    **_TEXT, **_MASKS, "num_frames": 2, "image_size": SIDE, "patch_size": 8, "width": 32, "depth": 2, "num_heads": 2,
    "drop_path": 0.0, "text_depth": 2, "fusion_depth": 2, "text_num_heads": 2, "text_hidden": 32,
    "projection_dim": 16,
}  # fmt: skip
_ENTITIES = {"num_entities": 8, "word_mask_ratio": 0.4, "temperature": 0.2}
_PRISM = {
    "num_frames": FRAMES, "image_size": SIDE, "patch_size": 4, "width": 32, "depth": 1, "temporal_depth": 1,
    "num_heads": 2, "mlp_hidden": 32, "auxiliary_depth": 1, "vocab_size": WORDS, "max_text_length": 12,
    "text_depth": 1,
}  # fmt: skip
_CAPTIONER = {"feature_width": 16, "language_width": 32, "num_queries": 3, "num_heads": 2, "max_tokens": 9}


class Network(nn.Module):
    """A causal language model: each token is guessed from the mean of those up to it."""

    def __init__(self, width: int):
        super().__init__()
        self.embedding, self.head, self.config = nn.Embedding(WORDS, width), nn.Linear(width, WORDS), SimpleNamespace()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, logits_to_keep: int, **_: Any) -> Any:
        seen = attention_mask[..., None].to(inputs_embeds.dtype)
        means = (inputs_embeds * seen).cumsum(1) / seen.cumsum(1)
        return SimpleNamespace(logits=self.head(means)[:, -logits_to_keep:])


class Tokenizer:
    """A token for each word, by its length and first letter."""

    eos_token_id, bos_token_id, name_or_path = 1, None, "words"

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(input_ids=[2 + (5 * len(word) + ord(word[0])) % (WORDS - 2) for word in text.split()])


@dataclass(frozen=True)
class Case:
    """A task, the configuration of its model, and what else the model needs. dropout: settings that turn on all that
    is random in a forward pass."""

    task: str
    config: type
    settings: dict[str, Any]
    dropout: dict[str, Any] = field(default_factory=dict)

    def model(self, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
        """A model in training mode, far from its initial weights, so that no gradient is tiny."""
        torch.manual_seed(0)
        model = build_model(self.config(**self.settings | changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            if hasattr(model, "video_prompts"):
                model.video_prompts.copy_(self._prompts(model))
        if self.task == "finetune_captioning":
            model.attach(language=LanguageModel(Network(self.settings["language_width"]).to(dtype), Tokenizer()))
        return model.to(dtype).train()

    def _prompts(self, model: Any) -> Tensor:
        """Entities such that some crops are ignored by either rule: what tells every second crop from the mean one."""
        crop = crop_patches(np.array(IDS), model.config.grid, seed=SEED, step=STEP)
        features = model.prompter.encode_video(make_batch(self).video, crop)
        return 0.5 * normalize(features - features.mean(0), dim=1)[::2]


_DROPPED = {"text_dropout": 0.2, "drop_path": 0.4}
_HARD = {"matching_negatives": "hard"}
_LEARNED = {"projection_dim": 8, "learnable_temperature": True}
_OWN_TEXTS = {"contrastive_text": "clean", "contrastive_directions": "mean"}


def _simvtp(**settings: Any) -> Case:
    return Case("pretrain_simvtp", SimVTPConfig, _SIMVTP | settings, _DROPPED)


def _dual_encoder(**settings: Any) -> Case:
    return Case("finetune_retrieval", DualEncoderConfig, {**_TUBES, **_TEXT, "pad_text": False, **settings}, _DROPPED)


def _alpro(rule: str) -> Case:
    return Case("pretrain_alpro", AlproConfig, {**_ALPRO, **_ENTITIES, "ignore_rule": rule}, _DROPPED)


CASES = {
    "simvtp": _simvtp(),
    "simvtp_learned": _simvtp(**_LEARNED, **_OWN_TEXTS),
    "simvtp_hard": _simvtp(**_HARD),
    "simvtp_hard_learned": _simvtp(**_HARD, **_LEARNED, **_OWN_TEXTS),
    "dual_encoder": _dual_encoder(**_LEARNED),
    "dual_encoder_shared": _dual_encoder(shared_encoder=True),
    "prompter": Case("pretrain_prompter", AlproPrompterConfig, _ALPRO, _DROPPED),
    "alpro_official": _alpro("official"),
    "alpro_paper": _alpro("paper"),
    "alpro_retrieval": Case("finetune_alpro_retrieval", AlproRetrievalConfig, _ALPRO, _DROPPED),
    "videoprism": Case("pretrain_videoprism_contrastive", VideoTextPrismConfig, _PRISM | _LEARNED),
    "captioner": Case("finetune_captioning", VideoCaptionerConfig, _CAPTIONER),
}


def make_batch(case: Case, *, lengths: Sequence[int] = LENGTHS, ids: Sequence[int] = IDS) -> VideoTextBatch:
    """The clips of a step; all of it is of the step number `STEP`."""
    generator = torch.Generator().manual_seed(1)
    captions = [
        torch.cat([torch.tensor([2]), torch.randint(5, WORDS, (n - 2,), generator=generator), torch.tensor([3])])
        for n in lengths
    ]
    frames = case.settings.get("num_frames", FRAMES)
    video = torch.randint(0, 256, (len(ids), frames, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    if case.task == "finetune_captioning":
        video = torch.randn(len(ids), 5, case.settings["feature_width"], generator=generator)
    words = ("a", "red", "blue", "green", "ball", "box", "moves", "grows", "what")
    texts = [" ".join(words[(place + i) % 9] for i in range(n - 2)) for place, n in enumerate(lengths)]
    return VideoTextBatch(
        video=video,
        input_ids=torch.cat(captions),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        text_lengths=tuple(lengths),
        max_text_length=max(lengths),
        sample_ids=torch.tensor(ids),
        captions=texts,
        step=STEP,
    )


def part(batch: VideoTextBatch, rows: slice, step: int | None = None) -> VideoTextBatch:
    """These clips of a batch, as a micro-batch of that number."""
    lengths, offsets = batch.text_lengths[rows], batch.cu_seqlens.tolist()
    start, stop = offsets[rows.start], offsets[rows.stop]
    return replace(
        batch,
        video=batch.video[rows],
        input_ids=batch.input_ids[start:stop],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        text_lengths=lengths,
        max_text_length=max(lengths),
        sample_ids=batch.sample_ids[rows],
        captions=batch.captions[rows],
        step=batch.step if step is None else step,
    )


def parts(batch: VideoTextBatch, micro_batches: int, *, numbered: bool = False) -> list[VideoTextBatch]:
    """The micro-batches of a batch: all of them with its number, on which masks depend, or each with its own."""
    size = len(batch.sample_ids) // micro_batches
    return [
        part(batch, slice(m * size, (m + 1) * size), step=STEP * micro_batches + m if numbered else None)
        for m in range(micro_batches)
    ]


def make_config(case: Case, model: Any, micro_batches: int, clips: int = CLIPS, **settings: Any) -> TrainConfig:
    scopes: dict[str, Any] = {"contrast_scope": "global", "matching_scope": "global"}
    return TrainConfig(
        task=case.task, model=model.config, data=DataConfig(train="none.jsonl"), batch_size=clips,
        micro_batch=clips // micro_batches, seed=SEED, device="cpu", **scopes | settings,
    )  # fmt: skip


def make_task(config: TrainConfig) -> Any:
    """The task without any data."""
    kind = find_task(config.task)
    task = kind.__new__(kind)
    Task.__init__(task, config)
    task.questions, task.cached = None, ()  # what captioning is made of: captions, features
    return task


@dataclass
class Found:
    """What a step gives: the loss and all terms, and the gradient of each parameter that has one."""

    terms: dict[str, Tensor]
    gradients: dict[str, Tensor]


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of all parameters, which are taken away."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def in_one_forward(case: Case, model: Any, batch: VideoTextBatch) -> Found:
    """What the whole batch gives without any engine: one forward pass of all clips, one backward pass."""
    task = make_task(make_config(case, model, 1, len(batch.sample_ids)))
    loss, terms = task.loss(model, model, batch, ALONE)
    loss.backward()
    return Found({"loss": loss.detach(), **terms}, gradients_of(model))


def in_micro_batches(case: Case, model: Any, batches: Sequence[VideoTextBatch], **settings: Any) -> Found:
    """What the engine makes of these micro-batches, on all processes that there are."""
    world = processes.size()
    config = make_config(case, model, len(batches), sum(len(b.sample_ids) for b in batches), **settings)
    task, each = make_task(config), len(batches) // world
    twice = computes_twice(config, task, each)
    parallel = Parallel(model, config, CPU, leaves_out=False, twice=twice)
    own = iter(batches[processes.rank() :: world])
    sums = Gradients(config, task, parallel, each, CPU).of_step(own, STEP)
    totals = {name: value.clone() for name, value in sums.totals.items()}
    if world > 1:
        for value in totals.values():
            torch.distributed.all_reduce(value)
    terms = {name: value / len(batches) for name, value in totals.items()}
    found = gradients_of(model)
    return Found(terms, {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in found.items()})


def difference(found: Found, expected: Found) -> float:
    """The largest difference of a term, or of all gradients together, relative to its size."""
    assert found.gradients.keys() == expected.gradients.keys()
    names = expected.gradients
    together, wanted = (torch.cat([x.gradients[name].flatten() for name in names]) for x in (found, expected))
    return max(of_terms(found, expected), float((together - wanted).norm() / wanted.norm()))


def largest_difference(found: Found, expected: Found) -> float:
    """The same, of each parameter by itself: of the largest entries of its gradient, or of a thousandth of the largest
    of all, since some gradients are 0 but for rounding."""
    assert found.gradients.keys() == expected.gradients.keys()
    floor = 1e-3 * max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    of_each = (
        float((found.gradients[name] - value).abs().max()) / max(float(value.abs().max()), floor)
        for name, value in expected.gradients.items()
    )
    return max(of_terms(found, expected), *of_each)


def of_terms(found: Found, expected: Found) -> float:
    assert found.terms.keys() == expected.terms.keys()
    return max(
        float((found.terms[name] - value).abs() / value.abs().clamp(min=1e-2))
        for name, value in expected.terms.items()
        if value.dtype == expected.terms["loss"].dtype  # accuracies are float32
    )
