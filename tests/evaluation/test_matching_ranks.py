"""Matching scores of two processes (gloo, CPU) against those of one."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastvtp.evaluation.matching import encode_set, match_scores
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
    encoded = encode_set(model, make_loader(), device="cpu", progress=False)
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
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    counts = [found[name][2] for found in ranks]
    assert sum(counts) == pairs
    assert min(counts) >= pairs // 3
