import hashlib
import os
import shutil
import threading

import pytest

from fastvtp.files import json_digest, publish_folder, remove_folder, replace_folder, write_atomically


def write(folder, content):
    folder.mkdir()
    (folder / "file").write_text(content)
    return folder


def test_a_folder_that_fails_half_way_leaves_the_one_before(tmp_path):
    publish_folder(tmp_path / "final", lambda folder: (folder / "file").write_text("old"))

    def half(folder):
        (folder / "file").write_text("new")
        raise KeyError("half-way")

    with pytest.raises(KeyError, match="half-way"):
        publish_folder(tmp_path / "final", half)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final/file").read_text() == "old"


def test_what_is_deleted_has_lost_its_name_before(tmp_path, monkeypatch):
    final, partial = write(tmp_path / "final", "old"), write(tmp_path / "partial_final", "new")

    def killed(path, **_):
        raise KeyboardInterrupt(str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or killed(path))
        with pytest.raises(KeyboardInterrupt, match="partial_old_final"):
            replace_folder(partial, final)
        assert (final / "file").read_text() == "new"
        (tmp_path / "partial_old_final").rename(tmp_path / "elsewhere")
        with pytest.raises(KeyboardInterrupt, match="partial_old_final"):
            remove_folder(final)
        assert not final.exists()
    remove_folder(final)


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_its_names():
    expected = hashlib.sha256(b'{"a": [1, null], "b": "x"}').hexdigest()[:16]
    assert json_digest({"b": "x", "a": [1, None]}) == json_digest({"a": (1, None), "b": "x"}) == expected


def test_a_pipe_or_device_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, b"content")
    assert pipe.is_fifo()
    reader.join(10)
    assert read == [b"content"]
