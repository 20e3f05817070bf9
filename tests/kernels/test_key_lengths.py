"""Rows of packed attention that ask but do not answer: per-sequence key lengths on every road."""

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import varlen_attention, varlen_attention_packed
from fastvtp_kernels.attention import limits
from fastvtp_kernels.attention.call import Call, Options
from fastvtp_kernels.dispatch import BackendUnavailableError
from tests.kernels.attention_cases import OPTIONS, TAIL, forced, offsets, options_of, side_by_side
from tests.kernels.triton_cases import DEVICE, assert_meets_the_law, pattern, results

# Rows of each sequence and how many of them answer: all, some, none of them.
BATCHES = {
    "tiny": ([5, 0, 9, 7, 1], [5, 0, 4, 0, 1]),
    "resident": ([33, 1, 40, 20], [17, 0, 40, 2]),
    "streaming": ([33, 20, 16], [18, 0, 16]),
}
every_regime = pytest.mark.parametrize("regime", BATCHES)


def inputs_of(regime, dtype=torch.float32, **options):
    lengths, answering = BATCHES[regime]
    key_lengths = torch.tensor(answering, dtype=torch.int32, device=DEVICE)
    return side_by_side(lengths, dtype=dtype) | {"key_lengths": key_lengths} | options


def silent_rows(regime):
    lengths, answering = BATCHES[regime]
    rows = [torch.arange(length) >= keys for length, keys in zip(lengths, answering, strict=True)]
    return torch.cat([*rows, torch.zeros(TAIL, dtype=torch.bool)]).to(DEVICE)


@every_regime
@pytest.mark.parametrize("name", ["plain", "causal", "everything"])
def test_every_option_meets_the_law(regime, name):
    with forced(regime):
        assert_meets_the_law(varlen_attention_packed, inputs_of(regime, **options_of(name, regime)))


@every_regime
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_meets_the_law(regime, dtype):
    with forced(regime):
        assert_meets_the_law(varlen_attention_packed, inputs_of(regime, dtype))


@pytest.mark.parametrize("path", [*BATCHES, "reference", "sdpa", "specification"])
def test_what_silent_rows_hold_as_keys_reaches_nobody(path):
    """Their keys and values are not finite; their queries are answered like all others."""
    regime = path if path in BATCHES else "resident"
    silent = silent_rows(regime)
    clean = inputs_of(regime, backend="triton" if path in BATCHES else path)
    poisoned = clean | {"qkv": clean["qkv"].detach().clone()}
    poisoned["qkv"][silent, 1] = float("inf")
    poisoned["qkv"][silent, 2] = float("nan")
    poisoned["qkv"].requires_grad_()
    with forced(regime):
        expected, found = (results(varlen_attention_packed, x) for x in (clean, poisoned))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert found["grad of qkv"][silent, 0].any()
    assert not found["grad of qkv"][silent, 1:].any()


def test_it_is_attention_to_the_rows_that_answer():
    inputs = inputs_of("resident")
    answers = ~silent_rows("resident")
    lengths = BATCHES["resident"][1]

    def of_rows_apart(qkv, cu_seqlens, max_seqlen, key_lengths):
        query, key, value = qkv.unbind(1)
        keys = {"cu_seqlens_k": offsets(lengths), "max_seqlen_k": max(lengths)}
        return varlen_attention(query, key[answers], value[answers], cu_seqlens, max_seqlen, **keys)

    found, expected = (results(run, inputs) for run in (varlen_attention_packed, of_rows_apart))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["triton", "reference", "sdpa"])
@pytest.mark.parametrize("name", ["plain", "causal"])
def test_under_torch_compile(backend, name):
    torch._dynamo.reset()
    inputs = inputs_of("tiny", backend=backend, **OPTIONS[name])
    compiled = torch.compile(varlen_attention_packed, fullgraph=True, backend="aot_eager")
    found, expected = results(compiled, inputs), results(varlen_attention_packed, inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("library", ["flash_attn", "flash_attn_3", "flash_attn_4", "torch_varlen", "xformers"])
def test_libraries_get_the_rows_that_answer_first(library):
    inputs = inputs_of("resident")
    cu, length, key_lengths = inputs["cu_seqlens"], inputs["max_seqlen"], inputs["key_lengths"]
    call = Call(cu, length, cu, length, Options(0.25), key_lengths=key_lengths)

    def split(qkv, **_):
        query, key, value = qkv.unbind(1)
        key, value, apart = limits.answering_rows(library, key, value, call)
        assert apart.key_lengths is None
        keys = {"cu_seqlens_k": apart.cu_seqlens_k, "max_seqlen_k": apart.max_seqlen_k}
        return varlen_attention(query, key, value, cu, length, **keys)

    found, expected = (results(run, inputs) for run in (split, varlen_attention_packed))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    _, key, value = inputs["qkv"].unbind(1)
    causal = call._replace(options=Options(0.25, causal=True))
    with pytest.raises(BackendUnavailableError, match=f"'{library}' cannot run: causal with key_lengths"):
        limits.answering_rows(library, key, value, causal)


@pytest.mark.parametrize(
    ("key_lengths", "error", "message"),
    [
        ([1], ValueError, r"key_lengths has shape \[1\], expected \[2\]"),
        ([1.0, 2.0], TypeError, r"key_lengths is torch\.float32, expected int32"),
        ([1, 4], ValueError, r"key_lengths\[1\] is 4, but sequence 1 has 3 rows"),
        ([-1, 3], ValueError, r"key_lengths\[0\] is -1, but sequence 0 has 2 rows"),
    ],
)
def test_lengths_that_do_not_fit(key_lengths, error, message):
    lengths = torch.tensor(key_lengths)
    lengths = lengths if lengths.is_floating_point() else lengths.int()
    with pytest.raises(error, match=message):
        varlen_attention_packed(**side_by_side([2, 3]), key_lengths=lengths.to(DEVICE))


@pytest.mark.parametrize("cu_seqlens", [3, [], [[0, 2], [2, 5]]], ids=str)
def test_offsets_that_are_none_are_said_first(cu_seqlens):
    inputs = side_by_side([2, 3]) | {"cu_seqlens": torch.tensor(cu_seqlens, dtype=torch.int32, device=DEVICE)}
    lengths = torch.ones(2, dtype=torch.int32, device=DEVICE)
    with pytest.raises((ValueError, TypeError), match=r"^varlen_attention_packed: cu_seqlens "):
        varlen_attention_packed(**inputs, key_lengths=lengths)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_no_sequence_at_all(backend):
    qkv = pattern(torch.empty(4, 3, 2, 16, device=DEVICE))
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    found = varlen_attention_packed(qkv, offsets([]), 1, key_lengths=empty, backend=backend)
    assert not found.any()
