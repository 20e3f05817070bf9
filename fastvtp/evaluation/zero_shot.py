"""Zero-shot classification by prompts, and zero-shot multiple choice, of models with a clip and a text embedding.

Shape legend: B = clips, C = classes, E = templates, D = width of the embeddings, M = texts.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastvtp import processes
from fastvtp.architecture import architecture_of
from fastvtp.data.classes import ClassificationSet, load_classes
from fastvtp.data.formats.listing import describe_scored_list
from fastvtp.data.formats.source import ListSource
from fastvtp.data.loader import VideoTextLoader
from fastvtp.data.questions import QuestionSet, lists_questions, load_questions
from fastvtp.data.text import Tokenizer
from fastvtp.errors import UserError
from fastvtp.evaluation.classification import ClassificationReport, evaluate_classification
from fastvtp.evaluation.dealing import joined
from fastvtp.evaluation.inference import Module, inference
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.question_answering import MultipleChoiceReport, report_choices
from fastvtp.evaluation.report import scores_report
from fastvtp.evaluation.scoring import evaluation_loader
from fastvtp.evaluation.views import average_over_views
from fastvtp.files import lines_of, read_text
from fastvtp.model_folder import OpenedModel

_TEXTS_AT_ONCE = 256

_PERSON = ("", "using ", "doing ", "during ", "performing ", "practicing ")
# CLIP's for Kinetics (arXiv:2103.00020, data/prompts.md of its repository), four subjects in seven forms, spelled as
# there; "video" alone is the prompt of VideoPrism's demo.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "video": ("a video of {}.",),
    "kinetics": tuple(
        f"a {subject} of {form}{{}}."
        for subject in ("photo", "video", "example", "demonstration")
        for form in ("", *(f"a person {verb}" for verb in _PERSON))
    ),
}


class VideoTextModel(Module, Protocol):
    """What zero-shot scores ask of a model, as `VideoTextPrism`, `DualEncoder`, `SimVTP` and ALPRO's are."""

    def encode_video(self, video: Tensor) -> Tensor:
        """Compute one vector of unit length for each clip: uint8 [B, T, H, W, C] -> [B, D]."""
        ...

    def encode_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute one vector of unit length for each text: int64 [N], int32 [B+1] -> [B, D]. max_seqlen: a bound on the
        longest text."""
        ...


@dataclass(frozen=True)
class Prompts:
    """How classes, and the options of questions, are put into words.

    templates: of a class's prompts, each with {} once for its name. temperature: of the probabilities of classes, which
    only matters where several views are averaged. form: the text of an option, with "{option}" and, if wanted,
    "{question}". The paper says of Charades-STA that a clip chooses among its video's descriptions, "{option}"; for
    questions its form is not published.
    """

    templates: tuple[str, ...] = TEMPLATES["video"]
    temperature: float = 0.01
    form: str = "{option}"


@dataclass(frozen=True)
class TextTower:
    """The half of a model that reads texts.

    tokenizer: the model's. max_length: most tokens of a text.
    """

    model: VideoTextModel
    tokenizer: Tokenizer
    max_length: int
    device: torch.device | str

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: float32 [M, D] of unit length, on the device."""
        rows = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            packed = self.tokenizer.encode_packed(texts[start : start + _TEXTS_AT_ONCE], self.max_length)
            offsets, ids = torch.tensor([0, *packed.lengths]).cumsum(0).int(), torch.as_tensor(packed.input_ids)
            text = self.model.encode_text(ids.to(self.device), offsets.to(self.device), max(packed.lengths))
            rows.append(text.float())
        return torch.cat(rows)


def read_templates(source: str) -> tuple[str, ...]:
    """Find templates by a name in `TEMPLATES`, or in a file with one a line. Raises UserError for one without a {}."""
    if source in TEMPLATES:
        return TEMPLATES[source]
    path = Path(source)
    if not path.is_file():
        raise UserError(f"templates {source!r} are neither a file nor one of {', '.join(TEMPLATES)}")
    templates = tuple(line.strip() for line in lines_of(read_text(path)) if line.strip())
    check_templates(templates, str(path))
    return templates


def check_templates(templates: Sequence[str], source: str = "templates") -> None:
    """Check templates; raises UserError where there are none, or one does not say once where the class goes."""
    if not templates:
        raise UserError(f"{source}: no template")
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise UserError(f"{source}: expected {{}} once for the class, got {wrong[0]!r}")


def class_embeddings(texts: TextTower, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Compute the mean embedding of each class's prompts, at unit length again (CLIP's ensemble): float32 [C, D]."""
    check_templates(templates)
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    embeddings = texts.encode(prompts)
    return normalize(embeddings.unflatten(0, (len(class_names), len(templates))).mean(1), dim=-1)


class ZeroShotClassifier(nn.Module):
    """Turns clips into logits: cosines with the classes over a temperature. The model's weights stay its own."""

    classes: Tensor

    def __init__(self, model: VideoTextModel, classes: Tensor, temperature: float):
        super().__init__()
        if not temperature > 0:
            raise UserError(f"temperature must be positive, got {temperature}")
        self._model, self.temperature = [model], temperature
        self.register_buffer("classes", classes)

    def forward(self, video: Tensor) -> Tensor:
        """Compute the logits [B, C] of clips, uint8 [B, T, H, W, 3]."""
        clips = self._model[0].encode_video(video).float()
        with torch.autocast(clips.device.type, enabled=False):
            return clips @ self.classes.T / self.temperature


def evaluate_zero_shot(
    texts: TextTower,
    loader: Iterable[Any],
    classes: ClassificationSet,
    prompts: Prompts,
    *,
    progress: bool = True,
) -> ClassificationReport:
    """Classify every clip of `loader`, an evaluation loader of `classes.records`, by the nearest class's prompts.

    Raises UserError for templates without a place for the class, and for classes that are bare numbers.
    """
    if classes.unnamed:
        raise UserError("classes are bare numbers, which say nothing in a prompt: give the file of their names")
    with inference(texts.model):
        embeddings = processes.all_or_none(lambda: class_embeddings(texts, classes.class_names, prompts.templates))
        classifier = ZeroShotClassifier(texts.model, embeddings, prompts.temperature)
        return evaluate_classification(classifier, loader, classes, device=texts.device, progress=progress)


def evaluate_zero_shot_choice(
    texts: TextTower,
    loader: Iterable[Any],
    questions: QuestionSet,
    prompts: Prompts,
    *,
    progress: bool = True,
    predictions: Path | None = None,
) -> MultipleChoiceReport:
    """Choose of each question's options the one that is nearest to the clip, in inference mode; cosines are averaged
    over views.

    loader: an evaluation loader of `questions.records`. predictions: a file to write, as in `evaluate_open_ended`.

    Raises UserError for a form without "{option}", a question without options, and where no clip could be decoded.
    """
    if "{option}" not in prompts.form:
        raise UserError(f"form must hold {{option}}, got {prompts.form!r}")

    def cosines(batch: Any) -> list[Tensor]:
        clips = texts.model.encode_video(batch.video.to(texts.device, non_blocking=True)).float().cpu()
        indices = batch.sample_ids.tolist()
        options = [text for index in indices for text in _option_texts(questions, index, prompts.form)]
        parts = texts.encode(options).cpu().split([len(questions.options[index]) for index in indices])
        return [part @ clip for part, clip in zip(parts, clips, strict=True)]

    with inference(texts.model):
        means = average_over_views(loader, questions.records, cosines, description="multiple choice", progress=progress)
    return processes.first_decides(lambda: report_choices(means, questions, predictions=predictions))


def _option_texts(questions: QuestionSet, index: int, form: str) -> list[str]:
    record = questions.records[index]
    if not questions.options[index]:
        raise UserError(f"question {record.captions[0]!r} of {record.source} has no options to choose from")
    asked = form.replace("{question}", record.captions[0])
    return [asked.replace("{option}", option) for option in questions.options[index]]


_PROTOCOL, _PROMPTS = EvaluationProtocol(), Prompts()


def zero_shot(
    opened: OpenedModel,
    data: str | os.PathLike[str],
    *,
    prompts: Prompts = _PROMPTS,
    names_file: str | Path | None = None,
    protocol: EvaluationProtocol = _PROTOCOL,
    predictions: Path | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Classify videos by prompts, or choose among the options of questions, without training.

    data: what `load_classes` or `load_questions` reads. names_file: names the classes, see `load_classes`. predictions:
    a file for the answers to questions, see `evaluate_zero_shot_choice`. Returns a report. The processes of a group
    deal the clips out and get the report of one; all of them must call this, and the functions that it is made of.

    Raises UserError for a model without embeddings of clips and texts.
    """
    model, device = opened.model, opened.model.device

    def prepare() -> tuple[Any, TextTower, VideoTextLoader]:
        if not architecture_of(model.config).has_embeddings:
            raise UserError(f"{type(model).__name__} has no embeddings of clips and texts to compare")
        source = ListSource.of(data)
        asks = lists_questions(source)
        found: Any = load_questions(source) if asks else load_classes(source, names_file=names_file)
        positions = model.config.max_text_length
        texts = TextTower(model, opened.tokenizer, min(positions, protocol.max_text_length or positions), device)
        return found, texts, evaluation_loader(opened, found.records, protocol)

    found, texts, loader = processes.all_or_none(prepare)
    with loader, torch.autocast(device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16"):
        if isinstance(found, QuestionSet):
            choices = evaluate_zero_shot_choice(
                texts, loader, found, prompts, predictions=predictions, progress=progress_bar
            )
            report = scores_report("multiple_choice", choices, joined(loader.bad_files))
            return {**report, "data": describe_scored_list(data)}
        scores = evaluate_zero_shot(texts, loader, found, prompts, progress=progress_bar)
        report = scores_report("classification", scores, joined(loader.bad_files))
        return {**report, "data": describe_scored_list(data)}
