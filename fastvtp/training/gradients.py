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

import functools
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
from fastvtp.modules.one_buffer import on_device, to_device
from fastvtp.modules.packing import pack_lengths, span_rows
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
from fastvtp.training.ahead import with_plans
from fastvtp.training.config import TrainConfig
from fastvtp.training.exchange import exchange_rows, gather_rows
from fastvtp.training.parallel import Parallel
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
        self.seen.append((replace(batch, video=batch.video[:0].clone(), plan=None), found["loss"]))


def wanted_of(config: TrainConfig, task: Task) -> Wanted:
    """Return what the task is asked of a micro-batch, by the scopes of its contrast and its matching."""
    contrast, matching = config.scopes
    return Wanted(compared=task.contrasts and contrast == "global", pairs=task.matches and matching == "global")


def computes_twice(config: TrainConfig, task: Task, micro_batches: int) -> bool:
    """Tell whether a step computes features of its micro-batches, A on each process, beforehand and once more with the
    losses."""
    wanted = wanted_of(config, task)
    return micro_batches * processes.size() > 1 and (wanted.pairs or (wanted.compared and micro_batches > 1))


class Gradients:
    """Computes the gradients of the steps of a run.

    micro_batches: A. device: of the model. Raises ConfigError where the contrast is to be of the whole batch and the
    task has no `collect`.
    """

    def __init__(self, config: TrainConfig, task: Task, parallel: Parallel, micro_batches: int, device: torch.device):
        self._config, self._task, self._parallel = config, task, parallel
        self._each, self._device = micro_batches, device
        self._wanted = wanted_of(config, task)
        self._checked = parallel.compiled  # whose graph cannot be left to look
        self._looks_around = type(task).collect is not Task.collect
        if self._wanted.compared and not self._looks_around and micro_batches * processes.size() > 1:
            raise ConfigError(_NO_FEATURES)

    def planned(self, batches: Iterator[VideoTextBatch], number: int) -> Iterator[VideoTextBatch]:
        """Give the micro-batches that `of_step` will be given their plans, made ahead in a thread, where the task plans
        any. number: how many there will be."""
        if not self._task.plans:
            return batches
        together = self._each * processes.size() > 1 and self._looks_around and self._wanted.pairs
        make = functools.partial(self._task.plan, self._parallel.model, own_pairs=not together, device="cpu")
        return with_plans(batches, make, most=number)

    def of_step(self, batches: Iterator[VideoTextBatch], step: int) -> StepSums:
        """Compute and add up the gradients of a step, whose A micro-batches `batches` gives. step: its number."""
        sums = StepSums()
        for place, (batch, rest) in enumerate(self._with_rests(islice(batches, self._each), step)):
            with self._parallel.accumulating(last=place + 1 == self._each):
                seed_micro_batch(self._config.seed, batch.step)
                if self._parallel.replays:
                    torch.compiler.cudagraph_mark_step_begin()
                with self._autocast():
                    loss, terms = self._loss(batch, rest)
                (loss / self._each).backward()
                if self._parallel.replays:  # which writes over its results the next time
                    loss, terms = loss.detach().clone(), {name: value.clone() for name, value in terms.items()}
            sums.add(batch, loss, terms)
        if len(sums.seen) != self._each:
            raise RuntimeError(
                f"step {step} has {len(sums.seen)} micro-batches, expected {self._each}: the loader ended"
            )
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
                batch = replace(batch, video=_put_aside(batch.video))
            kept.append(batch)
        whole = WholeBatch(kept, collected, self._device)
        shares, contrasts = whole.shares(), whole.contrasts() if self._wanted.compared else [None] * self._each
        drawn = whole.draw(self._parallel.model, self._config.seed, step) if self._wanted.pairs else None
        for place, batch in enumerate(kept):
            rest = Precomputed(
                shares={name: (own[place], total) for name, (own, total) in shares.items()},
                micro_batches=whole.micro_batches,
                contrast_of_all=contrasts[place],
                wrong=None if drawn is None else whole.wrong_pairs(place, drawn),
                kept=collected[place].kept,
                beforehand=None if self._checked else collected[place].compared,
            )
            self._checked = True  # once a run: a task that draws otherwise does so from the beginning
            yield replace(batch, video=to_device(batch.video, self._device)), rest


def _put_aside(video: Tensor) -> Tensor:
    """Copy clips to the host, which does not wait for them; they are there once anything was read from the device."""
    if not video.is_cuda:
        return video
    return torch.empty_like(video, device="cpu", pin_memory=True).copy_(video, non_blocking=True)


class WholeBatch:
    """What the micro-batches of a step told of themselves beforehand, brought together from all processes.

    Everything that is drawn or compared here is computed by each process from the same numbers in the same order, that
    of the micro-batches, and so is the same on any number of processes, to the last bit. That each computes all of it
    costs it up to six products of M*B rows with M*B rows: at 16 384 rows of 256 numbers 0.8 TFLOP, which is what a
    ViT-B takes to learn from two clips; at 100 000 rows it would be 31, and were to be divided among the processes.

    batches, collected: of this process, A each.
    """

    def __init__(self, batches: Sequence[VideoTextBatch], collected: Sequence[Collected], device: torch.device):
        self._batches, self._collected, self._device = batches, collected, device
        self.micro_batches = len(batches) * processes.size()
        self._ids = to_device(self._in_order([batch.sample_ids.cpu() for batch in batches]), device)
        self._compared = self._joined([found.compared for found in collected])
        self._texts: tuple[Tensor, Tensor] | None = None

    def shares(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return by the name of a mean the items of each micro-batch here, int64 [A], and of all together, []."""
        names = list(self._collected[0].counts)
        if not names:
            return {}
        own = torch.stack([self._counts([found.counts[name] for found in self._collected]) for name in names])
        totals = gather_rows(own).sum(dim=(0, 2))
        return {name: (own[place], totals[place]) for place, name in enumerate(names)}

    def _counts(self, counts: Sequence[int | Tensor]) -> Tensor:
        """Return host integers, or numbers [], as int64 [A] on the device."""
        if all(isinstance(count, int) for count in counts):
            return to_device(torch.tensor(counts), self._device)
        return torch.stack([torch.as_tensor(count, device=self._device) for count in counts])

    def _joined(self, found: Sequence[Compared | None]) -> Compared | None:
        """Return the features of the whole batch, [M * B, D]; None where they were not asked for."""
        own = [each for each in found if each is not None]
        if not own:
            return None
        text, video = (self._in_order([getattr(each, name) for each in own]) for name in ("text", "video"))
        return replace(own[0], text=text, video=video)

    def contrasts(self) -> list[ContrastOfAll]:
        """Compute the contrast of the whole batch and its gradients, for each micro-batch here.

        Raises ConfigError where the task compares clips and gave no features.
        """
        compared = self._compared
        if compared is None:
            raise ConfigError(_NO_FEATURES)
        leaves = [x.detach().requires_grad_() for x in (compared.text, compared.video, compared.logit_scale)]
        text, video, scale = leaves
        loss = ALONE.contrast(replace(compared, text=text, video=video, logit_scale=scale), self._ids)
        of_text, of_video, of_scale = torch.autograd.grad(loss, leaves)
        texts, videos = (self._own_parts(self.micro_batches * gradient) for gradient in (of_text, of_video))
        return [ContrastOfAll(loss.detach(), *pair, of_scale) for pair in zip(texts, videos, strict=True)]

    def draw(self, model: Any, seed: int, step: int) -> Tensor:
        """Draw wrong pairs from the whole batch: for each text the row of a clip, and of some models for each clip that
        of a text, -1 where there is none; int64 [1 or 2, M * B] on the host, which waits for the device here alone."""
        clips, texts = model.draw_wrong(self._compared, self._ids, seed=seed, step=step)
        return torch.stack([clips] if texts is None else [clips, texts]).cpu()

    def wrong_pairs(self, place: int, drawn: Tensor) -> WrongPairs:
        """Bring the wrong clips and texts of the micro-batch at `place` here; all processes must ask for theirs.
        drawn: as from `draw`."""
        rows = drawn.unflatten(1, (len(self._batches), processes.size(), -1))[:, place]
        own = rows[:, processes.rank()]
        wanted = self._places(rows[0])
        names = self._collected[0].of_clips
        pairs = WrongPairs(
            clips=to_device(self._fetched([batch.video for batch in self._batches], wanted), self._device),
            of_clips={name: self._fetched([each.of_clips[name] for each in self._collected], wanted) for name in names},
            has_clip=to_device(own[0] >= 0, self._device),
        )
        if len(drawn) == 1:
            return pairs
        padded, lengths = (part[own[1].clamp(min=0)] for part in self._texts_of_all())
        places = np.asarray(lengths)
        present = torch.arange(padded.shape[1]) < lengths[:, None]
        return replace(
            pairs,
            input_ids=to_device(padded[present], self._device),
            text_positions=to_device(torch.from_numpy(span_rows(np.zeros_like(places), places)), self._device),
            text_packing=on_device(pack_lengths(places), self._device),
            has_text=to_device(own[1] >= 0, self._device),
        )

    def _fetched(self, parts: Sequence[Tensor], wanted: Sequence[Sequence[int]]) -> Tensor:
        """Return rows of the processes' micro-batches, of which this one has A of [B, ...]. wanted: as from
        `_places`."""
        size = len(parts[0])

        def pick(rows: Sequence[int]) -> Tensor:
            found = [parts[row // size][row % size] for row in rows]
            return torch.stack(found) if found else parts[0][:0]

        return exchange_rows(pick, size * len(parts), wanted)

    def _texts_of_all(self) -> tuple[Tensor, Tensor]:
        """Return the texts of the whole batch, int64 [M * B, L] on the host, and their lengths, int64 [M * B]: they
        are little beside the clips, and every process has them all. Gathered once."""
        if self._texts is None:
            lengths = self._in_order([torch.tensor(batch.text_lengths) for batch in self._batches])
            longest = int(lengths.max())

            def pad(batch: VideoTextBatch) -> Tensor:
                padded = torch.zeros(len(batch.text_lengths), longest, dtype=torch.int64)
                padded[torch.arange(longest) < torch.tensor(batch.text_lengths)[:, None]] = batch.input_ids.cpu()
                return padded

            self._texts = self._in_order([pad(batch) for batch in self._batches]), lengths
        return self._texts

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Return rows of all processes in the order of the micro-batches: A of [B, ...] -> [M * B, ...]."""
        return gather_rows(torch.stack(list(parts))).transpose(0, 1).flatten(0, 2)

    def _own_parts(self, whole: Tensor) -> list[Tensor]:
        """Return the rows of the micro-batches of this process: [M * B, ...] -> A of [B, ...]."""
        return list(whole.unflatten(0, (len(self._batches), processes.size(), -1))[:, processes.rank()])

    def _places(self, rows: Tensor) -> list[list[int]]:
        """Return for every process the places, as `exchange_rows` counts, of rows of the whole batch, int64 [W, B] on
        the host; row 0 stands in where there is none."""
        each, world, size = len(self._batches), *rows.shape
        micro, row = rows.clamp(min=0) // size, rows.clamp(min=0) % size
        return ((micro % world) * each * size + (micro // world) * size + row).tolist()
