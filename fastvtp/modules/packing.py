"""Packed layouts: which rows of a tensor make up which sequences, mostly computed on the host.

Shape legend: S = sequences, N = packed rows of all sequences, Nk = those that may be attended to, B = samples.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastvtp_kernels.packing import locate_rows


@dataclass(frozen=True)
class Packing:
    """How the rows of a tensor [N, D] divide into sequences that lie one behind the other, without padding between.

        sequences of 3, 1 and 2 rows
        row             0   1   2 │ 3 │ 4   5         N = 6, S = 3
        cu_seqlens      0           3   4       6     max_seqlen = 3

        the same, row 2 being a [PAD] that attends and is attended to by none
        key_rows        0   1       3   4   5         Nk = 5
        cu_seqlens_k    0       2     3        5
        key_lengths     2           1   2

    cu_seqlens: int32 [S+1], sequence s holds the rows from cu_seqlens[s] up to, and without, cu_seqlens[s+1].
    max_seqlen: a bound on the longest sequence, a Python int so that no device value is ever read back.
    key_rows: int64 [Nk], the rows that others may attend to; None: all. The rest are padding, where a released model
        counts it in its means: such rows attend to others and are attended to by none.
    cu_seqlens_k: int32 [S+1], how `key_rows` divide into the sequences; given where they are.
    key_lengths: int32 [S], the same said shorter: the first so many rows of each sequence are its `key_rows`. None: all
        are, or those in `key_rows` are not the first.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    key_rows: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    key_lengths: Tensor | None = None

    @staticmethod
    def uniform(num_sequences: int, length: int, device: torch.device | str | None = None) -> "Packing":
        """Return the packing of `num_sequences` sequences of `length` rows each, with its tensors on `device`."""
        return Packing(torch.arange(num_sequences + 1, dtype=torch.int32, device=device) * length, length)


def span_rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the row numbers of spans laid end to end: starts and lengths int64 [spans] -> int64 [sum of lengths]."""
    return np.repeat(starts - exclusive_cumsum(lengths), lengths) + np.arange(lengths.sum())


def exclusive_cumsum(lengths: np.ndarray) -> np.ndarray:
    """Tell where each of some segments starts when they are laid end to end: lengths int64 [S] -> int64 [S]."""
    return np.cumsum(lengths) - lengths


class SequenceBuilder:
    """Collects sequences that are made of spans of a token pool, and packs them for one call of an encoder.

        pool row      0  1 │ 2  3 │ 4  5  6 │ 7        two clips of 2 tubelets, two captions of 3 words and of 1
                      clip 0  clip 1  caption 0  caption 1

        add(clips, captions), then add(clips):
        sources()     0  1  4  5  6 │ 2  3  7 │ 0  1 │ 2  3
        packing()     cu_seqlens = 0, 5, 8, 10, 12

    A pool row may stand in several sequences: a clip's visible tokens are embedded once and attend in the joint, the
    video-only and a mismatched sequence.
    """

    def __init__(self) -> None:
        self._starts: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._are_keys: list[np.ndarray] = []
        self._sequence_lengths: list[np.ndarray] = []
        self._key_lengths: list[np.ndarray] = []
        self.num_rows = 0

    def add(
        self, *parts: tuple[np.ndarray, np.ndarray], padding: tuple[np.ndarray, np.ndarray] | None = None
    ) -> np.ndarray:
        """Append one sequence for each of B samples, whose sequence is made of one span of every part.

        parts: the spans of a part as (starts int64 [B], lengths int64 [B]), rows of the pool. padding: a last part,
        whose rows attend to others and are attended to by none. Returns the packed row at which each sequence starts,
        int64 [B].
        """
        starts, lengths = (np.stack(values, axis=1) for values in zip(*parts, *filter(None, [padding]), strict=True))
        are_keys = np.ones(lengths.shape, dtype=bool)
        if padding is not None:
            are_keys[:, -1] = False
        sequence_lengths = lengths.sum(axis=1)
        first_rows = self.num_rows + exclusive_cumsum(sequence_lengths)
        self._starts.append(starts.ravel())
        self._lengths.append(lengths.ravel())
        self._are_keys.append(are_keys.ravel())
        self._sequence_lengths.append(sequence_lengths)
        self._key_lengths.append((lengths * are_keys).sum(axis=1))
        self.num_rows += int(sequence_lengths.sum())
        return first_rows

    def sources(self) -> Tensor:
        """Return the pool row that each packed row is taken from: int64 [N], on the host."""
        return torch.from_numpy(span_rows(np.concatenate(self._starts), np.concatenate(self._lengths)))

    def packing(self) -> Packing:
        """Tell how the packed rows divide into the sequences, in the order in which these were added, on the host."""
        lengths, are_keys = np.concatenate(self._sequence_lengths), np.concatenate(self._are_keys)
        packing = pack_lengths(lengths)
        if are_keys.all():
            return packing
        key_rows = np.repeat(are_keys, np.concatenate(self._lengths)).nonzero()[0]
        key_lengths = np.concatenate(self._key_lengths)
        return replace(
            packing,
            key_rows=torch.from_numpy(key_rows),
            cu_seqlens_k=offsets(key_lengths),
            # Padding is the last part of its sequence.
            key_lengths=torch.from_numpy(key_lengths.astype(np.int32)),
        )


def check_texts(input_ids: Tensor, lengths: np.ndarray, max_text_length: int) -> None:
    """Check that `input_ids`, int64 [N] on the host, hold packed texts of these lengths, int64 [B], and that none has
    more than `max_text_length` tokens. Raises ValueError where that is not so."""
    if input_ids.device.type != "cpu" or len(input_ids) != lengths.sum():
        raise ValueError(
            f"input_ids must be a CPU tensor of {lengths.sum()} tokens (the sum of text_lengths), "
            f"got {len(input_ids)} on {input_ids.device}"
        )
    if len(lengths) and lengths.max() > max_text_length:
        raise ValueError(f"a text has {lengths.max()} tokens, the model takes {max_text_length}")


def pack_lengths(lengths: np.ndarray) -> Packing:
    """Return the packing of sequences of these lengths, int64 [S], on the host."""
    return Packing(offsets(lengths), int(lengths.max()))


def offsets(lengths: np.ndarray) -> Tensor:
    """Tell where sequences of these lengths begin and end, the `cu_seqlens` of a packing: int64 [S] -> int32 [S+1]."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def pad_sequences(
    input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, pad_token_id: int
) -> tuple[Tensor, Tensor, Packing]:
    """Pad packed texts to `max_seqlen` tokens each, by rows that attend to others and are attended to by none.

    input_ids: int64 [N]. cu_seqlens: int32 [B+1]. Returns token ids and positions, int64 [B * max_seqlen] each, and
    their packing, all on the texts' device, from which nothing is read back.
    """
    batch_size, device = len(cu_seqlens) - 1, input_ids.device
    sequence, position = locate_rows(cu_seqlens, len(input_ids))
    rows = sequence * max_seqlen + position
    padded = torch.full((batch_size * max_seqlen,), pad_token_id, device=device).index_copy(0, rows, input_ids)
    positions = torch.arange(max_seqlen, device=device).repeat(batch_size)
    uniform = Packing.uniform(batch_size, max_seqlen, device)
    keys = {"key_rows": rows, "cu_seqlens_k": cu_seqlens, "key_lengths": cu_seqlens.diff()}
    return padded, positions, replace(uniform, **keys)


def join_packings(first: Packing, second: Packing, first_rows: int) -> Packing:
    """Return the packing of two tensors laid one behind the other, `first_rows` rows of the first and then the
    second's.

    It is computed on their device, from which nothing is read back.
    """

    def chain(offsets: Tensor, more: Tensor) -> Tensor:
        return torch.cat([offsets, offsets[-1] + more[1:]])

    joined = Packing(chain(first.cu_seqlens, second.cu_seqlens), max(first.max_seqlen, second.max_seqlen))
    if second.key_rows is None or second.cu_seqlens_k is None:
        return joined
    every = torch.arange(first_rows, device=second.key_rows.device)
    return replace(
        joined,
        key_rows=torch.cat([every, first_rows + second.key_rows]),
        cu_seqlens_k=chain(first.cu_seqlens, second.cu_seqlens_k),
        key_lengths=None if second.key_lengths is None else torch.cat([first.cu_seqlens.diff(), second.key_lengths]),
    )


def pair_sequences(
    text_cu_seqlens: Tensor, text_index: Tensor, video_index: Tensor, *, video_rows: int, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Lay out sequences [text ; clip] for Q pairs that only the device knows.

    The rows come from a pool that holds T texts, divided by text_cu_seqlens int32 [T+1], and behind them `video_rows`
    rows for each clip. text_index, video_index: int64 [Q], the text and the clip of each pair. num_rows: a host integer
    that is at least the rows of all pairs.

    Returns the pool row of every packed row, int64 [num_rows], and cu_seqlens int32 [Q+1]; rows behind the last pair
    repeat pool row 0.
    """
    starts, lengths = text_cu_seqlens[:-1].long()[text_index], text_cu_seqlens.diff().long()[text_index]
    ends = (lengths + video_rows).cumsum(0)
    cu_seqlens = torch.cat([ends.new_zeros(1), ends]).int()
    sequence, position = locate_rows(cu_seqlens, num_rows)
    within = sequence < len(text_index)
    sequence = sequence.clamp(max=len(text_index) - 1)
    of_text = position < lengths[sequence]
    clip_rows = text_cu_seqlens[-1] + video_index[sequence] * video_rows + position - lengths[sequence]
    rows = torch.where(of_text, starts[sequence] + position, clip_rows)
    return torch.where(within, rows, 0), cu_seqlens
