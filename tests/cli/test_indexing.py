"""`fastvtp index`: what it writes, says and refuses."""

import sys

import pytest

from fastvtp.cli.main import main
from fastvtp.data.storage.tar_samples import tar_samples
from tests.data.object_store import patch_storage
from tests.data.tars import numbered_clips, write_shards, write_tar


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
    assert errors.err.splitlines()[-1] == "fastvtp: 1 of 1 tar could not be indexed, see above"


def test_what_there_is_to_say_of_tars_is_said_once_by_whoever_indexes_them(tmp_path, capsys, caplog, monkeypatch):
    """Two processes, two tars with notes and one that is none; nothing is indexed where no index is."""
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, [])
    (tmp_path / "2.tar").write_bytes(b"no tar")
    monkeypatch.setattr(sys, "argv", ["fastvtp", "index", f"{tmp_path}/{{0..2}}.tar", "--workers", "2", "--quiet"])
    with pytest.raises(SystemExit):
        main()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(said) == [f"{tmp_path}/{n}.tar: holds no files" for n in range(2)]
    written = capsys.readouterr()
    assert written.out.splitlines() == [
        "2 of 3 tars: 0 samples of 0 files, 0 with a video", f"indexes in {tmp_path}",
    ]  # fmt: skip
    assert "WARNING" not in written.err


def test_where_no_tar_is_indexed_no_folder_is_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "0.tar").write_bytes(b"no tar")
    monkeypatch.setattr(sys, "argv", ["fastvtp", "index", str(tmp_path), "--quiet"])
    with pytest.raises(SystemExit):
        main()
    written = capsys.readouterr()
    assert written.out.splitlines() == ["0 of 1 tar: 0 samples of 0 files, 0 with a video"]
    assert written.err.splitlines()[-1] == "fastvtp: 1 of 1 tar could not be indexed, see above"
