"""Retrieval results as one static HTML page: no script, no server, every thumbnail embedded once."""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from PIL import Image
from torch import Tensor

from fastvtp.visualization.reconstruction import encode_animation

MAX_PAGE_BYTES = 10_000_000
SIGNATURES = {b"RIFF": "image/webp", b"GIF8": "image/gif", b"\x89PNG": "image/png"}

logger = logging.getLogger(__name__)


def animated_thumbnail(frames: np.ndarray, *, size: int = 96, fps: float = 8.0) -> bytes:
    """Return a clip, uint8 [T, H, W, 3], as a looping WebP whose longer side is `size` pixels.

    Raises ValueError for another shape or dtype, RuntimeError where Pillow is built without WebP.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    shape = (max(1, round(width * size / max(height, width))), max(1, round(height * size / max(height, width))))
    images = [Image.fromarray(frame).resize(shape, Image.Resampling.LANCZOS) for frame in frames]
    return encode_animation(images, ".webp", fps=fps, quality=60)


@dataclass(frozen=True)
class GalleryContent:
    """What a gallery shows of N texts and M videos.

    captions: one a text. thumbnails: WebP, GIF or PNG bytes, one a video. ids: the name shown for each video.
    video_of_text: int64 [N], the column of each text's video; None: text i describes video i. right_pairs: in its
    place where a text may belong to several videos, the texts and the videos of all pairs that belong together, int64
    [E] each.
    """

    captions: Sequence[str]
    thumbnails: Sequence[bytes]
    ids: Sequence[Any]
    video_of_text: Tensor | None = None
    right_pairs: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class RankedScores:
    """One direction of retrieval.

    scores: float [N texts, M videos], whichever asks. ranks: float, for each text or video that asks, the place of its
    right answer, from 1; NaN for one that has none and does not ask.
    """

    scores: Tensor
    ranks: Tensor


def save_retrieval_gallery(
    path: Path | str,
    content: GalleryContent,
    text_to_video: RankedScores,
    video_to_text: RankedScores,
    *,
    metrics: Mapping[str, Mapping[str, float]],
    title: str = "Retrieval gallery",
    top_k: int = 5,
    num_queries: int = 40,
) -> None:
    """Write a page with the metrics and, in both directions, queries with their best `top_k` answers.

    metrics: a row of the table by name, e.g. the scores of each direction, plus "chance".

    The `num_queries` of a direction are evenly spaced in the order of their ranks, worst first: failures lead, and the
    page still shows the run as it is. The right answer is framed green and appended where it missed the top `top_k`.

    Raises ValueError for lengths or images that do not fit; warns when the page passes 10 MB.
    """
    num_texts, num_videos = text_to_video.scores.shape
    _check(content, text_to_video, video_to_text)
    if top_k < 1 or num_queries < 1:
        raise ValueError(f"top_k and num_queries must be positive, got {top_k} and {num_queries}")
    is_right = torch.zeros(num_texts, num_videos, dtype=torch.bool)
    own = torch.arange(num_texts) if content.video_of_text is None else content.video_of_text
    texts, videos = content.right_pairs or (torch.arange(num_texts), own)
    is_right[texts.cpu(), videos.cpu()] = True
    to_video, to_text = (side.scores.detach().cpu() for side in (text_to_video, video_to_text))
    t2v = _queries(to_video, is_right, text_to_video.ranks.cpu(), top_k, num_queries)
    v2t = _queries(to_text.T, is_right.T, video_to_text.ranks.cpu(), top_k, num_queries)
    shown = {answer["index"] for query in t2v for answer in query["answers"]} | {query["index"] for query in v2t}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(files("fastvtp.visualization").joinpath("gallery.html").read_text("utf-8")).render(
        title=title,
        metrics=metrics,
        columns=list(dict.fromkeys(name for row in metrics.values() for name in row)),
        captions=content.captions,
        ids=content.ids,
        images={video: _data_uri(content.thumbnails[video], f"thumbnails[{video}]") for video in sorted(shown)},
        directions={"t2v": (t2v, num_texts), "v2t": (v2t, int(is_right.any(dim=0).sum()))},
        num_texts=num_texts,
        num_videos=num_videos,
        top_k=top_k,
    )
    Path(path).write_text(page, "utf-8")
    if len(page) > MAX_PAGE_BYTES:
        logger.warning("%s is %.1f MB: lower num_queries, top_k or the size of the thumbnails", path, len(page) / 1e6)


def _check(content: GalleryContent, text_to_video: RankedScores, video_to_text: RankedScores) -> None:
    """Raise ValueError for the first length that does not fit the scores of text-to-video."""
    num_texts, num_videos = text_to_video.scores.shape
    if video_to_text.scores.shape != text_to_video.scores.shape:
        raise ValueError(f"video_to_text must be {[num_texts, num_videos]}, got {list(video_to_text.scores.shape)}")
    for name, values, expected in (
        ("captions", content.captions, num_texts),
        ("thumbnails", content.thumbnails, num_videos),
        ("ids", content.ids, num_videos),
        ("ranks of texts", text_to_video.ranks, num_texts),
        ("ranks of videos", video_to_text.ranks, num_videos),
    ):
        if len(values) != expected:
            raise ValueError(
                f"{name} must have {expected} entries for scores {num_texts} x {num_videos}, got {len(values)}"
            )


def _queries(scores_QC: Tensor, is_right_QC: Tensor, ranks_Q: Tensor, top_k: int, num_queries: int) -> list[dict]:
    """Return the queries to show, worst first, each with its answers in order and its best right answer in any case."""
    asked = (~ranks_Q.isnan()).nonzero()[:, 0]
    asked = asked[ranks_Q[asked].argsort(descending=True, stable=True)]
    picked = asked[torch.linspace(0, len(asked) - 1, min(num_queries, len(asked))).round().long()]
    queries = []
    for query in picked.tolist():
        order = scores_QC[query].argsort(descending=True, stable=True)
        places = list(range(min(top_k, len(order))))
        right = is_right_QC[query, order]
        if not right[: len(places)].any():
            places.append(int(right.nonzero()[0]))
        answers = [
            {
                "index": int(order[place]),
                "score": float(scores_QC[query, order[place]]),
                "place": place + 1,
                "right": bool(right[place]),
            }
            for place in places
        ]
        queries.append({"index": query, "rank": float(ranks_Q[query]), "answers": answers})
    return queries


def _data_uri(image: bytes, name: str) -> str:
    """Return the bytes of a picture as the address of an image. Raises ValueError naming them for an unknown format."""
    for signature, mime in SIGNATURES.items():
        if image.startswith(signature):
            return f"data:{mime};base64,{base64.b64encode(image).decode('ascii')}"
    raise ValueError(f"{name} must be the bytes of a WebP, GIF or PNG, got {bytes(image[:4])!r}")
