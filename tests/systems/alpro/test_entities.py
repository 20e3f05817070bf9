import numpy as np
import pytest
import torch

from fastvtp.systems.alpro.entities import (
    PROMPT_TEMPLATES,
    EntityTargets,
    average_prompts,
    crop_patches,
    entity_loss,
    entity_prompts,
    entity_targets,
)


def test_prompts_go_template_by_template():
    assert {kind: len(set(templates)) for kind, templates in PROMPT_TEMPLATES.items()} == {"video": 12, "image": 12}
    prompts = entity_prompts(["dog", "car"], "video")
    assert prompts[:3] == ["A footage of a dog.", "A footage of a car.", "A footage of the dog."]
    assert entity_prompts(["dog"], "image")[-1] == "A good picture of one dog."
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.0, 1.0]])  # two templates of two entities
    assert average_prompts(features, 2).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_crops_are_rectangles_of_the_stated_share():
    grid = (14, 14)
    crops = crop_patches(np.arange(400), grid, seed=0, step=0).view(-1, *grid)
    rows, columns = crops.any(2), crops.any(1)
    assert torch.equal(crops, rows[:, :, None] & columns[:, None])
    heights, widths = rows.sum(1), columns.sum(1)
    for side in (rows, columns):  # one run each, at every place
        assert ((side[:, 1:].int() - side[:, :-1].int()).clamp(min=0).sum(1) + side[:, 0] == 1).all()
        assert side.float().mean(0).min() > 0.1
    share = (heights * widths) / 196
    assert share.max() <= 0.5
    assert 0.2 < share.mean() < 0.45
    assert (heights.float() / widths).max() < 5
    assert crop_patches(np.arange(50), (1, 2), seed=0, step=0).any(1).all()  # never empty


def test_crops_are_drawn_as_released():
    """Size and corner together until a crop fits, here in its loader's pixels."""
    rng, patch, expected = np.random.default_rng(0), 16, np.zeros((14, 14))
    for _ in range(2000):
        while True:
            cells, ratio = 224 * 224 * rng.uniform(0.3, 0.5), rng.uniform(0.3, 1 / 0.3)
            height, width = (int(side // patch) for side in ((cells * ratio) ** 0.5, (cells / ratio) ** 0.5))
            top, left = rng.integers(224, size=2) // patch
            if top + height <= 14 and left + width <= 14:
                break
        expected[top : top + height, left : left + width] += 1 / 2000
    found = crop_patches(np.arange(2000), (14, 14), seed=0, step=0).float().mean(0).view(14, 14).numpy()
    assert np.abs(found - expected).max() < 0.04
    assert abs(found.mean() - expected.mean()) < 0.005


def test_ignore_rules():
    prompts, temperature = torch.eye(4), torch.tensor(1.0)
    sure, unsure = torch.tensor([9.0, 0, 0, 0]), torch.tensor([0.0, 0.01, 0, 0])
    other = torch.tensor([0.0, 0, 9, 0])
    many = torch.cat([prompts, torch.zeros(20, 4)])
    found = entity_targets(torch.stack([sure, unsure, other]), many, temperature, ignore_rule="paper")
    assert found.ignored.tolist() == [False, True, False]
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(3))
    found = entity_targets(torch.stack([sure, unsure, other]), many, temperature, ignore_rule="official")
    assert found.ignored.tolist() == [True, False, False]
    with pytest.raises(ValueError, match="ignore_rule must be 'paper' or 'official', got 'none'"):
        entity_targets(sure[None], prompts, temperature, ignore_rule="none")


def test_loss_over_what_is_left():
    logits = torch.randn(3, 5, requires_grad=True)
    probabilities = torch.rand(3, 5).softmax(-1)
    kept = torch.nn.functional.cross_entropy(logits[::2], probabilities[::2])
    loss = entity_loss(logits, EntityTargets(probabilities, torch.tensor([False, True, False])))
    torch.testing.assert_close(loss, kept)
    nothing = entity_loss(logits, EntityTargets(probabilities, torch.ones(3, dtype=torch.bool)))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad.abs().sum() == 0
