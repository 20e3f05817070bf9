"""Lists in parquet files."""

import json

import pytest

from fastvtp.data.annotations import annotations_digest, load_annotations
from fastvtp.data.classes import load_classes
from fastvtp.data.formats.lists import VideoList
from fastvtp.errors import UserError

arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def test_parquet_gives_places_of_bytes_or_paths(tmp_path):
    bytes_of = [{"bytes": bytes([n]), "path": f"{n}.mp4"} for n in range(3)]
    for split, rows in (("train", slice(0, 2)), ("validation", slice(2, 3))):
        table = arrow.table({"video": bytes_of[rows], "caption": ["one", "two", ""][rows]})
        parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="holds the splits 'train' and 'val'"):
        load_annotations(VideoList(str(tmp_path)))
    file = tmp_path / "train-00000-of-00001.parquet"
    for listed in (VideoList(str(tmp_path), split="train"), VideoList(str(file))):
        records = load_annotations(listed)
        assert [(record.video, record.captions) for record in records] == [
            (f"{file}::0", ("one",)),
            (f"{file}::1", ("two",)),
        ]
    parquet.write_table(arrow.table({"path": ["a.mp4"], "label": [3]}), tmp_path / "paths.parquet")
    made = load_classes(VideoList(str(tmp_path / "paths.parquet")))
    assert (made.records[0].video, made.labels) == (str(tmp_path / "a.mp4"), (3,))
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: no parquet file: "):
        load_annotations(VideoList(str(file)))


def test_ids_and_digest_of_rows_do_not_change_with_the_folder(tmp_path):
    digests = set()
    for folder in ("one", "two"):
        path = tmp_path / folder / "list.parquet"
        path.parent.mkdir()
        parquet.write_table(arrow.table({"video": [b"0", b"1"], "caption": ["x", "y"]}), path)
        records = load_annotations(path)
        assert [record.id for record in records] == ["list.parquet::0", "list.parquet::1"]
        digests.add(annotations_digest(records))
    assert len(digests) == 1


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("rows", [1, 9])
def test_rows_without_bytes_are_the_files_that_they_name(tmp_path, statistics, rows):
    path = tmp_path / "list.parquet"
    held = [{"bytes": None, "path": "a.mp4"}, {"bytes": b"1", "path": "b.mp4"}, {"bytes": None, "path": "/c.mp4"}]
    table = arrow.table({"video": held, "caption": ["x", "y", "z"]})
    parquet.write_table(table, path, row_group_size=rows, write_statistics=statistics)
    records = load_annotations(path)
    assert [record.video for record in records] == [str(tmp_path / "a.mp4"), f"{path}::1", "/c.mp4"]
    assert [record.captions for record in records] == [("x",), ("y",), ("z",)]
    parquet.write_table(arrow.table({"video": [{"bytes": None, "path": None}], "caption": ["x"]}), path)
    with pytest.raises(UserError, match="row 0: field 'video': expected non-empty text"):
        load_annotations(path)


def test_classes_have_the_names_that_the_file_gives_them(tmp_path):
    path = tmp_path / "train.parquet"
    table = arrow.table({"video": [b"0", b"1"], "label": [2, 0]})
    features = {"label": {"names": ["run", "sit", "turn left"], "_type": "ClassLabel"}}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(table.replace_schema_metadata(said), path)
    made = load_classes(path)
    assert (made.class_names, made.labels) == (("run", "sit", "turn left"), (2, 0))
    assert [record.may_be_mirrored for record in made.records] == [False, True]
