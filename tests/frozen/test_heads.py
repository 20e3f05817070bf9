import pytest
import torch

from fastvtp.frozen.heads import (
    BoxHead,
    BoxHeadConfig,
    SegmentHead,
    SegmentHeadConfig,
    roi_align,
    slot_centres,
)

GRID = (2, 5, 5)


def bilinear(feature_map, x, y):
    """[D, h, w] at (x, y) in cells, cell i covering [i, i + 1], its value at the middle; constant outside."""
    height, width = feature_map.shape[1:]
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
    fx, fy = x - x0, y - y0
    top = feature_map[:, y0, x0] * (1 - fx) + feature_map[:, y0, x0 + 1] * fx
    below = feature_map[:, y0 + 1, x0] * (1 - fx) + feature_map[:, y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + below * fy


def test_roi_align_against_its_definition():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[0.1, 0.2, 0.9, 0.7], [0.0, 0.0, 1.0, 1.0], [0.5, 0.3, 0.55, 0.4]], dtype=torch.float64)
    owners = torch.tensor([1, 0, 1])
    made = roi_align(maps, boxes, owners)
    assert made.shape == (3, 3, 7, 7)
    for (left, top, right, bottom), owner, cells in zip(boxes.tolist(), owners.tolist(), made, strict=True):
        for row in range(7):
            for column in range(7):
                points = [
                    bilinear(
                        maps[owner],
                        (left + (right - left) * (column + (i + 0.5) / 2) / 7) * 6,
                        (top + (bottom - top) * (row + (j + 0.5) / 2) / 7) * 4,
                    )
                    for i in range(2)
                    for j in range(2)
                ]
                torch.testing.assert_close(cells[:, row, column], sum(points) / 4)


def make_box_head():
    torch.manual_seed(0)
    head = BoxHead(BoxHeadConfig(width=16, num_classes=3, grid=GRID, num_heads=2, head_dim=8)).eval()
    head.init_weights()
    return head


def test_each_box_is_its_own_and_looks_at_its_clip():
    head, features = make_box_head(), torch.randn(3, 50, 16, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.1, 0.9, 1.0], [0.4, 0.4, 0.6, 0.6]])
    made = head(features, boxes, [2, 0, 1])
    assert made.shape == (3, 3)
    torch.testing.assert_close(made[1:2], head(features[:1], boxes[1:2], [1]))
    torch.testing.assert_close(made[2:], head(features[2:], boxes[2:], [1]))
    changed = features.clone()
    changed[1] = 0
    torch.testing.assert_close(head(changed, boxes, [2, 0, 1]), made)
    assert not torch.allclose(head(features.flip(0), boxes, [2, 0, 1]), made, atol=1e-3)


def test_the_query_is_the_maximum_inside_the_box():
    """A cell with large features lies in the first box alone; without the block its maximum is all that counts."""
    head = make_box_head()
    seen = []
    head.block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = torch.zeros(1, *GRID, 16)
    features[0, :, 1, 1] = 7.0
    head(features.flatten(1, 3), torch.tensor([[0.0, 0.0, 0.6, 0.6], [0.6, 0.6, 1.0, 1.0]]), [2])
    assert seen[0][0].min() > 5
    assert seen[0][1].abs().max() == 0


def test_boxes_that_do_not_fit_are_one_line():
    head = make_box_head()
    with pytest.raises(ValueError, match=r"expected \[B, 50, 16\] tokens and 2 boxes of B clips, got"):
        head(torch.zeros(1, 50, 16), torch.zeros(1, 4), [2])
    with pytest.raises(ValueError, match="grid must be three positive sizes"):
        BoxHeadConfig(width=16, num_classes=3, grid=(1, 2))


def test_segments_lie_around_their_slots_and_time_is_local():
    torch.manual_seed(0)
    head = SegmentHead(SegmentHeadConfig(width=16, num_classes=3, hidden=8, depth=1)).eval()
    head.init_weights()
    features = torch.randn(2, 10, 16)
    made = head(features)
    centres = slot_centres(10)
    assert (made.segments[..., 0] < centres).all()
    assert (made.segments[..., 1] > centres).all()
    assert made.logits.sigmoid().mean() < 0.05
    changed = features.clone()
    changed[:, 7] = torch.randn(2, 16)
    other = head(changed)
    assert torch.equal(other.logits[:, :6], made.logits[:, :6])
    assert not torch.equal(other.logits[:, 6], made.logits[:, 6])
    assert torch.equal(other.logits[:, 9], made.logits[:, 9])
