"""The commands that show what a trained model does: scores and pictures."""

import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvtp.cli.options import ListOptions, Model, Only, ReadingOptions, RunOptions, add_commands, protocol_settings
from fastvtp.cli.outputs import check_output_folder
from fastvtp.cli.together import by_first, show, together
from fastvtp.errors import UserError, counted

logger = logging.getLogger(__name__)

EVALUATION_RUN = RunOptions(batch_size=32)


@dataclass(frozen=True)
class TextOptions:
    """How texts are read and compared with clips."""

    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For a model with a matching head: score by it only the pairs that the contrast ranks first, so many "
            "of each text and clip. If it is not given, all pairs.",
        ),
    ] = None
    add_similarity: Annotated[
        bool,
        typer.Option(
            "--add-similarity",
            help="For a model with a matching head: add the similarity of the contrast to its scores, as LAVIS does.",
        ),
    ] = False
    shared_captions: Annotated[
        bool,
        typer.Option(
            "--shared-captions/--own-captions",
            help="In retrieval, a caption that several videos have is right with each of them; or with its own alone, "
            "as published codes count.",
        ),
    ] = True
    max_text_length: Annotated[
        int | None,
        typer.Option(
            min=3, help="How many tokens of a text are read, at most. If it is not given, as many as the model can."
        ),
    ] = None


def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help='What the model is scored on. For retrieval and captioning: a .jsonl file of {"video": path, '
            '"caption": text} lines. For question answering: lines of {"video": path, "question": text, "answer": '
            'text}. For classification: lines of {"video": path, "label": class}, a .csv file of `path,number` lines, '
            "or a folder with one subfolder per class. Or a published list of any of these, such as MSRVTT_data.json."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write report.json to, and the retrieval gallery or the answer to each question."),
    ] = None,
    *,
    lists: ListOptions,
    reading: ReadingOptions,
    texts: TextOptions,
    train_data: Annotated[
        str | None,
        typer.Option(
            help="The training questions, a .jsonl file, for scoring questions: they give a baseline that answers by "
            "the kind of a question."
        ),
    ] = None,
    run: RunOptions = EVALUATION_RUN,
) -> None:
    """Score a model and print the report: text-video retrieval both ways, question answering, or classification."""
    from fastvtp import processes
    from fastvtp.architecture import architecture_of
    from fastvtp.data.formats.listing import Listing
    from fastvtp.evaluation.protocol import EvaluationProtocol
    from fastvtp.evaluation.scoring import evaluate as score
    from fastvtp.systems.catalogue import open_model

    def prepare() -> tuple[EvaluationProtocol, Any, Any, Any]:
        check_output_folder(output)
        protocol = EvaluationProtocol(**protocol_settings(reading, run), **vars(texts))
        training = None if train_data is None else replace(lists, split=None).of(train_data)
        opened = open_model(model, device)
        way = architecture_of(opened.model).scored_by
        for option, value, ways, who in (
            ("--top-k", texts.top_k, ("matching",), "have a matching head"),
            ("--train-data", train_data, ("questions", "captions"), "answer questions"),  # captioners answer, too
        ):
            if value is not None and way not in ways:
                raise UserError(f"{option} {value}: is for models that {who}, {model} is none")
        listed = lists.of(data)
        first = Listing(listed).first() if train_data is not None and way == "captions" else None
        if first is not None and "question" not in first:
            raise UserError(f"--train-data {train_data}: is for questions, {data} lists none: its captions are scored")
        if first is not None and "options" in first:
            expected = "is for open-ended questions"
            raise UserError(f"--train-data {train_data}: {expected}, {data} gives each question its options")
        if train_data is not None and way == "questions" and opened.answers is None:
            expected = "is for open-ended questions"
            raise UserError(f"--train-data {train_data}: {expected}, {model} chooses among the options of each")
        return protocol, opened, listed, training

    with together(run.device) as device:
        protocol, opened, listed, training = processes.all_or_none(prepare)
        report = score(
            opened, listed, protocol=protocol, output=output, train_data=training, progress_bar=not run.quiet
        )
        show(report, output)


@by_first
def visualize(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help='The captioned videos: a .jsonl file of {"video": path, "caption": text} lines, or a folder with a '
            ".txt file of captions beside each video."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the pictures to, in place of those of an earlier call. If it is not given, "
            "runs/pictures/MODEL, by the name of the run or model, and of the checkpoint if it is one."
        ),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="How many clips to show, from the first on.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks and crops; another one hides other parts.")] = 0,
    *,
    lists: ListOptions,
    reading: Annotated[ReadingOptions, Only("framing")],
    run: Annotated[RunOptions, Only("device")],
) -> None:
    """Draw what a pretrained model makes of clips, and print the paths of the pictures.

    Of a SimVTP: the frames and words it got, those hidden from it, and what it filled in, as reconstruction.png and
    .gif. Of an ALPRO: what it recognises in crops of the clips, as entities.png.
    """
    from fastvtp import runs
    from fastvtp.settings import choose_device
    from fastvtp.systems.catalogue import open_model

    check_output_folder(output)
    opened = open_model(model, choose_device(run.device))
    folder = Path("runs/pictures", _name_of(model)) if output is None else output
    before = set(folder.glob("*"))
    drawn = runs.visualize(opened, lists.of(data), folder, num_clips=clips, seed=seed, framing=reading.framing)
    if replaced := before & set(drawn):
        logger.info("%s: %s replaced: --output FOLDER keeps others apart", folder, counted(len(replaced), "picture"))
    for path in drawn:
        typer.echo(path)


def _name_of(model: str) -> str:
    """Return what a model is called: the name of its run or folder, and of the checkpoint that it is."""
    parts = [part for part in Path(os.path.abspath(model)).parts[1:] if part != "checkpoints"]
    if len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    is_checkpoint = len(parts) > 1 and re.fullmatch(r"step_\d+", parts[-1]) is not None
    return "_".join(parts[-2:] if is_checkpoint else parts[-1:]) or "model"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add_commands(app, "Scores and pictures", evaluate, visualize)
