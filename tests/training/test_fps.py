"""Clips of so many frames a second, from the settings of a run to what its model folder and its scores say."""

import json
import logging

import pytest
import torch

from fastvtp import runs
from fastvtp.data.reading import ClipReading
from fastvtp.errors import CheckpointError, UserError
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.scoring import reading_of
from fastvtp.model_folder import open_model, read_framing, recorded_fps, write_reading
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.plan import decoded_frames


def reading(*overrides):
    return apply_overrides(get_recipe("simvtp_tiny"), list(overrides)).data


def spacing(made):
    return made.frame_stride, made.fps


def test_an_fps_takes_the_place_of_the_recipes_stride():
    assert spacing(reading().reading) == (4, None)
    assert spacing(reading("data.fps=6").reading) == (1, 6)
    assert spacing(reading("data.fps=none").reading) == (4, None)
    with pytest.raises(UserError) as error:
        reading("data.fps=6", "data.frame_stride=3")
    assert str(error.value) == "data.fps 6 and frame_stride 3 both say how far frames are apart: give one"
    with pytest.raises(UserError, match=r"^data.fps must be positive, or none, got -1.0$"):
        reading("data.fps=-1")


def test_test_clips_are_spaced_as_training_clips_or_by_an_fps_of_their_own():
    assert spacing(reading().test_reading) == (4, None)
    assert spacing(reading("data.fps=6").test_reading) == (1, 6)
    assert spacing(reading("data.test_fps=12.5").test_reading) == (1, 12.5)
    both = reading("data.fps=6", "data.test_fps=3")
    assert (spacing(both.reading), spacing(both.test_reading)) == ((1, 6), (1, 3))
    with pytest.raises(UserError, match=r"^data.test_fps must be positive, or none, got 0"):
        reading("data.test_fps=0")


def test_how_many_frames_are_decoded_is_not_known_before_the_rate_of_the_videos():
    config = apply_overrides(get_recipe("simvtp_tiny"), ["data.sampling=strided", "data.fps=6"])
    assert decoded_frames(config) is None


def test_a_run_keeps_its_fps_beside_the_model_and_reports_it(tiny_settings, tmp_path, caplog):
    given = [*tiny_settings, "data.sampling=strided", "data.fps=4", "data.test_fps=8", "steps=2"]
    report = runs.pretrain(apply_overrides(get_recipe("simvtp_tiny"), given), progress_bar=False)
    assert report["fps"] == 4
    opened = open_model(tmp_path / "run", torch.device("cpu"))
    assert (opened.fps, opened.framing) == (4, "crop")
    with caplog.at_level(logging.INFO, logger="fastvtp.evaluation.scoring"):
        reading_of(opened, EvaluationProtocol(reading=ClipReading(fps=4)))
        assert "frames a second" not in caplog.text
        reading_of(opened, EvaluationProtocol())
    assert "trained on 4 frames a second; clips are read by frames: set fps to go by time" in caplog.text


def test_what_a_model_folder_says(tmp_path):
    write_reading(tmp_path, "squash")
    assert (tmp_path / "reading.json").read_text() == '{"framing": "squash"}\n'
    assert recorded_fps(tmp_path) is None
    write_reading(tmp_path, "squash", 7.5)
    assert (read_framing(tmp_path), recorded_fps(tmp_path)) == ("squash", 7.5)
    for wrong in (0, -1, True, "8", None):
        (tmp_path / "reading.json").write_text(json.dumps({"framing": "crop", "fps": wrong}))
        with pytest.raises(CheckpointError, match="expected 'fps', if there is one, to be a positive number"):
            recorded_fps(tmp_path)
