"""The cost models against implementations that count what they touch and what they compute."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.workload import IMAGENET_MEAN, IMAGENET_STD, Workload
from benchmarks.ops import masking, pixel_loss, token_assembly, tubelets
from fastvtp_kernels import assemble_tokens, gather_tubelets, masked_pixel_loss, tube_mask, tubelet_embed

TINY = Workload("tiny", batch=2, frames=4, size=4, width=5, decoder_width=3, tubelet=(2, 2, 2), mask_ratio=0.5)
CPU = torch.device("cpu")
B, T, P, D = TINY.batch, TINY.tokens, TINY.values, TINY.width
PIXELS: dict[str, Any] = {"tubelet": TINY.tubelet, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


class Counted:
    """A tensor that remembers which of its elements were read or written."""

    def __init__(self, tensor: Tensor):
        self.tensor, self._number, self.touched = tensor, torch.arange(tensor.numel()).view(tensor.shape), set()

    def __getitem__(self, index: Any) -> Tensor:
        self.touched.update(self._number[index].flatten().tolist())
        return self.tensor[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.touched.update(self._number[index].flatten().tolist())
        self.tensor[index] = value


def counted(*tensors: Tensor) -> list[Counted]:
    return [Counted(tensor) for tensor in tensors]


def total_bytes(*tensors: Counted) -> int:
    return sum(len(counted.touched) * counted.tensor.itemsize for counted in tensors)


def pixels_of(video: Counted, clip: int, token: int) -> Tensor:
    _, height, width = TINY.grid
    t, y, x = (2 * cell for cell in (token // (height * width), token // width % height, token % width))
    return video[clip, t : t + 2, y : y + 2, x : x + 2].flatten()


def normalized(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((pixels.view(-1, 3) / 255 - mean) / std).flatten().to(dtype)


def everywhere(index: Tensor) -> list[tuple[int, int]]:
    return [(clip, place) for clip in range(index.shape[0]) for place in range(index.shape[1])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gather_cost_is_what_one_pass_touches(dtype):
    video, visible = TINY.video(CPU), TINY.mask(CPU).visible
    frames, index, out = counted(video, visible, torch.empty(*visible.shape, P, dtype=dtype))
    for clip, place in everywhere(visible):
        out[clip, place] = normalized(pixels_of(frames, clip, int(index[clip, place])), dtype)
    torch.testing.assert_close(out.tensor, gather_tubelets(video, visible, dtype=dtype, **PIXELS))
    cost = tubelets.gather_cost(B, visible.shape[1], P, dtype.itemsize)
    assert (cost.bytes, cost.flops) == (total_bytes(frames, index, out), 2 * out.tensor.numel())


def test_embed_bytes_are_what_two_passes_touch():
    # Two clips that list every token between them: as many position rows as the model counts.
    video, visible = TINY.video(CPU), torch.arange(T, dtype=torch.int32).view(B, -1)
    parameters = [torch.randn(D, P), torch.randn(D), torch.randn(T, D)]
    frames, index, weight, bias, position, out = counted(video, visible, *parameters, torch.empty(*visible.shape, D))
    for clip, place in everywhere(visible):
        token = int(index[clip, place])
        tokens = normalized(pixels_of(frames, clip, token), torch.float32)
        out[clip, place] = weight[:] @ tokens + bias[:] + position[token]
    conv = parameters[0].view(D, *TINY.tubelet, 3).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(out.tensor, tubelet_embed(video, visible, conv, *parameters[1:], **PIXELS))
    forward = total_bytes(frames, index, weight, bias, position, out)
    sizes = B, visible.shape[1], P, D, T, 4
    assert tubelets.embed_cost(*sizes, backward=False).bytes == forward

    frames, index, incoming, grad_weight, grad_bias = counted(
        video, visible, torch.randn(out.tensor.shape), *parameters[:2]
    )
    for clip, place in everywhere(visible):
        tokens = normalized(pixels_of(frames, clip, int(index[clip, place])), torch.float32)
        grad_weight[:] = grad_weight.tensor + torch.outer(incoming[clip, place], tokens)
        grad_bias[:] = grad_bias.tensor + incoming[clip, place]
    backward = total_bytes(frames, index, incoming, grad_weight, grad_bias)
    assert tubelets.embed_cost(*sizes, backward=True).bytes == forward + backward


@pytest.mark.parametrize("backward", [False, True])
def test_embed_flops_are_those_of_the_matmuls(backward):
    video, visible = TINY.video(CPU), TINY.mask(CPU).visible
    weight = torch.randn(D, 3, *TINY.tubelet, requires_grad=backward)
    with FlopCounterMode(display=False) as counter:
        out = tubelet_embed(video, visible, weight, torch.zeros(D), **PIXELS)
        if backward:
            out.sum().backward()
    cost = tubelets.embed_cost(B, visible.shape[1], P, D, T, 4, backward)
    assert cost.flops == counter.get_total_flops()


class Number:
    """A float that counts the operations done with it and its kin."""

    operations = 0

    def __init__(self, value: float):
        self.value = value

    def _with(self, value: float) -> "Number":
        Number.operations += 1
        return Number(value)

    def __add__(self, other: "Number") -> "Number":
        return self._with(self.value + other.value)

    def __sub__(self, other: "Number") -> "Number":
        return self._with(self.value - other.value)

    def __mul__(self, other: "Number") -> "Number":
        return self._with(self.value * other.value)

    def __truediv__(self, other: "Number") -> "Number":
        return self._with(self.value / other.value)


def total(numbers: list[Number]) -> Number:
    result = Number(0.0)
    for number in numbers:
        result = result + number
    return result


@pytest.mark.parametrize("backward", [False, True])
def test_pixel_loss_cost_is_what_one_pass_does(backward):
    video, masked = TINY.video(CPU), TINY.mask(CPU).masked
    prediction = torch.randn(*masked.shape, P, requires_grad=backward)
    expected = masked_pixel_loss(prediction, video, masked, tubelet=TINY.tubelet)
    guess, frames, index, gradient, loss = counted(
        prediction.detach(), video, masked, torch.empty_like(prediction), torch.zeros(1)
    )
    Number.operations, groups, scale = 0, 0, Number(2 / prediction.numel())
    for clip, place in everywhere(masked):
        pixels = pixels_of(frames, clip, int(index[clip, place])).view(-1, 3)
        for channel in range(3):
            groups += 1
            values = [Number(float(pixel)) * Number(1 / 255) for pixel in pixels[:, channel]]
            mean = total(values) / Number(len(values))
            centered = [value - mean for value in values]
            variance = total([value * value for value in centered]) / Number(len(values) - 1)
            deviation = Number(variance.value**0.5) + Number(1e-6)
            target = [value / deviation for value in centered]
            predicted = [Number(float(value)) for value in guess[clip, place, channel::3]]
            difference = [one - other for one, other in zip(predicted, target, strict=True)]
            loss[0] = (total([value * value for value in difference]) + Number(float(loss.tensor[0]))).value
            if backward:
                gradient[clip, place, channel::3] = torch.tensor([(value * scale).value for value in difference])
    torch.testing.assert_close(loss.tensor[0] / prediction.numel(), expected.detach())
    if backward:
        torch.testing.assert_close(gradient.tensor, torch.autograd.grad(expected, prediction)[0])
    cost = pixel_loss.pixel_loss_cost(B, masked.shape[1], P, 4, backward)
    assert cost.bytes == total_bytes(guess, frames, index, gradient, loss)
    # A handful of operations per token and channel, not per value, is left out.
    assert 0 <= Number.operations - cost.flops <= 4 * groups


def test_tube_mask_bytes_are_its_ids_and_lists():
    sample_ids = torch.arange(B)
    mask = tube_mask(B, TINY.grid, 0.5, seed=0, sample_ids=sample_ids)
    assert masking.tube_mask_cost(B, T).bytes == sum(tensor.nbytes for tensor in (sample_ids, *mask))


@pytest.mark.parametrize("shuffled", [False, True])
def test_assembly_cost_is_what_two_passes_do(shuffled):
    width, mask = TINY.decoder_width, TINY.mask(CPU)
    permutation = torch.stack([torch.randperm(T) for _ in range(B)]).int() if shuffled else None
    tensors = torch.randn(*mask.visible.shape, width), torch.randn(width), torch.randn(T, width)
    expected = assemble_tokens(*tensors, *mask, permutation=permutation)
    places = torch.cat(mask, dim=1) if permutation is None else permutation
    seen = mask.visible.shape[1]
    visible, mask_token, position, index, out = counted(*tensors, places, torch.empty_like(expected))
    additions = 0
    for clip, place in everywhere(places):
        found = int(index[clip, place])
        source, row = (found, place) if shuffled else (place, found)
        value = visible[clip, source] if source < seen else mask_token[:]
        out[clip, place] = value + position[row]
        additions += width
    torch.testing.assert_close(out.tensor, expected)
    sizes = B, seen, T - seen, width, T, 4
    forward = token_assembly.assembly_cost(*sizes, backward=False)
    assert (forward.bytes, forward.flops) == (total_bytes(visible, mask_token, position, index, out), additions)

    incoming, grad_visible, grad_mask_token = counted(torch.randn(expected.shape), *tensors[:2])
    for clip, place in everywhere(places):
        source = int(places[clip, place]) if shuffled else place
        if source < seen:
            grad_visible[clip, source] = incoming[clip, place]
        else:
            grad_mask_token[:] = grad_mask_token.tensor + incoming[clip, place]
            additions += width
    both = token_assembly.assembly_cost(*sizes, backward=True)
    assert both.bytes - forward.bytes == total_bytes(incoming, grad_visible, grad_mask_token)
    assert both.flops == additions


def test_figures_of_the_full_workload():
    """VideoMAE-B, 64 clips, bfloat16, worked out by hand."""
    work = Workload("VideoMAE-B", batch=64)
    mask = work.mask(CPU)
    assert (mask.visible.shape[1], mask.masked.shape[1], work.tokens, work.values) == (160, 1408, 1568, 1536)
    embed = tubelets.embed_cost(64, 160, 1536, 768, 1568, 2, backward=False)
    assert embed.flops == pytest.approx(24.2e9, rel=2e-3)
    assert embed.bytes == pytest.approx(36.2e6, rel=2e-3)
    assert pixel_loss.pixel_loss_cost(64, 1408, 1536, 2, backward=False).bytes == pytest.approx(415.2e6, rel=2e-3)
    assert pixel_loss.pixel_loss_cost(64, 1408, 1536, 2, backward=True).bytes == pytest.approx(692.1e6, rel=2e-3)
