"""Recall and ranks where scores tie and captions are shared, against all orders of the tied written out one by one."""

import itertools
import statistics

import pytest
import torch
from torch import Tensor

from fastvtp.evaluation.retrieval import (
    chance_recall,
    retrieval_metrics,
    retrieval_ranks,
    right_pairs,
    shuffled_control,
)

KS = (1, 5, 10)


def every_order(scores: list[float]) -> list[list[int]]:
    """All orders of the candidates, the larger scores first and equal ones in each order that they can have."""
    levels = sorted(set(scores), reverse=True)
    groups = [[i for i, score in enumerate(scores) if score == level] for level in levels]
    choices = itertools.product(*(itertools.permutations(group) for group in groups))
    return [[i for group in choice for i in group] for choice in choices]


def expected(similarity: Tensor, right: list[set[int]]) -> dict[str, float]:
    """Metrics of rows that ask, as means over every order; `right` of each row."""
    ranks = [
        [1 + min(order.index(answer) for answer in answers) for order in every_order(row)]
        for row, answers in zip(similarity.tolist(), right, strict=True)
        if answers
    ]
    means = [statistics.fmean(of_row) for of_row in ranks]
    recalls = {
        f"R{k}": 100 * statistics.fmean(statistics.fmean(rank <= k for rank in of_row) for of_row in ranks) for k in KS
    }
    return {**recalls, "MdR": statistics.median(means), "MnR": statistics.fmean(means)}


def sides(owners: list[int], videos: int, captions: list[str] | None) -> tuple[list[set[int]], list[set[int]]]:
    """The right videos of each text and the right texts of each video."""
    said = captions or [str(i) for i in range(len(owners))]
    texts = [{owners[j] for j in range(len(owners)) if said[j] == said[i]} for i in range(len(owners))]
    return texts, [{i for i, own in enumerate(texts) if video in own} for video in range(videos)]


@pytest.mark.parametrize("captions", [None, ["a", "b", "a", "c", "b", "b", "d"]])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_order_of_the_tied_counts_alike(levels, captions):
    owners, videos = [0, 1, 2, 3, 1, 3, 0], 5  # nobody describes the last
    similarity = torch.randint(levels, (7, videos), generator=torch.Generator().manual_seed(levels)).float() / 4
    found = retrieval_metrics(similarity, video_of_text=torch.tensor(owners), captions=captions)
    texts, clips = sides(owners, videos, captions)
    assert found["t2v"] == pytest.approx(expected(similarity, texts))
    assert found["v2t"] == pytest.approx(expected(similarity.T, clips))


def test_two_of_three_texts_tie_and_one_of_them_is_right():
    similarity = torch.tensor([[1.0, 0.2], [1.0, 1.0], [0.1, 0.9]])
    found = retrieval_metrics(similarity, video_of_text=torch.tensor([0, 1, 1]))
    assert found["v2t"] == {"R1": 75, "R5": 100, "R10": 100, "MdR": 1.25, "MnR": 1.25}


def test_several_right_answers_among_the_tied_count_by_the_hypergeometric_law():
    """Two better wrong texts, then nine equal ones, three of them right: of the places 3 to 5, and 3 to 10."""
    column = torch.tensor([0.9, 0.8, *[0.5] * 9, 0.1])[:, None]
    similarity = torch.cat([column, torch.zeros(12, 1)], 1)
    owners = torch.tensor([1, 1, 0, 0, 0, *[1] * 7])
    video = retrieval_ranks(similarity, video_of_text=owners).v2t[0]
    assert video == 1 + 2 + 6 / 4
    found = retrieval_metrics(similarity[:, :1].expand(-1, 2) * torch.tensor([1.0, 0.0]), video_of_text=owners)["v2t"]
    # the other video's texts are all equal: 9 of 12 are right
    within_5, within_10 = 1 - (6 * 5 * 4) / (9 * 8 * 7), 1.0
    other = 9 / 12, 1.0
    assert found["R1"] == pytest.approx(50 * (0 + other[0]))
    assert found["R5"] == pytest.approx(50 * (within_5 + other[1]))
    assert found["R10"] == pytest.approx(50 * (within_10 + other[1]))


@pytest.mark.parametrize("num", [2, 7, 31])
def test_scores_that_are_all_equal_come_to_chance(num):
    for metrics in retrieval_metrics(torch.zeros(num, num)).values():
        assert [metrics[f"R{k}"] for k in KS] == pytest.approx([chance_recall(num, k) for k in KS])
        assert metrics["MdR"] == metrics["MnR"] == (num + 1) / 2


def by_argsort(similarity: Tensor, owners: Tensor) -> dict[str, dict[str, float]]:
    """As CLIP4Clip and LAVIS count: places of the right video, and of each video's best text, in a descending sort."""
    order = similarity.argsort(dim=1, descending=True)
    t2v = (order == owners[:, None]).nonzero()[:, 1]
    order = similarity.T.argsort(dim=1, descending=True)
    videos = owners.unique()
    v2t = torch.stack([(owners[order[video]] == video).nonzero()[0, 0] for video in videos])
    return {
        way: {f"R{k}": 100 * (places < k).double().mean().item() for k in KS}
        | {"MdR": 1 + places.double().quantile(0.5).item(), "MnR": 1 + places.double().mean().item()}
        for way, places in (("t2v", t2v), ("v2t", v2t))
    }


@pytest.mark.parametrize(("texts", "videos"), [(61, 17), (200, 23), (37, 37)])
def test_without_a_tie_it_is_what_sorting_gives(texts, videos):
    generator = torch.Generator().manual_seed(texts)
    similarity = torch.randn(texts, videos, generator=generator, dtype=torch.float64)
    owners = torch.cat([torch.arange(videos), torch.randint(videos, (texts - videos,), generator=generator)])
    captions = [f"caption {i}" for i in range(texts)]
    for said in (None, captions):
        assert retrieval_metrics(similarity, video_of_text=owners, captions=said) == by_argsort(similarity, owners)


def test_captions_that_several_videos_share_are_each_right():
    """Each video's vector is that of its most frequent caption, which other videos have as well."""
    generator = torch.Generator().manual_seed(3)
    phrases = torch.nn.functional.normalize(torch.randn(11, 32, generator=generator, dtype=torch.float64), dim=1)
    of_text = torch.randint(11, (150,), generator=generator)
    owners = torch.arange(150) // 5
    favourite = torch.stack([of_text[owners == video].mode().values for video in range(30)])
    similarity = (phrases @ phrases.T)[of_text][:, favourite]
    captions = [f"  phrase\t{i} " if place % 2 else f"phrase {i}" for place, i in enumerate(of_text.tolist())]
    apart = retrieval_metrics(similarity, video_of_text=owners)["v2t"]["R1"]
    tied = similarity.T.amax(1, keepdim=True) == similarity.T
    own = owners[None] == torch.arange(30)[:, None]
    assert apart == pytest.approx(100 * ((tied & own).sum(1) / tied.sum(1)).double().mean().item())
    assert 1 < apart < 60
    together = retrieval_metrics(similarity, video_of_text=owners, captions=captions)
    assert together["v2t"]["R1"] == 100
    says = torch.stack([torch.bincount(of_text[owners == video], minlength=11) > 0 for video in range(30)])
    best = similarity == similarity.amax(1, keepdim=True)
    right = (best & says.T[of_text]).sum(1) / best.sum(1)
    assert together["t2v"]["R1"] == pytest.approx(100 * right.double().mean().item())


def test_pairs_are_of_a_text_and_of_every_video_that_has_it():
    texts, videos = right_pairs(torch.tensor([2, 0, 0, 1]), ["a man", "a  man", "a dog", " a dog "])
    assert sorted(zip(texts.tolist(), videos.tolist(), strict=True)) == [
        (0, 0),
        (0, 2),
        (1, 0),
        (1, 2),
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 1),
    ]
    assert [side.tolist() for side in right_pairs(torch.tensor([1, 0]))] == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="captions must be 2 texts, got 1"):
        retrieval_metrics(torch.zeros(2, 2), captions=["a"])


def test_probabilities_that_were_rounded_tie_and_share_their_credit():
    """ALPRO's release writes probabilities of half precision with four decimals: the sure ones are all 1."""
    generator = torch.Generator().manual_seed(5)
    odds = 9 * torch.eye(6) + 3 * torch.randn(6, 6, generator=generator)
    scores = (odds.sigmoid().half().float() * 1e4).round() / 1e4
    assert len(scores.unique()) < scores.numel()
    own = [{i} for i in range(6)]
    for precision in (scores, scores.half(), scores.bfloat16()):
        found = retrieval_metrics(precision)
        assert found["t2v"] == pytest.approx(expected(precision.double(), own))
        assert found["v2t"] == pytest.approx(expected(precision.double().T, own))


def test_the_control_shuffles_captions_with_their_texts():
    owners = torch.arange(40) // 2
    captions = [f"{i % 10}" for i in range(40)]
    similarity = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    rights = len(right_pairs(owners, captions)[0])
    controls = [
        shuffled_control(similarity, seed, video_of_text=owners, captions=captions)["t2v"]["R1"] for seed in range(200)
    ]
    assert statistics.fmean(controls) == pytest.approx(100 * rights / (40 * 20), abs=2)
