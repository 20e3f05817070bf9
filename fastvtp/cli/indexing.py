"""The command that indexes tars of samples. Imports no torch, so that `fastvtp --help` is quick."""

import sys
from typing import Annotated

import typer

from fastvtp.cli.options import Quiet, add_commands
from fastvtp.cli.together import by_first, say
from fastvtp.errors import UserError, counted


@by_first
def index(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Tars of samples as webdataset reads them: files, folders of them, patterns such as "
            "'/data/{00000..00099}.tar' or 's3://bucket/*.tar', Energon data sets; paths or URLs.",
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes that index tars.")] = 4,
    again: Annotated[bool, typer.Option("--again", help="Make also the indexes anew that fit their tars.")] = False,
    look: Annotated[
        bool,
        typer.Option(
            "--look/--no-look",
            help="Write down codec, frames, keyframes, length and size of the videos in local tars, of mp4 and mov.",
        ),
    ] = True,
    split: Annotated[str, typer.Option(help="Which part of an Energon data set.")] = "train",
    *,
    quiet: Quiet = False,
) -> None:
    """Write down where each file in tars lies, so that training reads any of them without those before it.

    The index of 000017.tar is 000017.tar.index.npz beside it, or lies in the cache folder where none can be written
    there. Tars without one are indexed when they are first used, too.
    """
    from collections import Counter

    from tqdm import tqdm

    from fastvtp.data.locations import without_secrets
    from fastvtp.data.storage.shard_indexing import index_tars
    from fastvtp.data.storage.shard_names import tars_of

    tars = tars_of(paths, split)
    samples = videos = files = failed = 0
    codecs: Counter[str] = Counter()
    places: Counter[str] = Counter()
    with tqdm(total=len(tars), desc="indexing", unit="tar", disable=quiet) as bar:
        for done in index_tars(tars, workers=workers, again=again, look=look):
            bar.update()
            if done.reason:
                failed += 1
                bar.write(f"{without_secrets(done.archive)}: {done.reason}", file=sys.stderr)
                continue
            samples, videos, files = samples + done.samples, videos + done.videos, files + done.files
            codecs.update(done.codecs)
            if done.place is not None:
                places[without_secrets(done.place).rpartition("/")[0]] += 1
    of = counted(len(tars), "tar")
    said = (
        f"{len(tars) - failed} of {of}: {counted(samples, 'sample')} of {counted(files, 'file')}, {videos} with a video"
    )
    if codecs:
        said += f" ({', '.join(f'{codec} {count}' for codec, count in codecs.most_common())})"
    say(said)
    if places:
        say(f"indexes in {', '.join(place for place, _ in places.most_common(3))}{', ...' if len(places) > 3 else ''}")
    if failed:
        raise UserError(f"{failed} of {of} could not be indexed, see above")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_commands(app, "Data", index)
