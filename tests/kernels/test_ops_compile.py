"""Every op compiles into one graph, forward and backward, and stays on its inputs' device without reading values."""

import functools
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvtp_kernels as kernels
from fastvtp_kernels.interpreter import interpreting
from fastvtp_kernels.ops import OPS

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TUBELET: dict[str, Any] = {"tubelet": (2, 4, 4)}
OPTIONS: dict[str, Any] = {"softcap": 2.0, "causal": True, "dropout_p": 0.3, "seed": 5}


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


VIDEO = torch.randint(0, 256, (2, 4, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([[0, 5], [7, 2]], dtype=torch.int32)
OFFSETS = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
QKV = [leaf(9, 2, 4, seed=seed) for seed in (0, 1, 2)]
PAIR = [leaf(5, 4), leaf(5, 4, seed=1), torch.tensor(3.0, requires_grad=True)]
CASES = {
    "tube_mask": (lambda ids: kernels.tube_mask(3, (2, 2, 3), 0.5, seed=1, sample_ids=ids), [torch.arange(3)]),
    "text_mask": (
        lambda ids, cu: kernels.text_mask(ids, cu, 0.5, special_ids=(0,), seed=3),
        [torch.arange(9), OFFSETS],
    ),
    "block_tube_mask": (
        lambda ids: kernels.block_tube_mask(3, (2, 4, 4), 0.5, seed=1, sample_ids=ids),
        [torch.arange(3)],
    ),
    "running_cell_mask": (
        lambda ids: kernels.running_cell_mask(3, (2, 4, 4), seed=1, sample_ids=ids),
        [torch.arange(3)],
    ),
    "replace_masked_tokens": (
        lambda ids, masked, cu: kernels.replace_masked_tokens(ids, masked, cu, kernels.Replacement(3), seed=3),
        [torch.arange(9), torch.arange(9) % 2 == 0, OFFSETS],
    ),
    "gather_tubelets": (lambda v, i: kernels.gather_tubelets(v, i, **TUBELET, **IMAGENET), [VIDEO, INDEX]),
    "tubelet_embed": (
        lambda v, i, w, b, p: kernels.tubelet_embed(v, i, w, b, p, **TUBELET, **IMAGENET),
        [VIDEO, INDEX, leaf(5, 3, 2, 4, 4), leaf(5), leaf(8, 5)],
    ),
    "masked_pixel_loss": (
        lambda p, v, i: kernels.masked_pixel_loss(p, v, i, **TUBELET),
        [leaf(2, 2, 96), VIDEO, INDEX],
    ),
    "assemble_tokens": (kernels.assemble_tokens, [leaf(2, 2, 5), leaf(5), leaf(8, 5), INDEX, INDEX.flip(0)]),
    "varlen_attention": (lambda q, k, v, cu: kernels.varlen_attention(q, k, v, cu, 4), [*QKV, OFFSETS]),
    "varlen_attention, every option": (
        lambda q, k, v, cu: kernels.varlen_attention(q, k, v, cu, 4, **OPTIONS),
        [*QKV, OFFSETS],
    ),
    "varlen_attention_packed": (
        lambda qkv, cu: kernels.varlen_attention_packed(qkv, cu, 4, **OPTIONS),
        [leaf(9, 3, 2, 4), OFFSETS],
    ),
    "axial_attention": (
        lambda q, k, v: kernels.axial_attention(q, k, v, causal=True),
        [leaf(2, 3, 2, 1, 4, seed=seed) for seed in (0, 1, 2)],
    ),
    "axial_attention_packed": (
        lambda qkv: kernels.axial_attention_packed(qkv, causal=True),
        [leaf(2, 3, 2, 3, 1, 4)],
    ),
    "contrastive_loss": (kernels.contrastive_loss, PAIR),
    "contrastive_loss, positives and smoothing": (
        lambda a, b, scale, ids: kernels.contrastive_loss(a, b, scale, positives=ids, label_smoothing=0.1),
        [*PAIR, torch.tensor([1, 0, 1, 2, 3])],
    ),
    "sigmoid_loss": (lambda a, b, scale: kernels.sigmoid_loss(a, b, scale, -1.0), PAIR),
    "sigmoid_loss, bias": (kernels.sigmoid_loss, [*PAIR, torch.tensor(-1.0, requires_grad=True)]),
    "hard_negatives": (lambda a, b, scale: kernels.hard_negatives(a, b, scale, seed=3), PAIR),
}
every_case = pytest.mark.parametrize(("function", "inputs"), CASES.values(), ids=CASES)


def as_tuple(output):
    return output if isinstance(output, tuple) else (output,)


def gradients(output, inputs):
    leaves = [x for x in inputs if x.requires_grad]
    return torch.autograd.grad(output, leaves, torch.linspace(-1, 1, output.numel()).view_as(output) + 0.1)


def test_every_op_is_covered():
    assert {name.split(",")[0] for name in CASES} == {name for folder in OPS.values() for name in folder.functions}


@every_case
def test_one_graph_and_the_eager_result(function, inputs):
    torch._dynamo.reset()
    compiled = as_tuple(torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs))
    eager = as_tuple(function(*inputs))
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other)
    if eager[0].requires_grad:
        for one, other in zip(gradients(compiled[0], inputs), gradients(eager[0], inputs), strict=True):
            torch.testing.assert_close(one, other)


@every_case
def test_everything_stays_on_the_device_and_no_value_is_read(function, inputs):
    """Fake tensors of another device refuse to be mixed with the CPU's and have no values to read."""
    with torch._functorch.config.patch(fake_tensor_allow_meta=True), FakeTensorMode():
        fakes = [torch.empty(x.shape, dtype=x.dtype, device="meta", requires_grad=x.requires_grad) for x in inputs]
        outputs = as_tuple(function(*fakes))
        for output in outputs:
            assert output.device.type == "meta"
        if outputs[0].requires_grad:
            outputs[0].sum().backward()


def test_a_new_step_does_not_recompile_every_time():
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(lambda step: kernels.tube_mask(2, (1, 3, 3), 0.5, seed=1, step=step), backend=graphs)
    for step in range(5):
        assert torch.equal(compiled(step).masked, kernels.tube_mask(2, (1, 3, 3), 0.5, seed=1, step=step).masked)
    assert 1 <= graphs.frame_count <= 3


LENGTHS = ([3, 5, 0, 1], [1, 0, 1], [40, 2])


def packed_input(lengths):
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    return leaf(int(offsets[-1]) + 2, 3, 2, 8), offsets


def by_own_length(qkv, offsets, crossed=False, **options):
    longest = int(offsets.diff().max())
    if not crossed:
        return kernels.varlen_attention_packed(qkv, offsets, longest, **options)
    keys = offsets.clone()
    other = keys.diff().max().item()
    return kernels.varlen_attention(*qkv.unbind(1), offsets, longest, cu_seqlens_k=keys, max_seqlen_k=other, **options)


@pytest.mark.parametrize(
    ("backend", "options", "dynamic"),
    [
        ("reference", {}, True),
        ("reference", {**OPTIONS, "crossed": True}, None),
        ("triton", {"crossed": True}, None),
        ("sdpa", {}, None),
    ],
    ids=["reference", "reference, every option", "triton", "sdpa"],
)
def test_max_seqlen_may_be_read_from_a_tensor_in_one_graph(backend, options, dynamic):
    if backend == "triton" and not interpreting():
        pytest.skip("Triton does not interpret here")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    call = functools.partial(by_own_length, backend=backend, **options)
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=counter)
    for lengths in LENGTHS:
        qkv, offsets = packed_input(lengths)
        found = compiled(qkv, offsets)
        right = call(qkv, offsets)
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
        gradients = (torch.autograd.grad(out.square().sum(), qkv)[0] for out in (found, right))
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    # Not one a length.
    assert counter.frame_count <= 2


def test_inductor_takes_an_unknown_max_seqlen():
    torch._dynamo.reset()
    qkv, offsets = packed_input(LENGTHS[0])
    with torch.no_grad():
        found = torch.compile(by_own_length, fullgraph=True)(qkv, offsets)
        torch.testing.assert_close(found, by_own_length(qkv, offsets), rtol=1e-5, atol=1e-6)
