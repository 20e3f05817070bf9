"""The command that makes model folders of other checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fastvtp.cli.options import add_commands
from fastvtp.cli.outputs import check_output_folder
from fastvtp.cli.together import by_first


@dataclass(frozen=True)
class TokenizerAndLists:
    """Files that belong beside a model's weights."""

    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="The model's vocabulary: a vocab.txt, tokenizer.json or SentencePiece .model file, or a folder with "
            "one. If it is not given, the one beside IN is taken."
        ),
    ] = None
    answers: Annotated[
        Path | None,
        typer.Option(
            help="The answers of a question answerer: a text file, one a line in the order of its outputs, or a .json "
            "file with an object {answer: output}."
        ),
    ] = None
    entities: Annotated[
        Path | None, typer.Option(help="The entities of a pretrained ALPRO: a text file, one a line.")
    ] = None
    classes: Annotated[
        Path | None,
        typer.Option(
            help="The classes of a classifier: a text file, one a line in the order of its outputs, or a .json file "
            "with a list of names or an object {name: output}."
        ),
    ] = None


_NAMED = 8  # tensors that are listed one by one


@by_first
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="The checkpoint: a .pth, .safetensors or .npz file, a folder from the Hugging Face Hub, or a folder "
            "of a fastvtp run.",
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help="The folder to write, which must not exist.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings of the model in place of the checkpoint's, e.g. num_frames=8."
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="What the model becomes: simvtp, videomae, video_classifier, dual_encoder, video_qa, alpro, "
            "alpro_prompter, alpro_retrieval, alpro_qa, videoprism, video_text_prism or prism_classifier. If it is not "
            "given, what the checkpoint holds."
        ),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            help="Who wrote the checkpoint: fastvtp, simvtp, videomae, hf_videomae, alpro, videoprism, hf_videoprism, "
            "bert, vit or clip. If it is not given, it is recognised from the names of the tensors."
        ),
    ] = None,
    position_resize: Annotated[
        str,
        typer.Option(
            help="How the position embeddings of an ALPRO's patches are fitted to another image_size: by "
            '"bicubic" interpolation, or the "official" way, nearest in one dimension.'
        ),
    ] = "bicubic",
    *,
    beside: TokenizerAndLists,
) -> None:
    """Write a released checkpoint, or one from the Hugging Face Hub, as a fastvtp model folder.

    What was loaded, initialised anew, left out and resized is printed, and where the numbers of heads come from.
    """
    from fastvtp.systems.conversion import convert as run_conversion

    check_output_folder(Path(output), "OUT")
    done = run_conversion(
        source,
        output,
        architecture=architecture,
        origin=origin,
        overrides=overrides or [],
        position_resize=position_resize,
        tokenizer=beside.tokenizer,
        lists={"answers": beside.answers, "entities": beside.entities, "classes": beside.classes},
    )
    for name in ("loaded", "fresh", "ignored", "resized"):
        entries = getattr(done.report, name)
        # many that begin at random are told by their parts, in a line of their own
        told = name in ("ignored", "resized") or (name == "fresh" and len(entries) <= _NAMED)
        listed = ": " + ", ".join(entries) if entries and told else ""
        typer.echo(f"{name} {len(entries)}{listed}")
    for name, source in done.heads.items():
        typer.echo(f"{name} {source}")
    if done.random_parts:
        typer.echo(f"begin at random: {', '.join(done.random_parts)}")
    if done.tokenizer is not None:
        typer.echo(f"tokenizer {done.tokenizer}")
    for what, note in done.lists.items():
        typer.echo(f"{what} {note}")
    typer.echo(f"{done.architecture} is in {output}")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_commands(app, "Checkpoints and machine", convert)
