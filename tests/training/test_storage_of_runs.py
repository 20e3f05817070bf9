"""Where a run keeps copies of what it reads from object stores: set by the run, for all of its processes."""

import os

import pytest

from fastvtp.data.storage.settings import StorageSettings, storage_settings
from fastvtp.errors import UserError
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in ("FASTVTP_CACHE", "FASTVTP_CACHE_GB", "FASTVTP_TRIES"):
        monkeypatch.setenv(name, "")


def config(settings, *overrides: str):
    return apply_overrides(get_recipe("simvtp_tiny"), [*settings, *overrides])


def test_a_run_says_where_copies_go_and_goes_on_with_another_place(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVTP_TRIES", "2")
    train(config(tiny_settings, "steps=2", f"data.cache_dir={tmp_path}/a", "data.cache_gb=2.5"), progress_bar=False)
    assert storage_settings() == StorageSettings(cache_dir=f"{tmp_path}/a", cache_gb=2.5, tries=2)
    assert os.environ["FASTVTP_CACHE"] == f"{tmp_path}/a"  # for workers
    done = train(config(tiny_settings, "steps=3", f"data.cache_dir={tmp_path}/b"), resume=True, progress_bar=False)
    assert done is not None
    assert storage_settings().folder == tmp_path / "b"


def test_a_run_that_says_nothing_leaves_the_environment_as_it_is(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVTP_CACHE", str(tmp_path))
    config(tiny_settings).data.use_storage()
    assert storage_settings() == StorageSettings(cache_dir=str(tmp_path))


def test_a_bound_below_nothing_is_refused(tiny_settings):
    with pytest.raises(UserError, match="cache_gb must be at least 0"):
        config(tiny_settings, "data.cache_gb=-1")


def test_patience_with_objects_that_outlasts_that_with_files_is_said(tiny_settings, caplog):
    config(tiny_settings).data.use_storage()
    assert caplog.text == ""
    config(tiny_settings, "data.file_seconds=30").data.use_storage()
    assert "FASTVTP_OBJECT_SECONDS=40 leaves an object of a store more time than data.file_seconds=30" in caplog.text
