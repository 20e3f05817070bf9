"""A run learns the same from tars in an object store as from plain files."""

import json
from pathlib import Path

import pytest

from fastvtp.data.annotations import load_annotations
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train
from tests.data.object_store import patch_storage, s3_environment, serve
from tests.data.tars import write_tar


def metrics(settings: list[str], train_on: str, folder: Path) -> list[dict]:
    given = [*settings, f"data.train={train_on}", "data.test=none", f"output_dir={folder}", "steps=5"]
    train(apply_overrides(get_recipe("simvtp_tiny"), given), progress_bar=False)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in ("step", "loss")} for line in lines]


def test_a_run_on_tars_in_a_store_is_that_on_their_files(captioned_videos, tiny_settings, tmp_path, monkeypatch):
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache")
    records = load_annotations(captioned_videos / "train.jsonl")
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    lines = []
    for number in range(3):
        files = []
        for i, record in list(enumerate(records))[number::3]:
            video = Path(record.video)
            files += [(f"{i:03d}{video.suffix}", video), (f"{i:03d}.json", {"caption": list(record.captions)})]
            lines.append({"id": f"{i:03d}", "video": record.video, "caption": list(record.captions)})
        write_tar(tmp_path / "store" / "bucket" / f"{number}.tar", files)
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = metrics(tiny_settings, str(tmp_path / "plain.jsonl"), tmp_path / "plain")
    with serve(tmp_path / "store") as store:
        for name, value in s3_environment(store).items():
            monkeypatch.setenv(name, value)
        assert metrics(tiny_settings, "s3://bucket/{0..2}.tar", tmp_path / "tars") == expected
