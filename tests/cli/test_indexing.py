"""`fastvtp index`: what it writes, says and refuses."""

import sys

import pytest

from fastvtp.cli.main import main
from fastvtp.data.storage.tar_samples import tar_samples
from tests.data.object_store import patch_storage
from tests.data.tars import numbered_clips, write_shards


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache")


def test_an_index_made_by_the_command_says_what_the_videos_are(tmp_path, capsys, monkeypatch):
    clips = numbered_clips(tmp_path / "clips", 3)
    write_shards(tmp_path / "shards", clips, 2)
    monkeypatch.setattr(sys, "argv", ["fastvtp", "index", str(tmp_path / "shards"), "--workers", "1", "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.splitlines() == [
        "2 of 2 tars: 3 samples of 9 files, 3 with a video (h264 3)",
        f"indexes in {tmp_path}/shards",
    ]
    facts = [sample.facts for sample in tar_samples(str(tmp_path / "shards"))]
    assert [found[:3] + found[4:] for found in facts if found] == [("h264", 8, 1, 32, 48)] * 3
    assert [found.seconds for found in facts if found] == pytest.approx([1.0] * 3)


def test_the_command_names_tars_that_are_none(tmp_path, capsys, monkeypatch):
    (tmp_path / "0.tar").write_bytes(b"no tar")
    monkeypatch.setattr(sys, "argv", ["fastvtp", "index", f"{tmp_path}/{{0..0}}.tar", "--workers", "1", "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    errors = capsys.readouterr()
    assert "0.tar: not a tar" in errors.out + errors.err
    assert errors.err.splitlines()[-1] == "fastvtp: 1 of 1 tars could not be indexed, see above"
