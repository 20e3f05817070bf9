"""The automatic choice between the Triton kernels and libraries that were measured to be faster."""

import logging
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from fastvtp_kernels import dispatch
from fastvtp_kernels.attention import choice, libraries, limits
from fastvtp_kernels.attention.call import Options
from fastvtp_kernels.attention.choice import Situation

CUDA = torch.device("cuda")
PLAIN = Options(0.125)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_logged", set())
    monkeypatch.setattr(dispatch, "_triton_cannot_run_on", lambda device: None)


@pytest.fixture
def flash_attn(monkeypatch):
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = lambda softcap: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)


def measured(monkeypatch, *backends, length=2048, backward=False, **options):
    situation = Situation(
        "sm_90", "half", 64, length, **{"softcap": False, "causal": False, "backward": backward, **options}
    )
    monkeypatch.setattr(choice, "MEASURED", {situation: backends})


def ranked(longest=1568, options=PLAIN, width=64, dtype=torch.bfloat16, requires_grad=False, **more):
    query = torch.empty(4, 2, width, dtype=dtype, requires_grad=requires_grad)
    return choice.ranked(query, query, query, longest, options, **{"same": True, **more})


def test_nothing_is_claimed_without_a_measurement():
    assert choice.MEASURED == {}
    assert ranked() == ()
    assert dispatch.resolve_backend("varlen_attention", None, CUDA, torch.bfloat16).name == "triton"


def test_only_the_measured_situation_is_answered(monkeypatch):
    measured(monkeypatch, "flash_attn", "triton")
    assert ranked() == ranked(1025) == ranked(2048) == ranked(width=16) == ("flash_attn", "triton")
    assert ranked(dtype=torch.float16) == ("flash_attn", "triton")
    others: tuple[dict[str, Any], ...] = (
        {"longest": 1024},
        {"longest": 2049},
        {"width": 80},
        {"dtype": torch.float32},
        {"requires_grad": True},
        {"options": Options(0.1, softcap=5.0)},
        {"options": Options(0.1, causal=True)},
    )
    for other in others:
        assert ranked(**other) == (), other
    with torch.no_grad():
        assert ranked(requires_grad=True) == ("flash_attn", "triton")


@pytest.mark.parametrize("length", [16, 64, 512, 2048])
def test_training_is_delegated_in_any_regime_where_order_is_waived(monkeypatch, length):
    """Two lines for one situation: what repeats, and what need not."""
    plain = {"softcap": False, "causal": False, "backward": True}
    repeating, waived = (Situation("sm_90", "half", 64, length, **plain, repeats=repeats) for repeats in (True, False))
    measured = {repeating: ("flash_attn", "triton"), waived: ("flash_attn_3", "torch_varlen", "triton")}
    monkeypatch.setattr(choice, "MEASURED", measured)
    monkeypatch.delenv(dispatch.DETERMINISM_VARIABLE, raising=False)
    train = {"longest": length, "requires_grad": True}
    assert ranked(**train) == ranked(**train, deterministic=True) == measured[repeating]
    assert ranked(**train, deterministic=False) == measured[waived]
    monkeypatch.setenv(dispatch.DETERMINISM_VARIABLE, "0")
    assert ranked(**train) == measured[waived]
    assert ranked(**train, deterministic=True) == measured[repeating]
    # Forward passes all repeat: there is one line for them, whatever is waived.
    monkeypatch.setattr(choice, "MEASURED", {Situation("sm_90", "half", 64, length, False, False, False): ("sdpa",)})
    assert ranked(length) == ranked(length, deterministic=True) == ("sdpa",)


def test_a_library_that_cannot_do_the_call_is_passed_over(monkeypatch):
    measured(monkeypatch, "xformers", "torch_varlen", "flash_attn", "triton", softcap=True)
    assert ranked(options=Options(0.1, softcap=5.0)) == ("flash_attn", "triton")
    assert ranked(options=Options(0.1, softcap=5.0, dropout_p=0.1)) == ("triton",)
    measured(monkeypatch, "xformers", "torch_varlen", "sdpa", causal=True)
    causal = Options(0.1, causal=True)
    assert ranked(options=causal) == ("xformers", "torch_varlen", "sdpa")
    assert ranked(options=causal, same=False) == ("torch_varlen", "sdpa")
    assert ranked(options=causal, width=12) == ("sdpa",)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert ranked(options=causal) == ("torch_varlen", "sdpa")


def test_the_first_that_is_there_runs_and_says_so_once(monkeypatch, flash_attn, caplog):
    order = ("xformers", "flash_attn", "triton", "sdpa")
    with caplog.at_level(logging.INFO, logger="fastvtp_kernels"):
        for _ in range(2):
            found = dispatch.resolve_backend("varlen_attention", None, CUDA, torch.bfloat16, order)
    assert found == ("flash_attn", "cuda tensors, measured faster than triton")
    expected = "varlen_attention runs the flash_attn backend: cuda tensors, measured faster than triton"
    assert [record.getMessage() for record in caplog.records] == [expected]


@pytest.mark.parametrize("order", [("xformers", "triton", "flash_attn"), ("xformers",), ()])
def test_without_any_of_them_the_kernels_run(order, flash_attn):
    found = dispatch.resolve_backend("varlen_attention", None, CUDA, torch.bfloat16, order)
    assert found == ("triton", "cuda tensors")


def test_what_the_user_asks_for_wins(monkeypatch, flash_attn):
    order = ("flash_attn", "triton")
    assert dispatch.resolve_backend("varlen_attention", "sdpa", CUDA, torch.bfloat16, order).name == "sdpa"
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "triton")
    assert dispatch.resolve_backend("varlen_attention", None, CUDA, torch.bfloat16, order).name == "triton"
    cpu = torch.device("cpu")
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE)
    assert dispatch.resolve_backend("varlen_attention", None, cpu, torch.bfloat16, order).name == "reference"


def test_every_line_names_known_backends_and_training_repeats():
    for situation, backends in choice.MEASURED.items():
        assert set(backends) <= {"triton", *dispatch.ATTENTION_BACKENDS}
        assert not (situation.backward and situation.repeats) or set(backends) <= set(choice.DETERMINISTIC)


def test_every_library_has_limits():
    assert set(limits.LIMITS) == set(libraries.libraries()) == set(dispatch.ATTENTION_BACKENDS)


def test_a_compiled_caller_is_guarded_by_the_bucket_not_the_length(monkeypatch):
    measured(monkeypatch, "flash_attn", "triton", length=64)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def call(x, longest):
        return x * (2 if choice.ranked(x, x, x, longest, PLAIN, True) else 3)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    x = torch.ones(4, 2, 64, dtype=torch.bfloat16)
    values = [compiled(x, longest)[0, 0, 0].item() for longest in (33, 40, 63, 64, 65, 100)]
    assert values == [2, 2, 2, 2, 3, 3]
    assert len(graphs) <= 3
