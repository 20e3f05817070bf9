"""VideoPrism's tables of positions at other sizes: what is resized, cut or interpolated is said."""

import pytest
import torch

import fastvtp
from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.model_folder import write_model_folder
from fastvtp.modules.positions import grid_positions, resize_positions
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videoprism.distillation import PrismStudentConfig, PrismTeacherConfig
from fastvtp.systems.videoprism.encoder import VideoPrismConfig
from tests.systems.videoprism.sizes import SIZES

STUDENT = {"decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2, "decoder_hidden": 32, "mask_min_cells": 2}


@pytest.mark.parametrize(
    ("few_frames", "shape", "said"),
    [
        ("resize", (4, 24, 24), None),
        ("resize", (3, 24, 24), "3 x 4 x 4 tokens: temporal_positions: 4 rows to 3, antialiased linear"),
        ("crop", (3, 24, 24), "3 x 4 x 4 tokens: temporal_positions: the first 3 of 4 rows"),
        ("crop", (6, 24, 24), "6 x 4 x 4 tokens: temporal_positions: 4 rows to 6, antialiased linear"),
        ("crop", (4, 36, 12), "4 x 6 x 2 tokens: spatial_positions: 4 x 4 rows to 6 x 2, antialiased bilinear"),
        ("resize", (1, 36, 24), "1 x 6 x 4 tokens: temporal_positions: 4 rows to 1, antialiased linear; "
                                "spatial_positions: 4 x 4 rows to 6 x 4, antialiased bilinear"),
    ],
)  # fmt: skip
def test_clips_of_another_size_are_named_once(caplog, few_frames, shape, said):
    model = build_model(VideoPrismConfig(**SIZES, few_frames=few_frames)).eval()
    for _ in range(2):
        model(torch.zeros(1, *shape, 3, dtype=torch.uint8))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ([] if said is None else [f"clips of {said}"])


@pytest.mark.parametrize("way", ["interpolate", "rebuild"])
def test_a_students_positions_come_to_another_size(tmp_path, caplog, way):
    model = build_model(PrismStudentConfig(**SIZES, **STUDENT))
    assert model.config.positions == "interpolate"
    write_model_folder(tmp_path, model, "prism_student")
    other = fastvtp.load_pretrained(tmp_path, num_frames=7, image_size=36, positions=way)
    table = grid_positions((7, 6, 6), 16, (4, 4, 4) if way == "interpolate" else None)
    assert torch.equal(other.local_decoder.positions, table)
    own, table = model.encoder.spatial_positions, other.encoder.spatial_positions
    torch.testing.assert_close(table, resize_positions(own, (4, 4), (6, 6)))
    assert "encoder.temporal_positions: 4 rows to 7, antialiased linear" in caplog.text
    assert f"positions of 7 x 6 x 6 tokens: {way[:6]}" in caplog.text
    started = build_model(PrismStudentConfig(**{**SIZES, "image_size": 36}, **STUDENT, positions=way))
    load_checkpoint(started, tmp_path)
    table = grid_positions((4, 6, 6), 16, (4, 4, 4) if way == "interpolate" else None)
    assert torch.equal(started.local_decoder.positions, table)
    assert started.config.trained_image_size == 24


def test_a_student_that_starts_from_a_teacher_has_positions_of_its_own(tmp_path, caplog):
    write_model_folder(tmp_path, build_model(PrismTeacherConfig(**SIZES)), "prism_teacher")
    model = build_model(PrismStudentConfig(**{**SIZES, "image_size": 36}, **STUDENT))
    load_checkpoint(model.teacher, tmp_path)
    assert torch.equal(model.local_decoder.positions, grid_positions((4, 6, 6), 16))
    assert "spatial_positions: 16 rows to 36, antialiased bilinear" in caplog.text
