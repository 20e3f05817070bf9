"""Zero-shot scores, from a model and a list of videos to a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.labels import QuestionSet, lists_questions, load_classes, load_questions
from fastvtp.errors import UserError
from fastvtp.evaluation.zero_shot import TEMPLATES, evaluate_zero_shot, evaluate_zero_shot_choice
from fastvtp.reports import scores_report
from fastvtp.scoring import EvaluationProtocol, OpenedModel, evaluation_loader

_PROTOCOL = EvaluationProtocol()


def zero_shot(
    opened: OpenedModel,
    data: str | Path,
    *,
    templates: Sequence[str] = TEMPLATES["video"],
    form: str = "{option}",
    temperature: float = 0.01,
    names_file: str | Path | None = None,
    protocol: EvaluationProtocol = _PROTOCOL,
    predictions: Path | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Classify videos by prompts, or choose among the options of questions, without training.

    data: what `load_classes` or `load_questions` reads. templates, temperature: of classes, see `evaluate_zero_shot`.
    form, predictions: of questions, see `evaluate_zero_shot_choice`. Returns a report.

    Raises UserError for a model without embeddings of clips and texts.
    """
    model, device = opened.model, opened.model.device
    if not (hasattr(model, "encode_video") and hasattr(model, "encode_text")):
        raise UserError(f"a {type(model).__name__} has no embeddings of clips and texts to compare")
    found: Any = load_questions(data) if lists_questions(data) else load_classes(data, names_file=names_file)
    common: dict[str, Any] = {
        "max_length": min(model.config.max_text_length, protocol.max_text_length or model.config.max_text_length),
        "device": device, "progress": progress_bar,
    }  # fmt: skip
    with (
        evaluation_loader(opened, found.records, protocol) as loader,
        torch.autocast(device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16"),
    ):
        if isinstance(found, QuestionSet):
            scores: Any = evaluate_zero_shot_choice(
                model, loader, found, opened.tokenizer, form=form, predictions=predictions, **common
            )
        else:
            scores = evaluate_zero_shot(
                model, loader, found, opened.tokenizer, templates=templates, temperature=temperature, **common
            )
        section = "multiple_choice" if isinstance(found, QuestionSet) else "classification"
        return scores_report(section, scores, loader.bad_files)
