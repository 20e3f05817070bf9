"""Retrieval by a matching head: every text and clip are encoded once, and only pairs go through the fusion layers.

Shape legend: N = texts, M = clips, V = rows of an encoded clip, D = width, Q = pairs of a call.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvtp import processes
from fastvtp.errors import UserError
from fastvtp.evaluation.captions import Captions, shown_captions
from fastvtp.evaluation.dealing import in_order, over_own_batches, over_shares, portable, progress_bar
from fastvtp.evaluation.inference import Module, inference
from fastvtp.evaluation.retrieval import RetrievalRanks, retrieval_metrics, retrieval_ranks


class MatchingModel(Module, Protocol):
    """What is asked of a model with a matching head (ALPRO)."""

    def read_texts(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
        """Read packed captions, int64 [tokens] and int32 [B+1] -> their tokens [tokens, D] and features of unit length
        [B, P]. max_seqlen: a bound on the longest caption."""
        ...

    def read_clips(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Read clips, uint8 [B, T, H, W, 3] -> their tokens [B, V, D] and features of unit length [B, P]."""
        ...

    def score_pairs(
        self,
        text_tokens: Tensor,
        clip_tokens: Tensor,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int,
        text_index: Tensor,
        clip_index: Tensor,
        odds: bool = True,
    ) -> Tensor:
        """Compute the log-odds that the texts and clips of pairs belong together, [Q]; odds False: that logit alone.

        text_tokens: [tokens, D] with cu_seqlens and max_seqlen, as `read_texts` gave them. clip_tokens: [M, V, D].
        text_index, clip_index: int64 [Q], the text and the clip of each pair.
        """
        ...


@dataclass(frozen=True)
class EncodedSet:
    """The texts and clips of a test set as a model encodes them, on the device of the run.

    text_tokens: [tokens of all texts, D] with cu_seqlens int32 [N+1] and max_seqlen. clip_tokens: [M, V, D].
    similarity: cosine of their features, float32 [N, M]. captions: one a text. ids: data-set index of each clip.
    video_of_text: int64 [N] on the CPU, the row of each text's clip.
    """

    text_tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    clip_tokens: Tensor
    similarity: Tensor
    captions: list[str]
    ids: list[int]
    video_of_text: Tensor


def encode_set(
    model: MatchingModel,
    loader: Iterable[Any],
    *,
    device: torch.device | str,
    progress: bool = True,
    captions: Captions = shown_captions,
) -> EncodedSet:
    """Encode every caption and clip of `loader` once. All stay in the device's memory: a clip takes V * D values.

    captions: which captions a clip has, see `fastvtp.evaluation.captions`.

    On several processes, whose loaders deal the batches out, all call this, and each then holds the whole set.

    Raises UserError where no clip could be decoded, and ValueError where several processes had the same.
    """

    def encoded(batch: Any) -> tuple[tuple[list[int], tuple[int, ...], list[tuple[str, ...]]], tuple[Tensor, ...]]:
        ids = batch.sample_ids.tolist()
        found = captions(batch, range(len(ids)))
        text, text_features = model.read_texts(*found.on(device))
        clip, clip_features = model.read_clips(batch.video.to(device, non_blocking=True))
        return (ids, found.lengths, found.by_clip), (text, clip, text_features.float(), clip_features.float())

    with inference(model):
        own = over_own_batches(loader, encoded, description="encoding", progress=progress)
    numbers = [number for number, _ in own]
    listed = in_order(numbers, processes.gather([named for _, (named, _) in own]))
    ids = [index for of_batch, _, _ in listed for index in of_batch]
    if not ids:
        raise UserError("no clip could be decoded: retrieval has nothing to score")
    if processes.size() > 1 and len({*ids}) < len(ids):
        raise ValueError("several processes encoded the same clip: deal the batches out, Batches(rank, world_size)")
    texts, clips, *features = (
        torch.cat(in_order(numbers, processes.gather_tensors([tensors[part] for _, (_, tensors) in own], device)))
        for part in range(4)
    )
    lengths = [length for _, of_batch, _ in listed for length in of_batch]
    said = [of_clip for _, _, of_batch in listed for of_clip in of_batch]
    with torch.autocast(texts.device.type, enabled=False):  # in bfloat16 they would tie
        similarity = features[0] @ features[1].T
    # all must score the same pairs, whatever their machines make of the last bit
    ((similarity,), *_) = processes.gather_tensors([similarity] if processes.is_first() else [], device)
    return EncodedSet(
        text_tokens=texts,
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=texts.device),
        max_seqlen=max(lengths),
        clip_tokens=clips,
        similarity=similarity,
        captions=[caption for of_clip in said for caption in of_clip],
        ids=ids,
        video_of_text=torch.tensor([row for row, of_clip in enumerate(said) for _ in of_clip]),
    )


def match_scores(
    model: MatchingModel,
    encoded: EncodedSet,
    *,
    top_k: int | None = None,
    add_similarity: bool = False,
    pairs_per_call: int = 256,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Score pairs of texts and clips by the matching head's log-odds: float32 [N, M] for text-to-video, and the same
    for video-to-text; float64 where `top_k` leaves pairs out, so that none of these tie that did not before.

    top_k: score only the `top_k` clips of each text, and texts of each clip, that the contrast ranks first (LAVIS), and
        those as similar as the last of them; the others keep their order after them. None, or at least as many as
        there are: all pairs, as ALPRO does, once for both directions. Log-odds order pairs as the released
        probabilities do, without the ties of their rounding.
    add_similarity: score pairs by the head's logit for a match plus the cosine of their features (LAVIS), in place of
        the log-odds; pairs that are not scored keep their order all the same.
    pairs_per_call: pairs of one packed call.

    The processes of a group share the calls and get all scores, those of one process; all of them must call this, with
    the same `encoded`.
    """
    similarity = encoded.similarity
    texts, clips = similarity.shape
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or none for all pairs, got {top_k}")
    count = max(texts, clips) if top_k is None else top_k
    for_texts, for_clips = _first(similarity, min(count, clips)), _first(similarity.T, min(count, texts)).T
    scores = _score(model, encoded, for_texts | for_clips, pairs_per_call, progress, odds=not add_similarity)
    if add_similarity:
        scores = scores + similarity
    if count >= max(texts, clips):
        return scores, scores
    return _behind(scores, similarity, for_texts), _behind(scores, similarity, for_clips)


def matching_ranks(
    text_to_video: Tensor,
    video_to_text: Tensor,
    *,
    video_of_text: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> RetrievalRanks:
    """Rank the right answers, in each direction by its own scores [N, M]; what is right as in `retrieval_metrics`."""
    to_video, to_text = (
        retrieval_ranks(scores, video_of_text=video_of_text, captions=captions)
        for scores in (text_to_video, video_to_text)
    )
    return RetrievalRanks(to_video.t2v, to_text.v2t)


def matching_metrics(
    text_to_video: Tensor,
    video_to_text: Tensor,
    *,
    video_of_text: Tensor | None = None,
    captions: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Give `retrieval_metrics` of each direction by its own scores [N, M]; what is right as there."""
    to_video, to_text = (
        retrieval_metrics(scores, video_of_text=video_of_text, captions=captions)
        for scores in (text_to_video, video_to_text)
    )
    return {"t2v": to_video["t2v"], "v2t": to_text["v2t"]}


def _first(similarity: Tensor, count: int) -> Tensor:
    """Return True at the `count` largest of each row, and at what equals the last of them: which of these came first
    would be by their order in the list."""
    last = similarity.topk(count, dim=1).values[:, -1:]
    return ~(similarity < last)  # a NaN is among them, for the ranks to refuse it


def _behind(scores: Tensor, similarity: Tensor, scored: Tensor) -> Tensor:
    """Return `scores` where `scored`, and beneath all of them the similarities, in their order, float64: in float32
    those that differ by less than a score's last digit would tie."""
    scores, similarity = scores.double(), similarity.double()
    return torch.where(scored, scores, scores[scored].min() - 1 - (1 - similarity))


def _score(
    model: MatchingModel, encoded: EncodedSet, wanted: Tensor, pairs_per_call: int, progress: bool, *, odds: bool
) -> Tensor:
    # clip after clip, so that a call holds few of them
    clip_index, text_index = wanted.T.nonzero(as_tuple=True)
    calls = list(zip(text_index.split(pairs_per_call), clip_index.split(pairs_per_call), strict=True))

    def scored(call: tuple[Tensor, Tensor]) -> Tensor:
        texts, clips = call
        found = model.score_pairs(
            encoded.text_tokens,
            encoded.clip_tokens,
            cu_seqlens=encoded.cu_seqlens,
            max_seqlen=encoded.max_seqlen,
            text_index=texts,
            clip_index=clips,
            odds=odds,
        )
        return portable(found.float())

    scores = torch.zeros_like(encoded.similarity)
    own = sum(len(texts) for texts, _ in processes.share(calls))
    bar = progress_bar(own, description="matching", unit="pair", progress=progress)
    with inference(model), bar:
        found = over_shares(calls, scored, done=lambda call: bar.update(len(call[0])))
    for (texts, clips), of_call in zip(calls, found, strict=True):
        scores[texts, clips] = of_call.to(scores.device)
    return scores
