"""The contrastive ops of several processes (gloo, CPU) against one process with the whole batch.

Four processes are started once; groups of two, three and four of them, and of one, compute side by side.
"""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastvtp_kernels import contrastive_loss, dispatch, hard_negatives, sigmoid_loss
from fastvtp_kernels.contrastive.reference import hard_negatives as naive
from fastvtp_kernels.philox import signed
from tests.kernels import rank_cases
from tests.kernels.contrastive_cases import LOSSES, small_tiles
from tests.kernels.rank_cases import (
    CASES,
    DRAWN_ROWS,
    DRAWS,
    GROUPS,
    ROWS,
    SEED,
    STEP,
    Towers,
    train,
)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
TRITON = {name for name, case in (CASES | DRAWS).items() if case.backend == "triton"}
every_loss = pytest.mark.parametrize("loss", LOSSES)


def runnable() -> tuple[str, ...]:
    """The kernels run on the CPU only where Triton interprets."""
    triton = next(x for x in dispatch.backends("contrastive_loss", torch.device("cpu")) if x.backend == "triton")
    return tuple(name for name in CASES | DRAWS if triton.available or name not in TRITON)


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[rank_cases.Result]:
    return rank_cases.run(tmp_path_factory.mktemp("ranks"), runnable())


def assert_equal_to_1e6(name: str, actual: Tensor, expected: Tensor) -> None:
    """To 1e-6 of the largest number."""
    error = (actual.double() - expected.double()).abs().max().item()
    largest = expected.abs().max().item()
    assert error <= 1e-6 * max(1.0, largest), f"{name}: error {error:.3g}, the largest number is {largest:.3g}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.told])
def test_equals_one_process_with_the_whole_batch(name, processes):
    if name not in runnable():
        pytest.skip("Triton does not interpret here")
    case = CASES[name]
    ranks = GROUPS[case.group]
    inputs = case.inputs()
    if case.dtype == torch.bfloat16:
        # The features are rounded, and the gradients at last; nothing between.
        inputs = {
            key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in inputs.items()
        }
    whole = case.run(inputs, backend="reference")
    for place, rank in enumerate(ranks):
        found = processes[rank][name]
        assert found.keys() == whole.keys()
        for key, value in found.items():
            expected = whole[key]
            if key in ("a", "b"):
                # Data-parallel training averages over the ranks: features receive the sum of what they are averaged to.
                expected = len(ranks) * expected[place * ROWS : (place + 1) * ROWS]
            if case.dtype == torch.bfloat16 and key in ("a", "b"):
                expected = expected.bfloat16()
            assert value.dtype == case.dtype or value.ndim == 0
            assert_equal_to_1e6(f"{key} on process {rank}", value, expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.told])
def test_a_small_loss_is_exact(name, processes):
    """A small difference of large logits; torch's cross-entropy in float32 is wrong in its third digit."""
    if name not in runnable():
        pytest.skip("Triton does not interpret here")
    case = CASES[name]
    inputs = {key: x.double() if isinstance(x, Tensor) else x for key, x in case.inputs().items()}
    exact = case.run(inputs, backend="reference")
    assert 1e-6 < exact["loss"] < 1e-2
    for place, rank in enumerate(GROUPS[case.group]):
        for key, value in processes[rank][name].items():
            right = exact[key]
            if key in ("a", "b"):
                right = len(GROUPS[case.group]) * right[place * ROWS : (place + 1) * ROWS]
            error = (value.double() - right).abs().max()
            assert error <= 1e-4 * right.abs().max(), f"{key} on process {rank}: error {error:.3g}"


@pytest.mark.parametrize("name", CASES)
def test_every_rank_has_the_bits_of_the_loss_and_of_the_scalars_gradients(name, processes):
    if name not in runnable():
        pytest.skip("Triton does not interpret here")
    first, *others = (processes[rank][name] for rank in GROUPS[CASES[name].group])
    for other in others:
        for key in first.keys() - {"a", "b"}:
            assert torch.equal(first[key], other[key]), key


@every_loss
def test_a_group_of_one_changes_no_bit(loss, processes):
    case = CASES[f"{loss}, 1 processes"]
    for key, value in case.run(case.inputs()).items():
        assert torch.equal(value, processes[2][f"{loss}, 1 processes"][key]), key


@every_loss
@pytest.mark.parametrize("group", GROUPS)
def test_training_gives_the_weights_of_one_process_with_the_whole_batch(group, loss, processes):
    ranks = GROUPS[group]
    rows = ROWS * len(ranks)
    initial = dict(Towers(loss).named_parameters())
    whole = train(loss, Towers(loss), slice(0, rows), rows, None)
    for rank in ranks:
        found = processes[rank][f"train {loss} {group}"]
        assert found.keys() == whole.keys()
        for name, value in found.items():
            assert_equal_to_1e6(name, value, whole[name])
    for name, weight in initial.items():
        assert (whole[name] - weight).abs().max() > 1e-3, f"{name} was not trained"


@every_loss
def test_ranks_that_differ_are_refused_on_every_rank(loss, processes):
    expected = [
        f"{loss}: the ranks' features have shapes {shapes}, expected the same shape on each rank"
        for shapes in (
            [[2, 5], [2, 5], [3, 5], [2, 5]],
            [[2, 4], [2, 5], [2, 5], [2, 5]],
            [[2, 5], [2, 5], [2, 5], [0, 5]],
        )
    ]
    expected.append(f"{loss}: the ranks' features have shapes {[[0, 5]] * 4}, expected at least one row on each")
    # A rank that sent gradients to one that waits for none would hang.
    expected.append(
        f"{loss}: gradients (of a, of b, of scalars) are asked for as [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]] by "
        "the ranks, expected the same on each rank"
    )
    for found in processes:
        assert found[f"uneven {loss}"] == expected


@every_loss
def test_small_features_take_two_exchanges_whatever_the_number_of_ranks(loss, processes):
    """Of three ranks, at the bound and a byte below it."""
    for rank in GROUPS["3"]:
        gathered, ring = (found["counts"] for found in processes[rank][f"exchanges {loss}"])
        # What is gathered besides: what the ranks tell of themselves, the sums and, of InfoNCE, shifts and column sums.
        besides = {"contrastive_loss": 4, "sigmoid_loss": 2}[loss]
        columns = {"contrastive_loss": 1, "sigmoid_loss": 0}[loss]
        assert gathered == {"gather": besides + 1, "exchange": columns + 1}
        # The blocks' two hops (for InfoNCE twice) and the sums' three.
        expected = {"gather": besides, "exchange": columns, "hop": {"contrastive_loss": 7, "sigmoid_loss": 5}[loss]}
        assert ring == {name: count for name, count in expected.items() if count}


@every_loss
def test_repeated_runs_have_equal_bits(loss, processes):
    for rank in GROUPS["3"]:
        for found in processes[rank][f"exchanges {loss}"]:
            for name, value in found["first"].items():
                assert torch.equal(value, found["again"][name]), name


def test_ranks_tell_each_other_in_one_gather(processes):
    assert processes[0]["checks"] == 1


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_one_process_with_the_whole_batch(name, processes):
    if name not in runnable():
        pytest.skip("Triton does not interpret here")
    case = DRAWS[name]
    inputs = case.inputs()
    found = torch.cat([processes[rank][name] for rank in GROUPS[case.group]], dim=1)
    assert found.dtype == torch.int64
    with small_tiles():
        assert torch.equal(found, case.run(inputs, backend=case.backend))
    assert torch.equal(
        found, torch.stack(naive(inputs["a"], inputs["b"], 6.0, (signed(SEED), STEP), None, inputs["groups"]))
    )
    place = torch.arange(found.shape[1])
    groups = place if inputs["groups"] is None else inputs["groups"]
    has_candidate = (groups[:, None] != groups).any(1)
    for chosen in found:
        assert torch.equal(chosen == -1, ~has_candidate)
        assert (groups[chosen] != groups)[has_candidate].all()
        others = place // DRAWN_ROWS != chosen // DRAWN_ROWS
        assert len(GROUPS[case.group]) == 1 or not has_candidate.any() or others[has_candidate].any()


def test_ranks_whose_draws_would_differ_are_refused_on_every_rank(processes):
    alike = "hard_negatives: the ranks' features have shapes {}, expected {}"
    numbers = (
        "hard_negatives: bytes of a feature, bytes of an id of groups (0: none), step, upper half of the seed, "
        "lower half of the seed are [[4.0, {}, {}, {}, 9.0], [4.0, {}, {}, {}, 9.0]] on the ranks, expected the same "
        "on each"
    )
    half = float(2**31)
    expected = [
        alike.format([[2, 3], [3, 3]], "the same shape on each rank"),
        alike.format([[0, 3], [0, 3]], "at least one row on each"),
        numbers.format(0.0, 0.0, half, 8.0, 0.0, half),
        numbers.format(8.0, 0.0, half, 4.0, 0.0, half),
        numbers.format(0.0, 0.0, half, 0.0, 0.0, half + 1),
        numbers.format(0.0, 0.0, half, 0.0, 1.0, half),
        "hard_negatives: backend 'specification' knows one process alone, but group is given",
    ]
    for rank in GROUPS["2"]:
        assert processes[rank]["refused draws"] == expected


@pytest.mark.parametrize("group", ["world", object(), 0])
def test_only_a_process_group_is_a_group(group):
    a = torch.randn(2, 3)
    said = rf": group is {type(group).__name__}, expected a torch\.distributed\.ProcessGroup or None"
    with pytest.raises(TypeError, match=said):
        contrastive_loss(a, a, 1.0, group=group)
    with pytest.raises(TypeError, match=said):
        sigmoid_loss(a, a, 1.0, 0.0, group=group)
    with pytest.raises(TypeError, match=f"hard_negatives{said}"):
        hard_negatives(a, a, 1.0, seed=0, group=group)
