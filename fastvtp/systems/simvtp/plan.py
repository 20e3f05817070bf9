"""The integers of one SimVTP step, settled on the host: masks, masked words, and which rows make up which sequence.

Shape legend: B = clips, Kv / Kp = visible / predicted tubelets of a clip, N = packed tokens, N2 = those of the wrong
pairs, Nt = caption tokens of the batch, M = masked words. The pool holds the visible tubelets of all clips and, behind
them, the text tokens, each embedded once.

What changes with the captions, Nt, N, N2 and M, is rounded up, see `fastvtp.modules.capacity`: behind the real rows of
a plan are tail rows, which are in no sequence, and words labelled -100, which the loss leaves out.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastvtp.modules.bert import TextTakers
from fastvtp.modules.capacity import NO_LABEL, bucket, length_bound, pad_rows, waste
from fastvtp.modules.losses import matching_labels
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.packing import Packing, SequenceBuilder, exclusive_cumsum, span_rows
from fastvtp.modules.rows import Pick, Takers
from fastvtp.systems.simvtp.config import SimVTPConfig


@dataclass(frozen=True)
class Mismatched:
    """The wrong pairs of the matching loss, where they are drawn by similarity on the device (hard negatives).

    clip_0_sources: int64 [N2], the pool row of each packed row if every caption were shown with clip 0. clip_of_row:
        int64 [N2], for a tubelet the sample whose wrong clip it is taken from, for a text token B.
    packing: how the packed rows divide into B sequences.
    """

    clip_0_sources: Tensor
    clip_of_row: Tensor
    packing: Packing

    def with_tail(self, tail: int, batch_size: int, longest: int, pool_rows: int) -> "Mismatched":
        """Return this with `tail` rows behind it that are in no sequence, and a bound on the longest sequence."""
        num_rows = len(self.clip_of_row) + tail
        return Mismatched(
            _with_tail(self.clip_0_sources, tail, pool_rows),
            pad_rows(self.clip_of_row, num_rows, batch_size),
            _with_room(self.packing, num_rows, longest),
        )

    def sources(self, clips: Tensor, num_visible: int) -> Tensor:
        """Return the pool row of every packed row, int64 [N2], where caption i is shown with clip `clips[i]`, int64
        [B], of which the pool holds `num_visible` tubelets."""
        offsets = torch.cat([clips * num_visible, clips.new_zeros(1)])
        return self.clip_0_sources + offsets[self.clip_of_row]


@dataclass(frozen=True)
class SimVTPPlan:
    """The integers of one step: masks, masked words, and the packing of all sequences that the encoder reads.

    sample_ids: int64 [B], equal where the same clip stands in the batch twice.
    visible, predicted: int32 [B, Kv] and [B, Kp], the tubelets that the encoder sees and that the decoder predicts.
    text_ids, text_positions: int64, the text tokens of the pool and their places in their captions: the captions with
        words masked, then the clean ones where the contrast uses them, then padding where the config keeps it.
    text_takers: which of them take each row of the text's tables.
    sources: the N pool rows that the packed rows are taken from.
    packing: how the packed rows divide into the joint, the video-only and the text-only sequences, B of each, and the
        mismatched ones unless they are hard negatives.
    joint_video_rows: int64 [B*Kv], the packed rows of the tubelets in the joint sequences.
    match_labels: int64 [2B], of the matched and the mismatched pairs; hard negatives make labels of their own.
    word_rows, word_labels: int64 [M], the packed rows of the masked words and the words that stood there; where the
        label is -100, any rows.
    mismatched: the layout of the hard negatives; None where the negatives are known beforehand.
    seed, step: the key of the hard negatives' draw; step is int64 [], so that code compiled for a plan fits the next.
    """

    sample_ids: Tensor
    visible: Tensor
    predicted: Tensor
    text_ids: Tensor
    text_positions: Tensor
    text_takers: TextTakers
    sources: Pick
    packing: Packing
    joint_video_rows: Tensor
    match_labels: Tensor
    word_rows: Tensor
    word_labels: Tensor
    mismatched: Mismatched | None
    seed: int
    step: Tensor

    def to(self, device: torch.device | str) -> "SimVTPPlan":
        """Return the plan with its tensors on `device`, in copies that the host does not wait for."""
        return on_device(self, torch.device(device))

    def capacity_waste(self) -> float:
        """Return the share of the packed rows that is in no sequence: what rounding up costs. Of a plan that is on a
        device it waits for it."""
        real, capacity = int(self.packing.cu_seqlens[-1]), len(self.sources)
        if self.mismatched is not None:
            real += int(self.mismatched.packing.cu_seqlens[-1])
            capacity += len(self.mismatched.clip_of_row)
        return waste(real, capacity)


@dataclass(frozen=True)
class StepMasks:
    """What a step hides and what it predicts, on the host.

    visible: int32 [B, Kv], the tubelets of each clip that the encoder sees. predicted: int32 [B, Kp], those that the
    decoder predicts. hidden: bool [Nt], True at the caption tokens that are masked and predicted.
    """

    visible: Tensor
    predicted: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class CaptionTokens:
    """The captions of a batch, on the host.

    input_ids: int64 [Nt], one caption's tokens behind the other's. lengths: int64 [B], tokens of each.
    padded_length: rows that each caption takes where the config pads them; None: as many as the longest has.
    """

    input_ids: Tensor
    lengths: np.ndarray
    padded_length: int | None = None


class Capacity(NamedTuple):
    """The sizes of a plan, see `fastvtp.modules.capacity`: text tokens of the pool, tail rows of the packed rows and of
    those of the wrong pairs, masked words, and a bound on the longest sequence."""

    text: int
    tail: int
    wrong_tail: int
    words: int
    longest: int

    @staticmethod
    def of(config: SimVTPConfig, masks: StepMasks, captions: CaptionTokens, *, hard: bool) -> "Capacity":
        """Return the capacity for these captions; hard: wrong pairs are encoded by a call of their own."""
        tokens, copies = len(captions.input_ids), 1 + (config.contrastive_text == "clean")
        num_visible = masks.visible.shape[1]
        room = bucket(tokens)
        text, of_sequences, room_of_sequences = copies * room, tokens, room
        longest = int(captions.lengths.max(initial=0))
        if config.pad_text:
            padded = longest if captions.padded_length is None else captions.padded_length
            of_sequences = padded * len(captions.lengths)
            room_of_sequences = bucket(of_sequences)
            # the captions, and of one copy as many rows as they are padded to
            text, longest = (copies - 1) * room + max(room_of_sequences, room), padded
        spare = room_of_sequences - of_sequences
        return Capacity(
            text=text,
            tail=(2 if hard else 3) * spare,
            wrong_tail=spare,
            words=bucket(int(masks.hidden.sum()), bits=3),
            longest=length_bound(num_visible + longest, num_visible + config.max_text_length),
        )


def lay_out(
    config: SimVTPConfig,
    masks: StepMasks,
    captions: CaptionTokens,
    *,
    mismatch: np.ndarray | None,
    sample_ids: Tensor,
    seed: int = 0,
    step: int = 0,
    roomy: bool = False,
) -> SimVTPPlan:
    """Return the plan of given masks and negatives; everything is on the host, and so is the result.

    roomy: round what changes with the captions up, as `SimVTP.plan` does. mismatch: int64 [B], the wrong clip that each
    caption is shown with; None: the plan is for hard negatives, which are drawn by similarity later, keyed by (seed,
    step). sample_ids: int64 [B], equal where a clip stands in the batch twice.

    Raises ValueError where a caption is longer than `padded_length`.
    """
    input_ids, lengths, hidden = captions.input_ids, captions.lengths, masks.hidden
    batch_size, num_text, num_visible = len(lengths), len(input_ids), masks.visible.shape[1]
    ids = [input_ids.masked_fill(hidden, config.mask_token_id)]
    positions = [torch.from_numpy(span_rows(np.zeros_like(lengths), lengths))]
    video = (np.arange(batch_size) * num_visible, np.full(batch_size, num_visible))
    text = (batch_size * num_visible + exclusive_cumsum(lengths), lengths)
    contrast, padding = text, None
    if config.contrastive_text == "clean":
        ids.append(input_ids)
        positions.append(positions[0])
        contrast = (text[0] + num_text, lengths)
    if config.pad_text:
        longest = lengths.max(initial=0)
        padded_length = longest if captions.padded_length is None else captions.padded_length
        if padded_length < longest:
            raise ValueError(f"padded_length {padded_length} is less than the longest caption's {longest} tokens")
        missing = padded_length - lengths
        padding = (batch_size * num_visible + num_text * len(ids) + exclusive_cumsum(missing), missing)
        ids.append(torch.full((int(missing.sum()),), config.pad_token_id))
        positions.append(torch.from_numpy(span_rows(lengths, missing)))

    sequences = SequenceBuilder()
    joint_rows = sequences.add(video, text, padding=padding)
    sequences.add(video)
    sequences.add(contrast, padding=padding)
    mismatched, labels = None, matching_labels(torch.ones(batch_size, dtype=torch.bool))
    if mismatch is None:
        mismatched = _hard_layout(video, text, padding)
    else:
        sequences.add((video[0][mismatch], video[1]), text, padding=padding)
        labels = matching_labels(sample_ids[torch.from_numpy(mismatch)] != sample_ids)

    joint_text_rows = torch.from_numpy(span_rows(joint_rows + num_visible, lengths))
    text_ids, text_positions, sources = torch.cat(ids), torch.cat(positions), sequences.sources()
    word_rows, word_labels, packing = joint_text_rows[hidden], input_ids[hidden], sequences.packing()
    if roomy:
        room = Capacity.of(config, masks, captions, hard=mismatch is None)
        text_ids = pad_rows(text_ids, room.text, config.pad_token_id)
        text_positions = pad_rows(text_positions, room.text, 0)
        pool_rows = masks.visible.numel() + len(text_ids)
        sources = _with_tail(sources, room.tail, pool_rows)
        word_rows = _with_others(word_rows, room.words, len(sources))
        word_labels = pad_rows(word_labels, room.words, NO_LABEL)
        packing = _with_room(packing, len(sources), room.longest)
        if mismatched is not None:
            mismatched = mismatched.with_tail(room.wrong_tail, batch_size, room.longest, pool_rows)
    return SimVTPPlan(
        sample_ids=sample_ids,
        visible=masks.visible,
        predicted=masks.predicted,
        text_ids=text_ids,
        text_positions=text_positions,
        text_takers=TextTakers.of(config, text_ids, text_positions),
        sources=Pick(sources, Takers.of(sources, masks.visible.numel() + len(text_ids))),
        packing=packing,
        joint_video_rows=torch.from_numpy(span_rows(joint_rows, video[1])),
        match_labels=labels,
        word_rows=word_rows,
        word_labels=word_labels,
        mismatched=mismatched,
        seed=seed,
        step=torch.tensor(step),
    )


def _with_tail(sources: Tensor, tail: int, pool_rows: int) -> Tensor:
    """Return the pool rows that packed rows are taken from, with those of `tail` rows behind them: the last of the
    pool, each as rarely as can be, so that no pool row has many takers."""
    return torch.cat([sources, pool_rows - 1 - torch.arange(tail) % pool_rows])


def _with_others(rows: Tensor, capacity: int, num_rows: int) -> Tensor:
    """Return some of `num_rows` rows with others behind them, up to `capacity`: no row twice, as gradients are copied
    back to them."""
    free = torch.ones(num_rows, dtype=torch.bool).index_fill_(0, rows, False)
    return torch.cat([rows, free.nonzero()[: capacity - len(rows), 0]])


def _with_room(packing: Packing, num_rows: int, longest: int) -> Packing:
    """Return a packing of `num_rows` rows, of which the last may be in no sequence. Key rows behind the last sequence's
    are those that nobody attends to."""
    keys = None if packing.key_rows is None else _with_others(packing.key_rows, num_rows, num_rows)
    return replace(packing, max_seqlen=longest, key_rows=keys)


def _hard_layout(
    video: tuple[np.ndarray, np.ndarray],
    text: tuple[np.ndarray, np.ndarray],
    padding: tuple[np.ndarray, np.ndarray] | None,
) -> Mismatched:
    """Lay out each caption with a wrong clip, for which clip 0 stands in until it is drawn. video, text, padding: the
    spans of clips, captions and their padding in the pool, as `SequenceBuilder.add` takes them."""
    pairs = SequenceBuilder()
    first_rows = pairs.add((np.zeros_like(video[0]), video[1]), text, padding=padding)
    clip_of_row = np.full(pairs.num_rows, len(first_rows))
    clip_of_row[span_rows(first_rows, video[1])] = np.repeat(np.arange(len(first_rows)), video[1])
    return Mismatched(pairs.sources(), torch.from_numpy(clip_of_row), pairs.packing())
