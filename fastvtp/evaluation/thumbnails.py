"""What a retrieval shows of single clips: thumbnails of them, in a gallery of queries and ranks."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from fastvtp import processes
from fastvtp.data.loader import VideoTextBatch
from fastvtp.evaluation.dealing import batch_number
from fastvtp.evaluation.matching import EncodedSet, matching_ranks
from fastvtp.evaluation.retrieval import RetrievalEmbeddings, right_pairs
from fastvtp.visualization.gallery import GalleryContent, RankedScores, animated_thumbnail, save_retrieval_gallery

GALLERY_NAME = "gallery.html"


class Truth(TypedDict):
    """Which texts and videos belong together, as `retrieval_metrics` takes it."""

    video_of_text: Tensor
    captions: list[str] | None


class Thumbnails:
    """Keeps a thumbnail of every clip that it hands on, of its first view."""

    def __init__(self, batches: Iterable[VideoTextBatch]):
        self._batches = batches
        self._images: dict[int, tuple[int, bytes]] = {}  # each with the number of its batch

    def __iter__(self) -> Iterator[VideoTextBatch]:
        for place, batch in enumerate(self._batches):
            for index, frames in zip(batch.sample_ids.tolist(), batch.video, strict=True):
                if index not in self._images:
                    image = animated_thumbnail(frames.cpu().numpy())
                    self._images[index] = batch_number(batch, place), image
            yield batch

    def bring_to_first(self) -> None:
        """Bring the thumbnails of all processes to the first, which all of them call."""
        for images in processes.collect(self._images):
            for index, image in images.items():
                self._images[index] = min(image, self._images.get(index, image))

    def save_gallery(
        self,
        folder: Path,
        found: RetrievalEmbeddings | EncodedSet,
        scores: tuple[Tensor, Tensor],
        truth: Truth,
        *,
        metrics: Mapping[str, Mapping[str, float]],
        title: str,
    ) -> None:
        """Save the gallery. scores: [N texts, M videos], of text-to-video and of video-to-text. metrics: see
        `save_retrieval_gallery`."""
        images = [self._images[index][1] for index in found.ids]
        content = GalleryContent(found.captions, images, found.ids, right_pairs=right_pairs(**truth))
        ranks = matching_ranks(*scores, **truth)
        to_video, to_text = (RankedScores(*side) for side in zip(scores, ranks, strict=True))
        save_retrieval_gallery(folder / GALLERY_NAME, content, to_video, to_text, metrics=metrics, title=title)
