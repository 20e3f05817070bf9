"""Scores of one run of ALPRO's ablation; the same clips, captions, masks, crops and wrong pairs for every run."""

from collections import defaultdict
from statistics import fmean

import torch
from torch import Tensor

from fastvtp.ablation.scoring import MASK_SEED, Clips, HeldOut, chance_scores, probe_scores, retrieval_scores
from fastvtp.data.synthetic.scene import ENTITIES
from fastvtp.evaluation.entities import predict_entities
from fastvtp.evaluation.inference import inference
from fastvtp.evaluation.matching import encode_set, match_scores, matching_metrics
from fastvtp.evaluation.retrieval import retrieval_metrics
from fastvtp.models.alpro import Alpro
from fastvtp.objectives.matching import random_mismatch

_NAMED = ("shape", "colour", "background colour")  # the attributes whose values are ENTITIES, in their order


def score(model: Alpro, held_out: HeldOut) -> dict[str, float]:
    """All scores by name, in percent where they are shares.

    probe/<attribute> and their mean, transfer: linear read-out from the mean patch of whole clips, without text.
    t2v/R1 ... v2t/R5 and retrieval/R1: zero-shot, every pair by the matching head. contrast/R1: by the contrast.
    matching_accuracy, word_loss, word_accuracy, entity_loss: of held-out clips, see `loss_scores`. entity_hit: crops
    whose likeliest entity the clip shows; entity_hit/prompter: the same of the labels.
    """
    with inference(model):
        scores = probe_scores(lambda video: model.video_tokens(video.to(model.device)), held_out)
        encoded = encode_set(model, held_out.test.batches, device=model.device, progress=False)
        scores |= retrieval_scores(matching_metrics(*match_scores(model, encoded, progress=False)))
        contrast = retrieval_metrics(encoded.similarity)
        scores["contrast/R1"] = fmean(contrast[way]["R1"] for way in ("t2v", "v2t"))
        return scores | loss_scores(model, held_out) | entity_scores(model, held_out)


def chance(held_out: HeldOut) -> dict[str, float]:
    """What `score` gives for a model that knows nothing: "no" to all pairs, the most frequent entity for all crops."""
    scores, frequent = chance_scores(held_out), shown_entities(held_out.probe_train).double().mean(0).argmax()
    return {
        **scores,
        "contrast/R1": scores["retrieval/R1"],
        "matching_accuracy": 200 / 3,
        "entity_hit": 100 * shown_entities(held_out.test)[:, frequent].double().mean().item(),
    }


def shown_entities(clips: Clips) -> Tensor:
    """Which of ENTITIES each clip shows somewhere, bool [N, E]."""
    return torch.cat([clips.labels[name] for name in _NAMED], dim=1)


def loss_scores(model: Alpro, held_out: HeldOut) -> dict[str, float]:
    """Held-out losses; the wrong pairs are drawn evenly, since hard ones would be each model's own."""
    sums, counts = defaultdict[str, float](float), defaultdict[str, int](int)
    for number, batch in enumerate(held_out.test.batches):
        plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=MASK_SEED, step=0)
        wrong = (
            torch.from_numpy(random_mismatch(batch.sample_ids.numpy(), seed=MASK_SEED, step=2 * number + side))
            for side in (0, 1)
        )
        clips = len(batch.captions)
        terms = model(batch.video.to(model.device), plan, negatives=tuple(one.to(model.device) for one in wrong)).terms
        for name, term, scale, count in (
            ("matching_accuracy", "matching_accuracy", 100, clips),
            ("word_loss", "loss/word", 1, len(plan.word_labels)),
            ("word_accuracy", "word_accuracy", 100, len(plan.word_labels)),
            ("entity_loss", "loss/entity", 1, clips),
        ):
            if term in terms:
                sums[name] += scale * terms[term].item() * count
                counts[name] += count
    return {name: sums[name] / counts[name] for name in sums}


def entity_scores(model: Alpro, held_out: HeldOut) -> dict[str, float]:
    """Shares of the crops whose likeliest entity is right; nothing for a model without entities."""
    if not model.config.entity_weight:
        return {}
    examples = [
        example for batch in held_out.test.batches
        for example in predict_entities(model, batch, ENTITIES, seed=MASK_SEED, top=1)
    ]  # fmt: skip
    right = shown_entities(held_out.test)
    hits = {
        name: [right[clip, ENTITIES.index(next(iter(guess)))].item() for clip, guess in enumerate(guesses)]
        for name, guesses in (
            ("entity_hit", [example.model for example in examples]),
            ("entity_hit/prompter", [example.prompter for example in examples]),
        )
    }
    return {name: 100 * fmean(found) for name, found in hits.items()}
