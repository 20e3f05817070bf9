"""VideoMAE as the engines know it: its models, their names and sizes, and its checkpoints."""

from typing import Any

from fastvtp.architecture import Architecture, NamedModel, Runs, System
from fastvtp.systems.videomae.classifier import VideoClassifier, VideoClassifierConfig
from fastvtp.systems.videomae.model import VideoMAE, VideoMAEConfig
from fastvtp.systems.videomae.rows import classifier_rows, pretraining_rows
from fastvtp.systems.videomae.tower import encoder_tower
from fastvtp.systems.videomae.weights import CLASSIFIER_SOURCES, KINDS, MODEL_SOURCES

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "width": 192,
        "depth": 4,
        "num_heads": 3,
        "decoder_width": 96,
        "decoder_depth": 1,
        "decoder_num_heads": 3,
        "num_frames": 8,
        "image_size": 96,
    },
    "small": {"width": 384, "num_heads": 6, "decoder_width": 192, "decoder_num_heads": 3},
    "base": {},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "decoder_width": 512, "decoder_num_heads": 8},
    "huge": {"width": 1280, "depth": 32, "num_heads": 16, "decoder_width": 640, "decoder_num_heads": 8},
}
# VideoMAE V2's largest (arXiv:2303.16727)
_GIANT: dict[str, Any] = {
    "tubelet": (2, 14, 14),
    "width": 1408,
    "depth": 40,
    "num_heads": 16,
    "mlp_ratio": 48 / 11,
    "decoder_width": 512,
    "decoder_num_heads": 8,
}

RECOMMENDED_POSITIONS = {"positions": "interpolate"}  # the releases rebuild them


def _runs() -> Runs:
    from fastvtp.systems.videomae import recipes, tasks

    return Runs(tasks=tasks.TASKS, recipes=recipes.RECIPES)


SYSTEM = System(
    name="videomae",
    architectures=(
        Architecture(
            name="videomae",
            config=VideoMAEConfig,
            model=VideoMAE,
            reads_text=False,
            sources=MODEL_SOURCES,
            recommended=RECOMMENDED_POSITIONS,
            rows=pretraining_rows,
            tower=encoder_tower,
        ),
        Architecture(
            name="video_classifier",
            config=VideoClassifierConfig,
            model=VideoClassifier,
            reads_text=False,
            scored_by="classes",
            labels=lambda config: {"classes": config.num_classes},
            sources=CLASSIFIER_SOURCES,
            recommended=RECOMMENDED_POSITIONS,
            rows=classifier_rows,
            tower=encoder_tower,
        ),
    ),
    models={
        f"videomae_{size}": NamedModel("videomae", settings) for size, settings in (SIZES | {"giant": _GIANT}).items()
    },
    kinds=KINDS,
    runs=_runs,
)
