import json

import pytest
import torch
from safetensors.torch import load_file

from fastvtp.data.classes import load_targets
from fastvtp.errors import UserError
from fastvtp.frozen import features as module
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.features import FeatureSettings, ListedVideos, extract_features, model_digest
from fastvtp.frozen.towers import video_tower
from tests.frozen.frozen_clips import make_loader, write_classes
from tests.frozen.towers import make_tower_model


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("clips"), per_class=3)


SETTINGS = FeatureSettings(shard_size=4)


def extract(clips, folder, settings=SETTINGS, *, views=(1, 1), batch_size=4, model=None, **said):
    targets = load_targets(clips)
    tower = video_tower(model or make_tower_model())
    videos, loader = ListedVideos(targets.records, targets), make_loader(views, batch_size)
    extract_features(tower, videos, loader, folder, settings, protocol={"views": views} | said, progress=False)
    return FeatureSet(folder)


def test_features_are_those_of_the_tower_for_every_view(clips, tmp_path):
    settings = FeatureSettings(layers=(1,), pool="frames", shard_size=4)
    made = extract(clips, tmp_path / "f", settings, views=(2, 1), batch_size=5)
    assert len(made) == 9
    shards = [f"shard_0000{i}.{suffix}" for i in range(3) for suffix in ("json", "safetensors")]
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["features.json", *shards]
    tower, targets = video_tower(make_tower_model()), load_targets(clips)
    with make_loader((2, 1))(targets.records) as loader, torch.no_grad():
        expected = torch.cat([tower.encode_layers(batch.video, (1,), "frames") for batch in loader])
    torch.testing.assert_close(torch.stack([made[i] for i in range(9)]).flatten(0, 1), expected)
    assert made.labels == list(targets.labels)
    assert made.class_names == ("blue", "green", "red")
    assert [record.id for record in made.records] == [record.id for record in targets.records]


def test_a_killed_extraction_is_completed_without_touching_what_is_there(clips, tmp_path, monkeypatch):
    whole = extract(clips, tmp_path / "whole")
    written = []

    def kill(path, content):
        if len(written) == 4:  # the description, and one shard of two files, and half of the next
            raise KeyboardInterrupt
        written.append(path)
        path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", kill)
        with pytest.raises(KeyboardInterrupt):
            extract(clips, tmp_path / "f", batch_size=1)
    with pytest.raises(UserError, match=r"is incomplete: no shard_00001.json of 3 shards; extract it once more"):
        FeatureSet(tmp_path / "f")
    first = tmp_path / "f" / "shard_00000.safetensors"
    stamp = first.stat().st_mtime_ns
    seen = []
    loaded = make_loader()

    def watched(records):
        seen.append([record.id for record in records])
        return loaded(records)

    monkeypatch.setattr("tests.frozen.test_features.make_loader", lambda *_: watched)
    again = extract(clips, tmp_path / "f")
    assert seen == [[record.id for record in whole.records[4:]]]
    assert first.stat().st_mtime_ns == stamp
    for name in ("shard_00000", "shard_00001", "shard_00002"):
        a, b = (load_file(tmp_path / folder / f"{name}.safetensors")["features"] for folder in ("whole", "f"))
        torch.testing.assert_close(a, b)
    assert again.records == whole.records
    extract(clips, tmp_path / "f")
    assert len(seen) == 1  # complete: nothing is read any more


def test_a_folder_of_other_features_is_refused(clips, tmp_path):
    extract(clips, tmp_path / "f")
    other = make_tower_model()
    with torch.no_grad():
        other.bias.add_(1e-3)
    own, foreign = model_digest(make_tower_model()), model_digest(other)
    message = rf"holds other features \(model_digest '{own}', expected '{foreign}'\): choose another folder"
    with pytest.raises(UserError, match=message):
        extract(clips, tmp_path / "f", model=other)
    with pytest.raises(UserError, match=r"layers \[\], expected \[0\]"):
        extract(clips, tmp_path / "f", FeatureSettings(layers=(0,), shard_size=4))
    more = write_classes(tmp_path / "more", per_class=3)
    (more / "red" / "2.mp4").unlink()
    with pytest.raises(UserError, match=r"holds other features \(data_digest"):
        extract(more, tmp_path / "f")


def test_a_folder_of_an_earlier_version_is_continued_under_its_own_digest(clips, tmp_path):
    """It called the framing of frames "fit"."""
    whole = extract(clips, tmp_path / "f", fit="squash")
    assert whole.framing == "squash"
    (tmp_path / "f" / "shard_00001.json").unlink()
    again = extract(clips, tmp_path / "f", framing="squash")
    assert again.description == whole.description
    assert (again.digest, again.records) == (whole.digest, whole.records)
    with pytest.raises(UserError, match=r"holds other features \(framing 'squash', expected 'crop'\)"):
        extract(clips, tmp_path / "f", framing="crop")


def test_undecodable_videos_are_left_out_and_named(tmp_path):
    clips = write_classes(tmp_path / "clips", per_class=2)
    for name in ("0", "1"):
        (clips / "blue" / f"{name}.mp4").write_bytes(b"no video")
    (clips / "red" / "0.mp4").write_bytes(b"no video")
    made = extract(clips, tmp_path / "f", FeatureSettings(shard_size=2, pool="mean"))
    assert [record.id for record in made.records] == ["green/0", "green/1", "red/1"]
    assert not (tmp_path / "f" / "shard_00000.safetensors").exists()
    assert sorted(made.left_out) == [str(clips / name) for name in ("blue/0.mp4", "blue/1.mp4", "red/0.mp4")]
    assert all(made.left_out.values())
    assert extract(clips, tmp_path / "f", FeatureSettings(shard_size=2, pool="mean")).records == made.records


def test_half_the_size_in_half_precision(clips, tmp_path):
    exact = extract(clips, tmp_path / "f")
    half = extract(clips, tmp_path / "h", FeatureSettings(dtype="bfloat16", shard_size=4))
    assert half[5].dtype == torch.bfloat16
    torch.testing.assert_close(half[5], exact[5].bfloat16())
    sizes = [(tmp_path / name / "shard_00000.safetensors").stat().st_size for name in "fh"]
    assert sizes[1] < 0.51 * sizes[0]


def test_overflow_is_an_error_and_not_infinity(clips, tmp_path):
    model = make_tower_model()
    with torch.no_grad():
        model.temporal.norm.weight.mul_(1e6)
    with pytest.raises(UserError, match="features are not finite in float16: choose another dtype"):
        extract(clips, tmp_path / "f", FeatureSettings(dtype="float16", shard_size=4), model=model)
    assert not list((tmp_path / "f").glob("shard*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "max"}, "pool must be one of none, frames, mean, got 'max'"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16, bfloat16, got 'int8'"),
        ({"shard_size": 0}, "shard_size must be positive, got 0"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        FeatureSettings(**settings)


def test_the_digest_is_of_names_and_values():
    model = make_tower_model()
    before = model_digest(model)
    assert before == model_digest(make_tower_model())
    model.bias.data[0] += 1e-7
    assert model_digest(model) != before
    assert json.dumps(before)
