"""What an attention launch is told: the seed of the dropout and the order of the sequences."""

import itertools
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("triton")
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition

from fastvtp_kernels import philox, varlen_attention, varlen_attention_packed
from fastvtp_kernels.attention import kernels, ordering
from tests.kernels.attention_cases import (
    OPTIONS,
    forced,
    offsets,
    only,
    packed,
    side_by_side,
)
from tests.kernels.triton_cases import DEVICE, results

LAST = 2**64 - 1
with_dropout = pytest.mark.parametrize("case", ["tiny", "streaming", "reference"])


def dropped(case: str, seed: Any, **options: Any) -> dict[str, torch.Tensor]:
    backend = "reference" if case == "reference" else "triton"
    with forced(case):
        return results(varlen_attention, packed([9, 4], dropout_p=0.5, seed=seed, backend=backend, **options))


@with_dropout
@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1, 2**63, LAST])
def test_a_seed_in_a_tensor_is_that_seed(case, seed):
    held = torch.tensor([philox.signed(seed)], device=DEVICE)
    number = dropped(case, seed)
    for tensor in (held, held[0]):
        found = dropped(case, tensor)
        for name, value in number.items():
            assert torch.equal(value, found[name]), name


@with_dropout
def test_all_64_bits_of_the_seed_count(case):
    outputs = [dropped(case, seed)["output"] for seed in (3, 3 + 2**32, 3 + 2**63, LAST, torch.tensor(4))]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(outputs, 2))


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (
            torch.tensor([1], dtype=torch.int32),
            TypeError,
            r"seed is torch\.int32 \[1\], expected an integer or one int64",
        ),
        (torch.tensor([1, 2]), TypeError, r"seed is torch\.int64 \[2\]"),
        (torch.tensor([1], device="meta"), ValueError, "seed on meta, expected one device"),
        (2**64, ValueError, "seed is 18446744073709551616"),
    ],
)
def test_seeds_that_are_none(seed, error, message):
    with pytest.raises(error, match=message):
        varlen_attention_packed(**side_by_side([2, 1]), dropout_p=0.1, seed=seed)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("first", [0, 7, 2**40])
def test_new_seeds_do_not_compile_anew(backend, first):
    """The first graph holds its integer, the second any."""
    torch._dynamo.reset()
    inputs = side_by_side([3, 2]) | {"dropout_p": 0.5, "backend": backend}
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(varlen_attention_packed, fullgraph=True, backend=counter)
    for seed in range(first, first + 20):
        expected = varlen_attention_packed(**inputs, seed=seed)
        with torch._dynamo.config.patch(error_on_recompile=seed > first + 1):
            assert torch.equal(compiled(**inputs, seed=seed), expected)
    assert counter.frame_count <= 2


def test_one_graph_advances_a_seed_in_a_tensor():
    torch._dynamo.reset()
    inputs = side_by_side([3, 2]) | {"dropout_p": 0.5, "backend": "triton"}
    seed = torch.tensor([40], device=DEVICE)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(varlen_attention_packed, fullgraph=True, backend=counter)
    for number in range(40, 45):
        found = results(compiled, inputs | {"seed": seed})
        for name, value in results(varlen_attention_packed, inputs | {"seed": number}).items():
            assert torch.equal(found[name], value), name
        seed += 1
    assert counter.frame_count == 1


@pytest.mark.parametrize("count", [1, 5, 64, 65, 150])
@pytest.mark.parametrize("ranked", [True, False], ids=["ranked", "sorted"])
def test_the_longest_come_first_and_equal_ones_as_they_stand(count, ranked, monkeypatch):
    monkeypatch.setattr(kernels, "RANKED", 10**6 if ranked else 0)
    lengths = torch.randint(0, 9, (count,), generator=torch.Generator().manual_seed(count)).tolist()
    expected = sorted(range(count), key=lambda s: -lengths[s])
    order = kernels.attention_order(offsets(lengths))
    assert order.dtype == torch.int32
    assert order.tolist() == expected


@pytest.fixture
def rankings(monkeypatch):
    """Grows with every ranking that is launched."""
    launched, launch = [], kernels.launch

    def recorded(kernel, *arguments, **options):
        if kernel is kernels.rank_by_length:
            launched.append(kernel)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(kernels, "launch", recorded)
    return launched


LENGTHS = [33, 2, 40, 0]


@pytest.mark.parametrize("regime", ["resident", "streaming"])
def test_all_layers_and_both_directions_share_one_order(regime, rankings):
    inputs = side_by_side(LENGTHS) | {"backend": "triton"}
    with forced(regime):
        first = results(varlen_attention_packed, inputs)
        assert len(rankings) == 1
        second = results(varlen_attention_packed, inputs)
        assert len(rankings) == 1
        with patch.object(ordering, "ONE_WAVE", 10**6):
            unsorted = results(varlen_attention_packed, side_by_side(LENGTHS) | {"backend": "triton"})
    assert len(rankings) == 1
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value, unsorted[name]), name


def test_short_sequences_and_small_batches_are_not_sorted(rankings):
    results(varlen_attention_packed, side_by_side([32, 1]) | {"backend": "triton"})
    results(varlen_attention_packed, side_by_side([33, 1]) | {"backend": "triton"})
    with only("streaming"):
        results(varlen_attention, packed([33, 33], tail=0, backend="triton"))
    assert not rankings


def test_another_stream_sorts_for_itself(rankings):
    """A stream does not wait for what another one computes."""
    cu = offsets(LENGTHS)
    with only("streaming"):
        here = ordering.longest_first(cu, 2, 40)
        assert ordering.longest_first(cu, 2, 40) is here
        setattr(cu, ordering._ORDER, (1, here))
        assert ordering.longest_first(cu, 2, 40) is not here
    assert len(rankings) == 2


@pytest.mark.parametrize("change", ["in place", "another"])
def test_changed_offsets_are_not_run_in_a_wrong_order(change):
    inputs = side_by_side(LENGTHS) | {"backend": "triton"}
    with forced("resident"):
        results(varlen_attention_packed, inputs)
        changed = offsets([1, 33, 0, 40])
        inputs["cu_seqlens"] = inputs["cu_seqlens"].copy_(changed) if change == "in place" else changed
        found = results(varlen_attention_packed, inputs)
        expected = results(varlen_attention_packed, inputs | {"cu_seqlens": changed.clone()})
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_compiled_layers_sort_once_and_never_in_backward():
    torch._dynamo.reset()
    inputs = side_by_side(LENGTHS) | OPTIONS["softcap"] | {"backend": "triton"}
    sorts: list[int] = []

    def count(graph, _):
        sorts.append(len(graph.graph.find_nodes(op="call_function", target=torch.ops.fastvtp.attention_order.default)))
        return make_boxed_func(graph)

    def two_layers(qkv, **options):
        output = varlen_attention_packed(qkv, **options)
        return varlen_attention_packed(qkv * output.mean(), **options)

    def backend(graph, examples):
        # divided as by Inductor
        return aot_module_simplified(
            graph, examples, count, count, partition_fn=min_cut_rematerialization_partition, decompositions={}
        )

    with forced("streaming"):
        found = results(torch.compile(two_layers, fullgraph=True, backend=backend), inputs)
        expected = results(two_layers, inputs)
    assert sorts == [1, 0]
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
