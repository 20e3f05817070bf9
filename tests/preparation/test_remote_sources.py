"""Shards made of videos in an object store."""

import pytest

from fastvtp.data.storage import remote
from fastvtp.preparation.preparing import conclude
from fastvtp.preparation.settings import Preparation
from tests.data.clips import write_clip, write_lines
from tests.data.object_store import patch_storage, serve
from tests.preparation.sets import run


def test_sizes_of_objects_in_a_store_are_those_that_the_manifests_know(tmp_path, monkeypatch):
    """Whoever writes the report of many jobs' shards would make a request for each."""
    pytest.importorskip("aiohttp")
    (tmp_path / "store").mkdir()
    with serve(tmp_path / "store") as store:
        patch_storage(monkeypatch, cache_dir=tmp_path / "cache")
        for number in range(2):
            store.put(f"{number}.mp4", write_clip(tmp_path / f"{number}.mp4").read_bytes())
        rows = [{"video": f"{store.url}/{number}.mp4", "caption": "x"} for number in range(2)]
        source = write_lines(tmp_path / "in.jsonl", *rows)
        report = run(source, tmp_path / "out")
        asked = dict(store.asked)
        remote.forget(f"{store.url}/0.mp4")
        remote.forget(f"{store.url}/1.mp4")
        again = conclude(source, tmp_path / "out", Preparation(samples_per_shard=4))
        asked_by_report = {name: count - asked.get(name, 0) for name, count in store.asked.items()}
    assert report is not None
    size = sum((tmp_path / f"{number}.mp4").stat().st_size for number in range(2))
    assert report["bytes"]["sources"] == again["bytes"]["sources"] == size
    # the clips whose decoding is measured are opened once more, by another process
    assert sum(count for (method, _), count in asked_by_report.items() if method == "HEAD") <= 2
