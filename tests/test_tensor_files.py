import json

import pytest
import torch
from torch.distributed import checkpoint

from fastvtp.errors import CheckpointError
from fastvtp.files import checksum
from fastvtp.tensor_files import (
    check_files,
    quiet_about_one_process,
    read_manifest,
    read_model,
    read_tensors,
    seal,
    write_manifest,
)

TENSORS = {
    "model.a": torch.arange(6.0).view(2, 3),
    "model.scale": torch.tensor(2.5),
    "model.count": torch.tensor([1, 2]),
    "average.a": -torch.arange(6.0).view(2, 3),
    "optimizer.a.exp_avg": torch.ones(2, 3, dtype=torch.bfloat16),
}


@pytest.fixture
def folder(tmp_path):
    quiet_about_one_process()
    writer = checkpoint.HuggingFaceStorageWriter(str(tmp_path / "shards"), save_distributed=True)
    checkpoint.save(TENSORS, storage_writer=writer, no_dist=True)
    write_manifest(tmp_path, {f"shards/{path.name}": seal(path) for path in (tmp_path / "shards").iterdir()})
    return tmp_path


def test_tensors_are_read_by_name(folder):
    found = read_tensors(folder)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert read_tensors(folder, ["model.scale"]) == {"model.scale": torch.tensor(2.5)}
    with pytest.raises(CheckpointError, match=r"shards has no tensor model.b"):
        read_tensors(folder, ["model.b"])


def test_the_model_is_the_average_of_what_has_one(folder):
    found = read_model(folder)
    assert found.keys() == {"a", "scale", "count"}
    assert torch.equal(found["a"], TENSORS["average.a"])
    assert found["scale"] == 2.5


def test_checksums_are_those_of_zip_files(tmp_path):
    (tmp_path / "file").write_bytes(b"123456789")
    assert checksum(tmp_path / "file") == checksum(tmp_path / "file", block=2) == 0xCBF43926
    assert seal(tmp_path / "file") == {"size": 9, "crc32": 0xCBF43926}


def test_the_manifest_tells_what_is_damaged(folder):
    seals = read_manifest(folder)
    (name,) = seals
    check_files(folder, seals, seals)
    content = (folder / name).read_bytes()
    for damaged, content_read, message in (
        (content[:-1], False, r"shard-00001.* has \d+ bytes, expected \d+"),
        (content[:-1] + bytes([content[-1] ^ 1]), True, r"shard-00001.* does not have the bytes that were written"),
    ):
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            check_files(folder, seals, seals, content=content_read)
    check_files(folder, seals, seals, content=False)
    (folder / name).unlink()
    for read in (lambda: check_files(folder, seals, seals), lambda: read_tensors(folder)):
        with pytest.raises(CheckpointError, match=r"shard-00001.* is missing"):
            read()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {}}}', '{"files": {"a": 1}}'])
def test_a_manifest_of_another_kind_is_one_line(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest.json is no readable manifest") as raised:
        read_manifest(folder)
    assert "\n" not in str(raised.value)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no manifest.json: it was never complete"):
        read_manifest(folder)


def test_the_manifest_is_readable_by_people(folder):
    text = (folder / "manifest.json").read_text()
    assert text.count("\n") > 4
    assert list(json.loads(text)) == ["files"]
