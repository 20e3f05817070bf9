"""ALPRO as the engines know it: its models, their names and sizes, and its checkpoints."""

from fastvtp.architecture import Architecture, NamedModel, Runs, System
from fastvtp.systems.alpro.finetuning import AlproQA, AlproQAConfig, AlproRetrieval, AlproRetrievalConfig
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.rows import matching_rows, question_rows, tower_rows
from fastvtp.systems.alpro.towers import AlproConfig, AlproPrompterConfig, AlproTowers
from fastvtp.systems.alpro.weights import KINDS, MODEL_SOURCES, PROMPTER_SOURCES, QA_SOURCES, RETRIEVAL_SOURCES

_TINY = {
    "width": 192,
    "depth": 4,
    "num_heads": 3,
    "image_size": 96,
    "text_depth": 2,
    "fusion_depth": 2,
    "text_num_heads": 3,
    "text_hidden": 768,
    "max_text_length": 64,
}
_RECOMMENDED = {"ignore_rule": "paper"}
_OF_PRETRAINING = ("word_weight", "entity_weight")


def _runs() -> Runs:
    from fastvtp.systems.alpro import ablation, pictures, recipes, tasks

    return Runs(
        tasks=tasks.TASKS,
        recipes=recipes.RECIPES,
        pictures={"alpro": pictures.draw_entities},
        study=ablation.STUDY,
    )


SYSTEM = System(
    name="alpro",
    architectures=(
        Architecture(
            name="alpro",
            config=AlproConfig,
            model=Alpro,
            reads_text=True,
            scored_by="matching",
            has_embeddings=True,
            labels=lambda config: {"entities": config.num_entities},
            sources=MODEL_SOURCES,
            chosen_anew=_OF_PRETRAINING,
            rows=matching_rows,
        ),
        Architecture(
            name="alpro_prompter",
            config=AlproPrompterConfig,
            model=AlproTowers,
            reads_text=True,
            scored_by="retrieval",
            has_embeddings=True,
            sources=PROMPTER_SOURCES,
            rows=tower_rows,
        ),
        Architecture(
            name="alpro_retrieval",
            config=AlproRetrievalConfig,
            model=AlproRetrieval,
            reads_text=True,
            scored_by="matching",
            has_embeddings=True,
            sources=RETRIEVAL_SOURCES,
            chosen_anew=_OF_PRETRAINING,
            rows=matching_rows,
        ),
        Architecture(
            name="alpro_qa",
            config=AlproQAConfig,
            model=AlproQA,
            reads_text=True,
            scored_by="questions",
            labels=lambda config: {"answers": config.num_answers},
            sources=QA_SOURCES,
            rows=question_rows,
        ),
    ),
    models={
        "alpro_base": NamedModel("alpro", {}, _RECOMMENDED),
        "alpro_tiny": NamedModel("alpro", _TINY, _RECOMMENDED),
        "alpro_prompter_base": NamedModel("alpro_prompter"),
        "alpro_prompter_tiny": NamedModel("alpro_prompter", _TINY),
    },
    kinds=KINDS,
    runs=_runs,
)
