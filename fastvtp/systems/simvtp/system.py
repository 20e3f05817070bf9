"""SimVTP as the engines know it: its models, their names and sizes, and its checkpoints."""

from fastvtp.architecture import Architecture, NamedModel, Runs, System
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.systems.simvtp.question_answering import VideoQA, VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoder, DualEncoderConfig
from fastvtp.systems.simvtp.rows import pretraining_rows, question_rows, retrieval_rows
from fastvtp.systems.simvtp.weights import DUAL_ENCODER_SOURCES, KINDS, MODEL_SOURCES, VIDEO_QA_SOURCES
from fastvtp.systems.videomae.system import RECOMMENDED_POSITIONS, SIZES
from fastvtp.systems.videomae.tower import encoder_tower, video_encoder_tower

# what differs from the release, see the table of `SimVTPConfig`
_RECOMMENDED = {
    "contrastive_text": "clean",
    "pad_text": False,
    "contrastive_directions": "mean",
    "projection_dim": 256,
    "learnable_temperature": True,
    "gather_negatives": True,
    "matching_negatives": "hard",
}


def _runs() -> Runs:
    from fastvtp.systems.simvtp import ablation_report, pictures, recipes, tasks

    return Runs(
        tasks=tasks.TASKS,
        recipes=recipes.RECIPES,
        pictures={"simvtp": pictures.draw_reconstructions},
        study=ablation_report.STUDY,
    )


SYSTEM = System(
    name="simvtp",
    architectures=(
        Architecture(
            name="simvtp",
            config=SimVTPConfig,
            model=SimVTP,
            reads_text=True,
            scored_by="retrieval",
            has_embeddings=True,
            sources=MODEL_SOURCES,
            recommended=RECOMMENDED_POSITIONS,
            rows=pretraining_rows,
            tower=encoder_tower,
        ),
        Architecture(
            name="dual_encoder",
            config=DualEncoderConfig,
            model=DualEncoder,
            reads_text=True,
            scored_by="retrieval",
            has_embeddings=True,
            sources=DUAL_ENCODER_SOURCES,
            recommended=RECOMMENDED_POSITIONS,
            rows=retrieval_rows,
            tower=video_encoder_tower,
        ),
        Architecture(
            name="video_qa",
            config=VideoQAConfig,
            model=VideoQA,
            reads_text=True,
            scored_by="questions",
            labels=lambda config: {"answers": config.num_answers},
            sources=VIDEO_QA_SOURCES,
            recommended=RECOMMENDED_POSITIONS,
            chosen_anew=("pad_text",),
            rows=question_rows,
            tower=encoder_tower,
        ),
    ),
    models={
        **{f"simvtp_{size}": NamedModel("simvtp", settings, _RECOMMENDED) for size, settings in SIZES.items()},
        "simvtp_tiny": NamedModel(
            "simvtp", SIZES["tiny"] | {"max_text_length": 64}, _RECOMMENDED | {"projection_dim": 128}
        ),
    },
    kinds=KINDS,
    runs=_runs,
)
