"""Ranks against a brute-force simulation of ties and SimVTP's published metrics; the control must come to chance."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fastvtp.evaluation import retrieval
from fastvtp.evaluation.retrieval import (
    chance_recall,
    retrieval_metrics,
    retrieval_ranks,
    shuffled_control,
)

DATA = Path(__file__).parent / "data"


def simulated_ranks(scores: torch.Tensor, right: list[set[int]], draws: int, seed: int) -> torch.Tensor:
    """Mean place of each row's first right candidate when the tied are put in a random order `draws` times."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.zeros(len(right), dtype=torch.float64)
    for _ in range(draws):
        shuffle = torch.randperm(scores.shape[1], generator=generator)
        order = shuffle[scores[:, shuffle].argsort(dim=1, descending=True, stable=True)]
        for row, answers in enumerate(right):
            ranks[row] += 1 + min(order[row].tolist().index(answer) for answer in answers)
    return ranks / draws


def test_simvtp_parity():
    published = json.loads((DATA / "retrieval_simvtp.json").read_text())
    metrics = retrieval_metrics(load_file(DATA / "retrieval_simvtp.safetensors")["retrieval_sims"])
    for direction in ("t2v", "v2t"):
        theirs = published[direction]
        expected = [theirs[name] for name in ("R1", "R5", "R10", "MedR", "MeanR")]
        assert list(metrics[direction].values()) == pytest.approx(expected, abs=1e-9)
        assert list(metrics[direction]) == ["R1", "R5", "R10", "MdR", "MnR"]


def test_constant_similarity_is_no_perfect_score():
    for num in (2, 11, 64):
        for metrics in retrieval_metrics(torch.zeros(num, num)).values():
            assert metrics["R1"] == pytest.approx(100 / num)
            assert metrics["MdR"] == metrics["MnR"] == (num + 1) / 2


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), levels=st.integers(1, 4))
def test_tied_ranks_are_the_expected_rank_under_random_order(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(levels, (7, 4), generator=generator).float()
    video_of_text = torch.tensor([0, 1, 2, 3, 1, 1, 0])
    ranks = retrieval_ranks(similarity, video_of_text=video_of_text)
    draws = 1000
    t2v = simulated_ranks(similarity, [{int(video)} for video in video_of_text], draws, seed)
    captions = [{text for text in range(7) if video_of_text[text] == video} for video in range(4)]
    v2t = simulated_ranks(similarity.T, captions, draws, seed)
    # Five standard errors of a mean of ranks 1 to 7, whose deviation is at most 3.
    tolerance = 5 * 3 / draws**0.5
    assert (ranks.t2v - t2v).abs().max() < tolerance
    assert (ranks.v2t - v2t).abs().max() < tolerance


def test_several_captions_and_distractor_videos():
    #                      video 0    1    2 (nobody describes it)
    similarity = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.8], [0.5, 0.7, 0.6]])
    ranks = retrieval_ranks(similarity, video_of_text=torch.tensor([0, 1, 1]))
    assert ranks.t2v.tolist() == [1, 2, 1]
    assert ranks.v2t[:2].tolist() == [1, 1]  # video 1: its better caption counts
    assert ranks.v2t[2].isnan()
    metrics = retrieval_metrics(similarity, video_of_text=torch.tensor([0, 1, 1]))
    assert metrics["t2v"]["R1"] == pytest.approx(200 / 3)
    tied = retrieval_metrics(torch.zeros(2, 3), video_of_text=torch.tensor([0, 1]))
    assert tied["t2v"]["MnR"] == 2  # of three videos
    assert tied["v2t"]["MnR"] == 1.5  # of two texts, the distractor asking nothing


def test_median_of_an_even_number_of_ranks_is_their_midpoint():
    ranks_1_and_2 = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert retrieval_metrics(ranks_1_and_2)["t2v"]["MdR"] == 1.5


def test_result_does_not_depend_on_the_block_size(monkeypatch):
    similarity = torch.randint(20, (37, 37), generator=torch.Generator().manual_seed(0)) / 20
    options = [{"dual_softmax": False}, {"dual_softmax": True, "dual_softmax_temperature": 0.1}]
    whole = [retrieval_metrics(similarity, **option) for option in options]
    monkeypatch.setattr(retrieval, "BLOCK_VALUES", 100)
    for option, expected in zip(options, whole, strict=True):
        assert retrieval_metrics(similarity, **option) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_low_precision_equals_its_upcast(dtype):
    similarity = torch.randn(50, 50, generator=torch.Generator().manual_seed(1)).mul(0.2).to(dtype)
    for dual in (False, True):
        assert retrieval_metrics(similarity, dual_softmax=dual) == retrieval_metrics(
            similarity.double(), dual_softmax=dual
        )


def test_dual_softmax_formula():
    similarity = torch.randn(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64).abs() * 0.3
    for temperature in (0.01, 0.5):
        options = {"dual_softmax": True, "dual_softmax_temperature": temperature}
        t2v = retrieval_ranks(similarity * (similarity / temperature).softmax(dim=0)).t2v
        v2t = retrieval_ranks(similarity * (similarity / temperature).softmax(dim=1)).v2t
        ranks = retrieval_ranks(similarity, **options)
        assert torch.equal(ranks.t2v, t2v)
        assert torch.equal(ranks.v2t, v2t)


def test_dual_softmax_holds_back_a_hub():
    """Video 0 is close to every text and wins three queries; its prior is spread over all of them and so is small."""
    similarity = torch.eye(4) * 0.4 + 0.1
    similarity[:, 0] = torch.tensor([0.9, 0.6, 0.6, 0.6])
    assert retrieval_metrics(similarity)["t2v"]["R1"] == 25
    assert retrieval_metrics(similarity, dual_softmax=True, dual_softmax_temperature=0.05)["t2v"]["R1"] == 100


def test_dual_softmax_does_not_underflow_into_ties():
    """Text 0 prefers its video clearly, but every prior it meets is below float32's smallest number (exp(-140))."""
    similarity = torch.tensor([[0.2, 0.1, 0.0], [0.9, 0.9, 0.0], [0.9, 0.9, 0.9]])
    assert retrieval_ranks(similarity, dual_softmax=True, dual_softmax_temperature=0.005).t2v[0] == 1


def test_shuffled_control_comes_to_chance_for_a_perfect_and_a_random_model():
    num, seeds = 40, 200
    for similarity in (torch.eye(num), torch.randn(num, num, generator=torch.Generator().manual_seed(3))):
        controls = [shuffled_control(similarity, seed) for seed in range(seeds)]
        for direction in ("t2v", "v2t"):
            # torch.eye ties all wrong candidates, so only R1 and the mean rank say something there.
            r1 = sum(control[direction]["R1"] for control in controls) / seeds
            mean_rank = sum(control[direction]["MnR"] for control in controls) / seeds
            assert r1 == pytest.approx(chance_recall(num, 1), abs=5 * 100 / num / seeds**0.5)
            assert mean_rank == pytest.approx((num + 1) / 2, abs=1.0)
    assert shuffled_control(similarity, 7) == shuffled_control(similarity, 7)
    assert shuffled_control(similarity, 7) != shuffled_control(similarity, 8)


def test_shuffled_control_with_several_captions():
    video_of_text = torch.arange(60) // 3
    similarity = (video_of_text[:, None] == torch.arange(20)).float()
    controls = [shuffled_control(similarity, seed, video_of_text=video_of_text)["t2v"]["R1"] for seed in range(100)]
    assert sum(controls) / 100 == pytest.approx(chance_recall(20, 1), abs=1.5)


def test_chance_recall():
    assert [chance_recall(256, k) for k in (1, 10)] == [100 / 256, 1000 / 256]
    assert chance_recall(4, 10) == 100
    with pytest.raises(ValueError, match="positive"):
        chance_recall(0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity": torch.zeros(3)}, r"must be \[num_texts, num_videos\], got \[3\]"),
        ({"similarity": torch.zeros(0, 3)}, r"got \[0, 3\]"),
        ({"similarity": torch.zeros(2, 3)}, "is not square"),
        ({"similarity": torch.tensor([[1.0, torch.nan], [0.0, 1.0]])}, "must be finite"),
        ({"similarity": torch.tensor([[1.0, torch.inf], [0.0, 1.0]])}, "must be finite"),
        ({"similarity": torch.zeros(2, 2), "video_of_text": torch.tensor([0, 2])}, "columns 0 to 1, got 0 to 2"),
        ({"similarity": torch.zeros(2, 2), "video_of_text": torch.tensor([0])}, r"must be int64 \[2\]"),
        ({"similarity": torch.zeros(2, 2), "dual_softmax_temperature": 0.0}, "must be positive, got 0.0"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        retrieval_metrics(**arguments)
    assert "\n" not in str(error.value)
