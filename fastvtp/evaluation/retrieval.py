"""Text-to-video and video-to-text retrieval: embeddings, ranks that know about ties, and a control that must fail.

Shape legend: N = texts, M = videos, Q = queries, C = candidates, E = pairs of a query and a right candidate, D = width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from fastvtp.errors import UserError
from fastvtp.evaluation.captions import Captions, shown_captions
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
    captions are embedded once.

    captions: which captions a clip has, see `fastvtp.evaluation.captions`.

    Raises ValueError for an empty loader, shapes that do not fit and rows that are not of unit length (NaN included).
    """
    look = "encode_video" if model.averages_unit_views else "embed_video"
    videos, texts, said = ViewMean(), dict[int, Tensor](), dict[int, tuple[str, ...]]()
    with inference(model):
        for batch in tqdm(loader, desc="encoding", unit="batch", disable=not progress):
            ids = batch.sample_ids.tolist()
            video = getattr(model, look)(batch.video.to(device, non_blocking=True)).float()
            if video.ndim != 2 or len(video) != len(ids):
                raise ValueError(f"{look} must give [{len(ids)}, D], got {list(video.shape)}")
            new = videos.add(ids, video)
            if not new:
                continue
            found = captions(batch, new)
            text = model.encode_text(*found.on(device))
            expected = [len(found.lengths), video.shape[1]]
            if list(text.shape) != expected:
                raise ValueError(f"encode_text must give {expected}, got {list(text.shape)}")
            parts = text.float().split([len(of_clip) for of_clip in found.by_clip])
            for place, part, of_clip in zip(new, parts, found.by_clip, strict=True):
                texts[ids[place]], said[ids[place]] = part, of_clip
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


def retrieval_ranks(
    similarity: Tensor,
    *,
    video_of_text: Tensor | None = None,
    dual_softmax: bool = False,
    dual_softmax_temperature: float = 0.01,
) -> RetrievalRanks:
    """Rank the right answer of every query; arguments and errors as in `retrieval_metrics`."""
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
    if dual_softmax_temperature <= 0:
        raise ValueError(f"dual_softmax_temperature must be positive, got {dual_softmax_temperature}")
    video_E, text_E = video_of_text.to(similarity.device), torch.arange(num_texts, device=similarity.device)
    temperature = dual_softmax_temperature if dual_softmax else None
    return RetrievalRanks(
        t2v=_expected_ranks(similarity, text_E, video_E, temperature),
        v2t=_expected_ranks(similarity.T, video_E, text_E, temperature),
    )


def retrieval_metrics(
    similarity: Tensor,
    *,
    video_of_text: Tensor | None = None,
    dual_softmax: bool = False,
    dual_softmax_temperature: float = 0.01,
) -> dict[str, dict[str, float]]:
    """Compute recall at 1, 5 and 10 (percent of the queries) and the median and mean rank, in both directions.

    similarity: any float dtype, [N texts, M videos], larger is closer.
    video_of_text: int64 [N], the column of each text's video; None (square matrix) = text i describes video i. With
        several captions a video, every caption is a t2v query of its own and the v2t rank is that of the video's best
        caption. A video without a caption is a distractor for t2v and no query of v2t.
    dual_softmax: rank by s_qc * softmax_q(s_qc / temperature): the candidate's distribution over all *queries* is its
        prior, so that a video close to every text is held back (CAMoE, arXiv:2109.04290; used at inference by
        InternVideo). It sees the whole set of queries: never compare such a figure with a plain one. On cosines the
        default 0.01 equals the published formula on CLIP's logits (scale 100, temperature 1). The product is made for
        right pairs of positive similarity: where s < 0 a small prior lifts the score.

    Ties: rank = 1 + #greater + #equal wrong ones / (1 + #equal right ones), the expected rank under a random order of
    the tied (with one right candidate: half the others), so a constant similarity ranks in the middle instead of first.
    A rank may thus be a fraction; R@k counts rank <= k.

    Returns {"t2v": {"R1", "R5", "R10", "MdR", "MnR"}, "v2t": {the same}}, Python floats.
    Raises ValueError for a similarity that is not finite and for shapes and indices that do not fit.
    """
    ranks = retrieval_ranks(
        similarity,
        video_of_text=video_of_text,
        dual_softmax=dual_softmax,
        dual_softmax_temperature=dual_softmax_temperature,
    )
    return {direction: _summary(values) for direction, values in ranks._asdict().items()}


def shuffled_control(
    similarity: Tensor, seed: int, *, video_of_text: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """Compute `retrieval_metrics` after a random permutation of the texts: anything but chance is a fault of the
    evaluation.

    The permutation is uniform over all, fixed points included: then every rank is equally likely whatever the
    similarity, and the expectation is chance exactly. A derangement would give a perfect model R1 = 0, below chance.
    """
    if video_of_text is None:
        video_of_text = torch.arange(similarity.shape[0])
    permutation = torch.randperm(len(video_of_text), generator=torch.Generator().manual_seed(seed))
    return retrieval_metrics(similarity, video_of_text=video_of_text.cpu()[permutation])


def chance_recall(num_candidates: int, k: int) -> float:
    """Compute R@k of a random order with one right candidate among `num_candidates`, in percent."""
    if num_candidates < 1 or k < 1:
        raise ValueError(f"num_candidates and k must be positive, got {num_candidates} and {k}")
    return 100.0 * min(k, num_candidates) / num_candidates


def _expected_ranks(similarity_QC: Tensor, query_E: Tensor, candidate_E: Tensor, temperature: float | None) -> Tensor:
    """Return the expected rank of each query's best right candidate, float64 [Q]; NaN for a query without one."""
    num_queries, num_candidates = similarity_QC.shape
    rows = max(1, BLOCK_VALUES // num_candidates)
    log_normalizer_C = None if temperature is None else _log_normalizer(similarity_QC, temperature, rows)
    ranks = []
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
        tied_right_Q = torch.zeros(len(block), dtype=torch.float64, device=block.device)
        tied_right_Q.index_add_(0, query, (right == best_Q[query]).double())
        greater_Q = torch.count_nonzero(block > best_Q[:, None], dim=1)
        tied_wrong_Q = torch.count_nonzero(block == best_Q[:, None], dim=1) - tied_right_Q
        rank_Q = 1 + greater_Q + tied_wrong_Q / (1 + tied_right_Q)
        ranks.append(rank_Q.masked_fill(tied_right_Q == 0, torch.nan))
    return torch.cat(ranks)


def _log_normalizer(similarity_QC: Tensor, temperature: float, rows: int) -> Tensor:
    """Compute the log of the sum over queries of exp(similarity / temperature), float64 [C]."""
    blocks = similarity_QC.split(rows)
    return torch.logsumexp(torch.stack([torch.logsumexp(block.double() / temperature, 0) for block in blocks]), 0)


def _summary(ranks: Tensor) -> dict[str, float]:
    ranks = ranks[~ranks.isnan()]
    recalls = {f"R{k}": 100.0 * (ranks <= k).double().mean().item() for k in RECALL_AT}
    return {**recalls, "MdR": ranks.quantile(0.5).item(), "MnR": ranks.mean().item()}
