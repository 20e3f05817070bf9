"""The commands of captioning. Imports no torch, so that `fastvtp --help` is quick."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvtp.cli.options import ListOptions, Model, Only, ReadingOptions, RunOptions, add_commands, protocol_settings
from fastvtp.cli.outputs import check_output_file
from fastvtp.cli.together import alike, say, show, together
from fastvtp.errors import UserError, counted

Framed = Annotated[ReadingOptions, Only("framing")]
Run = Annotated[RunOptions, Only("num_workers", "batch_size", "device", "quiet")]


@dataclass(frozen=True)
class PartOptions:
    """Where the frozen parts of a captioner are."""

    backbone: Annotated[
        str | None,
        typer.Option(
            help="Folder of the frozen video model, a run or a model folder. If it is not given, it is looked for "
            "where it was in the training."
        ),
    ] = None
    language_model: Annotated[
        str | None,
        typer.Option(
            help="Folder of the frozen language model, as Hugging Face's transformers writes it. If it is not given, "
            "it is looked for where it was in the training."
        ),
    ] = None


@dataclass(frozen=True)
class CandidateOptions:
    """Which answers to a question are compared, and how."""

    train_data: Annotated[
        str | None,
        typer.Option(
            help="The training questions, a .jsonl file of the same form: their answers are the candidates for "
            "questions without options, and --shots takes its examples from them."
        ),
    ] = None
    shots: Annotated[
        int,
        typer.Option(
            min=0, help="How many solved training questions, without their videos, stand before each question."
        ),
    ] = 0
    length: Annotated[
        str,
        typer.Option(
            help='What makes a candidate likely: the "sum" of its tokens\' log-probabilities, or their "mean", '
            "which does not favour short answers."
        ),
    ] = "sum"
    candidates: Annotated[
        int, typer.Option(min=1, help="How many of the most frequent training answers are candidates, at most.")
    ] = 250


@dataclass(frozen=True)
class WritingOptions:
    """How captions are written."""

    beams: Annotated[
        int, typer.Option(min=1, help="Width of the beam search; 1 takes the likeliest word each time.")
    ] = 1
    prompt: Annotated[
        str | None,
        typer.Option(help="The words that every caption goes on from. If they are not given, those of the training."),
    ] = None


def caption(
    model: Model,
    videos: Annotated[
        str, typer.Argument(help='The videos: a folder of video files, or a .jsonl file of {"video": path} lines.')
    ],
    output: Annotated[
        Path, typer.Option(help="The .jsonl file to write, one line a video: id, video and caption.")
    ] = Path("captions.jsonl"),
    *,
    writing: WritingOptions,
    lists: ListOptions,
    reading: Framed,
    run: Run,
    parts: PartOptions,
) -> None:
    """Write a caption for each of a list of videos.

    The model is one that `fastvtp finetune` trained for captioning.
    """
    from fastvtp.systems import captioning

    alike(lambda: check_output_file(output))
    listed = alike(lambda: lists.of(videos))
    with together(run.device) as device:
        protocol, opened = _prepared(model, device, reading, run, parts)
        done = captioning.caption_videos(
            opened,
            listed,
            output,
            protocol=protocol,
            num_beams=writing.beams,
            prompt=writing.prompt,
            progress_bar=not run.quiet,
        )
        bad_files = counted(done["bad_files"]["count"], "undecodable file")
        say(f"{counted(done['num_clips'], 'caption')} in {output}; {bad_files}")


def answer(
    model: Model,
    questions: Annotated[
        str,
        typer.Argument(
            help='The questions, a .jsonl file of {"video": path, "question": text, "answer": text} lines, which may '
            'say "options": ["red", "blue"] where the choice is among a few answers.'
        ),
    ],
    candidates: CandidateOptions,
    output: Annotated[
        Path | None, typer.Option(help="A .jsonl file to write the answer to each question to, one a line.")
    ] = None,
    *,
    lists: ListOptions,
    reading: Framed,
    run: Run,
    parts: PartOptions,
) -> None:
    """Answer questions about videos by a captioner's language model, and print the scores.

    The answer is the candidate that the language model finds likeliest after the video and the question.
    """
    from fastvtp.systems import captioning

    def read_options() -> Any:
        from fastvtp.data.formats.listing import Listing

        check_output_file(output)
        given = lists.of(questions)
        if candidates.train_data is not None and not candidates.shots and "options" in Listing(given).first():
            why = f"{questions} gives each question its options; --shots N takes examples"
            raise UserError(f"--train-data {candidates.train_data}: nothing is taken from it: {why}")
        return given

    listed = alike(read_options)
    training = None if candidates.train_data is None else replace(lists, split=None).of(candidates.train_data)
    answering = captioning.Answering(
        shots=candidates.shots, length=candidates.length, num_candidates=candidates.candidates
    )
    with together(run.device) as device:
        protocol, opened = _prepared(model, device, reading, run, parts)
        report = captioning.answer_questions(
            opened,
            listed,
            protocol=protocol,
            train_data=training,
            answering=answering,
            predictions=output,
            progress_bar=not run.quiet,
        )
        show(report)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add_commands(app, "Captioning", caption, answer)


def _prepared(model: str, device: Any, reading: ReadingOptions, run: RunOptions, parts: PartOptions) -> tuple[Any, Any]:
    """Return how clips are read, and the captioner."""
    from fastvtp import processes
    from fastvtp.evaluation.protocol import EvaluationProtocol
    from fastvtp.systems.captioning import open_captioning

    def prepare() -> tuple[EvaluationProtocol, Any]:
        protocol = EvaluationProtocol(**protocol_settings(reading, run))
        opened = open_captioning(model, device, backbone=parts.backbone, language_model=parts.language_model)
        return protocol, opened

    return processes.all_or_none(prepare)
