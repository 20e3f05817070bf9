"""Scores of one run of VideoPrism's ablation: what a probe reads of motion and of looks from the frozen tokens."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastvtp.ablation.scoring import HeldOut, chance_scores, probe_scores
from fastvtp.data.synthetic.scene import MOTIONS
from fastvtp.evaluation.fitting import FitSettings, fit
from fastvtp.evaluation.inference import inference
from fastvtp.models.probes import ProbeConfig, build_probe
from fastvtp.models.video_towers import video_tower

SEEDS = 3
_STEPS, _BATCH, _HEADS, _HEAD_DIM, _DROPOUT = 300, 64, 4, 32, 0.1


def score(model: Any, held_out: HeldOut) -> dict[str, float]:
    """All scores by name, in percent.

    motion: which of MOTIONS the object makes that acts first, by attentive probes on all tokens, the mean over `SEEDS`
    of them; motion/seeds: their standard deviation. direction: the same of the clips with one object; order: of those
    with two, where it says which of two motions came first. probe/<attribute> and their mean, transfer: a linear
    read-out of the mean token.
    """
    tower = video_tower(model)
    with inference(model):
        looks = probe_scores(lambda video: tower.encode_layers(video.to(model.device))[:, -1], held_out)
        features = [
            torch.cat([tower.encode_layers(batch.video.to(model.device)).float().cpu() for batch in clips.batches])
            for clips in (held_out.probe_train, held_out.test)
        ]
    train, test = (tokens.clone() for tokens in features)  # those made in inference mode cannot be learned from
    labels, targets = first_motion(held_out.probe_train.scenes), first_motion(held_out.test.scenes)
    single = torch.tensor([len(scene["objects"]) == 1 for scene in held_out.test.scenes])
    right = [_probe(train, labels, test, seed=seed) == targets for seed in range(SEEDS)]
    of_seeds = [100 * hits.double().mean().item() for hits in right]
    parts = {name: 100 * fmean(hits[kind].double().mean().item() for hits in right)
             for name, kind in (("direction", single), ("order", ~single))}  # fmt: skip
    return {"motion": fmean(of_seeds), "motion/seeds": pstdev(of_seeds), **parts, **looks}


def chance(held_out: HeldOut) -> dict[str, float]:
    """What `score` gives for features that know nothing: the most frequent motion of the training clips."""
    frequent = first_motion(held_out.probe_train.scenes).mode().values
    hits = (first_motion(held_out.test.scenes) == frequent).double()
    looks = {name: value for name, value in chance_scores(held_out).items() if name.startswith(("probe/", "transfer"))}
    return {"motion": 100 * hits.mean().item(), **looks}


def first_motion(scenes: Sequence[Mapping[str, Any]]) -> Tensor:
    """What the object that acts first does: int64 [N], a place in MOTIONS."""
    return torch.tensor([MOTIONS.index(scene["objects"][0]["motion"]) for scene in scenes])


def _probe(train: Tensor, labels: Tensor, test: Tensor, *, seed: int) -> Tensor:
    """What an attentive probe, fitted on tokens [N, 1, L, D] and labels, says of other tokens: int64 [M]."""
    torch.manual_seed(seed)
    probe = build_probe(ProbeConfig(
        width=train.shape[-1], num_outputs=len(MOTIONS), num_heads=_HEADS, head_dim=_HEAD_DIM, dropout=_DROPOUT
    ))  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    batches = (torch.randint(len(train), (_BATCH,), generator=draw) for _ in range(_STEPS))
    fit(
        probe, batches, lambda rows: cross_entropy(probe(train[rows]), labels[rows], label_smoothing=0.1),
        FitSettings(steps=_STEPS, batch_size=_BATCH, learning_rate=1e-3), device="cpu", progress=False,
    )  # fmt: skip
    with torch.inference_mode():
        return torch.cat([probe(part).argmax(dim=1) for part in test.split(256)])
