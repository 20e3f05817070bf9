"""What published lists say that their miniatures do not."""

import json
import logging
import os

import pytest

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.data.classes import load_classes
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.questions import load_questions
from fastvtp.errors import UserError
from tests.data.miniatures import MINIATURES


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("written", ["nan", "inf", "1e999"])
def test_a_number_that_is_none_is_named(tmp_path, written):
    path = MINIATURES["kinetics"][0].write(tmp_path)
    path.write_text(path.read_text().replace(",0,10,", f",{written},10,"))
    with pytest.raises(UserError, match=f"line 3: field 'time_start': expected a number, got '{written}'"):
        load_classes(path)
    path = MINIATURES["activitynet_moments"][0].write(tmp_path)
    path.write_text(path.read_text().replace("[0, 4.5]", "[0, NaN]"))
    with pytest.raises(UserError, match=r"'v_a-b': field 'timestamps': expected a list of \[start, end\]"):
        load_annotations(VideoList(str(path), format="activitynet_moments"))


def test_null_in_place_of_the_segments_of_a_video_is_named(tmp_path):
    path = MINIATURES["youcook2"][0].write(tmp_path)
    said = json.loads(path.read_text())
    said["database"]["xHr8X2Wpmno"]["annotations"] = None
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match="'xHr8X2Wpmno': field 'annotations': expected a list of objects, got None"):
        load_annotations(VideoList(str(path), split="train"))


def test_something_something_is_read_under_the_names_of_its_download(tmp_path):
    MINIATURES["ssv2"][0].write(tmp_path)
    (tmp_path / "something-something-v2-train.json").rename(tmp_path / "train.json")
    assert load_classes(tmp_path / "train.json").labels == (1, 0)
    (tmp_path / "test.json").write_text('[{"id": "78687"}]')
    assert [record.video for record in load_videos(tmp_path / "test.json")] == [str(tmp_path / "v/78687.webm")]


def test_an_id_of_activitynet_may_begin_as_its_files_do(tmp_path):
    touch(tmp_path, "v_v_x.mp4", "v_a.mp4")
    asked = [("v_x", "v_v_x_0"), ("a", "v_a_0"), ("v_a", "v_a_1")]
    questions = [{"video_name": name, "question": "who?", "question_id": number} for name, number in asked]
    (tmp_path / "val_q.json").write_text(json.dumps(questions))
    (tmp_path / "val_a.json").write_text(json.dumps([{"answer": "x", "question_id": number} for _, number in asked]))
    found = [os.path.basename(record.video) for record in load_questions(tmp_path / "val_q.json").records]
    assert found == ["v_v_x.mp4", "v_a.mp4", "v_a.mp4"]


def test_a_clip_in_the_folder_of_its_split_goes_before_others_of_its_name(tmp_path, caplog):
    touch(tmp_path, "train/archery/a_b_000003_000013.mp4", "val/archery/a_b_000003_000013.mp4")
    (tmp_path / "val.csv").write_text("label,youtube_id,time_start,time_end,split\narchery,a_b,3,13,validate\n")
    made = load_classes(tmp_path / "val.csv")
    assert made.records[0].video == str(tmp_path / "val/archery/a_b_000003_000013.mp4")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
