"""The adapters of attention's libraries, against stand-ins that record their arguments: the real ones need CUDA."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fastvtp_kernels import (
    BackendUnavailableError,
    axial_attention,
    dispatch,
    varlen_attention,
    varlen_attention_packed,
)
from fastvtp_kernels.attention import libraries

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS, TAIL = [3, 0, 5, 1], 2


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


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
    monkeypatch.setattr(libraries, "_needs_cuda", lambda *_: None)


class Unwritten(torch.autograd.Function):
    """flash-attn's memory: rows after the last sequence are NaN, in the output and in the gradients."""

    @staticmethod
    def forward(ctx, rows, offsets):
        ctx.offsets = offsets
        rows = rows.clone()
        rows[int(offsets[-1]) :] = float("nan")
        return rows

    @staticmethod
    def backward(ctx, *grads):
        return Unwritten.apply(grads[0], ctx.offsets), None


@pytest.fixture
def flash_attn_calls(monkeypatch, on_any_device):
    calls = []

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, *longest, softcap=0.0, **options):
        """The package's parameters by name; `softcap` tells its version."""
        max_seqlen_q, max_seqlen_k = longest
        calls.append({"longest": longest, "softcap": softcap, **options})
        assert options.pop("deterministic")
        q, k, v = Unwritten.apply(q, cu_seqlens_q), Unwritten.apply(k, cu_seqlens_k), Unwritten.apply(v, cu_seqlens_k)
        keys = {"cu_seqlens_k": cu_seqlens_k, "max_seqlen_k": max_seqlen_k}
        output = attention(
            (q, k, v), cu_seqlens_q, max_seqlen_q, **keys, softcap=softcap, **options, backend="reference"
        )
        return Unwritten.apply(output, cu_seqlens_q)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return calls


@pytest.fixture
def torch_varlen_calls(monkeypatch, on_any_device):
    calls = []

    def varlen_attn(query, key, value, *layout, scale=None, window_size=(-1, -1)):
        cu_seq_q, cu_seq_k, max_q, max_k = layout
        assert all(x.stride(-1) == 1 for x in (query, key, value))
        calls.append((max_q, max_k, scale, window_size))
        qkv = Unwritten.apply(query, cu_seq_q), Unwritten.apply(key, cu_seq_k), Unwritten.apply(value, cu_seq_k)
        options = {"softmax_scale": scale, "causal": window_size == (-1, 0)}
        keys = {"cu_seqlens_k": cu_seq_k, "max_seqlen_k": max_k}
        output = attention(qkv, cu_seq_q, max_q, **keys, **options, backend="reference")
        return Unwritten.apply(output, cu_seq_q)

    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    return calls


class BlockDiagonalMask:
    def __init__(self, lengths, lengths_k, causal=""):
        self.lengths, self.lengths_k, self.causal = lengths, lengths_k, causal

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen, *, device):
        assert device == CPU
        assert all(type(length) is int and length > 0 for length in q_seqlen + kv_seqlen)
        return cls(q_seqlen, kv_seqlen)

    def make_causal(self):
        return BlockDiagonalMask(self.lengths, self.lengths_k, "top left")

    def make_causal_from_bottomright(self):
        return BlockDiagonalMask(self.lengths, self.lengths_k, "bottom right")


@pytest.fixture
def xformers_calls(monkeypatch, on_any_device):
    calls = []

    def memory_efficient_attention(query, key, value, attn_bias, p, scale):
        calls.append((attn_bias.lengths, attn_bias.lengths_k, attn_bias.causal))
        assert p == 0.0
        assert query.shape[:2] == (1, sum(attn_bias.lengths))
        assert key.shape[:2] == (1, sum(attn_bias.lengths_k))
        keys = {"cu_seqlens_k": offsets(attn_bias.lengths_k), "max_seqlen_k": max(attn_bias.lengths_k)}
        options = {"softmax_scale": scale, "causal": bool(attn_bias.causal), "backend": "reference"}
        rows = query[0], key[0], value[0]
        return attention(rows, offsets(attn_bias.lengths), max(attn_bias.lengths), **keys, **options)[None]

    ops = ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    ops.fmha = SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    return calls


EVERYTHING = {"softmax_scale": 0.3, "causal": True}
each_library = pytest.mark.parametrize("backend", ["flash_attn", "torch_varlen", "xformers", "sdpa"])


@each_library
@pytest.mark.parametrize("options", [{}, {"softmax_scale": 0.3}, {"causal": True}])
@pytest.mark.parametrize("lengths_k", [None, [4, 0, 5, 6], [3, 2, 0, 1], [7, 2, 5, 1]])
def test_rows_options_and_gradients_arrive(
    backend, options, lengths_k, flash_attn_calls, torch_varlen_calls, xformers_calls
):
    """Tail rows, sequences without queries, without keys and without both."""
    keys = {"cu_seqlens_k": offsets(lengths_k), "max_seqlen_k": 7} if lengths_k else {}
    rows_k = sum(lengths_k or LENGTHS) + TAIL
    qkv = leaves(sum(LENGTHS) + TAIL, rows_k, rows_k)
    output = assert_equals_reference(varlen_attention, qkv, CU, 6, backend=backend, **keys, **options)
    assert not output[sum(LENGTHS) :].any()


@each_library
def test_packed_and_axial_forms(backend, flash_attn_calls, torch_varlen_calls, xformers_calls):
    packed = torch.randn(sum(LENGTHS) + TAIL, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert_equals_reference(varlen_attention_packed, [packed], CU, 6, backend=backend, **EVERYTHING)
    grid = torch.randn(2, 4, 3, 3, 2, 8, dtype=torch.float64, requires_grad=True)

    def axial(tensor, **options):
        return axial_attention(*tensor.unbind(3), **options)

    output = assert_equals_reference(axial, [grid], backend=backend, **EVERYTHING)
    assert output.is_contiguous()


@each_library
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_to_attend_to(backend, lengths, flash_attn_calls, torch_varlen_calls, xformers_calls):
    assert_equals_reference(varlen_attention, leaves(2, 2, 2), offsets(lengths), 0, backend=backend)
    empty = torch.zeros(2, 0, 3, 2, 8, dtype=torch.float64)
    assert axial_attention(empty, empty, empty, backend=backend).shape == empty.shape


def test_flash_attn_is_called_for_its_deterministic_form(flash_attn_calls):
    qkv = leaves(9, 9, 9)
    assert_equals_reference(varlen_attention, qkv, CU, 6, backend="flash_attn", softcap=2.0, **EVERYTHING)
    assert flash_attn_calls == [{"longest": (6, 6), "softcap": 2.0, "deterministic": True, **EVERYTHING}]


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
    reason = libraries._torch_varlen_missing(CPU, torch.bfloat16)
    assert reason == "torch_varlen needs a CUDA device, not cpu"
    reason = libraries._torch_varlen_missing(CUDA, torch.float32)
    assert reason == "torch_varlen computes in float16, bfloat16, not in torch.float32"


def test_xformers_gets_live_sequences_and_the_right_corner(xformers_calls):
    qkv = leaves(9, 15, 15)
    attention([x[:9] for x in qkv], CU, 6, causal=True, backend="xformers")
    keys = {"cu_seqlens_k": offsets([4, 0, 5, 6]), "max_seqlen_k": 6}
    attention(qkv, CU, 6, causal=True, backend="xformers", **keys)
    attention(qkv, CU, 6, backend="xformers", **keys)
    assert xformers_calls == [
        ([3, 5, 1], [3, 5, 1], "top left"),
        ([3, 5, 1], [4, 5, 6], "bottom right"),
        ([3, 5, 1], [4, 5, 6], ""),
    ]


def test_xformers_reads_the_lengths_once_and_again_when_they_changed(xformers_calls, monkeypatch):
    cu, reads = offsets([3, 2]), []
    monkeypatch.setattr(torch.Tensor, "diff", lambda self, d=torch.Tensor.diff: reads.append(0) or d(self))
    assert [libraries._host_lengths(cu) for _ in range(2)] == [[3, 2]] * 2
    assert len(reads) == 1
    cu[1] = 1
    assert libraries._host_lengths(cu) == [1, 4]
    with torch.inference_mode():
        frozen = offsets([3, 2])
        assert libraries._host_lengths(frozen) == [3, 2]
        frozen[1] = 1
        assert libraries._host_lengths(frozen) == [1, 4]


@pytest.mark.parametrize(
    ("backend", "options", "width", "message"),
    [
        ("sdpa", {"softcap": 5.0}, 8, r"no softcap \(softcap=5\.0\); use backend='triton' or backend='reference'"),
        ("xformers", {"softcap": 5.0}, 8, r"no softcap"),
        ("torch_varlen", {"softcap": 5.0}, 8, r"no softcap"),
        *(
            (name, {"dropout_p": 0.1}, 8, r"dropout_p=0\.1")
            for name in ("sdpa", "xformers", "flash_attn", "torch_varlen")
        ),
        ("torch_varlen", {}, 264, "264 wide, it takes up to 256; use backend='sdpa'"),
        ("flash_attn", {}, 264, "264 wide, it takes up to 256; use backend='sdpa'"),
        ("xformers", {}, 6, "6 wide, it takes multiples of 4"),
        ("xformers", {"causal": True, "cu_seqlens_k": offsets([3, 0, 4, 1]), "max_seqlen_k": 4}, 8, "more queries"),
    ],
)
def test_what_a_library_cannot_do_is_named(
    backend, options, width, message, flash_attn_calls, torch_varlen_calls, xformers_calls
):
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

    monkeypatch.setattr(libraries.importlib, "import_module", broken)
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
