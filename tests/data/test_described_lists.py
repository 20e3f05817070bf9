"""What a report says of the lists of a run."""

import pytest

from fastvtp.data.annotations import load_annotations
from fastvtp.data.classes import load_classes
from fastvtp.data.formats.listing import describe_list, describe_scored_list
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.questions import load_questions
from tests.data.clips import write_lines
from tests.data.miniatures import MINIATURES


def test_what_was_read_is_described_when_the_list_is_gone(tmp_path, caplog):
    path = MINIATURES["kinetics"][0].write(tmp_path)
    (tmp_path / "v/c-d.mkv").unlink()
    listed = VideoList(str(path), videos=str(tmp_path))
    assert describe_list(listed) == {"list": str(path), "format": "kinetics"}  # not read yet
    load_classes(listed)
    path.unlink()
    missing = {"videos": 1, "of": 2, "first": ["c-d_000000_000010"], "kept": False}
    expected = {"list": str(path), "format": "kinetics", "split": "train", "videos": 1, "missing": missing}
    assert describe_list(listed) == expected
    caplog.clear()
    assert describe_scored_list(listed) == expected
    assert caplog.messages == [f"{path}: 50.0 % (1 of 2) of its videos are missing: the scores are of the others alone"]
    with pytest.raises(FileNotFoundError):
        describe_list(VideoList(str(path)))


def test_a_description_counts_what_was_left_out(tmp_path):
    path = write_lines(tmp_path / "list.jsonl", {"video": "a.mp4", "caption": ["x", ""]})
    load_annotations(path)
    assert describe_list(path)["empty_captions"] == 1
    path = MINIATURES["activitynet_moments"][0].write(tmp_path)
    listed = VideoList(str(path), format="activitynet_moments")
    load_annotations(listed)
    assert describe_list(listed)["dropped_spans"] == 1
    path = MINIATURES["nextqa"][0].write(tmp_path)
    path.write_text(path.read_text() + "40,900,640,480,who,1,3,CH,a,b,b,d,e\n")
    load_questions(path)
    assert (describe_list(path)["questions"], describe_list(path)["dropped_questions"]) == (1, 1)
