"""The captions by which clips are retrieved: the one that a batch shows of each, or all that a list has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastvtp.data.records import VideoRecord
from fastvtp.data.text import Tokenizer


@dataclass(frozen=True)
class PackedCaptions:
    """The captions of some clips, one after the other.

    input_ids: int64 [tokens], one caption after the other. lengths: tokens of each. by_clip: the captions as text, one
    tuple a clip, in the order of the tokens.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    by_clip: list[tuple[str, ...]]

    @property
    def cu_seqlens(self) -> Tensor:
        """Where each caption begins and the last ends, int32 [texts + 1]."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)

    def only(self, clips: Sequence[int]) -> "PackedCaptions":
        """Return the captions of the clips at these places alone."""
        counts = [len(texts) for texts in self.by_clip]
        first = [0, *accumulate(counts)]
        kept = [text for clip in clips for text in range(first[clip], first[clip + 1])]
        parts = self.input_ids.split(list(self.lengths))
        return PackedCaptions(
            torch.cat([parts[text] for text in kept]),
            tuple(self.lengths[text] for text in kept),
            [self.by_clip[clip] for clip in clips],
        )

    def on(self, device: torch.device | str) -> tuple[Tensor, Tensor, int]:
        """Return what a text tower takes: token ids and `cu_seqlens` on `device`, and the length of the longest
        caption."""
        ids, offsets = (tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.cu_seqlens))
        return ids, offsets, max(self.lengths)


Captions = Callable[[Any, Sequence[int]], PackedCaptions]
"""A batch and places in it -> the captions of the clips there."""


def shown_captions(batch: Any, places: Sequence[int]) -> PackedCaptions:
    """Take the one caption that `batch` holds of each clip at `places`."""
    parts = batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    kept = [parts[place] for place in places]
    return PackedCaptions(
        torch.cat(kept), tuple(len(part) for part in kept), [(batch.captions[place],) for place in places]
    )


def all_captions(records: Sequence[VideoRecord], tokenizer: Tokenizer, max_length: int) -> Captions:
    """Make a function that takes every caption of the records with the clips' `sample_ids`.

    max_length: most tokens kept of each.
    """

    def captions(batch: Any, places: Sequence[int]) -> PackedCaptions:
        indices = batch.sample_ids.tolist()
        by_clip = [records[indices[place]].captions for place in places]
        packed = tokenizer.encode_packed([text for texts in by_clip for text in texts], max_length)
        return PackedCaptions(torch.from_numpy(packed.input_ids), packed.lengths, by_clip)

    return captions
