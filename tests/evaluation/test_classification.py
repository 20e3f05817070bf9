import json
from dataclasses import asdict, replace

import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.classes import ClassificationSet
from fastvtp.evaluation.classification import evaluate_classification
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from tests.data.clips import write_clip
from tests.data.loaders import make_loader
from tests.evaluation.stubs import TableModel, batches

NAMES = ("jump", "run", "sit")


def class_set(labels, names=NAMES):
    records = tuple(VideoRecord(str(i), f"/{i}.mp4", (names[label],)) for i, label in enumerate(labels))
    return ClassificationSet(records, tuple(labels), tuple(names))


def evaluated(table, labels, sample_ids=None, size=2, names=NAMES):
    classes = class_set(labels, names)
    sample_ids = list(range(len(labels))) if sample_ids is None else sample_ids
    loader = batches(classes.records, sample_ids, size)
    return evaluate_classification(TableModel(table), loader, classes, device="cpu", progress=False)


def test_accuracy_in_all_overall_and_by_class():
    table = [[9, 1, 0], [9, 1, 0], [0, 9, 1], [0, 9, 1], [0, 9, 1]]
    report = evaluated(table, [0, 1, 1, 1, 2])
    assert report.top == {"top1": pytest.approx(60)}
    assert report.per_class == {"jump": 100, "run": pytest.approx(200 / 3), "sit": 0}
    assert report.mean_per_class == pytest.approx(500 / 9)
    assert report.confusion == {"jump": {"jump": 1}, "run": {"jump": 1, "run": 2}, "sit": {"run": 1}}
    assert (report.count, report.left_out) == (5, [])
    assert report.chance == pytest.approx(100 / 3)
    json.dumps(asdict(report))


def test_classes_without_clips_are_no_part_of_the_mean():
    report = evaluated([[0, 9, 0], [0, 0, 9]], [1, 1])
    assert report.per_class == {"run": 50}
    assert report.mean_per_class == 50


def test_top5_needs_five_classes_and_counts_ties_in_part():
    names = "abcdefg"
    table = [[7, 6, 5, 4, 3, 2, 1], [7, 6, 5, 4, 3, 2, 1], [0] * 7]
    report = evaluated(table, [4, 5, 6], names=names)
    assert report.top == {"top1": pytest.approx(100 / 7 / 3), "top5": pytest.approx((1 + 5 / 7) * 100 / 3)}
    assert report.per_class == {"e": 0, "f": 0, "g": pytest.approx(100 / 7)}
    assert set(evaluated([[0] * 4], [0], names="abcd").top) == {"top1"}


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_probabilities_not_logits_are_averaged_over_views(size):
    """Of record 0 one view is very sure and two are mildly against it: logits would give class 0, probabilities 1."""
    table = [[100, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 5], [0, 0, 5], [0, 9, 0]]
    report = evaluated(table, [1, 2], sample_ids=[0, 0, 0, 1, 1, 1], size=size)
    assert report.count == 2
    assert report.top["top1"] == 100


def test_unlikely_classes_do_not_underflow_into_a_tie():
    """All but the first have probability 0 in float32."""
    table = [[500, 60, 50, 40, 30, 20, 0]]
    assert evaluated(table, [6], names="abcdefg").top["top5"] == 0
    assert evaluated(table, [4], names="abcdefg").top["top5"] == 100


def test_clips_that_the_loader_left_out_are_named_and_not_counted():
    report = evaluated([[0, 9, 0], [0, 9, 0], [9, 0, 0]], [1, 1, 1], sample_ids=[0, 2])
    assert (report.count, report.left_out, report.top["top1"]) == (2, ["/1.mp4"], 100)


def test_faults_get_one_line_and_modes_are_restored():
    classes = class_set([0, 1])
    model = TableModel([[0, 0, 0], [0, torch.nan, 0]]).train()
    with pytest.raises(ValueError, match="scores must be finite"):
        evaluate_classification(model, batches(classes.records, [0, 1], 2), classes, device="cpu", progress=False)
    assert model.dropout.training
    with pytest.raises(ValueError, match="classification has nothing to score"):
        evaluate_classification(model, [], classes, device="cpu", progress=False)
    more = replace(classes, class_names=(*NAMES, "walk"))
    with pytest.raises(ValueError, match=r"logits must be \[2, 4 classes\], got \[2, 3\]"):
        evaluate_classification(model, batches(classes.records, [0, 1], 2), more, device="cpu", progress=False)


def test_a_classifier_and_a_loader_of_views_fit_together(tmp_path):
    paths = [write_clip(tmp_path / f"{i}.mp4", first=16 * i) for i in range(3)]
    paths[1].write_bytes(b"no video")
    records = tuple(VideoRecord(path.stem, str(path), (NAMES[i],)) for i, path in enumerate(paths))
    classes = ClassificationSet(records, (0, 1, 2), NAMES)
    sizes = {"num_frames": 4, "image_size": 16, "tubelet": (2, 8, 8), "width": 16, "depth": 1, "num_heads": 2}
    config = VideoClassifierConfig(**sizes, num_classes=3, head_init_scale=1.0)
    torch.manual_seed(0)
    model = build_model(config, torch.device("cpu")).train()
    settings = {"num_frames": 4, "image_size": 16, "views": (2, 2), "num_workers": 0, "sampling": "strided"}
    loader = make_loader(records, None, batch_size=3, train=False, **settings)
    with loader:
        report = evaluate_classification(model, loader, classes, device="cpu", progress=False)
        video = torch.cat([batch.video for batch in loader])
    with torch.no_grad():
        predicted = model.eval()(video).softmax(-1).view(2, 4, 3).mean(1).argmax(-1).tolist()
    assert report.count == 2
    assert report.left_out == [str(paths[1])]
    assert report.confusion == {NAMES[i]: {NAMES[j]: 1} for i, j in zip((0, 2), predicted, strict=True)}
