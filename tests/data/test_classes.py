import pytest

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.classes import load_classes, read_class_names
from fastvtp.errors import UserError
from tests.data.clips import write_lines


def test_classes_by_name_are_sorted_and_fixed_by_training(tmp_path):
    rows = [{"video": "b.mp4", "label": "walk"}, {"video": "a.mp4", "label": "jump", "id": "first"}]
    train = load_classes(write_lines(tmp_path / "train.jsonl", *rows, {"video": "c.mp4", "label": " walk"}))
    assert (train.class_names, train.labels) == (("jump", "walk"), (1, 0, 1))
    assert train.records[1] == VideoRecord("first", str(tmp_path / "a.mp4"), ("jump",))
    test = load_classes(write_lines(tmp_path / "test.jsonl", rows[0]), class_names=train.class_names)
    assert (test.class_names, test.labels) == (("jump", "walk"), (1,))
    path = write_lines(tmp_path / "odd.jsonl", rows[0], {"video": "d.mp4", "label": "swim"})
    with pytest.raises(UserError) as caught:
        load_classes(path, class_names=train.class_names)
    assert str(caught.value) == f"{path}, line 2: no class 'swim' among the 2 classes of the training set"


def test_a_class_that_names_a_direction_is_not_mirrored(tmp_path):
    rows = [{"video": f"{i}.mp4", "label": name} for i, name in enumerate(("turning left", "jumping"))]
    records = load_classes(write_lines(tmp_path / "list.jsonl", *rows)).records
    assert [record.may_be_mirrored for record in records] == [False, True]


def test_numbers_are_their_own_classes(tmp_path):
    rows = [{"video": f"{label}.mp4", "label": label} for label in (10, 2, 0)]
    path = write_lines(tmp_path / "list.jsonl", *rows)
    assert load_classes(path).labels == (10, 2, 0)
    assert load_classes(path).class_names == tuple(map(str, range(11)))
    named = load_classes(write_lines(tmp_path / "two.jsonl", rows[1]), class_names=("a", "b", "c"))
    assert (named.labels, named.records[0].captions) == ((2,), ("c",))
    with pytest.raises(UserError, match="line 1: no class 10 among the 3 classes"):
        load_classes(path, class_names=("a", "b", "c"))


def test_names_of_numbered_classes_come_from_a_file(tmp_path):
    path = write_lines(tmp_path / "list.jsonl", *({"video": f"{n}.mp4", "label": n} for n in (2, 0)))
    (tmp_path / "names.txt").write_text("moving left\n falling \nstanding\nfar away\n\n")
    (tmp_path / "labels.json").write_text('{"standing": "2", "moving left": 0, "falling": "1", "far away": "3"}')
    (tmp_path / "list.json").write_text('["moving left", "falling", "standing", "far away"]')
    for name in ("names.txt", "labels.json", "list.json"):
        made = load_classes(path, names_file=tmp_path / name)
        assert made.class_names == ("moving left", "falling", "standing", "far away")
        assert made.labels == (2, 0)
        assert [record.may_be_mirrored for record in made.records] == [True, False]
        assert not made.unnamed
    assert load_classes(path).unnamed
    odd = write_lines(tmp_path / "odd.jsonl", {"video": "a.mp4", "label": "swimming"})
    with pytest.raises(UserError, match=r"no class 'swimming' among the 4 classes of .*names\.txt"):
        load_classes(odd, names_file=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("names.txt", "", "expected class names, each once, got 0"),
        ("names.txt", "a\nb\na\n", "expected class names, each once, got 3 with 2 different"),
        ("names.txt", "a\n\nb\n", "class 1: expected non-empty text"),
        ("names.json", '{"a": "0", "b": "2"}', "expected each class from 0 to 1 once"),
        ("names.json", '{"a": "x"}', "expected each class from 0 to 0 once"),
        ("names.json", "3", "expected a list of names or an object"),
        ("names.json", "[1]", "class 0: expected non-empty text, got 1"),
        ("names.json", "{", "expected names of classes, one a line or as JSON"),
    ],
)
def test_bad_class_names_are_one_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}.*{complaint}") as caught:
        read_class_names(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file of class names"):
        read_class_names(tmp_path / "absent.txt")


def test_the_released_codes_list_is_read_with_spaces_or_commas(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("clips/a.mp4 1\n\n/else/b b,c.mp4  0\nc.mp4,12\nd.mp4, 3\n")
    made = load_classes(path)
    assert made.labels == (1, 0, 12, 3)
    assert [record.video for record in made.records] == [
        str(tmp_path / "clips/a.mp4"),
        "/else/b b,c.mp4",
        str(tmp_path / "c.mp4"),
        str(tmp_path / "d.mp4"),
    ]
    assert len(made.class_names) == 13


def test_a_folder_of_folders_is_read_in_sorted_order(tmp_path):
    for name in ("walk/b.mp4", "walk/deep/a.avi", "jump/a.webm", "jump/notes.txt", "stray.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    made = load_classes(tmp_path)
    assert made.class_names == ("jump", "walk")
    assert [record.id for record in made.records] == ["jump/a", "walk/b", "walk/deep/a"]
    assert made.labels == (0, 1, 1)
    with pytest.raises(UserError, match="no class 'walk' among the 1 classes"):
        load_classes(tmp_path, class_names=["jump"])


@pytest.mark.parametrize(
    ("name", "line", "complaint"),
    [
        ("list.jsonl", '{"label": 1}', ", line 2: field 'video': there is none among 'label'; a field of another name"),
        ("list.jsonl", '{"video": "a"}', ", line 2: field 'label': there is none among 'video'"),
        ("list.jsonl", '{"video": "a", "label": true}', ", line 2: field 'label': expected non-empty text, got True"),
        ("list.jsonl", '{"video": "a", "label": -1}', ", line 2: field 'label': expected a number from 0 to 999999"),
        ("list.jsonl", '{"video": "a", "label": "x"}', ", line 2: field 'label': expected a number as in other lines"),
        ("list.csv", "a.mp4", ", line 2: field 'label': expected a whole number"),
        ("list.csv", "a.mp4 -1", ", line 2: field 'label': expected a whole number"),
        ("list.csv", "a.mp4 99999999999", ", line 2: field 'label': expected a whole number"),
        ("list.json", "[]", ": expected a .jsonl or .csv file"),
    ],
)
def test_a_malformed_class_list_is_named_by_file_line_and_field(tmp_path, name, line, complaint):
    good = '{"video": "a.mp4", "label": 1}' if name.endswith("l") else "a.mp4 1"
    path = write_lines(tmp_path / name, good, line)
    with pytest.raises(UserError) as caught:
        load_classes(path)
    assert str(caught.value).startswith(f"{path}{complaint}")


def test_no_classes_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="lists no videos"):
        load_classes(tmp_path)
    for name in ("missing.jsonl", "missing.csv"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_classes(tmp_path / name)
    (tmp_path / "list.csv").write_bytes(b"\xff.mp4 1\n")
    with pytest.raises(UserError, match="expected UTF-8 text"):
        load_classes(tmp_path / "list.csv")
