import pytest
import torch

from fastvtp.frozen.heads import segment_loss, slot_centres, slot_targets

LABELS = torch.tensor([[True, False], [False, True]])


def test_a_slot_belongs_to_the_shortest_segment_around_it():
    segments = torch.tensor([[0.0, 1.0], [0.4, 0.6]])
    classes, places = slot_targets(slot_centres(5), segments, LABELS)
    assert classes.tolist() == [[1, 0], [1, 0], [0, 1], [1, 0], [1, 0]]
    torch.testing.assert_close(places[2], segments[1])


def test_a_segment_between_two_centres_is_not_lost():
    classes, places = slot_targets(slot_centres(4), torch.tensor([[0.26, 0.3]]), LABELS[:1])
    assert classes.tolist() == [[0, 0], [1, 0], [0, 0], [0, 0]]
    assert places[1].tolist() == pytest.approx([0.26, 0.3])
    assert places[0].tolist() == [0, 0]


def test_no_segment_no_class():
    classes, _ = slot_targets(slot_centres(4), torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.bool))
    assert classes.abs().sum() == 0


def test_loss_against_its_definition():
    logits = torch.tensor([[[1.0, -2.0], [0.5, 0.0]]])
    classes = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    found, true = torch.tensor([[[0.1, 0.5], [0.0, 0.1]]]), torch.tensor([[[0.2, 0.6], [0.0, 0.0]]])
    focal = 0.0
    for logit, wanted in zip(logits.flatten(), classes.flatten(), strict=True):
        p = logit.sigmoid() if wanted else 1 - logit.sigmoid()
        focal -= (0.25 if wanted else 0.75) * (1 - p) ** 2 * p.log()
    distance = 1 - 0.3 / 0.5 + (0.1 / 0.5) ** 2
    torch.testing.assert_close(segment_loss(logits, found, classes, true), focal + distance)


def test_perfect_is_zero_and_apart_still_pulls():
    classes, true = torch.tensor([[[1.0]]]), torch.tensor([[[0.2, 0.4]]])
    assert segment_loss(torch.tensor([[[50.0]]]), true, classes, true) == pytest.approx(0, abs=1e-6)
    found = torch.tensor([[[0.7, 0.9]]], requires_grad=True)
    segment_loss(torch.tensor([[[50.0]]]), found, classes, true).backward()
    assert found.grad[0, 0, 0] > 0
    assert found.grad.sum() > 0
    empty = segment_loss(torch.full((1, 1, 1), -50.0), true, torch.zeros(1, 1, 1), torch.zeros(1, 1, 2))
    assert empty == pytest.approx(0, abs=1e-6)
