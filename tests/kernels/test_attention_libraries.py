"""The adapters of attention's libraries, against stand-ins that record their arguments: the real ones need CUDA."""

import contextlib
import sys
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastvtp_kernels import (
    BackendUnavailableError,
    axial_attention,
    dispatch,
    validation,
    varlen_attention,
    varlen_attention_packed,
)
from fastvtp_kernels.attention import flash, libraries, limits, memory_efficient
from fastvtp_kernels.attention import op as attention_op
from tests.kernels import attention_stand_ins as stand_ins
from tests.kernels.attention_stand_ins import CPU, offsets

CUDA = torch.device("cuda")
LENGTHS, TAIL = [3, 0, 5, 1], 2
CU = offsets(LENGTHS)


def attention(qkv, *arguments, **options):
    query, key, value = qkv
    return varlen_attention(query, key, value, *arguments, **options)


def leaves(*rows, width=8):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(count, 2, width, generator=generator, dtype=torch.float64) for count in rows]
    return [x.requires_grad_() for x in values]


def with_gradients(output, inputs):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, *torch.autograd.grad(output, inputs, weights)


def assert_equals_reference(op, inputs, *arguments, backend, **options):
    actual, expected = (
        with_gradients(op(*inputs, *arguments, backend=name, **options), inputs) for name in (backend, "reference")
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return actual[0]


@pytest.fixture
def on_any_device(monkeypatch):
    """The stand-ins compute on the CPU, in float64."""
    monkeypatch.setattr(limits, "needs_cuda", lambda *_: None)


@pytest.fixture
def flash_attn_calls(monkeypatch, on_any_device):
    calls = []
    stand_ins.module(monkeypatch, "flash_attn", flash_attn_varlen_func=stand_ins.flash("flash_attn", calls))
    return calls


@pytest.fixture(params=[False, True], ids=["output", "output and lse"])
def flash_attn_3_calls(request, monkeypatch, on_any_device):
    calls = []
    stand_ins.module(
        monkeypatch,
        "flash_attn_interface",
        flash_attn_varlen_func=stand_ins.flash("flash_attn_3", calls, request.param),
    )
    return calls


@pytest.fixture(params=[False, True], ids=["output", "output and lse"])
def flash_attn_4_calls(request, monkeypatch, on_any_device):
    """Without flash-attn 2, `flash_attn` is a folder of `flash_attn.cute` alone."""
    calls = []
    stand_ins.module(monkeypatch, "flash_attn")
    stand_ins.module(
        monkeypatch, "flash_attn.cute", flash_attn_varlen_func=stand_ins.flash("flash_attn_4", calls, request.param)
    )
    return calls


@pytest.fixture
def torch_varlen_calls(monkeypatch, on_any_device):
    calls = []
    stand_ins.module(monkeypatch, "torch.nn.attention.varlen", varlen_attn=stand_ins.torch_varlen(calls))
    return calls


@pytest.fixture
def xformers_calls(monkeypatch, on_any_device):
    calls = []
    stand_ins.xformers(monkeypatch, calls)
    return calls


@pytest.fixture
def all_calls(monkeypatch, on_any_device):
    """Every library, each with a list of its calls."""
    calls = {name: [] for name in dispatch.ATTENTION_BACKENDS}
    places = {"flash_attn": "flash_attn", "flash_attn_3": "flash_attn_interface", "flash_attn_4": "flash_attn.cute"}
    for name, place in places.items():
        stand_ins.module(monkeypatch, place, flash_attn_varlen_func=stand_ins.flash(name, calls[name]))
    varlen = stand_ins.torch_varlen(calls["torch_varlen"])
    stand_ins.module(monkeypatch, "torch.nn.attention.varlen", varlen_attn=varlen)
    stand_ins.xformers(monkeypatch, calls["xformers"])
    return calls


EVERYTHING = {"softmax_scale": 0.3, "causal": True}
each_library = pytest.mark.parametrize("backend", dispatch.ATTENTION_BACKENDS)


@each_library
@pytest.mark.parametrize("options", [{}, {"softmax_scale": 0.3}, {"causal": True}])
@pytest.mark.parametrize("lengths_k", [None, [4, 0, 5, 6], [3, 2, 0, 1], [7, 2, 5, 1]])
def test_rows_options_and_gradients_arrive(backend, options, lengths_k, all_calls):
    """Tail rows, sequences without queries, without keys and without both."""
    keys = {"cu_seqlens_k": offsets(lengths_k), "max_seqlen_k": 7} if lengths_k else {}
    rows_k = sum(lengths_k or LENGTHS) + TAIL
    qkv = leaves(sum(LENGTHS) + TAIL, rows_k, rows_k)
    output = assert_equals_reference(varlen_attention, qkv, CU, 6, backend=backend, **keys, **options)
    assert not output[sum(LENGTHS) :].any()


@each_library
def test_packed_and_axial_forms(backend, all_calls):
    packed = torch.randn(sum(LENGTHS) + TAIL, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert_equals_reference(varlen_attention_packed, [packed], CU, 6, backend=backend, **EVERYTHING)
    grid = torch.randn(2, 4, 3, 3, 2, 8, dtype=torch.float64, requires_grad=True)

    def axial(tensor, **options):
        return axial_attention(*tensor.unbind(3), **options)

    output = assert_equals_reference(axial, [grid], backend=backend, **EVERYTHING)
    assert output.is_contiguous()


@each_library
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_to_attend_to(backend, lengths, all_calls):
    assert_equals_reference(varlen_attention, leaves(2, 2, 2), offsets(lengths), 0, backend=backend)
    empty = torch.zeros(2, 0, 3, 2, 8, dtype=torch.float64)
    assert axial_attention(empty, empty, empty, backend=backend).shape == empty.shape


def test_flash_attn_is_called_for_its_deterministic_form(flash_attn_calls):
    qkv = leaves(9, 9, 9)
    assert_equals_reference(varlen_attention, qkv, CU, 6, backend="flash_attn", softcap=2.0, **EVERYTHING)
    assert flash_attn_calls == [(6, 6, 0.3, True, 2.0, True)]


def test_flash_attn_3_gets_everything_and_its_output_alone_is_taken(flash_attn_3_calls):
    qkv = leaves(9, 9, 9)
    assert_equals_reference(varlen_attention, qkv, CU, 6, backend="flash_attn_3", softcap=2.0, **EVERYTHING)
    assert flash_attn_3_calls == [(6, 6, 0.3, True, 2.0, True)]


def test_flash_attn_4_is_called_by_names_and_without_flash_attn_2(flash_attn_4_calls):
    qkv = leaves(9, 9, 9)
    assert_equals_reference(varlen_attention, qkv, CU, 6, backend="flash_attn_4", **EVERYTHING)
    assert flash_attn_4_calls == [(6, 6, 0.3, True, 0.0, True)]
    with pytest.raises(BackendUnavailableError, match=r"has flash_attn\.cute alone, of FlashAttention-4"):
        dispatch.resolve_backend("varlen_attention", "flash_attn", CUDA)


@pytest.mark.parametrize("backend", ["flash_attn", "flash_attn_3", "flash_attn_4"])
def test_order_is_waived_by_the_caller_or_the_environment_alone(backend, all_calls, monkeypatch):
    def asked(**options):
        attention(leaves(9, 9, 9), CU, 6, backend=backend, **options)
        packed = torch.zeros(9, 3, 2, 8, dtype=torch.float64)
        varlen_attention_packed(packed, CU, 6, backend=backend, **options)
        found = {call[-1] for call in all_calls[backend]}
        all_calls[backend].clear()
        return found

    assert asked() == asked(deterministic=True) == {True}
    assert asked(deterministic=False) == {False}
    monkeypatch.setenv(dispatch.DETERMINISM_VARIABLE, "0")
    assert asked() == {False}
    assert asked(deterministic=True) == {True}
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert asked() == {True}
    assert asked(deterministic=False) == {False}


def test_torch_varlen_is_called_with_scale_and_the_window_of_causal(torch_varlen_calls):
    qkv = leaves(9, 9, 9)
    assert_equals_reference(varlen_attention, qkv, CU, 6, backend="torch_varlen", **EVERYTHING)
    attention([x.mT.contiguous().mT for x in qkv], CU, 6, softmax_scale=0.5, backend="torch_varlen")
    assert torch_varlen_calls == [(6, 6, 0.3, (-1, 0)), (6, 6, 0.5, (-1, -1))]


def test_a_torch_without_varlen_attention_or_with_an_older_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    with pytest.raises(BackendUnavailableError, match=r"torch .* has no torch\.nn\.attention\.varlen; use"):
        dispatch.resolve_backend("varlen_attention", "torch_varlen", CUDA)
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = lambda query, is_causal=False, scale=None: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    with pytest.raises(BackendUnavailableError, match="does not take scale and window_size yet"):
        dispatch.resolve_backend("varlen_attention", "torch_varlen", CUDA)


def test_the_installed_torch_has_the_varlen_attention_that_is_called():
    pytest.importorskip("torch.nn.attention.varlen")
    reason = flash.torch_varlen_missing(CPU, torch.bfloat16)
    assert reason == "torch_varlen needs a CUDA device, not cpu"
    reason = flash.torch_varlen_missing(CUDA, torch.float32)
    assert reason == "torch_varlen computes in float16, bfloat16, not in torch.float32"


def test_xformers_gets_live_sequences_and_the_right_corner(xformers_calls):
    qkv = leaves(9, 15, 15)
    attention([x[:9] for x in qkv], CU, 6, causal=True, backend="xformers")
    keys = {"cu_seqlens_k": offsets([4, 0, 5, 6]), "max_seqlen_k": 6}
    attention(qkv, CU, 6, causal=True, backend="xformers", **keys)
    attention(qkv, CU, 6, backend="xformers", **keys)
    assert xformers_calls == [
        ([3, 5, 1], [3, 5, 1], "top left", None),
        ([3, 5, 1], [4, 5, 6], "bottom right", None),
        ([3, 5, 1], [4, 5, 6], "", None),
    ]


def test_xformers_reads_the_lengths_once_and_again_when_they_changed():
    cu = offsets([3, 2])
    with only_reads(1):
        assert [memory_efficient.host_values(cu) for _ in range(2)] == [[0, 3, 5]] * 2
    cu[1] = 1
    assert memory_efficient.host_values(cu) == [0, 1, 5]
    with torch.inference_mode():
        frozen = offsets([3, 2])
        assert memory_efficient.host_values(frozen) == [0, 3, 5]
        frozen[1] = 1
        assert memory_efficient.host_values(frozen) == [0, 1, 5]


@contextlib.contextmanager
def only_reads(count):
    """Within the context the values of so many tensors are brought to the host."""
    seen = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func._schema.name
            if "local_scalar" in name or name in ("aten::nonzero", "aten::repeat_interleave"):
                seen.append(name)
            return func(*args, **(kwargs or {}))

    tolist = torch.Tensor.tolist
    with mock.patch.object(torch.Tensor, "tolist", lambda self: seen.append("tolist") or tolist(self)), Reads():
        yield
    assert len(seen) == count, seen


def test_xformers_refuses_a_captured_graph_which_would_keep_the_lengths_of_its_capture(xformers_calls, monkeypatch):
    """Lengths that were read before are there without waiting, so that no error of CUDA's would tell."""
    qkv, offsets_ = [torch.randn(9, 2, 8) for _ in range(3)], CU.clone()
    attention(qkv, offsets_, 6, backend="xformers")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(BackendUnavailableError, match="while a CUDA graph is captured the lengths cannot be read"):
        attention(qkv, offsets_, 6, backend="xformers")


def test_xformers_with_key_lengths_waits_for_the_device_but_once(xformers_calls, monkeypatch):
    """In the second layer of a step no operator brings values to the host; rows are counted on the host."""
    monkeypatch.setattr(validation, "values_readable", lambda tensor: False)
    monkeypatch.setattr(attention_op, "values_readable", lambda tensor: False)
    packed = torch.randn(9, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    key_lengths = torch.tensor([2, 0, 4, 1], dtype=torch.int32)

    def run(backend):
        return varlen_attention_packed(packed, CU, 6, key_lengths=key_lengths, backend=backend)

    torch.testing.assert_close(run("xformers"), run("reference"), rtol=1e-12, atol=1e-12)
    assert [call[:2] for call in xformers_calls] == [([3, 5, 1], [2, 4, 1])]
    # The stand-in computes on the host, and reads there.
    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", lambda query, *_, **__: query)
    with only_reads(0):
        run("xformers")
    key_lengths[0] = 1
    with only_reads(1):
        run("xformers")


@pytest.mark.parametrize(
    ("backend", "options", "width", "message"),
    [
        ("sdpa", {"softcap": 5.0}, 8, r"no softcap \(softcap=5\.0\); use backend='triton' or backend='reference'"),
        ("xformers", {"softcap": 5.0}, 8, r"no softcap"),
        ("torch_varlen", {"softcap": 5.0}, 8, r"no softcap"),
        ("flash_attn_4", {"softcap": 5.0}, 8, r"no softcap"),
        *((name, {"dropout_p": 0.1}, 8, r"dropout_p=0\.1") for name in dispatch.ATTENTION_BACKENDS),
        ("torch_varlen", {}, 264, "264 wide, it takes up to 256; use backend='sdpa'"),
        ("flash_attn", {}, 264, "264 wide, it takes up to 256; use backend='sdpa'"),
        ("xformers", {}, 6, "6 wide, it takes multiples of 4"),
        ("xformers", {"causal": True, "cu_seqlens_k": offsets([3, 0, 4, 1]), "max_seqlen_k": 4}, 8, "more queries"),
    ],
)
def test_what_a_library_cannot_do_is_named(backend, options, width, message, all_calls):
    with pytest.raises(BackendUnavailableError, match=message) as error:
        attention(leaves(9, 9, 9, width=width), CU, 5, backend=backend, **options)
    assert "\n" not in str(error.value)
    assert f"backend '{backend}' cannot run" in str(error.value)


@pytest.mark.parametrize(
    ("backend", "package", "extra"), [("flash_attn", "flash_attn", "flash"), ("xformers", "xformers", "xformers")]
)
def test_absent_packages_devices_and_dtypes(backend, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(
        BackendUnavailableError, match=rf"{package} is not installed \(pip install 'fastvtp\[{extra}\]'"
    ):
        attention(leaves(9, 9, 9), CU, 5, backend=backend)
    module = ModuleType(package)
    module.flash_attn_varlen_func = lambda softcap: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    with pytest.raises(BackendUnavailableError, match=f"{backend} needs a CUDA device, not cpu"):
        attention(leaves(9, 9, 9), CU, 5, backend=backend)
    with pytest.raises(BackendUnavailableError, match=f"{backend} computes in float16, bfloat16.*not in torch.float64"):
        dispatch.resolve_backend("varlen_attention", backend, CUDA, torch.float64)
    for op in ("varlen_attention", "varlen_attention_packed", "axial_attention"):
        assert dispatch.resolve_backend(op, backend, CUDA, torch.bfloat16).name == backend
        table = {row.backend: row for row in dispatch.backends(op, CUDA)}
        assert table[backend].available
        assert table["sdpa"].available
        assert not {row.backend: row for row in dispatch.backends(op, CPU)}[backend].available


def test_an_old_or_broken_installation_is_told_apart(monkeypatch):
    old = ModuleType("flash_attn")
    old.flash_attn_varlen_func = lambda q, k, v: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", old)
    with pytest.raises(BackendUnavailableError, match=r"flash_attn is older than 2\.6, which brought softcap"):
        dispatch.resolve_backend("varlen_attention", "flash_attn", CUDA)

    def broken(name):
        raise ImportError("libcudart.so.12: cannot open shared object file\nmore")

    monkeypatch.setattr(limits.importlib, "import_module", broken)
    with pytest.raises(
        BackendUnavailableError, match=r"import flash_attn failed: libcudart.*object file; use"
    ) as error:
        dispatch.resolve_backend("varlen_attention", "flash_attn", CUDA)
    assert "\n" not in str(error.value)


def test_a_library_named_for_the_process_runs_every_attention_op(monkeypatch, flash_attn_calls):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "flash_attn")
    x = torch.zeros(4, 3, 2, 8)
    varlen_attention_packed(x, offsets([4]), 4)
    attention(x.unbind(1), offsets([4]), 4)
    query, key, value = x[None, :, None].unbind(3)
    axial_attention(query, key, value)
    assert len(flash_attn_calls) == 3


def test_sdpa_is_one_padded_call(monkeypatch):
    shapes, real = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        libraries.F,
        "scaled_dot_product_attention",
        lambda q, *rest, **options: shapes.append(tuple(q.shape)) or real(q, *rest, **options),
    )
    attention(leaves(90, 90, 90), offsets([3, 80, 5]), 81, backend="sdpa")
    assert shapes == [(3, 2, 81, 8)]
