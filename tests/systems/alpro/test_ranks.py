"""ALPRO's contrast on two processes (gloo, CPU) against one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from fastvtp.modules.rest_of_step import ALONE, AcrossProcesses, RestOfStep
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.towers import AlproTowers
from tests.evaluation.test_matching import CONFIG
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
RANKS, ROWS = 2, 3
IDS = torch.tensor([4, 1, 2, 1, 7, 4])  # two clips are on both ranks
MODELS = {"Alpro": Alpro, "AlproTowers": AlproTowers}


def contrast(name: str, rows: slice, rest: RestOfStep = ALONE) -> dict[str, Tensor]:
    """The loss of these rows of the batch, and gradients of both features and of the temperature."""
    model = MODELS[name](CONFIG)
    model.init_weights()
    generator = torch.Generator().manual_seed(3)
    text, video = (normalize(torch.randn(RANKS * ROWS, 16, generator=generator), dim=1)[rows] for _ in range(2))
    text.requires_grad_()
    video.requires_grad_()
    loss = model.contrast(text, video, IDS[rows], rest)
    loss.backward()
    found = {"loss": loss.detach(), "text": text.grad, "video": video.grad, "temperature": model.temperature.grad}
    return {name: value for name, value in found.items() if value is not None}


def on_a_rank(rank: int) -> dict[tuple[str, bool], dict[str, Tensor]]:
    rows = slice(rank * ROWS, (rank + 1) * ROWS)
    group = dist.group.WORLD
    assert group is not None
    return {
        (name, of_all): contrast(name, rows, AcrossProcesses(group, contrast=of_all))
        for name in MODELS
        for of_all in (True, False)
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[tuple[str, bool], dict[str, Tensor]]]:
    return run_ranks(on_a_rank, tmp_path_factory.mktemp("ranks"), processes=RANKS, seconds=60)


@pytest.mark.parametrize("name", MODELS)
def test_gathered_negatives_make_the_joined_batch(name, ranks):
    """Data-parallel training averages over the ranks: features receive the sum of what they are averaged to."""
    whole = contrast(name, slice(None))
    for rank, found in enumerate(ranks):
        rows = slice(rank * ROWS, (rank + 1) * ROWS)
        for key, value in found[name, True].items():
            expected = RANKS * whole[key][rows] if key in ("text", "video") else whole[key]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", MODELS)
def test_without_gathering_a_rank_is_alone(name, ranks):
    for rank, found in enumerate(ranks):
        alone = contrast(name, slice(rank * ROWS, (rank + 1) * ROWS))
        for key, value in found[name, False].items():
            torch.testing.assert_close(value, alone[key], rtol=1e-6, atol=1e-7)
        assert (found[name, True]["loss"] - alone["loss"]).abs() > 1e-3


def test_equal_clips_of_both_ranks_are_no_negatives_of_each_other(monkeypatch):
    """What the joined batch is compared with knows them: other ids give another loss."""
    found = contrast("AlproTowers", slice(None))["loss"]
    monkeypatch.setitem(globals(), "IDS", torch.arange(RANKS * ROWS))
    assert (contrast("AlproTowers", slice(None))["loss"] - found).abs() > 0.01
