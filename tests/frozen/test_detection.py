import math

import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.frozen.detection import (
    Detections,
    detection_map,
    match,
    span_iou,
    suppress,
)
from fastvtp.frozen.spans import SpanSet


def iou_by_hand(a, b):
    """Product over axes of the overlaps, of spans given as (lows..., highs...)."""
    half = len(a) // 2
    inter = math.prod(max(min(a[half + i], b[half + i]) - max(a[i], b[i]), 0) for i in range(half))
    sizes = [math.prod(max(s[half + i] - s[i], 0) for i in range(half)) for s in (a, b)]
    union = sum(sizes) - inter
    return inter / union if union else 0.0


def random_spans(count, sides, generator):
    corners = torch.rand(count, 2, sides // 2, generator=generator, dtype=torch.float64).sort(1).values
    return corners.flatten(1)


@pytest.mark.parametrize("sides", [2, 4])
def test_overlap_against_its_definition(sides):
    generator = torch.Generator().manual_seed(0)
    a, b = random_spans(7, sides, generator), random_spans(5, sides, generator)
    b[0] = b[0, 0]  # without extent
    expected = [[iou_by_hand(x, y) for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(span_iou(a, b), torch.tensor(expected, dtype=torch.float64))


def test_suppression_against_its_definition():
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        spans, scores = random_spans(12, 2, generator), torch.rand(12, generator=generator)
        left, kept = sorted(range(12), key=lambda i: -scores[i]), []
        while left:
            best = left.pop(0)
            kept.append(best)
            left = [i for i in left if iou_by_hand(spans[best].tolist(), spans[i].tolist()) <= 0.3]
        assert suppress(spans, scores, 0.3).tolist() == kept
    assert suppress(torch.zeros(0, 2), torch.zeros(0), 0.5).tolist() == []


def test_a_taken_span_is_passed_on_or_not():
    true = torch.tensor([[0.0, 0.5], [0.0, 0.6]])
    spans, scores = torch.tensor([[0.0, 0.5], [0.0, 0.51]]), torch.tensor([0.9, 0.8])
    assert match(spans, scores, true, 0.5, next_best=True).tolist() == [True, True]
    assert match(spans, scores, true, 0.5, next_best=False).tolist() == [True, False]
    assert match(spans, scores, true, 0.9, next_best=True).tolist() == [True, False]
    assert match(spans, scores.flip(0), true, 0.9, next_best=True).tolist() == [False, True]


def map_by_definition(found, truth, threshold, next_best):
    """One ranked list a class, matched one by one; area under the best precision at this or a higher recall."""
    values = {}
    for label, name in enumerate(truth.class_names):
        true = {
            record.id: [span for span, shown in zip(spans.tolist(), labels, strict=True) if shown[label]]
            for record, spans, labels in zip(truth.records, truth.spans, truth.labels, strict=True)
        }
        total = sum(map(len, true.values()))
        if not total:
            continue
        ranked = sorted(
            (
                (score, video, span)
                for video, detections in found.items()
                for span, own, score in zip(
                    detections.spans.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True
                )
                if own == label
            ),
            key=lambda row: -row[0],
        )
        taken, points, hits = set(), [], 0
        for number, (_, video, span) in enumerate(ranked, start=1):
            order = sorted(range(len(true[video])), key=lambda i: -iou_by_hand(span, true[video][i]))
            if not next_best:
                order = order[:1]
            for i in order:
                if iou_by_hand(span, true[video][i]) >= threshold and (video, i) not in taken:
                    taken.add((video, i))
                    hits += 1
                    break
            points.append((hits / total, hits / number))
        area, before = 0.0, 0.0
        for place, (recall, _) in enumerate(points):
            area += (recall - before) * max(precision for _, precision in points[place:])
            before = recall
        values[name] = 100 * area
    return values


@pytest.mark.parametrize("sides", [2, 4])
@pytest.mark.parametrize("next_best", [True, False])
def test_mean_average_precision_against_its_definition(sides, next_best):
    generator = torch.Generator().manual_seed(sides)
    records = tuple(VideoRecord(f"v{i}", f"/{i}.mp4", ("",)) for i in range(4))
    spans = tuple(random_spans(n, sides, generator) for n in (4, 0, 2, 5))
    labels = tuple(torch.rand(len(span), 3, generator=generator) < 0.5 for span in spans)
    for shown in labels:
        shown[:, 2] = False  # a class that nothing shows
    truth = SpanSet("segments", records, spans, labels, tuple(torch.ones(len(s)) for s in spans), ("a", "b", "c"))
    found = {}
    for record, span in zip(records[:3], spans, strict=False):
        more = torch.cat(
            [span + 0.05 * torch.randn(span.shape, generator=generator), random_spans(6, sides, generator)]
        )
        found[record.id] = Detections(
            more,
            torch.randint(3, (len(more),), generator=generator),
            torch.rand(len(more), generator=generator, dtype=torch.float64),
        )
    made = detection_map(found, truth, (0.3, 0.5), next_best=next_best)
    for threshold in (0.3, 0.5):
        expected = map_by_definition(found, truth, threshold, next_best)
        mean, per_class = made[threshold]
        assert per_class == pytest.approx(expected)
        assert mean == pytest.approx(sum(expected.values()) / 2)
        assert 0 < mean < 100


def test_perfect_nothing_and_unknown():
    spans = torch.tensor([[0.0, 0.5], [0.2, 0.9]])
    truth = SpanSet(
        "segments",
        (VideoRecord("v", "/v.mp4", ("",)),),
        (spans,),
        (torch.tensor([[True], [True]]),),
        (torch.ones(2),),
        ("a",),
    )
    perfect = {"v": Detections(spans, torch.zeros(2, dtype=torch.long), torch.tensor([0.1, 0.9]))}
    assert detection_map(perfect, truth, (0.95,), next_best=True)[0.95][0] == 100
    assert detection_map({}, truth, (0.5,), next_best=True)[0.5][0] == 0
    with pytest.raises(ValueError, match="detections in 'w', which the annotations do not list"):
        detection_map({"w": perfect["v"]}, truth, (0.5,), next_best=True)
