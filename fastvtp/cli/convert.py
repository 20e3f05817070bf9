"""The command that makes model folders of other checkpoints."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Checkpoint: .pth, .safetensors, .npz, or a folder, also of a run.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the model, e.g. num_frames=8.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="simvtp, videomae, video_classifier, dual_encoder, video_qa, alpro, alpro_prompter, alpro_retrieval, "
            "alpro_qa, videoprism, video_text_prism or prism_classifier; else the checkpoint's own."
        ),
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="videomae, simvtp, alpro, videoprism, fastvtp, hf_videomae...; else told.")
    ] = None,
    position_resize: Annotated[
        str, typer.Option(help="ALPRO's patch positions to another image_size: bicubic, or official (nearest in 1-D).")
    ] = "bicubic",
    tokenizer: Annotated[
        Path | None, typer.Option(help="vocab.txt, tokenizer.json, .model or a folder with one; else that beside IN.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="List of a question answerer's answers, one a line; or {answer: class}, .json.")
    ] = None,
    entities: Annotated[Path | None, typer.Option(help="List of a pretrained ALPRO's entities, one a line.")] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="List of a classifier's classes, one a line; or .json: a list, or {name: number}."),
    ] = None,
) -> None:
    """Write a released or a Hugging Face checkpoint as a fastvtp model folder."""
    from fastvtp.systems.conversion import convert as run_conversion

    done = run_conversion(
        source, output,
        architecture=architecture, origin=origin, overrides=overrides or [], position_resize=position_resize,
        tokenizer=tokenizer, lists={"answers": answers, "entities": entities, "classes": classes},
    )  # fmt: skip
    for name in ("loaded", "fresh", "ignored", "resized"):
        entries = getattr(done.report, name)
        listed = ": " + ", ".join(entries) if entries and name != "loaded" else ""
        typer.echo(f"{name} {len(entries)}{listed}")
    if done.tokenizer is not None:
        typer.echo(f"tokenizer {done.tokenizer}")
    for what, note in done.lists.items():
        typer.echo(f"{what} {note}")
    typer.echo(f"{done.architecture} is in {output}")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(convert)
