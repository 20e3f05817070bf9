"""NaN and infinity stay in their own sequence, and reach there whatever depends on them."""

from typing import Any

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import axial_attention, varlen_attention
from tests.kernels.attention_cases import (
    OPTIONS,
    forced,
    grid,
    offsets,
    packed,
)
from tests.kernels.triton_cases import (
    no_kernels,
    pattern,
    results,
)

# Queries and keys of each sequence; those of the third are poisoned.
BATCHES = {
    "tiny": ([5, 1, 7, 3], None),
    "tiny crossed": ([5, 2, 6, 3], [4, 0, 9, 3]),
    "resident": ([18, 5, 20], None),
    "streaming": ([18, 5, 20], None),
}
# numpy, in the interpreter, announces what these tests are about
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
NAN, INFINITY = float("nan"), float("inf")
every_source = pytest.mark.parametrize("source", ["query", "key", "value", "incoming"])


def run(case: str, source: str, value: float | None, sequence: int = 2, element: int = 1, **options: Any):
    """(results, rows of the sequence by name of result); with a value in one number of one of its rows."""
    lengths, lengths_k = BATCHES[case]
    inputs = packed(lengths, lengths_k, heads=1, **options)
    of_queries, of_keys = (offsets(x)[sequence : sequence + 2].tolist() for x in (lengths, lengths_k or lengths))
    own = {name: slice(*of_queries) for name in ("output", "query", "grad of query", "incoming")}
    own |= {name: slice(*of_keys) for name in ("key", "value", "grad of key", "grad of value")}

    def incoming(output):
        grad = pattern(output)
        if value is not None and source == "incoming":
            grad[own[source].start + element, 0, 3] = value
        return grad

    if value is not None and source != "incoming":
        with torch.no_grad():
            inputs[source][own[source].start + element, 0, 3] = value
    return results(varlen_attention, inputs, incoming), own


def check(case: str, source: str, value: float, with_own: bool = True, **options: Any) -> None:
    with forced(case):
        clean, own = run(case, source, None, backend="triton", **options)
        found, _ = run(case, source, value, backend="triton", **options)
    with no_kernels():
        expected, _ = run(case, source, value, backend="reference", **options)
    for name, result in found.items():
        others = torch.ones(result.shape[0], dtype=torch.bool, device=result.device)
        others[own[name]] = False
        assert torch.equal(result[others], clean[name][others]), f"{name} of other sequences changed"
        if with_own:
            hidden = result[own[name]].isfinite() & ~expected[name][own[name]].isfinite().to(result.device)
            assert not hidden.any(), f"{name} is finite where the reference is not"


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY], ids=str)
@pytest.mark.parametrize("case", BATCHES)
@every_source
def test_plain(case, source, value):
    check(case, source, value)


@pytest.mark.parametrize("case", ["tiny", "streaming"])
@every_source
def test_with_softcap_and_dropout(case, source):
    check(case, source, NAN, softcap=1.5, dropout_p=0.5, seed=3)
    check(case, source, INFINITY, dropout_p=0.5, seed=3)


@pytest.mark.parametrize("case", ["tiny", "tiny crossed", "resident"])
@every_source
def test_causal_rows_that_depend_on_it_alone(case, source):
    """The reference multiplies masked weights, zero, with NaN; the kernels need not."""
    check(case, source, NAN, with_own=False, causal=True)
    with forced(case):
        found, own = run(case, source, NAN, causal=True, backend="triton")
    if source != "incoming":
        seen_by = own["query"].start + 1 if source == "query" else own["query"].stop - 1
        assert not found["output"][seen_by].isfinite().all()
        assert not found["grad of query"][seen_by].isfinite().all()


def test_a_query_without_a_key_says_nothing_of_what_it_holds():
    for source in ("query", "incoming"):
        with forced("tiny"):
            clean, _ = run("tiny crossed", source, None, backend="triton")
            found, _ = run("tiny crossed", source, NAN, sequence=1, backend="triton")
        for name, result in found.items():
            assert torch.equal(result, clean[name]), name


@pytest.mark.parametrize("regime", ["tiny", "resident", "streaming"])
@pytest.mark.parametrize("source", ["query", "key", "value"])
@pytest.mark.parametrize("value", [INFINITY, -INFINITY], ids=str)
def test_the_only_logit_of_a_row_is_infinite(regime, source, value):
    """Softmax of -inf alone is NaN, not the zero of a query without keys."""
    inputs = packed([1, 1, 3], heads=1, tail=0, backend="triton")
    with torch.no_grad():
        inputs[source][1, 0, 3] = value
    with forced(regime):
        found = results(varlen_attention, inputs)
    assert not found["output"][1].isfinite().all()
    for result in found.values():
        assert result[[0, 2, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("source", ["query", "key", "value"])
def test_along_an_axis_in_half_precision(source, dtype):
    found = []
    for value in (None, NAN, INFINITY):
        inputs = grid(1, 5, 3, 1, 16, dtype=dtype, **OPTIONS["softcap"], backend="triton")
        if value is not None:
            with torch.no_grad():
                inputs[source][0, 2, 1, 0, 3] = value
        with forced("tiny"):
            found.append(results(axial_attention, inputs))
    clean, *poisoned = found
    for results_ in poisoned:
        for name, result in results_.items():
            assert torch.equal(result[:, :, [0, 2]], clean[name][:, :, [0, 2]]), name
        assert not results_["output"][:, 2, 1].isfinite().any()
