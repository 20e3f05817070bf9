from dataclasses import replace

import pytest
import torch
from torch import nn

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.classes import TargetSet, load_targets
from fastvtp.errors import UserError
from fastvtp.frozen.adapters import ProbedTower, TowerTap
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.features import FeatureSettings, ListedVideos, extract_features, model_digest
from fastvtp.frozen.probe_files import (
    ProbeDescription,
    load_probe,
    predictions,
    save_probe,
)
from fastvtp.frozen.probes import ProbeConfig, build_probe
from fastvtp.frozen.probing import (
    evaluate_targets,
    train_probe_head,
    train_probed_tower,
)
from fastvtp.frozen.towers import video_tower
from fastvtp.frozen.training_heads import HeadTraining
from tests.data.loaders import make_loader as open_loader
from tests.evaluation.stubs import TableModel, batches
from tests.frozen.frozen_clips import make_loader, write_classes
from tests.frozen.towers import make_tower_model

QUICK = HeadTraining(steps=40, batch_size=6, learning_rate=3e-3, warmup_steps=5)
SIZES = {"num_heads": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return load_targets(write_classes(tmp_path_factory.mktemp("clips"), per_class=3))


@pytest.fixture(scope="module")
def features(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    videos, settings = ListedVideos(clips.records, clips), FeatureSettings(layers=(0,))
    tower = video_tower(make_tower_model())
    extract_features(tower, videos, make_loader((2, 1)), folder, settings, protocol={"views": (2, 1)}, progress=False)
    return FeatureSet(folder)


@pytest.mark.parametrize("kind", ["attentive", "linear", "mlap"])
def test_a_probe_learns_the_classes_from_the_cache(features, kind):
    settings = replace(QUICK, steps=80) if kind == "linear" else QUICK
    probe, loss = train_probe_head(features, settings, progress=False, kind=kind, dropout=0.1, **SIZES)
    report = evaluate_targets(probe, features.batches(5), features.targets, progress=False)
    assert report.top == {"top1": 100}
    assert report.count == 9
    assert loss < 0.9
    again, same = train_probe_head(features, settings, progress=False, kind=kind, dropout=0.1, **SIZES)
    assert same == loss
    assert all(torch.equal(a, b) for a, b in zip(probe.parameters(), again.parameters(), strict=True))


def test_views_are_averaged_as_probabilities(features):
    probe, _ = train_probe_head(features, QUICK, progress=False, **SIZES)
    wrong = features.targets.renumbered(("red", "blue", "green"), "test")
    report = evaluate_targets(probe, features.batches(4), wrong, progress=False)
    with torch.no_grad():
        means = torch.stack([probe(features[i].float()).softmax(-1).mean(0) for i in range(9)])
    expected = 100 * (means.argmax(-1) == torch.tensor([shown[0] for shown in wrong.labels])).float().mean()
    assert report.top["top1"] == pytest.approx(expected.item())


def test_several_classes_are_scored_by_average_precision():
    records = tuple(VideoRecord(str(i), f"/{i}.mp4", ("a",)) for i in range(4))
    targets = TargetSet(records, ((0, 1), (0,), (), (1,)), ("a", "b", "c"), True)
    model = TableModel([[3, 0, 9], [3, 0, 9], [1, 2, 9], [1, 2, 9], [-9, 1, 9], [-9, 1, 9]])
    report = evaluate_targets(model, batches(records, [0, 0, 1, 1, 3, 3], 4), targets, progress=False)
    # of the three clips that were decoded, "a" ranks right, right, wrong; "b" wrong, right, right
    assert report.per_class == {"a": 100, "b": pytest.approx(100 * (1 / 2 + 2 / 3) / 2)}
    assert report.mean_average_precision == pytest.approx((100 + 100 * 7 / 12) / 2)
    assert (report.count, report.left_out) == (3, ["/2.mp4"])
    assert report.chance == pytest.approx(200 / 3)


def test_on_the_fly_with_adapters_and_back_from_disk(clips, tmp_path):
    model = make_tower_model()
    tower, video = video_tower(model), torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    torch.manual_seed(0)
    config = ProbeConfig(width=32, num_outputs=3, dropout=0.1, **SIZES)
    probed = ProbedTower(tower, build_probe(config), TowerTap(adapter_dim=4))
    sizes = {"num_frames": 4, "image_size": 32, "num_workers": 0}
    with open_loader(clips.records, None, batch_size=6, train=True, num_steps=30, **sizes) as loader:
        train_probed_tower(probed, loader, clips, replace(QUICK, steps=30), progress=False)
    assert all(adapter.up.weight.abs().max() > 0 for adapter in probed.adapters)
    with make_loader()(clips.records) as loader:
        report = evaluate_targets(probed, loader, clips, progress=False)
    assert report.top["top1"] == 100
    logits = probed(video)
    description = ProbeDescription(config, clips.class_names, False, model_digest(model), (), "none", 4, {"views": 1})
    save_probe(tmp_path / "p", probed, description)
    probed.detach()
    bare = make_tower_model()
    assert torch.equal(model(video), bare(video))
    loaded, read = load_probe(tmp_path / "p", video_tower(bare))
    assert read == description
    assert torch.equal(loaded(video), logits)
    assert not loaded.training
    bare.bias.data.add_(1)
    with pytest.raises(UserError, match=rf"p was trained on a model of digest {model_digest(model)}, this one is"):
        load_probe(tmp_path / "p", video_tower(bare))
    (tmp_path / "p" / "probe.json").write_text("[]")
    with pytest.raises(UserError, match=r"probe.json: expected an object with the key 'config'"):
        load_probe(tmp_path / "p", video_tower(bare))
    with pytest.raises(UserError, match="holds no probe: it has no"):
        load_probe(tmp_path, video_tower(bare))


def test_predictions_by_name():
    description = ProbeDescription(ProbeConfig(width=2, num_outputs=2), ("cat", "dog"), False, "", (), "none", None, {})
    logits = torch.tensor([[0.0, 2.0]])
    made = predictions(logits, description)[0]
    assert list(made) == ["dog", "cat"]
    assert made["dog"] == pytest.approx(1 / (1 + nn.functional.softplus(torch.tensor(-2.0)).exp().item() - 1))
    assert sum(made.values()) == pytest.approx(1)
    assert predictions(logits, replace(description, multi_label=True))[0]["cat"] == pytest.approx(0.5)
