"""The gradients of a step: micro-batch after micro-batch, on any number of processes, exactly those of the whole batch.

Micro-batch m of a step, of M, is computed by process m mod W, of W. Its samples, masks and dropout follow from the seed
and its number in the run alone, and its loss is that of the whole batch as far as the losses say so: losses that look
at other micro-batches are given what they need by a `RestOfStep`, in one of three ways.

- M = 1: there is no rest.
- M = W, and nothing but features and counts is looked at: the processes talk within the forward pass.
- otherwise the features of all micro-batches are computed beforehand, without gradients; their contrast and its
  gradients by them, which then take its place (GradCache, arXiv:2101.06983). Memory is that of one micro-batch; the
  price is one more forward pass of the towers. Wrong pairs are drawn from the whole batch likewise, and the clips and
  texts that a micro-batch lacks are brought to it.

Shape legend: A = micro-batches of a step on this process, W = processes, M = A * W, B = clips of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastvtp import processes
from fastvtp.data.loader import VideoTextBatch
from fastvtp.errors import ConfigError
from fastvtp.modules.losses import video_text_contrast
from fastvtp.modules.rest_of_step import (
    ALONE,
    AcrossProcesses,
    Collected,
    Compared,
    ContrastOfAll,
    Precomputed,
    RestOfStep,
    Wanted,
    WrongPairs,
)
from fastvtp.training.config import TrainConfig
from fastvtp.training.parallel import Parallel, exchange_rows, gather_rows
from fastvtp.training.task import Task

# clips of a step that stay on the device between the two times that they are read: 1 GiB
_KEPT_BYTES = 1 << 30
_NO_FEATURES = "contrast_scope=global: the task hands out no features; set contrast_scope=micro_batch"


def seed_micro_batch(seed: int, number: int) -> None:
    """Seed torch's generators, for dropout and its like, by the number of a micro-batch in the run."""
    torch.manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1))


@dataclass
class StepSums:
    """What a step adds up on this process: sums over its micro-batches of the loss and of all terms, [] each; and the
    micro-batches without their pixels, each with its loss []."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    seen: list[tuple[VideoTextBatch, Tensor]] = field(default_factory=list)

    def add(self, batch: VideoTextBatch, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Add what a micro-batch gave."""
        found = {"loss": loss.detach(), **terms}
        self.totals = {name: self.totals[name] + value for name, value in found.items()} if self.totals else found
        self.seen.append((replace(batch, video=batch.video[:0].clone()), found["loss"]))


class Gradients:
    """Computes the gradients of the steps of a run.

    micro_batches: A. device: of the model. Raises ConfigError where the contrast is to be of the whole batch and the
    task has no `collect`.
    """

    def __init__(self, config: TrainConfig, task: Task, parallel: Parallel, micro_batches: int, device: torch.device):
        self._config, self._task, self._parallel = config, task, parallel
        self._each, self._device = micro_batches, device
        contrast, matching = config.scopes
        self._wanted = Wanted(
            compared=task.contrasts and contrast == "global", pairs=task.matches and matching == "global"
        )
        self._looks_around = type(task).collect is not Task.collect
        if self._wanted.compared and not self._looks_around and micro_batches * processes.size() > 1:
            raise ConfigError(_NO_FEATURES)

    def of_step(self, batches: Iterator[VideoTextBatch], step: int) -> StepSums:
        """Compute and add up the gradients of a step, whose A micro-batches `batches` gives. step: its number."""
        sums = StepSums()
        for place, (batch, rest) in enumerate(self._with_rests(islice(batches, self._each), step)):
            with self._parallel.accumulating(last=place + 1 == self._each):
                seed_micro_batch(self._config.seed, batch.step)
                with self._autocast():
                    loss, terms = self._loss(batch, rest)
                (loss / self._each).backward()
            sums.add(batch, loss, terms)
        self._parallel.average_scalars()
        return sums

    def _with_rests(self, batches: Iterator[VideoTextBatch], step: int) -> Iterator[tuple[VideoTextBatch, RestOfStep]]:
        """Return the micro-batches of a step, each with what it is told of the others."""
        if self._each * processes.size() == 1 or not self._looks_around:
            return ((batch, ALONE) for batch in batches)
        if self._each == 1 and not self._wanted.pairs:
            assert dist.group.WORLD is not None  # there are several processes
            rest = AcrossProcesses(dist.group.WORLD, contrast=self._wanted.compared)
            return ((batch, rest) for batch in batches)
        return self._asked_beforehand(batches, step)

    def _loss(self, batch: VideoTextBatch, rest: RestOfStep) -> tuple[Tensor, dict[str, Tensor]]:
        return self._task.loss(self._parallel.compute, self._parallel.model, batch, rest)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16")

    # --- Beforehand

    def _asked_beforehand(
        self, batches: Iterator[VideoTextBatch], step: int
    ) -> Iterator[tuple[VideoTextBatch, RestOfStep]]:
        kept, collected = [], []
        for batch in batches:
            seed_micro_batch(self._config.seed, batch.step)
            with torch.no_grad(), self._autocast():
                collected.append(self._task.collect(self._parallel.model, batch, self._wanted))
            if self._each * batch.video.nbytes > _KEPT_BYTES:
                batch = replace(batch, video=batch.video.cpu())
            kept.append(batch)
        whole = WholeBatch(kept, collected, self._device)
        shares, contrasts = whole.shares(), whole.contrasts() if self._wanted.compared else [None] * self._each
        wrong = whole.draw(self._parallel.model, self._config.seed, step) if self._wanted.pairs else None
        for place, batch in enumerate(kept):
            rest = Precomputed(
                shares={name: (own[place], total) for name, (own, total) in shares.items()},
                micro_batches=whole.micro_batches,
                contrast_of_all=contrasts[place],
                wrong=None if wrong is None else whole.wrong_pairs(place, *wrong),
                kept=collected[place].kept,
            )
            yield replace(batch, video=batch.video.to(self._device)), rest


class WholeBatch:
    """What the micro-batches of a step told of themselves beforehand, brought together from all processes.

    Everything that is drawn or compared here is computed by each process from the same numbers in the same order, that
    of the micro-batches, and so is the same on any number of processes.

    batches, collected: of this process, A each.
    """

    def __init__(self, batches: Sequence[VideoTextBatch], collected: Sequence[Collected], device: torch.device):
        self._batches, self._collected, self._device = batches, collected, device
        self.micro_batches = len(batches) * processes.size()
        self._ids = self._in_order([batch.sample_ids.to(device) for batch in batches])

    def shares(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return by the name of a mean the items of each micro-batch here, float32 [A], and of all together, []."""
        names = list(self._collected[0].counts)
        if not names:
            return {}
        own = torch.stack(
            [
                torch.stack([torch.as_tensor(found.counts[name], device=self._device).float() for name in names])
                for found in self._collected
            ]
        )
        totals = gather_rows(own).sum(dim=(0, 1))
        return {name: (own[:, place], totals[place]) for place, name in enumerate(names)}

    def compared(self) -> Compared | None:
        """Return the features of the whole batch, [M * B, D]; None where they were not asked for."""
        found = [each.compared for each in self._collected]
        first = found[0]
        if first is None:
            return None
        text, video = (self._in_order([getattr(each, name) for each in found]) for name in ("text", "video"))
        return replace(first, text=text, video=video)

    def contrasts(self) -> list[ContrastOfAll]:
        """Compute the contrast of the whole batch and its gradients, for each micro-batch here.

        Raises ConfigError where the task compares clips and gave no features.
        """
        compared = self.compared()
        if compared is None:
            raise ConfigError(_NO_FEATURES)
        leaves = [x.detach().requires_grad_() for x in (compared.text, compared.video, compared.logit_scale)]
        text, video, scale = leaves
        loss = video_text_contrast(text, video, scale, sample_ids=self._ids, directions=compared.directions)
        of_text, of_video, of_scale = torch.autograd.grad(loss, leaves)
        texts, videos = (self._own_parts(self.micro_batches * gradient) for gradient in (of_text, of_video))
        return [ContrastOfAll(loss.detach(), *pair, of_scale) for pair in zip(texts, videos, strict=True)]

    def draw(self, model: Any, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
        """Draw wrong pairs from the whole batch: for each text the row of a clip, and of some models for each clip that
        of a text, int64 [M * B] each, -1 where there is none."""
        return model.draw_wrong(self.compared(), self._ids, seed=seed, step=step)

    def wrong_pairs(self, place: int, clips: Tensor, texts: Tensor | None) -> WrongPairs:
        """Bring the wrong clips and texts of the micro-batch at `place` here; all processes must ask for theirs."""
        chosen, wanted = self._asked_for(clips, place)

        def fetch(parts: Sequence[Tensor], wanted: Sequence[Sequence[int]]) -> Tensor:
            size = len(parts[0])

            def pick(rows: Sequence[int]) -> Tensor:
                found = [parts[row // size][row % size] for row in rows]
                return torch.stack(found).to(parts[0].device) if found else parts[0][:0]

            return exchange_rows(pick, size * len(parts), wanted)

        video = fetch([batch.video for batch in self._batches], wanted).to(self._device)
        names = self._collected[0].of_clips
        of_clips = {name: fetch([each.of_clips[name] for each in self._collected], wanted) for name in names}
        pairs = WrongPairs(video, of_clips, chosen >= 0)
        if texts is None:
            return pairs
        chosen, wanted = self._asked_for(texts, place)
        padded, lengths = (fetch(part.chunk(len(self._batches)), wanted) for part in self._padded_texts())
        present = torch.arange(padded.shape[1]) < lengths[:, None]
        counts = tuple(lengths.tolist())
        return replace(pairs, input_ids=padded[present].to(self._device), text_lengths=counts, has_text=chosen >= 0)

    def _padded_texts(self) -> tuple[Tensor, Tensor]:
        """Return the texts of this process, int64 [A * B, L] on the host, and their lengths, int64 [A * B]; L is that
        of the longest text of all processes."""
        lengths = torch.tensor([length for batch in self._batches for length in batch.text_lengths])
        longest = max(processes.gather(int(lengths.max())))
        padded = torch.zeros(len(lengths), longest, dtype=torch.int64)
        ids = torch.cat([batch.input_ids.cpu() for batch in self._batches])
        padded[torch.arange(longest) < lengths[:, None]] = ids
        return padded, lengths

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Return rows of all processes in the order of the micro-batches: A of [B, ...] -> [M * B, ...]."""
        return gather_rows(torch.stack(list(parts))).transpose(0, 1).flatten(0, 2)

    def _own_parts(self, whole: Tensor) -> list[Tensor]:
        """Return the rows of the micro-batches of this process: [M * B, ...] -> A of [B, ...]."""
        return list(whole.unflatten(0, (len(self._batches), processes.size(), -1))[:, processes.rank()])

    def _asked_for(self, rows: Tensor, place: int) -> tuple[Tensor, list[list[int]]]:
        """Return the rows drawn for the micro-batch at `place` of this process, int64 [B], -1 where there is none; and
        for every process the places, as `exchange_rows` counts, of those drawn for its micro-batch at `place`."""
        of_all = rows.unflatten(0, (len(self._batches), processes.size(), -1))[place]
        each, world, size = len(self._batches), processes.size(), of_all.shape[1]
        micro, row = of_all.clamp(min=0) // size, of_all.clamp(min=0) % size
        places = (micro % world) * each * size + (micro // world) * size + row
        return of_all[processes.rank()], places.tolist()
