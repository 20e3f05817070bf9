"""Data sets in tars: which tars there are, which files are one sample, and what is said of it."""

import fcntl
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from fastvtp.data.annotations import VideoRecord, annotations_digest, load_annotations, load_videos
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.storage import tar_index
from fastvtp.data.storage.shard_indexing import index_named, index_tars
from fastvtp.data.storage.shard_names import braces_expanded, tars_of
from fastvtp.data.storage.tar_index import SUFFIX
from fastvtp.data.storage.tar_samples import sample_key, tar_samples
from fastvtp.errors import UserError
from tests.data.object_store import patch_storage
from tests.data.tars import write_tar


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{000..003}.tar", ["000.tar", "001.tar", "002.tar", "003.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..10..5}x", ["0x", "5x", "10x"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a{0..1},c}", ["a0", "a1", "c"]),
        ("{train,}-{1..2}", ["train-1", "train-2", "-1", "-2"]),
        ("{}.tar", ["{}.tar"]),
        ("{name}{1..2}", ["{name}1", "{name}2"]),
        ("{open", ["{open"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_spelled_out(pattern, names):
    assert list(braces_expanded(pattern)) == names


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # as webdataset splits them
        ("000017.mp4", ("000017", "mp4")),
        ("a/b.c/000017.seg.JSON", ("a/b.c/000017", "seg.json")),
        ("no dot", None),
        (".hidden", None),
        ("a/._000017.mp4", None),
        ("__notes__.json", None),
        ("x__y__.json", ("x__y__", "json")),
    ],
)
def test_the_key_is_all_before_the_first_dot(name, expected):
    assert sample_key(name) == expected


def test_captions_are_those_of_the_text_or_else_of_the_json(tmp_path):
    write_tar(
        tmp_path / "0.tar",
        [
            ("a.json", {"caption": "not this", "n": 1}),
            ("a.txt", " a cat\n on a mat \n"),
            ("a.mp4", b"video"),
            ("b.webm", b"video"),
            ("b.json", {"text": "a dog"}),
            ("c.mp4", b"video"),
            ("c.json", {"captions": ["one", " ", "two", "one", 3]}),
            ("d/e.jpg", b"picture"),
            ("d/e.json", {"caption": None, "texts": ["picture"]}),
            ("f.mp4", b"video"),
            ("f.jpg", b"its thumbnail"),
            ("f.txt", "\ufefffilm"),
            ("f.json", {"start": "0:01", "end": 2.5}),
        ],
    )
    at = f"{tmp_path}/0.tar::"
    assert load_annotations(tmp_path / "0.tar") == [
        VideoRecord("a", f"{at}a.mp4", ("a cat on a mat",)),
        VideoRecord("b", f"{at}b.webm", ("a dog",)),
        VideoRecord("c", f"{at}c.mp4", ("one", "two")),
        VideoRecord("d/e", f"{at}d/e.jpg", ("picture",)),
        VideoRecord("f", f"{at}f.mp4", ("film",), None, 1.0, 2.5),
    ]


def test_long_texts_are_read_from_the_tar(tmp_path):
    long = {"caption": "seen", "subtitles": "word " * 30_000}
    write_tar(tmp_path / "0.tar", [("a.mp4", b"video"), ("a.json", long)])
    (sample,) = tar_samples(str(tmp_path / "0.tar"))
    assert sample.fields() == long
    assert sample.captions() == ("seen",)


def test_what_has_no_video_or_no_caption_is_left_out_and_counted(tmp_path, caplog):
    files = [("a.txt", "lost"), ("b.json", {}), ("c.mp4", b""), ("d.mp4", b""), ("d.txt", "kept"), ("e.mp4", b"")]
    write_tar(tmp_path / "0.tar", [*files, ("e.txt", " \n")])
    assert [record.id for record in load_annotations(tmp_path)] == ["d"]
    assert caplog.messages == [
        f"{tmp_path}: 2 of 5 samples have no video or picture, the first {tmp_path}/0.tar::a",
        f"{tmp_path}: 2 empty captions are left out",
    ]
    assert [record.id for record in load_videos(tmp_path)] == ["c", "d", "e"]


def test_classes_and_other_files_are_there_for_other_readers(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.mp4", b""), ("a.cls", "7\n"), ("a.seg.mp4", b""), ("b.mp4", b"")])
    first, second = tar_samples(str(tmp_path))
    assert (first.label, second.label) == ("7", None)
    assert first.video == f"{tmp_path}/0.tar::a.mp4"
    (chosen, _) = tar_samples(str(tmp_path), video="seg.mp4")
    assert chosen.video == f"{tmp_path}/0.tar::a.seg.mp4"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{broken", r"0.tar::a.json: not JSON"),
        ("[1]", r"0.tar::a.json: expected an object, got list"),
        ('{"start": 3, "end": 2}', r"0.tar::a.json: field 'end': expected more than its start 3, got 2"),
        ('{"start": "soon"}', r"0.tar::a.json: field 'start': expected seconds"),
    ],
)
def test_a_damaged_json_is_one_line_that_names_it(tmp_path, content, said):
    write_tar(tmp_path / "0.tar", [("a.mp4", b""), ("a.txt", "said"), ("a.json", content)])
    with pytest.raises(UserError, match=said):
        load_annotations(tmp_path)


def test_the_same_key_in_two_tars_is_two_records(tmp_path):
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, [("a.mp4", b""), ("a.txt", name)])
    assert [(record.id, record.captions) for record in load_annotations(tmp_path)] == [
        ("a", ("0.tar",)),
        ("1/a", ("1.tar",)),
    ]


def test_tars_by_pattern_folder_and_list(tmp_path, monkeypatch):
    for name in ("a/00.tar", "a/01.tar", "a/02.tar", "a/deep/00.tar", "b/00.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / name, [])
    (tmp_path / "a" / "notes.txt").write_text("no tar")
    monkeypatch.chdir(tmp_path)

    def found(source) -> list[str]:
        return [Path(tar).relative_to(tmp_path).as_posix() for tar in tars_of(source)]

    assert found("a") == ["a/00.tar", "a/01.tar", "a/02.tar", "a/deep/00.tar"]
    assert found(f"{tmp_path}/a/*.tar") == ["a/00.tar", "a/01.tar", "a/02.tar"]
    assert found("{b,a}/0{0..1}.tar") == ["b/00.tar", "b/01.tar", "a/00.tar", "a/01.tar"]
    assert found(["b/00.tar", "a/02.tar", "./b/00.tar"]) == ["b/00.tar", "a/02.tar"]
    for source in ("a/x*.tar", "a/*"):
        if source == "a/*":
            assert found(source) == ["a/00.tar", "a/01.tar", "a/02.tar"]
        else:
            with pytest.raises(UserError, match=r"x\*.tar: no .tar files there"):
                tars_of(source)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tars_of("nowhere")
    with pytest.raises(UserError, match=r"notes.txt: expected a .tar file"):
        tars_of("a/notes.txt")


@pytest.fixture
def energon(tmp_path) -> Path:
    """A data set as `energon prepare` leaves it."""
    root = tmp_path / "energon"
    (root / ".nv-meta").mkdir(parents=True)
    for number in range(4):
        files = [("x.mp4", b""), ("x.json", {"said": [{"en": f"caption {number}"}]}), ("x.alt.mp4", b"")]
        write_tar(root / f"shard_{number:03d}.tar", files)
    (root / ".nv-meta" / "split.yaml").write_text(
        "exclude: [shard_001.tar]\nsplit_parts:\n  train: ['shard_{000..002}.tar']\n  val: [shard_003.tar]\n"
    )
    (root / ".nv-meta" / "dataset.yaml").write_text(
        "__class__: CrudeWebdataset\nfield_map:\n  video: alt.mp4\n  caption: json[said][0][en]\n"
    )
    return root


def test_a_question_mark_is_a_letter_of_a_local_name(tmp_path):
    for name in ("a?.tar", "b.tar", "c.tar?copy"):
        write_tar(tmp_path / name, [])
    expected = [str(tmp_path / "a?.tar"), str(tmp_path / "b.tar")]
    assert tars_of(f"{tmp_path}/*") == tars_of(f"{tmp_path}/*.tar") == tars_of(str(tmp_path)) == expected
    assert tars_of(f"{tmp_path}/a?.tar") == expected[:1]


def test_an_energon_data_set_says_its_splits_and_fields(energon):
    records = load_annotations(energon)
    assert [record.captions for record in records] == [("caption 0",), ("caption 2",)]
    assert records[0].video == f"{energon}/shard_000.tar::x.alt.mp4"
    assert [record.captions for record in load_annotations(VideoList(str(energon), split="val"))] == [("caption 3",)]
    with pytest.raises(UserError, match=r"split.yaml: no split 'test'; it has: train, val"):
        load_annotations(VideoList(str(energon), split="test"))


def test_a_program_in_an_energon_data_set_is_not_run(energon, caplog):
    (energon / ".nv-meta" / "dataset.yaml").write_text("sample_loader: sample_loader.py:sample_loader\n")
    (energon / ".nv-meta" / "sample_loader.py").write_text("raise SystemExit")
    for _ in range(2):
        with pytest.raises(UserError, match="all captions are empty"):
            load_annotations(energon)
    assert caplog.text.count("sample_loader is a program, which is not run") == 1


def test_the_digest_does_not_depend_on_where_the_tars_lie(tmp_path):
    files = [("a.mp4", b""), ("a.txt", "one"), ("b/c.mp4", b""), ("b/c.txt", "two")]
    digests = set()
    for folder in ("here", "there/deeper"):
        (tmp_path / folder / "x").mkdir(parents=True)
        for name in ("0.tar", "x/1.tar"):
            write_tar(tmp_path / folder / name, files)
        digests.add(annotations_digest(load_annotations(tmp_path / folder)))
    assert len(digests) == 1


def test_the_digest_of_urls_is_that_of_the_same_files_on_disk():
    def digest(folder: str, second: str = "b/2.mp4") -> str:
        return annotations_digest(
            [VideoRecord("x", f"{folder}/a/1.mp4", ("",)), VideoRecord("y", f"{folder}/{second}", ("",))]
        )

    assert digest("/films") == digest("s3://bucket/films") == digest("https://host/f")
    assert digest("/films") != digest("/films", "b/3.mp4")
    mixed = [VideoRecord("x", "/films/1.mp4", ("",)), VideoRecord("y", "s3://bucket/2.mp4", ("",))]
    assert annotations_digest(mixed) != digest("/films")


def test_records_of_the_same_clip_are_known_by_location():
    def clip(video: str):
        return VideoRecord("x", video, ("",)).clip

    assert clip("/f/./0.tar::a.mp4") == clip("/f//0.tar::a.mp4") != clip("/f/0.tar::b.mp4")
    assert clip("s3://bucket/a.mp4")[0] == "s3://bucket/a.mp4"


def test_processes_make_the_indexes_of_named_tars_one_after_the_other(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tar = write_tar(tmp_path / "0.tar", [("a.mp4", b"one")])
    (tmp_path / "cache" / "indexes").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        with open(tmp_path / "cache" / "indexes" / ".lock", "a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            waiting = pool.submit(index_named, [f"{tar}::a.mp4", f"{tmp_path}/no.tar::a.mp4", "/films/a.mp4"])
            assert wait([waiting], 0.2).not_done
            assert not Path(f"{tar}{SUFFIX}").exists()
        waiting.result(20)
    assert Path(f"{tar}{SUFFIX}").exists()
    assert "waits until another process has made the indexes" in caplog.text


def test_of_indexes_that_are_there_no_table_is_loaded(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "0.tar", [("a.mp4", b"one")])
    index_named([f"{tar}::a.mp4"])
    made = Path(f"{tar}{SUFFIX}").stat().st_mtime_ns
    tar_index._tables.forget()
    index_named([f"{tar}::a.mp4"])
    assert tar_index._tables.get(str(tar)) is None
    assert Path(f"{tar}{SUFFIX}").stat().st_mtime_ns == made
    Path(tar).write_bytes(Path(write_tar(tmp_path / "1.tar", [("b.mp4", b"other")])).read_bytes())
    index_named([f"{tar}::b.mp4"])
    assert Path(f"{tar}{SUFFIX}").stat().st_mtime_ns > made


def test_what_comes_of_a_tar_is_counted_where_it_is_indexed(tmp_path):
    """What is sent between processes does not grow with the tar."""
    members = [(f"{number:04d}.{suffix}", b"x") for number in range(300) for suffix in ("mp4", "txt")]
    tar = write_tar(tmp_path / "0.tar", [*members, ("notes.md", b"y")])
    (done,) = index_tars([str(tar)], look=False)
    assert (done.files, done.samples, done.videos, done.reason) == (601, 301, 300, "")
    assert done.place == f"{tar}{SUFFIX}"
    assert len(pickle.dumps(done)) < 1000
