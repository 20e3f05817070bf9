"""Retrieval by a matching head: every text and clip are encoded once, and only pairs go through the fusion layers.

Shape legend: N = texts, M = clips, V = rows of an encoded clip, D = width, Q = pairs of a call.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from fastvtp.errors import UserError
from fastvtp.evaluation.inference import Module, inference
from fastvtp.evaluation.retrieval import RetrievalRanks, retrieval_ranks


class MatchingModel(Module, Protocol):
    """What is asked of a model with a matching head (ALPRO)."""

    def encode_texts(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
        """Packed captions -> tokens [tokens, D] and features of unit length [B, P]."""
        ...

    def encode_clips(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, T, H, W, 3] -> tokens [B, V, D] and features of unit length [B, P]."""
        ...

    def score_pairs(
        self, text_tokens: Tensor, cu_seqlens: Tensor, max_seqlen: int, clip_tokens: Tensor,
        text_index: Tensor, clip_index: Tensor,
    ) -> Tensor:  # fmt: skip
        """Log-odds that pairs belong together: int64 [Q], int64 [Q] -> [Q]."""
        ...


@dataclass(frozen=True)
class EncodedSet:
    """Texts and clips of a test set, row i of both one record's, on the device of the run.

    text_tokens: [tokens of all texts, D] with cu_seqlens int32 [N+1] and max_seqlen. clip_tokens: [M, V, D].
    similarity: cosine of their features, float32 [N, M]. captions, ids: of each row.
    """

    text_tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    clip_tokens: Tensor
    similarity: Tensor
    captions: list[str]
    ids: list[int]


def encode_set(
    model: MatchingModel, loader: Iterable[Any], *, device: torch.device | str, progress: bool = True
) -> EncodedSet:
    """Encode every caption and clip of `loader` once. All stay in the device's memory: a clip takes V * D values.

    Raises UserError where no clip could be decoded.
    """
    texts, clips, features, offsets, captions, ids, longest = [], [], [], [0], [], [], 0
    with inference(model):
        for batch in tqdm(loader, desc="encoding", unit="batch", disable=not progress):
            text, text_features = model.encode_texts(
                batch.input_ids.to(device, non_blocking=True), batch.cu_seqlens.to(device, non_blocking=True),
                batch.max_text_length,
            )  # fmt: skip
            clip, clip_features = model.encode_clips(batch.video.to(device, non_blocking=True))
            texts.append(text)
            clips.append(clip)
            features.append((text_features.float(), clip_features.float()))
            for length in batch.text_lengths:
                offsets.append(offsets[-1] + length)
            longest = max(longest, batch.max_text_length)
            captions.extend(batch.captions)
            ids.extend(batch.sample_ids.tolist())
    if not ids:
        raise UserError("no clip could be decoded: retrieval has nothing to score")
    text_features, clip_features = (torch.cat(side) for side in zip(*features, strict=True))
    return EncodedSet(
        torch.cat(texts), torch.tensor(offsets, dtype=torch.int32, device=texts[0].device), longest, torch.cat(clips),
        text_features @ clip_features.T, captions, ids,
    )  # fmt: skip


def match_scores(
    model: MatchingModel,
    encoded: EncodedSet,
    *,
    top_k: int | None = None,
    pairs_per_call: int = 256,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-odds of the matching head for retrieval: float32 [N, M] for text-to-video, and the same for video-to-text.

    top_k: score only the `top_k` clips of each text, and texts of each clip, that the contrast ranks first (LAVIS); the
        others keep their order after them. None, or at least as many as there are: all pairs, as ALPRO does, once for
        both directions. Log-odds order pairs as the released probabilities do, without the ties of their rounding.
    pairs_per_call: pairs of one packed call.

    With torch.distributed initialised, ranks score every world-size-th text and share the result; all must hold the
    same `encoded`.
    """
    similarity = encoded.similarity
    texts, clips = similarity.shape
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or none for all pairs, got {top_k}")
    if top_k is None or top_k >= max(texts, clips):
        scores = _score(model, encoded, torch.ones_like(similarity, dtype=torch.bool), pairs_per_call, progress)
        return scores, scores
    for_texts = _first(similarity, min(top_k, clips))
    for_clips = _first(similarity.T, min(top_k, texts)).T
    scores = _score(model, encoded, for_texts | for_clips, pairs_per_call, progress)
    return _behind(scores, similarity, for_texts), _behind(scores, similarity, for_clips)


def matching_ranks(text_to_video: Tensor, video_to_text: Tensor) -> RetrievalRanks:
    """Ranks where text i belongs to clip i, each direction by its own scores [N, N]."""
    return RetrievalRanks(retrieval_ranks(text_to_video).t2v, retrieval_ranks(video_to_text).v2t)


def _first(similarity: Tensor, count: int) -> Tensor:
    """True at the `count` largest of each row."""
    chosen = torch.zeros_like(similarity, dtype=torch.bool)
    return chosen.scatter_(1, similarity.topk(count, dim=1).indices, True)


def _behind(scores: Tensor, similarity: Tensor, scored: Tensor) -> Tensor:
    """`scores` where `scored`, and beneath all of them the similarities, in their order."""
    lowest = scores[scored].min()
    return torch.where(scored, scores, lowest - 1 - (1 - similarity))


def _score(model: MatchingModel, encoded: EncodedSet, wanted: Tensor, pairs_per_call: int, progress: bool) -> Tensor:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    # clip after clip, so that a call holds few of them
    clip_index, text_index = wanted.T.nonzero(as_tuple=True)
    mine = text_index % ranks == rank
    text_index, clip_index = text_index[mine], clip_index[mine]
    scores = torch.zeros_like(encoded.similarity)
    bar = tqdm(total=len(text_index), desc="matching", unit="pair", disable=not progress)
    with inference(model), bar:
        for texts, clips in zip(text_index.split(pairs_per_call), clip_index.split(pairs_per_call), strict=True):
            found = model.score_pairs(
                encoded.text_tokens, encoded.cu_seqlens, encoded.max_seqlen, encoded.clip_tokens, texts, clips
            )
            scores[texts, clips] = found.float()
            bar.update(len(texts))
    if ranks > 1:
        dist.all_reduce(scores)
    return scores
