"""Settings of object stores, from the environment and for the processes that a run starts."""

import multiprocessing
from pathlib import Path

import pytest

from fastvtp.data.storage.settings import StorageSettings, storage_settings, use_storage
from fastvtp.errors import UserError
from tests.data.object_store import patch_storage


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in ("CACHE", "CACHE_GB", "WHOLE_MB", "TRIES", "REQUEST_SECONDS", "OBJECT_SECONDS"):
        monkeypatch.setenv(f"FASTVTP_{name}", "")


def test_the_environment_says_them(monkeypatch, tmp_path):
    assert storage_settings() == StorageSettings()
    patch_storage(monkeypatch, cache_dir=tmp_path, cache_gb=0.5, tries=2)
    assert storage_settings() == StorageSettings(cache_dir=str(tmp_path), cache_gb=0.5, tries=2)
    assert storage_settings().cache_bytes == 500_000_000
    assert storage_settings().folder == tmp_path


def test_the_folder_is_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert StorageSettings().folder == tmp_path / "fastvtp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/somebody")
    assert StorageSettings().folder == Path("/somebody/.cache/fastvtp")
    assert StorageSettings(cache_dir="~/mine").folder == Path("/somebody/mine")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tries", "many", "environment variable FASTVTP_TRIES: expected a number, got 'many'"),
        ("tries", "0", "tries must be at least 1, got 0"),
        ("cache_gb", "-1", "cache_gb must be at least 0, got -1"),
        ("cache_gb", "nan", "cache_gb must be at least 0, got nan"),
        ("request_seconds", "0", "request_seconds must be positive, got 0"),
    ],
)
def test_what_is_out_of_range_is_refused(monkeypatch, name, value, said):
    patch_storage(monkeypatch, **{name: value})
    with pytest.raises(UserError, match=said):
        storage_settings()


def test_they_reach_the_processes_that_are_started(tmp_path):
    settings = StorageSettings(cache_dir=str(tmp_path), cache_gb=1.25, whole_mb=2, tries=3, request_seconds=1.5)
    use_storage(settings)
    assert storage_settings() == settings
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(storage_settings) == settings
    use_storage(StorageSettings())
    assert storage_settings() == StorageSettings()
