"""What only a GPU can show of the kernels: they capture into CUDA graphs, never make the host wait, and repeat bit for
bit. Skipped without one; numbers are checked by the interpreter tests, which run on the GPU too."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import fastvtp_kernels as kernels
from fastvtp_kernels.segments.op import sum_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GRID = (8, 14, 14)
REPEATS = 200


def values(*shape: int) -> torch.Tensor:
    """On the device in bfloat16, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).bfloat16().cuda().requires_grad_()


def inputs() -> tuple[torch.Tensor, kernels.TubeMask]:
    video = torch.randint(0, 256, (4, 16, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return video.cuda(), kernels.tube_mask(4, GRID, 0.9, seed=0, device="cuda")


def offsets(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32).cuda()


# A call, and the tensors that receive gradients; a call of none may return several results.
Case = tuple[Callable[..., Any], list[torch.Tensor]]
LENGTHS = {"tiny": (8, 0, 16, 1, 9), "short": (168, 0, 192, 1, 176), "long": (900, 0, 1568, 1, 700)}
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    " dropout": {"dropout_p": 0.1, "seed": 3},
    " capped": {"softcap": 50.0},
    " causal": {"causal": True},
}


def attention_case(lengths: tuple[int, ...], options: dict[str, Any]) -> Case:
    layout = {"cu_seqlens": offsets(*lengths), "max_seqlen": max(lengths)}
    call = partial(kernels.varlen_attention_packed, **layout, **options)
    return call, [values(sum(lengths) + 5, 3, 12, 64)]


def tubelet_embed_case() -> Case:
    video, mask = inputs()
    return (
        lambda w, b, p: kernels.tubelet_embed(video, mask.visible, w, b, p, **IMAGENET),
        [values(768, 3, 2, 16, 16), values(768), values(1568, 768)],
    )


def pixel_loss_case() -> Case:
    video, mask = inputs()
    return lambda p: kernels.masked_pixel_loss(p, video, mask.masked), [values(4, 1408, 1536)]


def assembly_case() -> Case:
    _, mask = inputs()
    return (
        lambda v, m, p: kernels.assemble_tokens(v, m, p, mask.visible, mask.masked),
        [values(4, 160, 384), values(384), values(1568, 384)],
    )


def axial_case() -> Case:
    return partial(kernels.axial_attention_packed, causal=True), [values(2, 16, 49, 3, 12, 64)]


def contrastive_case(loss: Callable[..., torch.Tensor], *scalars: float, ids: bool = False) -> Case:
    """Rows that fill no tile; `ids`: rows that share a positive."""
    positives = {"positives": torch.arange(1001).cuda() // 3} if ids else {}
    others = values(1001, 512).detach().flip(0).requires_grad_()
    numbers = [torch.tensor(number, device="cuda", requires_grad=True) for number in scalars]
    return partial(loss, **positives), [values(1001, 512), others, *numbers]


def tube_mask_case() -> Case:
    ids = torch.arange(64).cuda()
    return partial(kernels.tube_mask, 64, GRID, 0.9, seed=3, step=1, sample_ids=ids), []


def gather_case() -> Case:
    video, mask = inputs()
    return partial(kernels.gather_tubelets, video, mask.visible, dtype=torch.bfloat16, **IMAGENET), []


def hard_negatives_case() -> Case:
    a, b = (torch.nn.functional.normalize(values(1001, 512 + more).detach(), dim=1)[:, :512] for more in (0, 1))
    groups = torch.arange(1001).cuda() // 2
    return partial(kernels.hard_negatives, a, b, 20.0, seed=3, step=1, groups=groups), []


def sum_rows_case() -> Case:
    rows = torch.randint(0, 300, (5000,), generator=torch.Generator().manual_seed(2))
    starts = torch.nn.functional.pad(rows.bincount(minlength=301).cumsum(0), (1, 0)).int()
    lists = (rows.cuda(), rows.argsort(stable=True).cuda(), starts.cuda())
    return lambda gradient: sum_rows(gradient, *lists), [values(5000, 768)]


# Made when a test asks, for collecting tests must not touch the GPU.
CASES: dict[str, Callable[[], Case]] = {
    "tube_mask": tube_mask_case,
    "gather_tubelets": gather_case,
    "hard_negatives": hard_negatives_case,
    "segments sum_rows": sum_rows_case,
    "tubelet_embed": tubelet_embed_case,
    "masked_pixel_loss": pixel_loss_case,
    "assemble_tokens": assembly_case,
    "axial_attention": axial_case,
    "contrastive_loss": partial(contrastive_case, kernels.contrastive_loss, 0.1),
    "contrastive_loss positives": partial(contrastive_case, kernels.contrastive_loss, 0.1, ids=True),
    "sigmoid_loss": partial(contrastive_case, kernels.sigmoid_loss, 0.1, -2.0),
    **{
        f"attention {name}{option}": partial(attention_case, lengths, arguments)
        for name, lengths in LENGTHS.items()
        for option, arguments in OPTIONS.items()
    },
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def step(function: Callable[..., Any], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, and the gradients of the leaves where there are any."""
    output = function(*leaves)
    if not leaves:
        return [output] if isinstance(output, torch.Tensor) else list(output)
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), leaves)]


def assert_same_bits(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def captured(run: Callable[[], list[torch.Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """A graph of the call, after a first one on another stream that compiles its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


@every_case
def test_repeats_bit_for_bit(case):
    function, leaves = case()
    first = step(function, leaves)
    for _ in range(REPEATS):
        assert_same_bits(step(function, leaves), first)


@every_case
def test_the_host_never_waits(case):
    function, leaves = case()
    step(function, leaves)  # compiles and fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(function, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_case
def test_captures_into_a_graph(case):
    function, leaves = case()
    expected = step(function, leaves)
    graph, found = captured(lambda: step(function, leaves))
    for tensor in found:
        tensor.zero_()
    graph.replay()
    assert_same_bits(found, expected)


# Other lengths of as many sequences: longest first, none, and an end that repeats before the rows do.
REPLAYED = {"tiny": (16, 3, 5, 0, 0), "short": (0, 192, 20, 168, 0), "long": (1568, 33, 0, 900, 0)}
GIVEN = {
    "half": {"dtype": torch.float16},
    "causal": {"causal": True},
    "single, causal": {"dtype": torch.float32, "causal": True},
    "crossed": {"crossed": True},
    "crossed, causal": {"crossed": True, "causal": True, "softcap": 20.0},
    "dropout": {"dropout_p": 0.2},
}


@pytest.mark.parametrize("regime", LENGTHS)
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_a_graph_follows_its_static_buffers(regime, given):
    """Offsets that come up in the capture itself; then other lengths, tokens and seeds are copied into its inputs."""
    options = {name: value for name, value in given.items() if name not in ("dtype", "crossed")}
    lengths, longest, dtype = LENGTHS[regime], max(LENGTHS[regime]), given.get("dtype", torch.bfloat16)
    counts, seed = torch.tensor(lengths).cuda(), torch.tensor([3]).cuda()
    counts_k = counts.flip(0) if given.get("crossed") else counts
    rows = sum(lengths) + 5
    query, key, value = (values(rows, 4, 64).detach().to(dtype).requires_grad_() for _ in range(3))

    def attend() -> list[torch.Tensor]:
        cu, cu_k = (torch.nn.functional.pad(x.cumsum(0), (1, 0)).int() for x in (counts, counts_k))
        keys = {"cu_seqlens_k": cu_k, "max_seqlen_k": longest} if given.get("crossed") else {}
        call = partial(kernels.varlen_attention, cu_seqlens=cu, max_seqlen=longest, seed=seed, **keys, **options)
        return step(call, [query, key, value])

    graph, found = captured(attend)
    for new, new_k in ((lengths, lengths[::-1]), (REPLAYED[regime], REPLAYED[regime][::-1])):
        counts.copy_(torch.tensor(new))
        if given.get("crossed"):
            counts_k.copy_(torch.tensor(new_k))
        seed += 1
        with torch.no_grad():
            for tensor in (query, key, value):
                tensor.copy_(tensor.roll(1, 0) * 0.9)
        graph.replay()
        replayed = [tensor.clone() for tensor in found]
        assert_same_bits(replayed, attend())


def test_each_stream_has_an_order_of_its_own():
    """A stream that took the order of another could read it before it is there."""
    from fastvtp_kernels.attention.ordering import longest_first

    cu = offsets(*[168] * 20)
    here = longest_first(cu, 12, 168)
    assert longest_first(cu, 12, 168) is here
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert longest_first(cu, 12, 168) is not here


def test_new_seeds_and_probabilities_compile_nothing():
    """Triton compiles anew for integers that are 1 or multiples of 16, unless told not to."""
    from fastvtp_kernels.attention import tiny

    qkv, cu = values(40, 3, 2, 64), offsets(16, 8, 16)
    counts = []
    for seed, dropout_p in ((3, 0.1), (16, 0.1), (1, 0.2), (2**40, 0.25), (2**64 - 1, 0.3)):
        kernels.varlen_attention_packed(qkv, cu, 16, dropout_p=dropout_p, seed=seed)
        counts.append(sum(len(caches[0]) for caches in tiny.tiny_forward.device_caches.values()))
    assert len(set(counts)) == 1, counts
