"""Records of tensors in one buffer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvtp.modules.one_buffer import change_tensors, lay_in_one, on_device, split

TENSORS = [
    torch.tensor(7),
    torch.arange(5, dtype=torch.int32),
    torch.empty(0, 3, dtype=torch.int64),
    torch.tensor([True, False, True]),
    torch.arange(12).view(3, 4).T,  # not contiguous
    torch.tensor([0.1, -2.0], dtype=torch.float64),
    torch.tensor([[1.5]], dtype=torch.bfloat16),
    torch.empty(0, dtype=torch.bool),
]


@dataclass(frozen=True)
class Inner:
    rows: Tensor
    count: int
    nothing: Tensor | None = None


@dataclass(frozen=True)
class Outer:
    first: Tensor
    inner: Inner
    again: Tensor
    other: Inner | None = None


def test_tensors_come_back_from_the_buffer_as_views_of_it():
    buffer = lay_in_one(TENSORS)
    assert (buffer.dtype, buffer.ndim) == (torch.uint8, 1)
    found = split(buffer, TENSORS)
    for one, other in zip(found, TENSORS, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
        assert one.is_contiguous()
        if one.numel():
            assert one.untyped_storage().data_ptr() == buffer.data_ptr()
            assert (one.data_ptr() - buffer.data_ptr()) % 16 == 0
    assert len({one.data_ptr() for one in found if one.numel()}) == 6
    assert len(lay_in_one([])) == 0


def test_records_keep_what_is_no_tensor():
    rows = torch.arange(4)
    record = Outer(rows, Inner(torch.tensor([1.0]), 3), rows)
    seen: list[Any] = []
    changed = change_tensors(record, lambda tensor: seen.append(tensor) or tensor + 1)
    assert [tensor.tolist() for tensor in seen] == [[0, 1, 2, 3], [1.0], [0, 1, 2, 3]]
    assert changed.first.tolist() == changed.again.tolist() == [1, 2, 3, 4]
    assert (changed.inner.rows.tolist(), changed.inner.count, changed.inner.nothing) == ([2.0], 3, None)
    assert changed.other is None


def test_on_the_host_nothing_is_copied():
    record = Outer(torch.arange(4), Inner(torch.tensor([1.0]), 3), torch.arange(2))
    moved = on_device(record, "cpu")
    assert moved.first is record.first
    assert moved.inner.rows is record.inner.rows


def test_what_goes_to_cuda_goes_in_one_copy(monkeypatch):
    """The host's memory stands in for a device's."""
    copies = []
    to = Tensor.to

    def copy(self: Tensor, *args: Any, **options: Any) -> Tensor:
        copies.append((self, options))
        return to(self, "cpu").clone()

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **options: empty(*args, **options))
    monkeypatch.setattr(Tensor, "to", copy)
    record = Outer(torch.arange(4), Inner(torch.tensor([1.0]), 3), torch.tensor([True]))
    moved = on_device(record, "cuda")
    assert [(tensor.dtype, options) for tensor, options in copies] == [(torch.uint8, {"non_blocking": True})]
    assert (moved.first.tolist(), moved.inner.rows.tolist(), moved.again.tolist()) == ([0, 1, 2, 3], [1.0], [True])
