"""Recipes: functions that return a complete run configuration.

`fastvtp pretrain NAME key=value ...` and `fastvtp finetune NAME key=value ...` start one. A preset is SimVTP's and
ALPRO's affair: what the others do without it is the same for both.
"""

from collections.abc import Callable
from pathlib import Path

from fastvtp.errors import ConfigError, unknown_name
from fastvtp.model_folder import list_checkpoints
from fastvtp.systems.alpro.recipes import (
    alpro_didemo_retrieval,
    alpro_msrvtt_qa,
    alpro_msrvtt_retrieval,
    alpro_msvd_qa,
    alpro_pretrain,
    alpro_pretrain_tiny,
    alpro_prompter,
    alpro_prompter_tiny,
    alpro_qa_tiny,
    alpro_retrieval_tiny,
)
from fastvtp.systems.alpro.tasks import (
    FinetuneAlproQA,
    FinetuneAlproRetrieval,
    PretrainAlpro,
    PretrainPrompter,
)
from fastvtp.systems.captioner.recipes import videoprism_captioning, videoprism_captioning_tiny
from fastvtp.systems.captioner.tasks import FinetuneCaptioning
from fastvtp.systems.catalogue import PRESETS
from fastvtp.systems.simvtp.recipes import (
    qa_finetune,
    qa_finetune_tiny,
    retrieval_finetune,
    retrieval_finetune_tiny,
    simvtp_base,
    simvtp_demo,
    simvtp_small,
    simvtp_tiny,
)
from fastvtp.systems.simvtp.tasks import FinetuneQA, FinetuneRetrieval, PretrainSimVTP
from fastvtp.systems.videomae.recipes import (
    classification_finetune,
    classification_finetune_ssv2,
    classification_finetune_tiny,
    videomae_pretrain_base,
    videomae_pretrain_tiny,
)
from fastvtp.systems.videomae.tasks import FinetuneClassification, PretrainVideoMAE
from fastvtp.systems.videoprism.recipes import (
    videoprism_stage1,
    videoprism_stage1_tiny,
    videoprism_stage2,
    videoprism_stage2_tiny,
)
from fastvtp.systems.videoprism.tasks import PretrainPrismContrast, PretrainPrismDistillation
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.task import (
    Task,
)

RECIPES: dict[str, Callable[[str], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        simvtp_demo, simvtp_tiny, simvtp_small, simvtp_base,
        videomae_pretrain_tiny, videomae_pretrain_base,
        retrieval_finetune_tiny, retrieval_finetune,
        qa_finetune_tiny, qa_finetune,
        classification_finetune_tiny, classification_finetune, classification_finetune_ssv2,
        videoprism_captioning_tiny, videoprism_captioning,
        alpro_prompter_tiny, alpro_prompter, alpro_pretrain_tiny, alpro_pretrain,
        alpro_retrieval_tiny, alpro_msrvtt_retrieval, alpro_didemo_retrieval,
        alpro_qa_tiny, alpro_msrvtt_qa, alpro_msvd_qa,
        videoprism_stage1_tiny, videoprism_stage1, videoprism_stage2_tiny, videoprism_stage2,
    )
}  # fmt: skip

DEMO_RECIPE = "simvtp_demo"
"""What `fastvtp demo` trains by."""


def get_recipe(name: str, preset: str = "fastvtp") -> TrainConfig:
    """The configuration of a recipe. Raises UserError with the nearest known name."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return RECIPES[name](preset)


def recipe_config(
    name: str, preset: str, overrides: list[str], *, command: str | None = None, resume: bool = False
) -> TrainConfig:
    """A recipe with overrides applied; missing files are reported here, by their settings' names.

    command: "pretrain" or "finetune"; a recipe of the other is refused. resume: what a run starts from may be gone
    where it has a checkpoint to go on from.
    """
    recipe = get_recipe(name, preset)
    right = recipe.task.partition("_")[0]
    if command not in (None, right):
        raise ConfigError(f"{name} is no recipe of `fastvtp {command}`: use `fastvtp {right} {name}`")
    config = apply_overrides(recipe, overrides)
    if not Path(config.data.train).exists():
        raise ConfigError(f"data.train={config.data.train} does not exist; give data.train=FILE.jsonl or a folder")
    if resume and list_checkpoints(Path(config.output_dir)):
        return config
    for setting in ("init", "text_init", "video_init", "teacher", "prompter", "entities"):
        source = getattr(config, setting)
        if source is not None and not Path(source).exists():
            what = "a list from `fastvtp entities`" if setting == "entities" else "a checkpoint file or folder"
            raise ConfigError(f"{setting}={source} does not exist; give {what}, or {setting}=none")
    return config


TASKS: dict[str, type[Task]] = {
    "pretrain_simvtp": PretrainSimVTP,
    "pretrain_videomae": PretrainVideoMAE,
    "finetune_retrieval": FinetuneRetrieval,
    "finetune_qa": FinetuneQA,
    "finetune_classification": FinetuneClassification,
    "finetune_captioning": FinetuneCaptioning,
    "pretrain_prompter": PretrainPrompter,
    "pretrain_alpro": PretrainAlpro,
    "finetune_alpro_retrieval": FinetuneAlproRetrieval,
    "finetune_alpro_qa": FinetuneAlproQA,
    "pretrain_videoprism_contrastive": PretrainPrismContrast,
    "pretrain_videoprism_distillation": PretrainPrismDistillation,
}


def build_task(config: TrainConfig, checkpoint: Path | None = None) -> Task:
    """The task that `config` names, with its training data read. checkpoint: what a resumed run goes on from.

    Raises what reading the data raises.
    """
    return TASKS[config.task](config, checkpoint)
