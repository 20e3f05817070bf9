"""Multi-view evaluation: what a model makes of the views of a clip, averaged over them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from fastvtp.data.records import VideoRecord
from fastvtp.errors import UserError
from fastvtp.evaluation.dealing import over_batches


class ViewMean:
    """Running means over the views of each clip; the views may come in any batches.

    Rows are added up one by one, so that the means do not depend on where batches end, bit for bit.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: Counter[int] = Counter()

    def add(self, ids: Sequence[int], rows: Iterable[Tensor]) -> list[int]:
        """Take in one row a view, of the clips `ids`. Returns the places in `ids` of clips that are new."""
        new = []
        for place, (index, row) in enumerate(zip(ids, rows, strict=True)):
            if index not in self._sums:
                new.append(place)
                self._sums[index] = row
            else:
                self._sums[index] = self._sums[index] + row
            self._counts[index] += 1
        return new

    def means(self) -> dict[int, Tensor]:
        """Compute the mean of each clip that came in as many views as any, in the order of the first views.

        A clip with fewer is one whose file turned out damaged in the midst: it is left out, like one that never opened.
        """
        views = max(self._counts.values(), default=0)
        return {index: total / views for index, total in self._sums.items() if self._counts[index] == views}


def average_over_views(
    loader: Iterable[Any],
    records: Sequence[VideoRecord],
    score: Callable[[Any], Iterable[Tensor]],
    *,
    description: str,
    progress: bool,
) -> dict[int, Tensor]:
    """Compute the mean over its views of what `score` gives for each clip of a batch, one tensor a clip, by index in
    `records`. On several processes, whose loaders deal the batches out, all call this and get the means of all.

    Raises:
        UserError: the loader gave no clip.
        ValueError: a clip of the loader is not the record with its `sample_ids`.
    """

    def scored(batch: Any) -> tuple[list[int], Iterable[Tensor]]:
        ids = batch.sample_ids.tolist()
        for index, caption in zip(ids, batch.captions, strict=True):
            if not 0 <= index < len(records) or caption != records[index].captions[0]:
                raise ValueError(f"the loader reads another list: its clip {index} says {caption!r}")
        rows = score(batch)
        return ids, rows if isinstance(rows, Tensor) else [row.clone() for row in rows]

    means = ViewMean()
    for ids, rows in over_batches(loader, scored, description=description, progress=progress):
        means.add(ids, rows)
    scores = means.means()
    if not scores:
        raise UserError(f"no clip could be decoded: {description} has nothing to score")
    return scores


def left_out(records: Sequence[VideoRecord], scored: Iterable[int]) -> list[str]:
    """List the videos, or spans of videos, of records that were not scored, sorted, each once."""
    scored = set(scored)
    return sorted({record.source for index, record in enumerate(records) if index not in scored})
