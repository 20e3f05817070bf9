"""What only a GPU can show of the kernels: they capture into CUDA graphs, never make the host wait, and repeat bit for
bit. Skipped without one; numbers are checked by the interpreter tests, which run on the GPU too."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import fastvtp_kernels as kernels

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


def cases() -> dict[str, tuple[Callable[..., torch.Tensor], list[torch.Tensor]]]:
    """Calls of tensors that receive gradients."""
    if not torch.cuda.is_available():
        return {}
    video, mask = inputs()
    lengths = {"tiny": (8, 0, 16, 1, 9), "short": (168, 0, 192, 1, 176), "long": (900, 0, 1568, 1, 700)}
    found: dict[str, tuple[Callable[..., torch.Tensor], list[torch.Tensor]]] = {
        "tubelet_embed": (
            lambda w, b, p: kernels.tubelet_embed(video, mask.visible, w, b, p, **IMAGENET),
            [values(768, 3, 2, 16, 16), values(768), values(1568, 768)],
        ),
        "masked_pixel_loss": (lambda p: kernels.masked_pixel_loss(p, video, mask.masked), [values(4, 1408, 1536)]),
        "assemble_tokens": (
            lambda v, m, p: kernels.assemble_tokens(v, m, p, mask.visible, mask.masked),
            [values(4, 160, 384), values(384), values(1568, 384)],
        ),
        "axial_attention": (
            lambda x: kernels.axial_attention(*x.unbind(3), causal=True),
            [values(2, 16, 49, 3, 12, 64)],
        ),
    }
    options: dict[str, dict[str, Any]] = {
        "": {},
        " dropout": {"dropout_p": 0.1, "seed": 3},
        " capped": {"softcap": 50.0},
    }
    for name, given in lengths.items():
        layout = {"cu_seqlens": offsets(*given), "max_seqlen": max(given)}
        for option, arguments in options.items():
            call = partial(kernels.varlen_attention_packed, **layout, **arguments)
            found[f"attention {name}{option}"] = call, [values(sum(given) + 5, 3, 12, 64)]
    return found


every_case = pytest.mark.parametrize("name", cases())


def step(function: Callable[..., torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), leaves)]


@every_case
def test_repeats_bit_for_bit(name):
    function, leaves = cases()[name]
    first = step(function, leaves)
    for _ in range(REPEATS):
        for one, other in zip(step(function, leaves), first, strict=True):
            assert torch.equal(one, other)


@every_case
def test_the_host_never_waits(name):
    function, leaves = cases()[name]
    step(function, leaves)  # compiles and fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(function, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_case
def test_captures_into_a_graph(name):
    function, leaves = cases()[name]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step(function, leaves)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(function, leaves)
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    for one, other in zip(captured, expected, strict=True):
        assert torch.equal(one, other)
