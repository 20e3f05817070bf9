import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from fastvtp.data.entities import read_entities
from fastvtp.data.synthetic import (
    SyntheticConfig,
    generate_dataset,
    writer,
)
from fastvtp.data.synthetic.render import render_scene
from fastvtp.data.synthetic.scene import (
    BACKGROUND_COLOURS,
    COLOURS,
    SHAPES,
    Background,
    Scene,
    SceneObject,
)
from fastvtp.errors import UserError
from tests.data.clips import decode_sequentially

SMALL = SyntheticConfig(num_train=20, num_test=12, seed=3)


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return generate_dataset(tmp_path_factory.mktemp("synthetic") / "set", SMALL, workers=1, progress=False)


def test_files_are_h264_of_the_configured_form(dataset):
    rows = read_jsonl(dataset.train) + read_jsonl(dataset.test)
    assert [row["id"] for row in rows[:2]] == ["train/000000", "train/000001"]
    assert Counter(row["id"].split("/")[0] for row in rows) == {"train": 20, "test": 12}
    with av.open(str(dataset.root / rows[0]["video"])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate, stream.frames) == (112, 112, 8, 16)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (
            Colorspace.ITU601,
            ColorRange.MPEG,
        )
        key_frames = [packet.pts for packet in container.demux(stream) if packet.is_keyframe]
        assert [int(pts * stream.time_base * 8) for pts in key_frames] == [0, 8]


def test_decoded_clip_is_the_rendered_scene(dataset):
    row = read_jsonl(dataset.test)[0]
    scene = row["scene"]
    objects = tuple(SceneObject(**item) for item in scene["objects"])
    scene = Scene(objects, Background(**scene["background"]), scene["arrangement"], scene["layout_seed"])
    rendered = render_scene(scene, 16, 112, 112)
    assert np.abs(decode_sequentially(dataset.root / row["video"]).astype(int) - rendered).mean() < 6


def test_a_frame_may_be_oblong_and_long(tmp_path):
    config = replace(SMALL, num_train=3, num_test=0, height=64, width=96, num_frames=20)
    made = generate_dataset(tmp_path, config, workers=1, progress=False)
    assert [decode_sequentially(made.root / row["video"]).shape for row in read_jsonl(made.train)] == [
        (20, 64, 96, 3)
    ] * 3
    assert made.test.read_text() == ""


def test_question_lines_belong_to_the_clips(dataset):
    clips = {row["id"]: row for row in read_jsonl(dataset.test)}
    questions = read_jsonl(dataset.test_questions)
    assert Counter(question["id"] for question in questions) == dict.fromkeys(clips, 3)
    assert all(question["video"] == clips[question["id"]]["video"] for question in questions)
    assert {"question", "answer", "type"} < set(questions[0])
    assert {row["id"] for row in read_jsonl(dataset.train_questions)} == {
        row["id"] for row in read_jsonl(dataset.train)
    }


def test_same_bytes_for_any_number_of_workers(dataset, tmp_path):
    again = generate_dataset(tmp_path / "set", SMALL, workers=2, progress=False)
    files = sorted(path.relative_to(dataset.root) for path in dataset.root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again.root) for path in again.root.rglob("*") if path.is_file())
    assert len(files) == 20 + 12 + 6
    for name in files:
        assert (dataset.root / name).read_bytes() == (again.root / name).read_bytes(), name


def test_seed_changes_the_clips_and_num_train_does_not_change_the_test_split():
    clips = writer.plan_clips(SMALL)
    assert writer.plan_clips(replace(SMALL, num_train=5))["test"] == clips["test"]
    assert writer.plan_clips(replace(SMALL, seed=4))["test"] != clips["test"]


def test_finished_set_is_found_and_interrupted_one_completed(dataset, tmp_path, monkeypatch):
    config = replace(SMALL, num_train=6, num_test=2)
    encode, encoded = writer.encode_h264, []

    def failing(frames, **settings):
        if len(encoded) == 5:
            raise KeyboardInterrupt
        encoded.append(frames)
        return encode(frames, **settings)

    monkeypatch.setattr(writer, "encode_h264", failing)
    with pytest.raises(KeyboardInterrupt):
        generate_dataset(tmp_path, config, workers=1, progress=False)
    assert not (tmp_path / "dataset.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(kept) == 5

    monkeypatch.setattr(writer, "encode_h264", encode)
    with pytest.raises(UserError, match="num_frames 16 instead of 12"):
        generate_dataset(tmp_path, replace(config, num_frames=12), workers=1, progress=False)
    made = generate_dataset(tmp_path, config, workers=1, progress=False)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert {path.name for path in tmp_path.iterdir()} == {
        "dataset.json",
        "videos",
        "train.jsonl",
        "test.jsonl",
        "train_questions.jsonl",
        "test_questions.jsonl",
        "words.txt",
    }
    assert [len(read_jsonl(path)) for path in (made.train, made.test)] == [6, 2]
    assert read_entities(made.words) == [*SHAPES, *COLOURS, *BACKGROUND_COLOURS]

    monkeypatch.setattr(writer, "encode_h264", None)
    assert generate_dataset(tmp_path, config, workers=1, progress=False) == made


def test_bad_input_is_named(dataset, tmp_path):
    with pytest.raises(UserError) as caught:
        generate_dataset(dataset.root, replace(SMALL, num_train=31, seed=9))
    assert str(caught.value) == (
        f"{dataset.root}: holds a synthetic data set made with other settings "
        "(num_train 20 instead of 31, seed 3 instead of 9): delete it or choose another folder"
    )
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="expected an empty folder"):
        generate_dataset(tmp_path, SMALL)
    with pytest.raises(UserError, match="workers must be at least 1, got 0"):
        generate_dataset(tmp_path / "new", SMALL, workers=0)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "dataset.json").write_text("[]")
    with pytest.raises(UserError, match="expected the description of a synthetic data set"):
        generate_dataset(tmp_path / "odd", SMALL)
    wrong: dict[str, Any]
    for wrong, message in (
        ({"width": 111}, "width must be even for H.264, got 111"),
        ({"num_frames": 4}, "num_frames must be from 8 to 1000, got 4"),
        ({"fps": 7.5}, "fps must be a whole number, got 7.5"),
        ({"twin_fraction": 1.5}, "twin_fraction must be from 0 to 1, got 1.5"),
    ):
        with pytest.raises(UserError, match=message):
            SyntheticConfig(**wrong)


def test_importing_it_loads_no_heavy_package():
    code = "import sys, fastvtp.data.synthetic; print(sorted({'torch', 'av', 'PIL', 'tqdm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_bar_counts_the_clips(tmp_path, capsys):
    generate_dataset(tmp_path, replace(SMALL, num_train=2, num_test=1), workers=1, progress=True)
    assert "3/3" in capsys.readouterr().err
