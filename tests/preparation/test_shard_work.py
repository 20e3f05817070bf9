"""What is known of the work on shards: manifests are parsed once, samples have places that everybody calls alike."""

import json

import pytest

from fastvtp.errors import UserError
from fastvtp.preparation import shard_work
from fastvtp.preparation.preparing import conclude
from fastvtp.preparation.settings import Preparation
from fastvtp.preparation.shard_work import Manifests, ShardWork, samples_left, walk
from fastvtp.preparation.work import Rejection, Sample
from tests.preparation.sets import captioned, quietly, run


def _parsed_counts(monkeypatch):
    counts = {}
    read = shard_work._read

    def counting(path, work):
        if path.exists():
            counts[path.name] = counts.get(path.name, 0) + 1
        return read(path, work)

    monkeypatch.setattr(shard_work, "_read", counting)
    return counts


def test_each_manifest_is_parsed_once(tmp_path, monkeypatch):
    """A run that finds two of three shards finished, and one that finds all; the third is parsed once it is there."""
    source = captioned(tmp_path / "in", 6)
    run(source, tmp_path / "out", per_shard=2, running=quietly(part=(0, 2)))
    counts = _parsed_counts(monkeypatch)
    run(source, tmp_path / "out", per_shard=2)
    assert counts == {"000000.json": 1, "000001.json": 1, "000002.json": 1}
    counts.clear()
    run(source, tmp_path / "out", per_shard=2)
    assert counts == {"000000.json": 1, "000001.json": 1, "000002.json": 1}
    counts.clear()
    conclude(source, tmp_path / "out", Preparation(samples_per_shard=2))
    assert counts == {"000000.json": 1, "000001.json": 1, "000002.json": 1}


def test_a_manifest_that_another_process_wrote_anew_is_seen(tmp_path):
    work = ShardWork(0, (), Preparation(), tmp_path)
    manifests, told = Manifests(), {"fingerprint": work.fingerprint, "tar": None, "decided": None}
    assert manifests.of(work) is None
    work.manifest.write_text(json.dumps(told))
    assert manifests.of(work) == told
    assert manifests.of(work, {}) is None  # nothing was decided when it was made, now something is
    work.manifest.write_text(json.dumps({**told, "rejected": ["another"]}))
    assert manifests.of(work) == {**told, "rejected": ["another"]}
    work.manifest.unlink()
    assert manifests.of(work) is None


def test_the_walk_over_samples_names_their_places(tmp_path):
    def sample(name, rejected=None):
        return Sample(name, 0.0, None, 0, 8, (), {}, {}, rejected)

    items = tuple(captioned_items(tmp_path))
    work = ShardWork(7, items, Preparation(), tmp_path)
    gone = sample("b", Rejection("words", "none"))
    assert [*walk(work, [[sample("a"), gone], [sample("c")]])] == [
        (0, [("000007.0.0", sample("a")), ("000007.0.1", gone)]), (1, [("000007.1.0", sample("c"))]),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"survey/000007.json: is not there: survey first"):
        samples_left(work)
    work.survey.parent.mkdir()
    surveyed = [[vars(sample("a")), {**vars(gone), "rejected": vars(gone.rejected)}], [vars(sample("c"))]]
    work.survey.write_text(json.dumps({"fingerprint": work.fingerprint, "items": surveyed}))
    assert samples_left(work) == [("000007.0.0", items[0], sample("a")), ("000007.1.0", items[1], sample("c"))]


def captioned_items(folder):
    from fastvtp.preparation.reading import read_items

    return read_items(captioned(folder / "in", 2))
