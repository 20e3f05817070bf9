import json
from dataclasses import replace

import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.errors import UserError
from fastvtp.files import json_digest
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.localization import (
    detect_segments,
    report_detections,
    score_boxes,
    train_box_head,
    train_segment_head,
)
from fastvtp.frozen.spans import SpanSet
from fastvtp.frozen.training_heads import HeadTraining

WIDTH, CLASSES = 8, ("jump", "run")


def write_features(folder, clips, grid, pool="none"):
    """A feature folder that holds these clips, float32 [L, D] by id."""
    from safetensors.torch import save_file

    folder.mkdir()
    description = {
        **{"model_digest": "0", "num_videos": len(clips), "shard_size": 100, "views": [1, 1]},
        **{"width": WIDTH, "grid": grid, "layers": [], "pool": pool, "class_names": None, "multi_label": False},
    }
    (folder / "features.json").write_text(json.dumps(description))
    save_file({"features": torch.stack(list(clips.values()))[:, None, None]}, folder / "shard_00000.safetensors")
    listed = [{"id": name, "video": f"/{name}.mp4", "labels": []} for name in clips]
    shard = {"description": json_digest(json.loads(json.dumps(description))), "clips": listed, "left_out": {}}
    (folder / "shard_00000.json").write_text(json.dumps(shard))
    return FeatureSet(folder)


def span_set(kind, spans, labels, names):
    records = tuple(VideoRecord(name, f"/{name}.mp4", ("",)) for name in names)
    return SpanSet(kind, records, tuple(spans), tuple(labels), tuple(torch.ones(len(span)) for span in spans), CLASSES)


def moments(count, slots, seed):
    """Clips whose features say when one of two things happens, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    clips, spans, labels = {}, [], []
    for number in range(count):
        start = int(torch.randint(0, slots - 6, (), generator=generator))
        end, kind = start + int(torch.randint(3, 7, (), generator=generator)), number % 2
        features = 0.1 * torch.randn(slots, 1, WIDTH, generator=generator)
        features[start:end, :, kind] += 2
        clips[f"v{number}"] = features.expand(-1, 4, -1).flatten(0, 1).contiguous()
        spans.append(torch.tensor([[start / slots, end / slots]]))
        labels.append(torch.tensor([[kind == 0, kind == 1]]))
    return clips, spans, labels


def test_segments_are_learned_and_found_in_other_videos(tmp_path):
    grid = [16, 2, 2]
    clips, spans, labels = moments(40, 16, seed=0)
    train = write_features(tmp_path / "train", clips, grid)
    truth = span_set("segments", spans, labels, clips)
    settings = HeadTraining(steps=150, batch_size=10, learning_rate=5e-3, warmup_steps=5)
    head, loss = train_segment_head(train, truth, settings, progress=False, hidden=16)
    assert loss < 0.5
    clips, spans, labels = moments(10, 16, seed=1)
    test, truth = write_features(tmp_path / "test", clips, grid), span_set("segments", spans, labels, clips)
    report = report_detections(detect_segments(head, test), truth, test)
    assert report.by_threshold["0.50"] > 95
    assert report.per_class.keys() == set(CLASSES)
    assert report.mean_average_precision == pytest.approx(sum(report.by_threshold.values()) / 10)
    assert len(report.by_threshold) == 10
    swapped = span_set("segments", spans, [label.flip(1) for label in labels], clips)
    assert report_detections(detect_segments(head, test), swapped, test).mean_average_precision < 5


def test_one_segment_is_found_once_and_videos_without_features_are_named(tmp_path):
    clips, spans, labels = moments(4, 16, seed=0)
    train = write_features(tmp_path / "f", clips, [16, 2, 2])
    truth = span_set("segments", [*spans, spans[0]], [*labels, labels[0]], [*clips, "other"])
    head, _ = train_segment_head(
        train, truth, HeadTraining(steps=60, batch_size=4, learning_rate=1e-2), progress=False, hidden=16
    )
    found = detect_segments(head, train, overlap=0.0, least_score=0.3)
    for detections, label in zip(found.values(), labels, strict=True):
        assert detections.labels.tolist() == [int(label[0, 1])]
    report = report_detections(found, truth, train)
    assert (report.count, report.left_out) == (4, ["/other.mp4"])
    assert len(detect_segments(head, train, most=1, least_score=0.0)["v0"].labels) == 1


def places(count, seed):
    """Clips of [2, 6, 6] tokens with a thing of either kind in two places, and the boxes around them."""
    generator = torch.Generator().manual_seed(seed)
    clips, spans, labels = {}, [], []
    for number in range(count):
        features = 0.1 * torch.randn(2, 6, 6, WIDTH, generator=generator)
        kinds = torch.randint(2, (2,), generator=generator).tolist()
        for row, kind in zip((0, 4), kinds, strict=True):
            features[:, row : row + 2, 2:4, kind] += 2
        clips[f"v{number}"] = features.flatten(0, 2)
        spans.append(torch.tensor([[1 / 3, 0, 2 / 3, 1 / 3], [1 / 3, 2 / 3, 2 / 3, 1]]))
        labels.append(torch.tensor([[kind == 0, kind == 1] for kind in kinds]))
    return clips, spans, labels


def test_what_is_done_in_boxes_is_learned(tmp_path):
    clips, spans, labels = places(40, seed=0)
    train = write_features(tmp_path / "train", clips, [2, 6, 6])
    settings = HeadTraining(steps=80, batch_size=10, learning_rate=5e-3, warmup_steps=5)
    head, loss = train_box_head(
        train, span_set("boxes", spans, labels, clips), settings, progress=False, num_heads=2, head_dim=8, dropout=0.1
    )
    assert loss < 0.1
    clips, spans, labels = places(8, seed=1)
    test, truth = write_features(tmp_path / "test", clips, [2, 6, 6]), span_set("boxes", spans, labels, clips)
    report = report_detections(score_boxes(head, test, truth), truth, test)
    assert report.mean_average_precision > 95
    assert list(report.by_threshold) == ["0.50"]
    unsure = replace(truth, scores=tuple(torch.full((2,), 0.25) for _ in spans))
    sure, scaled = (score_boxes(head, test, boxes)["v3"].scores for boxes in (truth, unsure))
    torch.testing.assert_close(scaled, sure / 4)
    # a detector that is off finds nothing, whatever the head says
    moved = span_set("boxes", [span * 0.5 for span in spans], labels, clips)
    assert report_detections(score_boxes(head, test, moved), truth, test).mean_average_precision == 0


def test_clips_without_boxes_are_left_out(tmp_path, monkeypatch):
    """Whole batches of them, and mixed ones; known to the detector alone, to the truth alone, or listed as empty."""
    monkeypatch.setattr("fastvtp.frozen.localization._AT_ONCE", 2)
    clips, spans, labels = places(7, seed=0)
    features, names = write_features(tmp_path / "f", clips, [2, 6, 6]), list(clips)
    everything = span_set("boxes", spans, labels, names)
    settings = HeadTraining(steps=1, batch_size=2)
    head, _ = train_box_head(features, everything, settings, progress=False, num_heads=2, head_dim=8)
    whole = score_boxes(head, features, everything)
    shown = [0, 5]  # the batches are v0 v1, v2 v3, v4 v5, v6
    empty = torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.bool)
    places_of, labels_of = [*(spans[i] for i in shown), empty[0]], [*(labels[i] for i in shown), empty[1]]
    found = score_boxes(head, features, span_set("boxes", places_of, labels_of, ["v0", "v5", "v3"]))
    assert list(found) == ["v0", "v5"]
    for name, one in found.items():
        torch.testing.assert_close(one.scores, whole[name].scores)
        assert torch.equal(one.spans, whole[name].spans)
    truth = span_set("boxes", spans[:3], labels[:3], names[:3])  # v5 is the detector's alone, v1 and v2 the truth's
    assert report_detections(found, truth, features).count == 3
    with pytest.raises(UserError, match="no clip of it has boxes in the list: expected its ids"):
        score_boxes(head, features, span_set("boxes", spans[:1], labels[:1], ["stranger"]))


def test_faults_are_one_line(tmp_path):
    clips, spans, labels = moments(2, 16, seed=0)
    features = write_features(tmp_path / "f", clips, [16, 2, 2])
    truth = span_set("segments", spans, labels, clips)
    settings = HeadTraining(steps=1, batch_size=1)
    with pytest.raises(UserError, match="the annotations are segments, expected boxes"):
        train_box_head(features, truth, settings, progress=False)
    strangers = span_set("segments", spans, labels, ["a", "b"])
    for call in (
        lambda: train_segment_head(features, strangers, settings, progress=False),
        lambda: report_detections({}, strangers, features),
    ):
        with pytest.raises(UserError, match="no clip of it is annotated: expected the ids of the annotations"):
            call()
    boxes = span_set("boxes", [torch.zeros(1, 4)] * 2, labels, clips)
    pooled = write_features(tmp_path / "p", {name: clip[:16] for name, clip in clips.items()}, [16, 1, 1], "frames")
    with pytest.raises(UserError, match="p has pool 'frames', expected 'none' for boxes"):
        train_box_head(pooled, boxes, settings, progress=False)
    squashed = write_features(tmp_path / "s", clips, [16, 2, 2])
    squashed.description["framing"] = "squash"
    with pytest.raises(UserError, match="s has framing 'squash': boxes are placed in centred squares, expected 'crop'"):
        train_box_head(squashed, boxes, settings, progress=False)
