"""VideoPrism as the engines know it: its models, their names and sizes, and its checkpoints."""

from typing import Any

from fastvtp.architecture import Architecture, NamedModel, Runs, System
from fastvtp.systems.videoprism.distillation import PrismStudent, PrismStudentConfig, PrismTeacher, PrismTeacherConfig
from fastvtp.systems.videoprism.encoder import (
    PrismClassifier,
    PrismClassifierConfig,
    VideoPrismConfig,
    VideoPrismEncoder,
)
from fastvtp.systems.videoprism.rows import classifier_rows, contrast_rows, student_rows, whole_rows
from fastvtp.systems.videoprism.tower import encoder_tower, own_tower, video_encoder_tower
from fastvtp.systems.videoprism.video_text import VideoTextPrism, VideoTextPrismConfig
from fastvtp.systems.videoprism.weights import (
    CLASSIFIER_SOURCES,
    ENCODER_SOURCES,
    KINDS,
    STUDENT_SOURCES,
    TEACHER_SOURCES,
    VIDEO_TEXT_SOURCES,
)

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_frames": 8,
        "image_size": 96,
        "patch_size": 12,
        "width": 192,
        "depth": 3,
        "temporal_depth": 2,
        "num_heads": 3,
        "mlp_hidden": 768,
    },
    "base": {},
    "large": {"num_frames": 8, "width": 1024, "depth": 24, "num_heads": 16, "mlp_hidden": 4096},
    "giant": {"num_frames": 8, "width": 1408, "depth": 40, "num_heads": 16, "mlp_hidden": 6144},
}
_TEXT: dict[str, dict[str, Any]] = {
    "tiny": {"text_depth": 2, "auxiliary_depth": 0, "vocab_size": 30522},
    "giant": {"text_depth": 16, "text_norm": "primer_hybrid"},
}
_STUDENT: dict[str, dict[str, Any]] = {
    "tiny": {
        "mask_min_cells": 6,
        "decoder_width": 128,
        "decoder_depth": 2,
        "decoder_num_heads": 4,
        "decoder_hidden": 512,
    },
}


def _models() -> dict[str, NamedModel]:
    models = {}
    for size, values in _SIZES.items():
        models[f"videoprism_{size}"] = NamedModel("videoprism", values)
        models[f"videoprism_lvt_{size}"] = NamedModel("video_text_prism", values | _TEXT.get(size, {}))
        models[f"prism_student_{size}"] = NamedModel("prism_student", values | _STUDENT.get(size, {}))
    return models


def _runs() -> Runs:
    from fastvtp.systems.videoprism import ablation, recipes, tasks

    return Runs(tasks=tasks.TASKS, recipes=recipes.RECIPES, study=ablation.STUDY)


SYSTEM = System(
    name="videoprism",
    architectures=(
        Architecture(
            name="videoprism",
            config=VideoPrismConfig,
            model=VideoPrismEncoder,
            reads_text=False,
            sources=ENCODER_SOURCES,
            rows=whole_rows,
            tower=own_tower,
        ),
        Architecture(
            name="video_text_prism",
            config=VideoTextPrismConfig,
            model=VideoTextPrism,
            reads_text=True,
            scored_by="retrieval",
            has_embeddings=True,
            sources=VIDEO_TEXT_SOURCES,
            rows=contrast_rows,
            tower=video_encoder_tower,
        ),
        Architecture(
            name="prism_classifier",
            config=PrismClassifierConfig,
            model=PrismClassifier,
            reads_text=False,
            scored_by="classes",
            labels=lambda config: {"classes": config.num_classes},
            sources=CLASSIFIER_SOURCES,
            rows=classifier_rows,
            tower=encoder_tower,
        ),
        Architecture(
            name="prism_teacher",
            config=PrismTeacherConfig,
            model=PrismTeacher,
            reads_text=False,
            sources=TEACHER_SOURCES,
            tower=video_encoder_tower,
        ),
        Architecture(
            name="prism_student",
            config=PrismStudentConfig,
            model=PrismStudent,
            reads_text=False,
            sources=STUDENT_SOURCES,
            rows=student_rows,
            tower=encoder_tower,
        ),
    ),
    models=_models(),
    kinds=KINDS,
    runs=_runs,
)
