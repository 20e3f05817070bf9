"""The commands of captioning."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvtp.command_options import (
    Device,
    Fit,
    NumWorkers,
    Quiet,
)

Model = Annotated[str, typer.Argument(help="Run, checkpoint or model folder of a captioner.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips at a time.")]
Backbone = Annotated[str | None, typer.Option(help="Where its frozen video model is now, if not where it was.")]
Language = Annotated[str | None, typer.Option(help="Where its frozen language model is now.")]


def caption(
    model: Model,
    videos: Annotated[str, typer.Argument(help='A folder of videos, or a .jsonl of {"video": path}.')],
    output: Annotated[Path, typer.Option(help="File to write, a line a video.")] = Path("captions.jsonl"),
    beams: Annotated[int, typer.Option(min=1, help="1: greedy.")] = 1,
    prompt: Annotated[str | None, typer.Option(help="Words that captions follow; else those of training.")] = None,
    fit: Fit = None,
    num_workers: NumWorkers = 1,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    backbone: Backbone = None,
    language_model: Language = None,
    quiet: Quiet = False,
) -> None:
    """Write a caption of each video to a file."""
    from fastvtp.systems.captioner import runs as captioning

    done = captioning.caption_videos(
        _open(model, device, backbone, language_model), videos, output,
        protocol=_protocol(num_workers, batch_size, fit), num_beams=beams, prompt=prompt, progress_bar=not quiet,
    )  # fmt: skip
    bad_files = done["bad_files"]["count"]
    typer.echo(f"{done['num_clips']} captions are in {output}; {bad_files} undecodable files")


def answer(
    model: Model,
    questions: Annotated[str, typer.Argument(help="Questions with answers, .jsonl.")],
    train_data: Annotated[
        str | None, typer.Option(help="Training questions: candidates where questions have no options, examples.")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Solved questions, in words alone, before each question.")] = 0,
    length: Annotated[str, typer.Option(help='"sum" or "mean" of a candidate\'s tokens.')] = "sum",
    candidates: Annotated[int, typer.Option(min=1, help="Most candidates, the most frequent answers.")] = 250,
    output: Annotated[Path | None, typer.Option(help="Write the answer to each question here, .jsonl.")] = None,
    fit: Fit = None,
    num_workers: NumWorkers = 1,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    backbone: Backbone = None,
    language_model: Language = None,
    quiet: Quiet = False,
) -> None:
    """Answer questions by the candidate that the language model finds likeliest."""
    from fastvtp.systems.captioner import runs as captioning

    report = captioning.answer_questions(
        _open(model, device, backbone, language_model),
        questions,
        protocol=_protocol(num_workers, batch_size, fit),
        train_data=train_data,
        answering=captioning.Answering(shots=shots, length=length, num_candidates=candidates),
        predictions=output,
        progress_bar=not quiet,
    )
    typer.echo(json.dumps(report, indent=2))


def register(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    app.command()(caption)
    app.command()(answer)


def _open(model: str, device: str, backbone: str | None, language_model: str | None) -> Any:
    from fastvtp.settings import choose_device
    from fastvtp.systems.captioner.runs import open_captioner

    return open_captioner(model, choose_device(device), backbone=backbone, language_model=language_model)


def _protocol(num_workers: int, batch_size: int, fit: str | None) -> Any:
    from fastvtp.data.reading import ClipReading
    from fastvtp.evaluation.scoring import EvaluationProtocol

    return EvaluationProtocol(reading=ClipReading(framing=fit), num_workers=num_workers, batch_size=batch_size)
