"""Encoded sets and matching scores of two processes (gloo, CPU) against those of one: equal to the last bit."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastvtp import processes
from fastvtp.evaluation.matching import encode_set, match_scores
from tests.evaluation.stubs import dealt
from tests.evaluation.test_matching import make_loader, make_model
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
RANKS = 2
CASES: dict[str, dict[str, Any]] = {
    "every pair": {},
    "top 3": {"top_k": 3},
    "top 3 with the similarity": {"top_k": 3, "add_similarity": True},
}


def scored(rank: int) -> dict[str, Any]:
    """By case: both directions' scores, and how many pairs this process scored."""
    model, found = make_model(), {}
    encoded = encode_set(model, dealt(make_loader()), device="cpu", progress=False)
    found["encoded"] = vars(encoded)
    score, pairs = model.score_pairs, []

    def counting(*arguments, **options):
        pairs.append(len(options["clip_index"]))
        return score(*arguments, **options)

    model.score_pairs = counting
    for name, options in CASES.items():
        pairs.clear()
        found[name] = (*match_scores(model, encoded, pairs_per_call=5, progress=False, **options), sum(pairs))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(scored, tmp_path_factory.mktemp("ranks"), processes=RANKS, seconds=60)


@pytest.mark.parametrize("name", CASES)
def test_ranks_share_the_pairs_and_all_have_the_scores_of_one_process(name, ranks):
    *alone, pairs = scored(0)[name]
    for found in ranks:
        for value, expected in zip(found[name][:2], alone, strict=True):
            assert torch.equal(value, expected)
    counts = [found[name][2] for found in ranks]
    assert sum(counts) == pairs
    assert min(counts) >= pairs // 3


def test_every_rank_holds_the_set_that_one_process_encodes(ranks):
    expected = scored(0)["encoded"]
    for found in ranks:
        for name, value in expected.items():
            same = torch.equal(found["encoded"][name], value) if isinstance(value, torch.Tensor) else None
            assert found["encoded"][name] == value if same is None else same, name


def not_dealt(rank: int) -> list[str]:
    """What a loader is told that gives every process all clips, and one that does not number its batches."""
    model, said = make_model(), []
    with processes.alone():
        every = list(dealt(make_loader()))
    for loader in (every, make_loader()):
        try:
            encode_set(model, loader, device="cpu", progress=False)
        except ValueError as error:
            said.append(str(error))
    return said


def test_batches_that_are_not_dealt_out_are_refused(tmp_path):
    for said in run_ranks(not_dealt, tmp_path, processes=RANKS, seconds=60):
        assert "several processes encoded the same clip: deal the batches out" in said[0]
        assert "batches of several processes must say their step" in said[1]
