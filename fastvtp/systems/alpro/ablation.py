"""Which runs an ablation of ALPRO is made of, and the prompter that all of them start from."""

from collections import defaultdict
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fastvtp.ablation.held_out import (
    MASK_SEED,
    Clips,
    HeldOut,
    chance_scores,
    probe_scores,
    retrieval_scores,
)
from fastvtp.ablation.plot import Bars, HeatMap
from fastvtp.ablation.report import Claim, Report, Section
from fastvtp.ablation.studies import (
    Run,
    Scale,
    Study,
    pick_runs,
)
from fastvtp.data.entities import write_entities
from fastvtp.data.synthetic.scene import ENTITIES
from fastvtp.evaluation.inference import inference
from fastvtp.evaluation.matching import (
    encode_set,
    match_scores,
    matching_metrics,
)
from fastvtp.evaluation.retrieval import retrieval_metrics
from fastvtp.modules.losses import random_mismatch
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.pictures import predict_entities
from fastvtp.systems.alpro.recipes import alpro_pretrain_tiny, alpro_prompter_tiny
from fastvtp.systems.alpro.tasks import PrompterOptions
from fastvtp.systems.alpro.towers import AlproConfig, AlproPrompterConfig
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.loop import train


@dataclass(frozen=True)
class AlproScale(Scale):
    """Smaller clips, since a step costs more than SimVTP's, and fewer to test, of which every pair is fused."""

    num_test: int = 128
    clip_size: int = 64
    clip_frames: int = 8
    probe_clips: int = 512
    prompter_steps: int = 400


# a second of work a run: for trying the command, not for its figures
QUICK = AlproScale(seeds=2, num_train=48, num_test=16, clip_size=64, clip_frames=8, probe_clips=48, prompter_steps=4)
_QUICK_SETTINGS = (
    "model.width=32",
    "model.num_heads=2",
    "model.depth=1",
    "model.text_num_heads=2",
    "model.text_hidden=64",
    "model.text_depth=1",
    "model.fusion_depth=1",
    "model.projection_dim=16",
    "model.image_size=64",
    "model.num_frames=2",
    "steps=4",
    "batch_size=8",
    "data.num_workers=0",
)


def base_config(preset: str, overrides: list[str], *, quick: bool) -> TrainConfig:
    """Return the tiny pretraining, for minutes of one CPU core."""
    config = alpro_pretrain_tiny(preset)
    config = replace(
        config,
        model=replace(config.model, image_size=64),
        steps=100,
        checkpoint_every=50,
        keep_checkpoints=1,
        tensorboard=False,
        output_dir="runs/ablation_alpro",
        init=None,
        options=PrompterOptions(),
    )
    return apply_overrides(config, [*(_QUICK_SETTINGS if quick else ()), *overrides])


_NO_ENTITIES: dict[str, Any] = {"entity_weight": 0.0}
_NO_CONTRAST: dict[str, Any] = {"contrastive_weight": 0.0}
NO_ENTITIES, NO_CONTRAST = Run("without PEM", _NO_ENTITIES), Run("without VTC", _NO_CONTRAST)
NEITHER = Run("without PEM and VTC", {**_NO_ENTITIES, **_NO_CONTRAST})


def plan_runs(study: str, model: AlproConfig, scale: AlproScale) -> list[Run]:
    """Return the runs of a study or of "all", see `pick_runs`."""
    return pick_runs(study, {"objectives": [NO_ENTITIES, NO_CONTRAST, NEITHER]}, scale)


def train_prompter(config: TrainConfig, scale: AlproScale, folder: Path) -> TrainConfig:
    """Return `config` with a prompter in `folder`, trained there once on the same clips, as start and as prompter.

    In the paper all runs start from an ImageNet ViT and a BERT; at this scale the prompter's towers stand in for them.
    """
    entities, prompter = folder / "entities.txt", folder / "run"
    sizes = {field.name: getattr(config.model, field.name) for field in fields(AlproPrompterConfig)}
    folder.mkdir(parents=True, exist_ok=True)
    write_entities(entities, ENTITIES)
    train(
        replace(
            alpro_prompter_tiny(),
            model=AlproPrompterConfig(**sizes),
            data=config.data,
            optimizer=config.optimizer,
            output_dir=str(prompter),
            steps=scale.prompter_steps,
            seed=config.seed,
            batch_size=config.batch_size,
            device=config.device,
            tensorboard=False,
        ),
        resume=True,
        progress_bar=False,
    )
    options = PrompterOptions(prompter=str(prompter), entities=str(entities))
    return replace(config, init=str(prompter), options=options)


_NAMED = ("shape", "colour", "background colour")  # the attributes whose values are ENTITIES, in their order


def score(model: Alpro, held_out: HeldOut) -> dict[str, float]:
    """Compute all scores by name, in percent where they are shares.

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
    """Return what `score` gives for a model that knows nothing: "no" to all pairs, the most frequent entity for all
    crops."""
    scores, frequent = chance_scores(held_out), shown_entities(held_out.probe_train).double().mean(0).argmax()
    return {
        **scores,
        "contrast/R1": scores["retrieval/R1"],
        "matching_accuracy": 200 / 3,
        "entity_hit": 100 * shown_entities(held_out.test)[:, frequent].double().mean().item(),
    }


def shown_entities(clips: Clips) -> Tensor:
    """Tell which of ENTITIES each clip shows somewhere, bool [N, E]."""
    return torch.cat([clips.labels[name] for name in _NAMED], dim=1)


def loss_scores(model: Alpro, held_out: HeldOut) -> dict[str, float]:
    """Return held-out losses; the wrong pairs are drawn evenly, since hard ones would be each model's own."""
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
    """Return shares of the crops whose likeliest entity is right; nothing for a model without entities."""
    if not model.config.entity_weight:
        return {}
    examples = [
        example
        for batch in held_out.test.batches
        for example in predict_entities(model, batch, ENTITIES, seed=MASK_SEED, top=1)
    ]
    right = shown_entities(held_out.test)
    hits = {
        name: [right[clip, ENTITIES.index(next(iter(guess)))].item() for clip, guess in enumerate(guesses)]
        for name, guesses in (
            ("entity_hit", [example.model for example in examples]),
            ("entity_hit/prompter", [example.prompter for example in examples]),
        )
    }
    return {name: 100 * fmean(found) for name, found in hits.items()}


_RETRIEVAL = ("retrieval/R1", "t2v/R1", "t2v/R5", "v2t/R1", "v2t/R5", "contrast/R1")


_FEATURES = ("transfer", "probe/shape", "probe/colour", "probe/texture", "probe/background colour", "probe/motion")


_OBJECTIVES = ("matching_accuracy", "word_loss", "word_accuracy", "entity_loss", "entity_hit", "entity_hit/prompter")


_ABOUT_SCORES = """\
All runs have the same steps, batch size, tokenizer and seed (the repetitions of the base run: the next seeds), and \
start from the same prompter, trained by contrast alone on the same clips, whose towers stand in for the paper's \
ImageNet ViT and BERT; *untrained* is that start. All are scored on the same {num_test} clips that none trained on.

- **retrieval/R1**: zero-shot R@1 in percent, the mean of both directions, every pair by the matching head; t2v, v2t: \
each direction. **contrast/R1**: the same by the contrast of the towers.
- **transfer**: percent of the attributes of a clip (shape, colour, texture, size, motion; the background's colour, \
pattern and behaviour) that ridge regression reads from the mean patch of the video tower, frozen, fitted on \
{probe_clips} training clips; the mean over the eight. **probe/...**: some of them.
- **matching_accuracy**: of one right and two evenly drawn wrong pairs a clip; who always says no has 66.7.
- **word_loss, word_accuracy**: of masked words, the whole clip given. **entity_loss, entity_hit**: of crops; a hit is \
a crop whose likeliest entity is somewhere in the clip, by the model's head and by the prompter that labels crops.
- **±**: standard deviation of the base run over its {seeds} seeds. It stands for the noise of every run; it does not \
know the noise of having only {num_test} test clips.
"""


class AlproReport(Report):
    """All objectives, without prompted entities, without the contrast, and without both."""

    system, shown, about_scores = "ALPRO", ("retrieval/R1", "contrast/R1", "transfer"), _ABOUT_SCORES

    def claims(self) -> list[Claim]:
        retrieval, transfer = "retrieval/R1", "transfer"
        return [
            Claim(
                "The contrast before fusion (VTC) improves retrieval.",
                "Zero-shot R@1 by the matching head is higher with the contrast than without, whether entities are "
                "prompted or not.",
                [
                    self.compare.part("with PEM: VTC against none", retrieval, {"base": 1, NO_CONTRAST.name: -1}),
                    self.compare.part(
                        "without PEM: VTC against none", retrieval, {NO_ENTITIES.name: 1, NEITHER.name: -1}
                    ),
                ],
            ),
            Claim(
                "Prompted entities (PEM) improve retrieval and what the video features know.",
                "All objectives beat all without PEM in zero-shot R@1 by the matching head, and in transfer.",
                [
                    self.compare.part(f"with against without ({score})", score, {"base": 1, NO_ENTITIES.name: -1})
                    for score in (retrieval, transfer)
                ],
            ),
        ]

    def sections(self) -> list[Section]:
        return [
            ("Retrieval", self.table(self._runs(), _RETRIEVAL)),
            ("What the video features know", self.table(self._runs(), _FEATURES)),
            ("The objectives on held-out clips", self.table(self._runs(), _OBJECTIVES)),
        ]

    def panels(self) -> list[HeatMap | Bars]:
        runs = self._runs()
        return [
            *self.bars("zero-shot R@1 by matching, both ways (%)", runs, "retrieval/R1"),
            *self.bars("zero-shot R@1 by contrast, both ways (%)", runs, "contrast/R1"),
            *self.bars("transfer (%)", runs, "transfer"),
            *self.bars("matching accuracy (%)", runs, "matching_accuracy"),
            *self.bars("masked words found (%)", runs, "word_accuracy"),
            *self.bars("crops whose likeliest entity is right (%)", runs, "entity_hit"),
        ]

    def _runs(self) -> list[str]:
        return self.with_bounds([run.name for run in (NO_ENTITIES, NO_CONTRAST, NEITHER)])


STUDY = Study(
    base_config=base_config,
    plan_runs=plan_runs,
    scale=AlproScale(),
    quick=QUICK,
    score=score,
    chance=chance,
    report=AlproReport,
    about=lambda config, scale: {
        "steps of the prompter": scale.prompter_steps,
        "ignore rule": config.model.ignore_rule,
    },
    prepare=train_prompter,
)
