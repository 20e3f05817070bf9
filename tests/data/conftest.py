"""An object store for tests of what lies in one."""

from pathlib import Path

import pytest

from fastvtp.data.storage import remote
from fastvtp.data.storage.last_used import LastUsed
from tests.data.object_store import patch_storage, s3_environment, serve
from tests.data.tars import numbered_clips


@pytest.fixture(scope="session")
def ten_clips(tmp_path_factory) -> list[Path]:
    return numbered_clips(tmp_path_factory.mktemp("ten_clips"), 10)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store with the bucket "bucket" that nothing is known of yet, and a cache of its own."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache", request_seconds=10, object_seconds=20)
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(remote, "_known", LastUsed(remote._MOST_KNOWN))
    monkeypatch.setattr(remote, "_refused", {})
    monkeypatch.setattr(remote, "_paces", {})
    monkeypatch.setattr(remote, "_without_ranges", set())
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    with serve(tmp_path / "store") as served:
        for name, value in s3_environment(served).items():
            monkeypatch.setenv(name, value)
        yield served
        fsspec.get_filesystem_class("memory").store.clear()
