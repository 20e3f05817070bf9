"""Host-side arithmetic of packed layouts: which rows of a token pool make up which sequences."""

import numpy as np
import torch
from torch import Tensor

from fastvtp.models.layers import Packing


def span_rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The row numbers of consecutive spans, laid end to end: int64 [sum of lengths]."""
    return np.repeat(starts - exclusive_cumsum(lengths), lengths) + np.arange(lengths.sum())


def exclusive_cumsum(lengths: np.ndarray) -> np.ndarray:
    """Where each of the segments starts when they are laid end to end: int64, same shape."""
    return np.cumsum(lengths) - lengths


class SequenceBuilder:
    """Collects sequences made of spans of a token pool and packs them into one gather.

    A pool row may stand in several sequences: a clip's visible tokens are embedded once and attend in the joint, the
    video-only and a mismatched sequence.
    """

    def __init__(self) -> None:
        self._starts: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._sequence_lengths: list[np.ndarray] = []
        self.num_rows = 0

    def add(self, *parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Append one sequence per sample; sample i is the concatenation of every part's span i.

        parts: (starts int64 [B], lengths int64 [B]) in the pool. Returns the packed row at which each sequence starts,
        int64 [B].
        """
        starts = np.stack([start for start, _ in parts], axis=1)
        lengths = np.stack([length for _, length in parts], axis=1)
        sequence_lengths = lengths.sum(axis=1)
        first_rows = self.num_rows + exclusive_cumsum(sequence_lengths)
        self._starts.append(starts.ravel())
        self._lengths.append(lengths.ravel())
        self._sequence_lengths.append(sequence_lengths)
        self.num_rows += int(sequence_lengths.sum())
        return first_rows

    def gather(self) -> Tensor:
        """Pool row of every packed row: int64 [N]."""
        return torch.from_numpy(span_rows(np.concatenate(self._starts), np.concatenate(self._lengths)))

    def packing(self) -> Packing:
        lengths = np.concatenate(self._sequence_lengths)
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return Packing(torch.from_numpy(cu_seqlens), int(lengths.max()))
