"""Losses whose divisor differs from rank to rank, on two and three processes (gloo, CPU) against one with all clips."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastvtp.modules.losses import matching_accuracy, matching_loss
from fastvtp.modules.rest_of_step import ALONE, AcrossProcesses, Precomputed, RestOfStep
from fastvtp.processes import process_group
from fastvtp.systems.alpro.entities import EntityTargets, entity_loss
from fastvtp.systems.captioner.language_model import IGNORED, LanguageModel, PromptedTexts
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.config import SimVTPConfig
from tests.evaluation.test_matching import CONFIG as ALPRO
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
# words of each caption that are hidden: two clips a rank; the second of the ranks has none at all
HIDDEN = (3, 2, 0, 0, 1, 7)
CLIPS = 2
Found = tuple[float, dict[str, float], dict[str, Tensor]]


def simvtp(rows: slice, rest: RestOfStep) -> Found:
    """Pixels and words of captions with so many words to hide, all of which are hidden."""
    sizes = {"width": 16, "depth": 1, "num_heads": 2, "num_frames": 2, "image_size": 32, "decoder_width": 16}
    texts = {"vocab_size": 23, "mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4), "max_text_length": 9}
    objectives = {"contrastive_weight": 0.0, "matching_weight": 0.0, "text_mask_ratio": 0.99, "text_dropout": 0.0}
    config = SimVTPConfig(**sizes, **texts, **objectives, decoder_num_heads=2, decoder_depth=1)
    torch.manual_seed(3)
    model = build_model(config)
    video, captions = clips(rows, (2, 32, 32, 3))
    lengths = [len(caption) for caption in captions]
    plan = model.plan(torch.cat(captions), lengths, torch.arange(6)[rows], seed=5, step=1)
    output = model(video, plan, rest=rest)
    output.loss.backward()
    terms = {name: value for name, value in output.terms.items() if "matching" not in name}  # of pairs drawn anew
    return output.loss.item(), values(terms), gradients(model)


def alpro(rows: slice, rest: RestOfStep) -> Found:
    """Words, matching with given negatives (one text has none) and entities (some crops are ignored)."""
    torch.manual_seed(3)
    config = type(ALPRO)(**{**vars(ALPRO), "contrastive_weight": 0.0, "num_entities": 4, "ignore_rule": "official"})
    model = build_model(config).eval()
    model.video_prompts.normal_()
    video, captions = clips(rows, (config.num_frames, config.image_size, config.image_size, 3))
    lengths = [len(caption) for caption in captions]
    plan = model.plan(torch.cat(captions), lengths, torch.arange(6)[rows], seed=5, step=1)
    other = torch.arange(len(captions)) ^ 1  # the other clip of the two
    wrong = torch.where(torch.arange(6)[rows] == 4, -1, other)
    output = model(video, plan, negatives=(wrong, other), rest=rest)
    output.loss.backward()
    return output.loss.item(), values(output.terms), gradients(model)


def captioner(rows: slice, rest: RestOfStep) -> Found:
    """A language model that scores each token by its embedding alone."""
    torch.manual_seed(3)
    embedding, head = nn.Embedding(11, 5), nn.Linear(5, 11)
    language = LanguageModel.__new__(LanguageModel)
    language.model = _Network(embedding, head)
    texts = [torch.arange(1, count + 2) for count in HIDDEN]
    labels = torch.full((6, 9), IGNORED)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = text
    prompted = PromptedTexts(labels.clamp(min=0)[rows], (labels >= 0)[rows], labels[rows])
    loss, accuracy = language.loss(torch.randn(6, 1, 5)[rows], prompted, rest)
    loss.backward()
    return loss.item(), {"accuracy": accuracy.item()}, {"head": head.weight.grad, "bias": head.bias.grad}


class _Network:
    def __init__(self, embedding: nn.Embedding, head: nn.Linear):
        self.config, self.get_input_embeddings, self.head = SimpleNamespace(), lambda: embedding, head

    def __call__(self, inputs_embeds: Tensor, logits_to_keep: int, **_: Any) -> Any:
        return SimpleNamespace(logits=self.head(inputs_embeds)[:, -logits_to_keep:])


def functions(rows: slice, rest: RestOfStep) -> Found:
    """The matching of pairs of which a rank has none that counts, and entities of crops that are all ignored."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 2, generator=generator)[rows].requires_grad_()
    entity_logits = torch.randn(6, 4, generator=generator)[rows].requires_grad_()
    labels = torch.tensor([1, -100, -100, -100, 0, 1])[rows]
    ignored = torch.tensor([False, False, True, True, True, False])[rows]
    targets = EntityTargets(torch.randn(6, 4, generator=generator).softmax(1)[rows], ignored)
    right, accuracy = rest.means(
        "pairs", (labels != -100).sum(), matching_loss(logits, labels), matching_accuracy(logits, labels)
    )
    (entities,) = rest.means("entities", (~ignored).sum(), entity_loss(entity_logits, targets))
    (right + entities).backward()
    found = {"matching": right.item(), "entities": entities.item(), "accuracy": accuracy.item()}
    return (right + entities).item(), found, {"rows": torch.cat([logits.grad, entity_logits.grad], 1)}


CASES = {case.__name__: case for case in (simvtp, alpro, captioner, functions)}


def clips(rows: slice, shape: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    captions = [
        torch.cat([torch.tensor([2]), torch.randint(5, 20, (count,), generator=generator), torch.tensor([3])])
        for count in HIDDEN
    ]
    video = torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=generator)
    return video[rows], captions[rows]


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in terms.items() if "contrastive" not in name and "ignored" not in name}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def group() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def on_a_rank(rank: int, per_rank: int) -> dict[str, Found]:
    rows = slice(rank * per_rank, (rank + 1) * per_rank)
    return {name: case(rows, AcrossProcesses(group())) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict[str, Found]]]:
    return {
        processes: run_ranks(on_a_rank, tmp_path_factory.mktemp("ranks"), CLIPS, processes=processes, seconds=120)
        for processes in (2, 3)
    }


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_average_of_the_ranks_is_the_mean_over_all_their_items(name, processes, found):
    loss, terms, grads = CASES[name](slice(0, processes * CLIPS), ALONE)
    losses, of_ranks, grads_of_ranks = zip(*(rank[name] for rank in found[processes]), strict=True)
    assert sum(losses) / processes == pytest.approx(loss, rel=1e-6, abs=1e-6)
    for term, value in terms.items():
        assert sum(rank[term] for rank in of_ranks) / processes == pytest.approx(value, rel=1e-6, abs=1e-6), term
    for key, gradient in grads.items():
        parts = [rank[key] for rank in grads_of_ranks]
        average = torch.cat(parts) / processes if key == "rows" else torch.stack(parts).mean(0)
        torch.testing.assert_close(average, gradient, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def test_one_process_communicates_nothing_and_keeps_its_bits():
    mean, accuracy = torch.tensor(0.1234567), torch.tensor(float("nan"))
    assert ALONE.means("pairs", 0, mean, accuracy) == (mean, accuracy)
    with process_group(torch.device("cpu"), alone=True):
        (alone,) = AcrossProcesses(group()).means("pairs", torch.tensor(5), mean)
    assert torch.equal(alone, mean)


def test_counts_that_were_asked_beforehand_weigh_as_those_of_processes():
    """Three micro-batches of 3, none and 1 items: their average is the mean over the four."""
    counts, means = torch.tensor([3.0, 0.0, 1.0]), torch.tensor([2.0, float("nan"), 10.0])
    weighed = [
        Precomputed(shares={"words": (own, counts.sum())}, micro_batches=3).means("words", int(own), mean)[0]
        for own, mean in zip(counts, means, strict=True)
    ]
    assert torch.stack(weighed).mean().item() == pytest.approx((3 * 2.0 + 10.0) / 4)
