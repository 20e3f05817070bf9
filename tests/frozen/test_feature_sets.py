import json
import pickle
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from fastvtp.data.classes import load_targets
from fastvtp.errors import UserError
from fastvtp.frozen.feature_sets import FeatureSet, TrainingRows
from fastvtp.frozen.features import FeatureSettings, ListedVideos, extract_features
from fastvtp.frozen.towers import video_tower
from tests.frozen.frozen_clips import make_loader, write_classes
from tests.frozen.towers import make_tower_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("features")
    targets = load_targets(write_classes(root / "clips", per_class=2))
    videos, settings = ListedVideos(targets.records, targets), FeatureSettings(pool="frames", shard_size=4)
    tower, protocol = video_tower(make_tower_model()), {"views": (2, 1)}
    extract_features(tower, videos, make_loader((2, 1)), root / "f", settings, protocol=protocol, progress=False)
    return root / "f"


def test_batches_hold_every_view_in_order(folder):
    made = FeatureSet(folder)
    batches = list(made.batches(5))
    assert [len(batch.video) for batch in batches] == [5, 5, 2]
    assert torch.cat([batch.sample_ids for batch in batches]).tolist() == [i for i in range(6) for _ in range(2)]
    video = torch.cat([batch.video for batch in batches])
    assert torch.equal(video.unflatten(0, (6, 2)), torch.stack([made[i] for i in range(6)]))
    assert [caption for batch in batches for caption in batch.captions][::4] == ["blue", "green", "red"]
    assert made.grid == (4, 1, 1)


def test_training_rows_are_shuffled_epochs_of_random_views(folder):
    made = FeatureSet(folder)
    rows = TrainingRows(made, made.targets, rows=60, seed=3)
    places = {made.view(i, v).numpy().tobytes(): (i, v) for i in range(6) for v in range(2)}
    seen = [places[features.numpy().tobytes()] for features, _ in (rows[i] for i in range(60))]
    for epoch in range(10):
        assert sorted(index for index, _ in seen[6 * epoch : 6 * epoch + 6]) == list(range(6))
    assert [index for index, _ in seen[:6]] != [index for index, _ in seen[6:12]]
    assert set(Counter(view for _, view in seen)) == {0, 1}
    assert rows[7][1].tolist() == made.targets.indicators()[seen[7][0]].tolist()
    again = list(DataLoader(TrainingRows(made, made.targets, rows=60, seed=3), 8, num_workers=1))
    assert torch.equal(again[0][0], torch.stack([rows[i][0] for i in range(8)]))
    other = TrainingRows(made, made.targets, rows=60, seed=4)
    assert any(not torch.equal(other[i][0], rows[i][0]) for i in range(6))


def test_it_can_be_sent_to_a_worker_with_files_open(folder):
    made = FeatureSet(folder)
    first = made[0]
    assert torch.equal(pickle.loads(pickle.dumps(made))[0], first)


def test_faults_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="holds no features"):
        FeatureSet(tmp_path)
    made = FeatureSet(folder)
    with pytest.raises(UserError, match=r"f has width 32, runs/f 48: extract both alike"):
        made.check_fits({**made.description, "width": 48}, "runs/f")
    for name in ("framing", "fit"):  # as earlier versions called it
        made.check_fits({**made.description, name: "crop"}, "runs/f")
        with pytest.raises(UserError, match=r"f has framing 'crop', runs/f 'squash': extract both alike"):
            made.check_fits({**made.description, name: "squash"}, "runs/f")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in folder.iterdir():
        (mixed / path.name).write_bytes(path.read_bytes())
    description = json.loads((mixed / "features.json").read_text())
    (mixed / "features.json").write_text(json.dumps({**description, "model_digest": "0"}))
    with pytest.raises(UserError, match=r"shard_00000.json belongs to other features than"):
        FeatureSet(mixed)
    (mixed / "features.json").write_text(json.dumps(description))
    (mixed / "shard_00001.safetensors").write_bytes(b"no tensors")
    made = FeatureSet(mixed)
    with pytest.raises(UserError, match=r"shard_00001.safetensors is not a readable shard"):
        made[5]
    (mixed / "features.json").write_text("no")
    with pytest.raises(UserError, match=r"features.json: not JSON"):
        FeatureSet(mixed)
