"""Reading what is to be prepared: what is said beside the videos of tars comes with them, and is read once."""

import pytest

from fastvtp.data.storage import tar_samples
from fastvtp.preparation.reading import read_items
from tests.data.object_store import patch_storage
from tests.data.tars import write_tar


@pytest.fixture
def energon(tmp_path, monkeypatch):
    """An Energon data set whose field map takes another file for the video than the first of a sample."""
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache")
    folder = tmp_path / "energon"
    (folder / ".nv-meta").mkdir(parents=True)
    said = {"said": {"en": "a cat"}, "source": "camera 3", "id": "not the key", "video": "no path", "end": 1.5}
    files = [("x.mp4", b""), ("x.alt.mp4", b""), ("x.json", said), ("y.mp4", b""), ("y.json", {"note": 1})]
    write_tar(folder / "0.tar", files)
    (folder / ".nv-meta" / "split.yaml").write_text("split_parts:\n  train: [0.tar]\n")
    fields = "field_map:\n  video: alt.mp4\n  caption: json[said][en]\n"
    (folder / ".nv-meta" / "dataset.yaml").write_text(fields)
    return folder


def test_an_energon_set_keeps_all_that_is_said_beside_the_video_that_its_field_map_names(energon, caplog):
    (item,) = read_items(energon)
    assert item.video == f"{energon}/0.tar::x.alt.mp4"
    assert (item.start, item.end) == (0, 1.5)
    (line,) = item.lines
    assert line == {
        "id": "x",
        "caption": ["a cat"],
        "said": {"en": "a cat"},
        "source": "camera 3",
        "split": "train",
    }
    assert caplog.messages == [f"{energon}: 1 of 2 samples have no video or picture, the first {energon}/0.tar::y"]


def test_tars_are_read_once(energon, monkeypatch):
    asked = []
    tars_of = tar_samples.tars_of
    monkeypatch.setattr(tar_samples, "tars_of", lambda *args: asked.append(args) or tars_of(*args))
    read_items(energon)
    assert len(asked) == 1
