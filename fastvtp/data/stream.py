"""Which samples a rank sees, in which order, and what stands in for one that cannot be decoded: no state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastvtp.data.sampling import check_views, epoch_order, sample_number, sample_rng
from fastvtp.errors import UserError

MAX_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Which batches of a data set one rank makes, in the terms of `fastvtp.data.sampling`.

    In training the records come in shuffled epochs without end; otherwise in order, each once for every view. Steps
    `start_step` to `start_step + num_steps - 1` are made.

    Attributes:
        batch_size: clips of a batch; each step makes one on every rank.
        train: training or evaluation.
        seed: of everything random.
        start_step: the first step; a run resumes at the step it had reached.
        num_steps: number of steps; None: without end in training, as many as all records need in evaluation.
        rank, world_size: this process among those that share a step's samples.
        views: segments and crops of multi-view evaluation, crops running faster.
        repeats: how many clips in a row show the same frames of a record in training, each in another window, mirrored
            or not and augmented anew: they are decoded once where the workers decode.

    Raises:
        UserError: a value out of range, several views in training, or repeats in evaluation.
    """

    batch_size: int
    train: bool
    seed: int = 0
    start_step: int = 0
    num_steps: int | None = None
    rank: int = 0
    world_size: int = 1
    views: tuple[int, int] = (1, 1)
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be positive, got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank {self.rank} is outside [0, world_size {self.world_size})")
        if self.seed < 0 or self.start_step < 0:
            raise UserError(f"seed {self.seed} and start_step {self.start_step} must not be negative")
        check_views(self.views)
        if self.train and self.views != (1, 1):
            raise UserError(f"views {self.views} are for evaluation: set train=False")
        if self.repeats < 1 or self.batch_size % self.repeats:
            raise UserError(f"repeats must divide batch_size {self.batch_size}, got {self.repeats}")
        if self.repeats > 1 and not self.train:
            raise UserError(f"repeats {self.repeats} are for training")


@dataclass(frozen=True)
class SampleStream:
    """Which samples of `num_records` records a rank sees."""

    num_records: int
    batches: Batches

    @property
    def num_attempts(self) -> int:
        """How many records are tried for a sample before it is given up: each once, up to `MAX_ATTEMPTS` in
        training."""
        return min(MAX_ATTEMPTS, self.num_records) if self.batches.train else self.num_records

    @property
    def num_samples(self) -> int:
        """The samples of one epoch: every view of every record."""
        segments, crops = self.batches.views
        return self.num_records * segments * crops

    def view(self, number: int) -> tuple[int, int]:
        """Tell which segment and which crop of its record a sample is."""
        segments, crops = self.batches.views
        return divmod(number % (segments * crops), crops)

    def number(self, step: int, place: int) -> int:
        """Compute the global number of the sample at `place` in this rank's batch of a step."""
        given = self.batches
        return sample_number(step, place, batch_size=given.batch_size, rank=given.rank, world_size=given.world_size)

    def batch_number(self, step: int) -> int:
        """Compute the number of this rank's batch of a step among the batches of all ranks, which take turns."""
        return step * self.batches.world_size + self.batches.rank

    def draw(self, number: int, attempt: int) -> tuple[int, np.random.Generator]:
        """Draw the record tried at `attempt` for a sample; returns also the generator of the choices about it, of which
        those before the window are the same for all repeats."""
        seed, train = self.batches.seed, self.batches.train
        epoch, index = self._place(number)
        if train and attempt > 0:
            return self._replacement(epoch, index, attempt)
        # what stands in during evaluation is thrown away: the next record that opens is as good as any
        return (index + attempt) % self.num_records, sample_rng(seed, epoch, index, attempt)

    def repeat(self, number: int) -> int:
        """Tell which of the clips that show the same frames a sample is."""
        return number % self.batches.repeats

    def repeat_rngs(self, number: int, attempt: int) -> list[np.random.Generator]:
        """Make the generators of window and augmentation for the repeats of a sample after the first one, which goes on
        with that of `draw`."""
        epoch, index = self._place(number)
        return [sample_rng(self.batches.seed, epoch, index, attempt, k) for k in range(1, self.batches.repeats)]

    def _place(self, number: int) -> tuple[int, int]:
        """Tell the epoch of a sample and its record, before any replacement."""
        segments, crops = self.batches.views
        epoch, index = divmod(number // (segments * crops * self.batches.repeats), self.num_records)
        if self.batches.train:
            index = int(epoch_order(self.batches.seed, epoch, self.num_records)[index])
        return epoch, index

    def _replacement(self, epoch: int, index: int, attempt: int) -> tuple[int, np.random.Generator]:
        """Draw what stands in for a record at an attempt, none of those before it again until all have come."""
        seen: set[int] = {index}
        rng, drawn = sample_rng(self.batches.seed, epoch, index), index
        for earlier in range(1, attempt + 1):
            rng = sample_rng(self.batches.seed, epoch, index, earlier)
            if len(seen) == self.num_records:
                seen.clear()
            drawn = int(rng.integers(self.num_records))
            while drawn in seen:
                drawn = int(rng.integers(self.num_records))
            seen.add(drawn)
        return drawn, rng
