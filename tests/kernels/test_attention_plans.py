"""Plans of attention launches: made once for a kind of calls, by all that decides them, and holding no tensor."""

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
import torch._functorch.config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastvtp_kernels import (
    axial_attention_packed,
    derivatives,
    tuning,
    varlen_attention,
    varlen_attention_packed,
)
from fastvtp_kernels.attention import kernels, plans
from fastvtp_kernels.attention.call import Call, Options
from fastvtp_kernels.attention.problem import of_axis, of_packed
from tests.kernels.attention_cases import LENGTHS, OPTIONS, forced, grid_side_by_side, only, packed, side_by_side
from tests.kernels.triton_cases import DEVICE, assert_meets_the_law, results

LONGEST = 40


def kind(
    width: int = 64,
    rows: int = 9,
    sequences: int = 2,
    longest: int = LONGEST,
    longest_k: int = LONGEST,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "meta",
    strides: Any = ((0, 192, 0, 64),),
    **options: Any,
) -> plans.Kind:
    query = torch.empty(rows, 2, width, dtype=dtype, device=device)
    offsets = torch.empty(sequences + 1, dtype=torch.int32, device=device)
    call = Call(offsets, longest, offsets, longest_k, Options(**{"scale": 0.125, **options}))
    return plans.kind_of(of_packed(query, query, call), query, strides)


def test_what_changes_from_step_to_step_is_no_part_of_a_kind():
    same = [{"rows": 90}, {"sequences": 7}, {"scale": 0.5}, {"dropout_p": 0.0, "seed": 9}, {"strides": ()}]
    assert {kind(**one) for one in same} == {kind()}
    assert kind(dropout_p=0.1, seed=1) == kind(dropout_p=0.2, seed=2)
    assert kind(softcap=1.0) == kind(softcap=50.0)


def test_everything_that_a_choice_depends_on_makes_another_kind(monkeypatch):
    changes: list[dict[str, Any]] = [
        *({"width": width} for width in (32, 63, 128)),
        *({"longest": LONGEST + 1}, {"longest_k": LONGEST + 1}, {"causal": True}, {"softcap": 5.0}),
        *({"dropout_p": 0.1, "seed": 1}, {"dtype": torch.float16}, {"dtype": torch.float32}, {"device": "cpu"}),
        {"strides": ((0, 2**31 // LONGEST + 1, 0, 64),)},
    ]
    kinds = [kind(), *(kind(**change) for change in changes)]
    grid = torch.empty(2, LONGEST, 3, 2, 64, dtype=torch.bfloat16, device="meta")
    kinds.append(plans.kind_of(of_axis(grid, Options(0.125)), grid))
    for context in (
        tuning.targeting("sm_80"),
        tuning.override("stream_forward_64", tuning.Tile({"BLOCK_M": 16, "BLOCK_N": 16})),
        tuning.limits(tiny=64),
        tuning.asked(),
    ):
        with context:
            kinds.append(kind())
    exact = kind(dtype=torch.float32)
    monkeypatch.setattr("fastvtp_kernels.launching.allows_tf32", lambda: True)
    assert kind(dtype=torch.float32) != exact
    assert len(set(kinds)) == len(kinds)


def test_contexts_of_the_tables_begin_and_end():
    tile = tuning.Tile({"BLOCK_M": 16, "BLOCK_N": 16})
    with only("streaming"):
        before = plans.forward(kind())
        assert before.regime == "stream"
        with tuning.override("stream_forward_64", tile):
            assert plans.forward(kind()).constants["tile"] is tile
        assert plans.forward(kind()).constants["tile"] is before.constants["tile"] is not tile
    with tuning.targeting("sm_90"):
        assert plans.forward(kind()).regime == "resident"
        assert [plan.regime for plan in plans.backward(kind())] == ["resident"]
        with tuning.targeting("sm_80"):
            assert plans.forward(kind()).regime == "stream"
            assert [plan.regime for plan in plans.backward(kind())] == ["stream", "stream"]


@pytest.mark.parametrize("name", ["plain", "causal", "softcap"])
@pytest.mark.parametrize("case", ["resident", "resident crossed", "key lengths", "axial"])
def test_a_streaming_backward_pass_follows_a_resident_forward_pass(case, name, monkeypatch):
    """As between 257 and 320 rows: it reads the log-sum-exp that the other family of kernels wrote."""
    monkeypatch.setattr(tuning, "resident_rows", lambda *of: 0 if of[-1] else 64)
    launched: list[str] = []

    def launch(kernel: Any, *arguments: Any, **constants: Any) -> None:
        launched.append(kernel.fn.__name__)
        real(kernel, *arguments, **constants)

    real = kernels.launch
    monkeypatch.setattr(kernels, "launch", launch)
    options = OPTIONS[name]
    with forced("resident"):
        if case == "axial":
            assert_meets_the_law(axial_attention_packed, grid_side_by_side(2, 33, 2, 3, 2, 16) | options)
        elif case == "key lengths":
            inputs = side_by_side([33, 1, 40, 20])
            answering = torch.tensor([17, 0, 40, 2], dtype=torch.int32, device=DEVICE)
            assert_meets_the_law(varlen_attention_packed, inputs | {"key_lengths": answering} | options)
        else:
            assert_meets_the_law(varlen_attention, packed(*LENGTHS[case]) | options)
    assert {one for one in launched if one.startswith(("tiny", "resident", "stream"))} == {
        "resident_forward",
        "stream_backward_queries",
        "stream_backward_keys",
    }


@pytest.mark.parametrize("regime", ["tiny", "resident", "streaming"])
def test_layers_and_steps_of_one_kind_ask_for_tiles_once(regime, monkeypatch):
    monkeypatch.setattr(kernels, "launch", lambda *_, **__: None)
    with forced(regime), tuning.asked() as tiles:
        results(varlen_attention_packed, side_by_side([9, 4]) | {"backend": "triton"})
        first = len(tiles)
        # The longest sequence is that of the step before; rows and sequences are others.
        results(varlen_attention_packed, side_by_side([9, 4]) | {"backend": "triton"})
        results(varlen_attention_packed, side_by_side([9, 0, 3, 2]) | {"backend": "triton"})
        assert first > 0
        assert len(tiles) == first
        results(varlen_attention_packed, side_by_side([10, 4]) | {"backend": "triton"})
        assert len(tiles) > first


def _values(found: Any) -> Iterator[Any]:
    if isinstance(found, dict):
        found = tuple(found.values())
    if isinstance(found, tuple | list):
        for one in found:
            yield from _values(one)
    else:
        yield found


def test_no_plan_holds_a_tensor(monkeypatch):
    monkeypatch.setattr(kernels, "launch", lambda *_, **__: None)
    inputs = side_by_side([9, 4]) | {"dropout_p": 0.5, "seed": torch.tensor([3], device=DEVICE), "backend": "triton"}
    alive = [weakref.ref(x) for x in inputs.values() if isinstance(x, Tensor)]
    results(varlen_attention_packed, inputs)
    inputs.clear()
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)
    found = kind(dropout_p=0.5, seed=1), plans.forward(kind()), plans.backward(kind())
    assert not any(isinstance(value, Tensor) for value in _values(found))


def test_plans_are_bounded():
    for longest in range(1, plans.REMEMBERED + 50):
        plans.forward(kind(longest=longest, width=8))
    assert plans.forward.cache_info().currsize == plans.REMEMBERED
    assert plans.backward.cache_info().maxsize == plans.REMEMBERED


def test_threads_get_the_same_plans():
    kinds = [kind(longest=longest, causal=causal) for longest in range(500, 540) for causal in (False, True)]
    plans.forward.cache_clear()
    barrier, found, count = threading.Barrier(8), {}, 8

    def run(thread: int) -> None:
        barrier.wait()
        found[thread] = [plans.forward(one) for one in (kinds if thread % 2 else reversed(kinds))]

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [plans.forward.__wrapped__(one) for one in kinds]
    for thread in range(count):
        assert found[thread] == (expected if thread % 2 else expected[::-1])


def test_fake_tensors_plan_nothing():
    plans.forward.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        qkv = mode.from_tensor(torch.zeros(12, 3, 2, 16))
        offsets = mode.from_tensor(torch.tensor([0, 9, 12], dtype=torch.int32))
        assert varlen_attention_packed(qkv, offsets, 9, backend="triton").shape == (12, 2, 16)
    assert plans.forward.cache_info().misses == 0


# `results` goes back through the same graph several times
@torch._functorch.config.patch(donated_buffer=False)
def test_compiled_code_plans_when_it_runs_and_anew_for_another_length():
    torch._dynamo.reset()
    compiled = torch.compile(varlen_attention_packed, fullgraph=True, dynamic=True, backend="aot_eager")
    plans.forward.cache_clear()
    for lengths in ([3, 2], [5, 4], [3, 2]):
        inputs = side_by_side(lengths) | {"backend": "triton"}
        found, expected = results(compiled, inputs), results(varlen_attention_packed, inputs)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    assert plans.forward.cache_info().misses == 2


def test_eager_functions_bind_no_signature(monkeypatch):
    """torch does it for every call of a Function with a `setup_context`, and takes longer than a short kernel."""

    def save(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    run = derivatives.function("twice", lambda x: 2 * x, save, lambda ctx, grad: (2 * grad,))
    x = torch.ones(3, requires_grad=True)
    monkeypatch.setattr(torch.autograd.function.inspect, "signature", None)
    assert torch.autograd.grad(run(x).sum(), x)[0].tolist() == [2.0] * 3
