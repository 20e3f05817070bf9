"""Triton's hard_negatives against the reference and both against the distribution they draw from."""

from itertools import pairwise

import pytest

pytest.importorskip("triton")
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastvtp_kernels import contrastive, hard_negatives, philox, tuning
from fastvtp_kernels.contrastive import chunked, kernels
from fastvtp_kernels.contrastive.ranks import GlobalBatch
from fastvtp_kernels.contrastive.reference import hard_negatives as naive
from fastvtp_kernels.contrastive.targets import strips
from tests.kernels import contrastive_cases
from tests.kernels.contrastive_cases import ids, pair
from tests.kernels.triton_cases import (
    DEVICE,
    DTYPES,
    SMALL_TILES,
    strided,
    tiles_of,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BACKENDS = ("triton", "reference")
# 99.99 % of a chi-square with 5 degrees of freedom.
CHI_SQUARE = 25.7


@pytest.fixture(autouse=True)
def _small_tiles():
    with contrastive_cases.small_tiles():
        yield


def draw(
    a: Tensor, b: Tensor, scale: float = 5.0, seed: int = 11, step: int = 2, groups: Tensor | None = None
) -> contrastive.HardNegatives:
    """What both backends and the naive formula choose, which is the same."""
    triton, reference = (
        hard_negatives(a, b, scale, seed=seed, step=step, groups=groups, backend=backend) for backend in BACKENDS
    )
    expected = naive(a.detach(), b.detach(), scale, (philox.signed(seed), step), None, groups)
    for of_triton, of_reference, right in zip(triton, reference, expected, strict=True):
        assert of_triton.dtype == of_reference.dtype == torch.int64
        assert torch.equal(of_triton, right)
        assert torch.equal(of_reference, right)
        assert not of_triton.requires_grad
    return triton


def assert_no_positives(chosen: contrastive.HardNegatives, groups: Tensor) -> None:
    """-1 exactly where all rows are of one group, elsewhere a row of another."""
    has_candidate = (groups[:, None] != groups).any(1)
    for rows in chosen:
        assert torch.equal(rows == -1, ~has_candidate)
        assert (groups[rows] != groups)[has_candidate].all()
        assert rows.max() < len(groups)


def groups_of(rows: int, kind: str, dtype: torch.dtype = torch.int64) -> Tensor | None:
    """`ids`, or ids of which each fills a tile ("tiles")."""
    return torch.arange(rows, device=DEVICE).to(dtype) // 16 if kind == "tiles" else ids(kind, rows, dtype)


@pytest.mark.parametrize(
    ("rows", "groups", "dtype"),
    [
        (1, "none", torch.float32),
        (2, "none", torch.float32),
        (5, "equal", torch.float32),
        (33, "none", torch.float32),
        (33, "repeated", torch.float32),
        (33, "tiles", torch.float32),
        (20, "repeated", torch.bfloat16),
        (20, "repeated", torch.float16),
    ],
)
def test_backends_choose_the_same(rows, groups, dtype):
    given_groups = groups_of(rows, groups)
    chosen = draw(*pair(rows, 40, dtype=dtype), groups=given_groups)
    assert_no_positives(chosen, torch.arange(rows, device=DEVICE) if given_groups is None else given_groups)


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("equal", 0.0), ("equal", 1e4), ("zero", 100.0), ("large", 1e4), ("aligned", 1e-3), ("unit", -100.0)],
)
def test_extreme_scales_and_features(kind, scale):
    chosen = draw(*pair(17, 24, kind=kind), scale)
    assert_no_positives(chosen, torch.arange(17, device=DEVICE))


@pytest.mark.parametrize(("scale", "distance"), [(100.0, 17), (1e4, 32)])
def test_all_the_weight_in_one_far_tile(scale, distance):
    """Row i resembles only row i + distance: beside its weight all others vanish, whole tiles of them."""
    b = torch.eye(33, 40, device=DEVICE)
    a = b.roll(-distance, 0)
    place = torch.arange(33, device=DEVICE)
    chosen = draw(a, b, scale)
    assert torch.equal(chosen.b_for_a, (place + distance) % 33)
    assert torch.equal(chosen.a_for_b, (place - distance) % 33)


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (2**63, 0), (2**64 - 1, 2**32 - 1), (2**63 + 12345, 2**31)])
def test_seeds_and_steps_of_all_their_bits(seed, step):
    draw(*pair(5, 24), scale=1.0, seed=seed, step=step)


def test_every_seed_and_step_draws_anew():
    a, b = (x.detach() for x in pair(40, 24))
    keys = [(0, 0), (1, 0), (2**32, 0), (2**63, 0), (0, 1), (0, 2**31)]
    drawn = [hard_negatives(a, b, 1.0, seed=seed, step=step) for seed, step in keys]
    for one, other in pairwise(drawn):
        assert not torch.equal(one.b_for_a, other.b_for_a)
        assert not torch.equal(one.a_for_b, other.a_for_b)
        assert not torch.equal(one.b_for_a, one.a_for_b)


def test_groups_are_compared_in_all_their_bits():
    """Ids whose lower halves are equal, and 32-bit ones."""
    expected = draw(*pair(8, 24))
    for groups in (torch.arange(8, device=DEVICE) * 2**32 - 2**40, torch.arange(8, dtype=torch.int32, device=DEVICE)):
        for one, other in zip(draw(*pair(8, 24), groups=groups), expected, strict=True):
            assert torch.equal(one, other)


def test_any_strides_will_do():
    a, b = pair(8, 24)
    for one, other in zip(draw(strided(a), strided(b)), draw(a, b), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=15, deadline=None)
@given(
    groups=st.lists(st.integers(-1, 2), min_size=1, max_size=6),
    seed=st.integers(0, 2**64 - 1),
    scale=st.sampled_from([0.0, 5.0, 1e4]),
    dtype=st.sampled_from(DTYPES),
)
def test_never_of_the_own_group(groups, seed, scale, dtype):
    groups = torch.tensor(groups, device=DEVICE)
    with contrastive_cases.small_tiles():
        chosen = draw(*pair(len(groups), 5, dtype=dtype, seed=seed % 1000), scale, seed, groups=groups)
    assert_no_positives(chosen, groups)


TILES = tiles_of("contrastive_statistics", "contrastive_sample")


@pytest.mark.parametrize(("kernel", "dtype", "tile"), TILES.values(), ids=TILES)
def test_every_tile(kernel, dtype, tile):
    with tuning.override(kernel, tile):
        draw(*pair(9, 70, dtype=dtype))


def test_many_tiles_of_unequal_sides():
    """Row and column tiles of different sizes: each direction samples from its own."""
    tile = SMALL_TILES["contrastive_statistics"]
    for blocks in ({"BLOCK_M": 32}, {"BLOCK_N": 32}):
        with tuning.override("contrastive_statistics", type(tile)({**tile.blocks, **blocks})):
            draw(*pair(20, 24), groups=groups_of(20, "tiles"))


def test_many_strips_of_the_reference(monkeypatch):
    a, b = pair(37, 24)
    expected = hard_negatives(a, b, 5.0, seed=1, backend="reference")
    monkeypatch.setattr(chunked, "_STRIP_LOGITS", 4 * 37 * 5)
    assert chunked.strip_rows(4 * 37) == 5
    for one, other in zip(hard_negatives(a, b, 5.0, seed=1, backend="reference"), expected, strict=True):
        assert torch.equal(one, other)


def whole_and_parts(
    backend: str, rows: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What is drawn of a batch at once, and by each of so many ranks for its rows.

    The last bit of a logit decides: they are products of nearly equal rows, times a million.
    """
    a, b = (torch.nn.functional.normalize(1 + 0.01 * x.detach(), dim=1) for x in pair(rows, 64))
    whole = hard_negatives(a, b, 1e6, seed=5, step=1, backend=backend)
    parts = []
    for own in strips(rows, rows // ranks):

        def gathered(a, b, seed, step, groups, group, own=own):
            return GlobalBatch(a, b, groups, own)

        monkeypatch.setattr(chunked if backend == "reference" else kernels, "gather_batch", gathered)
        parts.append(hard_negatives(a, b, 1e6, seed=5, step=1, backend=backend))
    assert all(len(x.unique()) > rows // 4 for x in whole)
    return tuple(whole), tuple(torch.cat(x) for x in zip(*parts, strict=True))


def test_tiles_of_a_rank_have_the_bits_of_the_whole_batch(monkeypatch):
    tile = SMALL_TILES["contrastive_statistics"]
    with tuning.override("contrastive_statistics", type(tile)({**tile.blocks, "BLOCK_M": 32})):
        whole, parts = whole_and_parts("triton", 36, 3, monkeypatch)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("height", [7, 120])
def test_strips_of_a_rank_have_the_bits_of_the_whole_batch(height, monkeypatch):
    """Of 60 ranks; each of the two ends of a strip lies in another's rows."""
    monkeypatch.setattr(chunked, "_STRIP_LOGITS", 4 * 120 * height)
    whole, parts = whole_and_parts("reference", 120, 60, monkeypatch)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


def crowded(crowd: int) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, groups): `crowd` equal rows of group 0 and, spread over the tiles of 16 rows, six of other groups."""
    rows = torch.zeros(crowd + 6, dtype=torch.int64)
    rows[torch.linspace(3, crowd + 2, 6).long()] = torch.arange(1, 7)
    a, b = (x.detach()[rows] for x in pair(7, 4, seed=3))
    return a, b, rows.to(DEVICE)


def chi_squares(draws: list[contrastive.HardNegatives], crowd: int, scale: float) -> list[float]:
    """Of both directions' draws of the crowd, against the softmax in float64."""
    a, b, groups = crowded(crowd)
    logits = (scale * (a.double() @ b.double().T)).masked_fill(groups[:, None] == groups, float("-inf"))
    first = int((groups == 0).nonzero()[0])
    found = []
    for direction, probabilities in enumerate((logits.softmax(1)[first], logits.softmax(0)[:, first])):
        chosen = torch.stack([x[direction] for x in draws])[:, groups == 0].flatten()
        candidates = probabilities > 0
        want = probabilities[candidates] * chosen.numel()
        assert chosen.numel() >= 20_000
        assert want.min() > 50
        counts = torch.bincount(chosen, minlength=len(groups)).double()
        assert counts[~candidates].sum() == 0
        found.append(((counts[candidates] - want) ** 2 / want).sum().item())
    return found


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_the_reference_follows_the_softmax(scale):
    """25 600 draws in each direction."""
    a, b, groups = crowded(512)
    draws = [hard_negatives(a, b, scale, seed=8, step=x, groups=groups, backend="reference") for x in range(50)]
    assert max(chi_squares(draws, 512, scale)) < CHI_SQUARE


def test_triton_follows_the_softmax():
    """On a GPU 25 600 draws in each direction.

    The interpreter would take half an hour for them. Of one step it draws all 134 rows, in both directions, and they
    have to be the reference's and the naive formula's (`draw`); the reference makes the draws of the other steps, from
    the same features and the same seed.
    """
    crowd = 128
    a, b, groups = crowded(crowd)
    draw(a, b, 2.0, seed=8, step=0, groups=groups)
    backend = "triton" if DEVICE.type == "cuda" else "reference"
    draws = [hard_negatives(a, b, 2.0, seed=8, step=x, groups=groups, backend=backend) for x in range(200)]
    assert max(chi_squares(draws, crowd, 2.0)) < CHI_SQUARE
