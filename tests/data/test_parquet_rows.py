"""Videos in the rows of parquet files."""

import random
from contextlib import suppress
from typing import Any

import pytest

from fastvtp.data.storage import parquet_rows
from fastvtp.data.storage.finding import UnreadableError, find_file, read_file
from fastvtp.data.storage.last_used import LastUsed
from fastvtp.errors import UserError

pyarrow = pytest.importorskip("pyarrow")


def write(path, rows_per_group=2, **columns):
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_per_group)
    return str(path)


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_rows_of_any_group_in_any_order(tmp_path, kind):
    values = [b"zero", b"one", b"", b"three", b"four"]
    path = write(tmp_path / "x.parquet", video=pyarrow.array(values, kind), n=[1, 2, 3, 4, 5])
    for number in (4, 0, 2, 1, 3, 4):
        assert read_file(f"{path}::{number}") == values[number]
        assert find_file(f"{path}::{number}").size == len(values[number])
    assert find_file(f"{path}::1").key != find_file(f"{path}::2").key


def test_the_form_of_hugging_face(tmp_path):
    rows = [{"bytes": b"one", "path": "1.mp4"}, {"bytes": b"two", "path": "2.mp4"}, {"bytes": None, "path": "3.mp4"}]
    path = write(tmp_path / "x.parquet", caption=["a", "b", "c"], video=rows)
    assert read_file(f"{path}::1") == b"two"
    with pytest.raises(UnreadableError, match=r"x.parquet::2: no bytes in column 'video'"):
        find_file(f"{path}::2")


def test_the_column_is_the_only_one_or_the_likeliest_or_named(tmp_path):
    path = write(tmp_path / "x.parquet", thumb=[b"t"], clip=[b"c"], video=[b"v"])
    assert read_file(f"{path}::0") == b"v"
    assert read_file(f"{path}::0::thumb") == b"t"
    assert parquet_rows.bytes_columns(path) == ("video", "clip", "thumb")
    unclear = write(tmp_path / "y.parquet", one=[b"1"], two=[b"2"])
    with pytest.raises(UnreadableError, match="expected one column that holds bytes, got one, two"):
        find_file(f"{unclear}::0")


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("2", "the file has 2 rows"),
        ("-1", "expected the number of a row after '::', got '-1'"),
        ("a.mp4", "expected the number of a row"),
        ("0::text", "no column 'text' that holds bytes; those that do: video"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, member, reason):
    path = write(tmp_path / "x.parquet", video=[b"1", b"2"], text=["a", "b"])
    with pytest.raises(UnreadableError, match=f"x.parquet::{member}: {reason}"):
        find_file(f"{path}::{member}")


def test_files_that_are_none(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet file PAR1")
    with pytest.raises(UnreadableError, match=r"x.parquet::0: not a parquet file"):
        find_file(f"{tmp_path}/x.parquet::0")
    with pytest.raises(UnreadableError, match=r"no.parquet::0: No such file"):
        find_file(f"{tmp_path}/no.parquet::0")
    text = write(tmp_path / "y.parquet", caption=["a"])
    with pytest.raises(UnreadableError, match="expected one column that holds bytes, got none"):
        find_file(f"{text}::0")


def test_whatever_a_flipped_bit_does_it_is_a_bad_file(tmp_path):
    """Pyarrow has an error of another kind for every damage."""
    path = tmp_path / "x.parquet"
    write(path, 5, n=list(range(20)), video=[bytes([i]) * 50 for i in range(20)])
    whole, chance = path.read_bytes(), random.Random(0)
    read = 0
    for number in range(300):
        content = bytearray(whole)
        content[chance.randrange(4, len(content) - 8)] ^= 1 << chance.randrange(8)
        damaged = tmp_path / f"{number}.parquet"
        damaged.write_bytes(content)
        with suppress(UnreadableError):
            find_file(f"{damaged}::7")
            read += 1
    assert 0 < read < 270


def test_a_changed_file_is_read_anew(tmp_path):
    path = write(tmp_path / "x.parquet", video=[b"one"])
    assert read_file(f"{path}::0") == b"one"
    write(tmp_path / "x.parquet", video=[b"other", b"rows"])
    assert read_file(f"{path}::0") == b"other"


def test_groups_in_memory_are_bounded(tmp_path, monkeypatch):
    groups = LastUsed[tuple, Any](3000, lambda group: group.nbytes)
    monkeypatch.setattr(parquet_rows, "_groups", groups)
    path = write(tmp_path / "x.parquet", 1, video=[bytes([i]) * 1000 for i in range(10)])
    for number in (*range(10), *range(10)):
        assert read_file(f"{path}::{number}") == bytes([number]) * 1000
        assert 0 < groups.held <= 3000


def test_without_pyarrow_the_run_ends_with_a_line(tmp_path, monkeypatch):
    import sys

    path = write(tmp_path / "x.parquet", video=[b"one"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'fastvtp\[shards\]'") as caught:
        find_file(f"{path}::0")
    assert not isinstance(caught.value, UnreadableError)
