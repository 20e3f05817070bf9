import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fastvtp.modules.losses import (
    matching_accuracy,
    matching_labels,
    matching_loss,
    video_text_contrast,
)


def test_contrast_is_clips_formula():
    torch.manual_seed(0)
    text, video, scale = torch.randn(5, 8), 3 * torch.randn(5, 8), torch.tensor(20.0)
    logits = 20 * normalize(text, dim=-1) @ normalize(video, dim=-1).T
    both = cross_entropy(logits, torch.arange(5)) + cross_entropy(logits.T, torch.arange(5))
    torch.testing.assert_close(video_text_contrast(text, video, scale), both / 2)
    torch.testing.assert_close(video_text_contrast(text, video, scale, directions="sum"), both)
    with pytest.raises(ValueError, match="directions"):
        video_text_contrast(text, video, scale, directions="both")


def test_contrast_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    text, video, scale = torch.randn(5, 8), torch.randn(5, 8), torch.tensor(20.0)
    exact = video_text_contrast(text, video, scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(video_text_contrast(text, video, scale), exact)


def test_matching_loss_counts_both_halves():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.5]])
    labels = matching_labels(torch.tensor([True, True]))
    assert labels.tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(matching_loss(logits, labels), cross_entropy(logits, labels))
    assert matching_accuracy(logits, labels) == 0.5


def test_matching_leaves_out_rows_without_a_mismatch():
    logits = torch.randn(4, 2)
    labels = matching_labels(torch.tensor([True, False]))
    torch.testing.assert_close(matching_loss(logits, labels), cross_entropy(logits[:3], labels[:3]))
    assert matching_accuracy(torch.tensor([[0.0, 1], [0, 1], [1, 0], [0, 1]]), labels) == 1
