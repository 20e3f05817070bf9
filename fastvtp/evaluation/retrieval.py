"""Text-to-video and video-to-text retrieval: embeddings, ranks that know about ties, and a control that must fail.

Shape legend: N = texts, M = videos, Q = queries, C = candidates, E = pairs of a query and a right candidate, D = width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastvtp.errors import UserError
from fastvtp.evaluation.captions import Captions, PackedCaptions, shown_captions
from fastvtp.evaluation.dealing import over_batches, over_shares, portable
from fastvtp.evaluation.inference import Module, inference
from fastvtp.evaluation.views import ViewMean

RECALL_AT = (1, 5, 10)
BLOCK_VALUES = 1 << 20  # similarities compared at a time: a few MiB, which stay in cache
UNIT_NORM_TOLERANCE = 0.02  # bf16 embeddings miss a norm of 1 by up to 0.4 %


class RetrievalModel(Module, Protocol):
    """What `encode_retrieval` asks of a model, an `nn.Module`. Vectors are floats [B, D]: as they come from `embed_*`,
    scaled to unit length from `encode_*`."""

    averages_unit_views: bool
    """Whether the views of a clip have unit length before they are averaged (VideoPrism, ALPRO), or only their mean
    (SimVTP)."""

    def embed_video(self, video: Tensor) -> Tensor:
        """Compute one vector for each clip, not scaled: uint8 [B, T, H, W, C] -> [B, D]."""
        ...

    def encode_video(self, video: Tensor) -> Tensor:
        """Compute `embed_video` at unit length."""
        ...

    def encode_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute one vector of unit length for each text: int64 [tokens of all texts], int32 [B+1] -> [B, D].
        max_seqlen: a bound on the longest text."""
        ...


@dataclass(frozen=True)
class RetrievalEmbeddings:
    """The embeddings of a whole test set in the loader's order.

    text, video: float32 [N, D] and [M, D] on the device of the run, unit length. captions: one a text. ids: data-set
    index of each video. video_of_text: int64 [N] on the CPU, the row of each text's video.
    """

    text: Tensor
    video: Tensor
    captions: list[str]
    ids: list[int]
    video_of_text: Tensor

    def similarity(self) -> Tensor:
        """Return the cosines of all pairs, float32 [N texts, M videos], also under autocast, where they would tie."""
        with torch.autocast(self.text.device.type, enabled=False):
            return self.text @ self.video.T


class RetrievalRanks(NamedTuple):
    """The expected rank of each query's right answer, from 1, float64.

    t2v: [N], one a text. v2t: [M], one a video, NaN for a video without a caption.
    """

    t2v: Tensor
    v2t: Tensor


def encode_retrieval(
    model: RetrievalModel,
    loader: Iterable[Any],
    *,
    device: torch.device | str,
    progress: bool = True,
    captions: Captions = shown_captions,
) -> RetrievalEmbeddings:
    """Embed every clip and caption of `loader` in inference mode; each module's train/eval flag is restored afterwards.

    A batch has `video` uint8 [B, T, H, W, C], `input_ids` int64 [tokens], `cu_seqlens` int32 [B+1],
    `max_text_length` int, `captions` list[str] and `sample_ids` int64 [B]. Autocast, if wanted, is the caller's.

    Where `sample_ids` repeat, in whatever batches, they are views of one clip: its embedding is the mean over them,
    scaled to unit length, of what `embed_video` gives, or `encode_video` where the model `averages_unit_views`; its
    captions are embedded once. On several processes, whose loaders deal the batches out, all call this and get the
    embeddings of all.

    captions: which captions a clip has, see `fastvtp.evaluation.captions`.

    Raises ValueError for an empty loader, shapes that do not fit and rows that are not of unit length (NaN included).
    """
    look = "encode_video" if model.averages_unit_views else "embed_video"
    seen, videos = set[int](), ViewMean()
    to_read: list[tuple[list[int], PackedCaptions, int]] = []  # clips, their captions, and the width of their vectors

    def looked(batch: Any) -> tuple[list[int], Tensor, list[int], PackedCaptions | None]:
        """Return the clips, their vectors, the places of those that are new to this process, and their captions."""
        ids = batch.sample_ids.tolist()
        video = getattr(model, look)(batch.video.to(device, non_blocking=True)).float()
        if video.ndim != 2 or len(video) != len(ids):
            raise ValueError(f"{look} must give [{len(ids)}, D], got {list(video.shape)}")
        new_here = [place for place, index in enumerate(ids) if index not in seen and ids.index(index) == place]
        seen.update(ids)
        return ids, portable(video), new_here, captions(batch, new_here) if new_here else None

    def read(part: tuple[list[int], PackedCaptions, int]) -> Tensor:
        _, found, width = part
        text = model.encode_text(*found.on(device))
        if list(text.shape) != [len(found.lengths), width]:
            raise ValueError(f"encode_text must give {[len(found.lengths), width]}, got {list(text.shape)}")
        return portable(text.float())

    with inference(model):
        for ids, video, new_here, found in over_batches(loader, looked, description="encoding", progress=progress):
            new = videos.add(ids, video.to(device))
            if new and found is not None:  # new to all processes: texts are packed as on one
                kept = found if new == new_here else found.only([new_here.index(place) for place in new])
                to_read.append(([ids[place] for place in new], kept, video.shape[1]))
        texts, said = dict[int, Tensor](), dict[int, tuple[str, ...]]()
        for (ids, found, _), text in zip(to_read, over_shares(to_read, read), strict=True):
            parts = text.to(device).split([len(of_clip) for of_clip in found.by_clip])
            for index, part, of_clip in zip(ids, parts, found.by_clip, strict=True):
                texts[index], said[index] = part, of_clip
    means = videos.means()
    if not means:
        raise UserError("no clip could be decoded: retrieval has nothing to score")
    # Outside inference mode, so that the results are ordinary tensors which a probe may still train on.
    text = torch.cat([texts[index] for index in means])
    video = normalize(torch.stack(list(means.values())), dim=1)
    for name, embedding in (("encode_text", text), (f"normalised, {look}", video)):
        norms = embedding.norm(dim=1)
        if not (norms - 1).abs().le(UNIT_NORM_TOLERANCE).all():
            raise UserError(f"{name} must give rows of unit length, got norms {norms.min():.3g} to {norms.max():.3g}")
    by_clip = [said[index] for index in means]
    return RetrievalEmbeddings(
        text=text,
        video=video,
        captions=[caption for of_clip in by_clip for caption in of_clip],
        ids=list(means),
        video_of_text=torch.tensor([row for row, of_clip in enumerate(by_clip) for _ in of_clip]),
    )


class _Places(NamedTuple):
    """Where the best right candidates of each query stand: int64 [Q] each.

    before: candidates of a larger score. right, wrong: those of the same score as the best right one; no right one:
    the query asks nothing.
    """

    before: Tensor
    right: Tensor
    wrong: Tensor

    def expected_ranks(self) -> Tensor:
        """Compute the mean place of the first right candidate over all orders of the tied, float64 [Q], or NaN."""
        ranks = 1 + self.before + self.wrong.double() / (1 + self.right)
        return ranks.masked_fill(self.right == 0, torch.nan)

    def credits(self, k: int) -> Tensor:
        """Compute the share of the orders that have a right candidate within the first `k`, float64 [Q]."""
        missed = torch.ones(len(self.before), dtype=torch.float64, device=self.before.device)
        for place in range(k):
            taken = (place - self.before).clamp(min=0)  # of the tied, before this place
            share = (self.wrong - taken).clamp(min=0).double() / (self.right + self.wrong - taken).clamp(min=1)
            missed = torch.where(self.before <= place, missed * share, missed)
        return 1 - missed


def right_pairs(video_of_text: Tensor, captions: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """List the pairs of a text and a video that belong together: the texts and the videos, int64 [E] each, on the CPU.

    video_of_text: int64 [N]. captions: the N texts; a text belongs to every video that has one of the same words, equal
    but for white space (letters of another case are other words). None: to its own video alone.
    """
    owners = video_of_text.tolist()
    if captions is None:
        return torch.arange(len(owners)), video_of_text.cpu()
    said = [" ".join(caption.split()) for caption in captions]
    owners_of: dict[str, set[int]] = {}
    for caption, video in zip(said, owners, strict=True):
        owners_of.setdefault(caption, set()).add(video)
    counts = torch.tensor([len(owners_of[caption]) for caption in said])
    videos = [video for caption in said for video in sorted(owners_of[caption])]
    return torch.arange(len(said)).repeat_interleave(counts), torch.tensor(videos)


def retrieval_ranks(
    similarity: Tensor,
    *,
    video_of_text: Tensor | None = None,
    captions: Sequence[str] | None = None,
    dual_softmax: bool = False,
    dual_softmax_temperature: float = 0.01,
) -> RetrievalRanks:
    """Rank the right answer of every query; arguments and errors as in `retrieval_metrics`."""
    temperature = _checked_temperature(dual_softmax, dual_softmax_temperature)
    places = _places_both_ways(similarity, video_of_text, captions, temperature)
    return RetrievalRanks(*(way.expected_ranks() for way in places))


def retrieval_metrics(
    similarity: Tensor,
    *,
    video_of_text: Tensor | None = None,
    captions: Sequence[str] | None = None,
    dual_softmax: bool = False,
    dual_softmax_temperature: float = 0.01,
) -> dict[str, dict[str, float]]:
    """Compute recall at 1, 5 and 10 (percent of the queries) and the median and mean rank, in both directions.

    similarity: any float dtype, [N texts, M videos], larger is closer.
    video_of_text: int64 [N], the column of each text's video; None (square matrix) = text i describes video i. With
        several captions a video, every caption is a t2v query of its own and the v2t rank is that of the video's best
        caption. A video without a caption is a distractor for t2v and no query of v2t.
    captions: the N texts. One that several videos have, see `right_pairs`, is right with each of them, both ways. None:
        with its own video alone, as published codes count; MSVD's "a man is playing a guitar" is then wrong for most
        of the videos that show it.
    dual_softmax: rank by s_qc * softmax_q(s_qc / temperature): the candidate's distribution over all *queries* is its
        prior, so that a video close to every text is held back (CAMoE, arXiv:2109.04290; used at inference by
        InternVideo). It sees the whole set of queries: never compare such a figure with a plain one. On cosines the
        default 0.01 equals the published formula on CLIP's logits (scale 100, temperature 1). The product is made for
        right pairs of positive similarity: where s < 0 a small prior lifts the score.

    Ties: every value is that expected under a random order of equal scores. Be G candidates better than the best right
    one, and r right and w wrong ones equal to it. R@k counts a query by the probability that one of the r is within
    the first k, 1 - C(w, m) / C(w + r, m) with m = k - G of the tied places (nothing where m < 1). MnR is the mean, and
    MdR the median, of the expected ranks 1 + G + w / (1 + r), which may be fractions. So scores that are all equal come
    to chance, and without ties all is as by sorting.

    Returns {"t2v": {"R1", "R5", "R10", "MdR", "MnR"}, "v2t": {the same}}, Python floats.
    Raises ValueError for a similarity that is not finite and for shapes and indices that do not fit.
    """
    temperature = _checked_temperature(dual_softmax, dual_softmax_temperature)
    t2v, v2t = _places_both_ways(similarity, video_of_text, captions, temperature)
    return {"t2v": _summary(t2v), "v2t": _summary(v2t)}


def shuffled_control(
    similarity: Tensor, seed: int, *, video_of_text: Tensor | None = None, captions: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Compute `retrieval_metrics` after a random permutation of the texts: anything but chance is a fault of the
    evaluation.

    The permutation is uniform over all, fixed points included: then every rank is equally likely whatever the
    similarity, and the expectation is chance exactly. A derangement would give a perfect model R1 = 0, below chance.
    """
    if video_of_text is None:
        video_of_text = torch.arange(similarity.shape[0])
    permutation = torch.randperm(len(video_of_text), generator=torch.Generator().manual_seed(seed))
    said = None if captions is None else [captions[int(place)] for place in permutation]
    return retrieval_metrics(similarity, video_of_text=video_of_text.cpu()[permutation], captions=said)


def chance_recall(num_candidates: int, k: int) -> float:
    """Compute R@k of a random order with one right candidate among `num_candidates`, in percent."""
    if num_candidates < 1 or k < 1:
        raise ValueError(f"num_candidates and k must be positive, got {num_candidates} and {k}")
    return 100.0 * min(k, num_candidates) / num_candidates


def _checked_temperature(dual_softmax: bool, temperature: float) -> float | None:
    if temperature <= 0:
        raise ValueError(f"dual_softmax_temperature must be positive, got {temperature}")
    return temperature if dual_softmax else None


def _places_both_ways(
    similarity: Tensor, video_of_text: Tensor | None, captions: Sequence[str] | None, temperature: float | None
) -> tuple[_Places, _Places]:
    """Return the places of the right videos of each text, and of the right texts of each video. Arguments and errors as
    in `retrieval_metrics`; temperature: of the dual softmax, or None."""
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise ValueError(f"similarity must be [num_texts, num_videos], got {list(similarity.shape)}")
    num_texts, num_videos = similarity.shape
    low, high = similarity.aminmax()  # NaN if there is one
    if not (low.isfinite() and high.isfinite()):
        raise ValueError("similarity must be finite, got NaN or infinity: look for a NaN in the embeddings")
    if video_of_text is None:
        if num_texts != num_videos:
            raise ValueError(f"similarity {list(similarity.shape)} is not square: say which video each text describes")
        video_of_text = torch.arange(num_texts)
    if video_of_text.shape != (num_texts,) or video_of_text.dtype != torch.int64:
        raise ValueError(
            f"video_of_text must be int64 [{num_texts}], got {video_of_text.dtype} {list(video_of_text.shape)}"
        )
    if video_of_text.min() < 0 or video_of_text.max() >= num_videos:
        raise ValueError(
            f"video_of_text must name columns 0 to {num_videos - 1}, got {video_of_text.min()} to {video_of_text.max()}"
        )
    if captions is not None and (isinstance(captions, str) or len(captions) != num_texts):
        raise ValueError(f"captions must be {num_texts} texts, got {len(captions)}")
    text_E, video_E = (side.to(similarity.device) for side in right_pairs(video_of_text, captions))
    return (
        _places(similarity, text_E, video_E, temperature),
        _places(similarity.T, video_E, text_E, temperature),
    )


def _places(similarity_QC: Tensor, query_E: Tensor, candidate_E: Tensor, temperature: float | None) -> _Places:
    """Return where each query's best right candidates stand, of the right pairs E."""
    num_queries, num_candidates = similarity_QC.shape
    rows = max(1, BLOCK_VALUES // num_candidates)
    log_normalizer_C = None if temperature is None else _log_normalizer(similarity_QC, temperature, rows)
    places = []
    for start in range(0, num_queries, rows):
        block = similarity_QC[start : start + rows]
        if temperature is not None and log_normalizer_C is not None:
            # float64: at a temperature of 0.01 the priors of far pairs underflow in float32 and would tie at zero.
            block = block.double()
            block = block * torch.exp(block / temperature - log_normalizer_C)
        inside = (query_E >= start) & (query_E < start + len(block))
        query, candidate = query_E[inside] - start, candidate_E[inside]
        right = block[query, candidate]
        best_Q = block.new_full((len(block),), -torch.inf).scatter_reduce_(0, query, right, "amax")
        tied_right_Q = torch.zeros(len(block), dtype=torch.int64, device=block.device)
        tied_right_Q.index_add_(0, query, (right == best_Q[query]).long())
        before_Q = torch.count_nonzero(block > best_Q[:, None], dim=1)
        places.append((before_Q, tied_right_Q, torch.count_nonzero(block == best_Q[:, None], dim=1) - tied_right_Q))
    return _Places(*(torch.cat(column) for column in zip(*places, strict=True)))


def _log_normalizer(similarity_QC: Tensor, temperature: float, rows: int) -> Tensor:
    """Compute the log of the sum over queries of exp(similarity / temperature), float64 [C]."""
    blocks = similarity_QC.split(rows)
    return torch.logsumexp(torch.stack([torch.logsumexp(block.double() / temperature, 0) for block in blocks]), 0)


def _summary(places: _Places) -> dict[str, float]:
    asked = places.right > 0
    ranks = places.expected_ranks()[asked]
    recalls = {f"R{k}": 100.0 * places.credits(k)[asked].mean().item() for k in RECALL_AT}
    return {**recalls, "MdR": ranks.quantile(0.5).item(), "MnR": ranks.mean().item()}
