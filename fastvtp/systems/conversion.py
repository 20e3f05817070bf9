"""Checkpoints of any origin -> fastvtp's own folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvtp.architecture import Architecture, find_architecture
from fastvtp.checkpoints.kinds import Kind, recognise
from fastvtp.checkpoints.loading import LoadReport
from fastvtp.checkpoints.names import WORD_TABLES
from fastvtp.checkpoints.opening import fill_model
from fastvtp.checkpoints.reading import Checkpoint, read_checkpoint
from fastvtp.checkpoints.sizes import check_whole
from fastvtp.data.text import Tokenizer
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.errors import CheckpointError, UserError
from fastvtp.model_folder import (
    CONFIG_NAME,
    recorded_fps,
    recorded_framing,
    weights_of,
    write_model_folder,
    write_reading,
)
from fastvtp.model_lists import Lists, find_lists, told_apart, write_lists
from fastvtp.settings import split_settings
from fastvtp.systems import catalogue  # noqa: F401  (registers the systems)


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        architecture: of the folder written.
        report: of its weights.
        tokenizer: what became of the vocabulary, in words; None where the model reads no text.
        lists: the same of "answers", "entities" and "classes", of those that the model tells apart.
        heads: how many heads its attention has and where that comes from, in words, as in the folder's config.json.
        random_parts: the parts of the model that nothing in the checkpoint fills.
    """

    architecture: str
    report: LoadReport
    tokenizer: str | None
    lists: Mapping[str, str]
    heads: Mapping[str, str]
    random_parts: Sequence[str]


def convert(
    source: str | Path,
    output: str | Path,
    *,
    architecture: str | None = None,
    origin: str | None = None,
    overrides: Sequence[str] = (),
    position_resize: str = "bicubic",
    tokenizer: str | Path | None = None,
    lists: Mapping[str, str | Path | None] | None = None,
) -> Conversion:
    """Write the model in `source` to the folder `output`, with the tokenizer that lies beside it, and with its lists of
    answers, entities and classes and how its clips were read where a folder has them. ALPRO's release squashes frames.

    Args:
        source: as in `load_checkpoint`, or the folder of a run.
        output: a folder that holds no model yet.
        architecture: of the model to write; None: the checkpoint's own.
        origin: whose names the checkpoint bears, as in `load_checkpoint`; None: it is recognised by them.
        overrides: "key=value" texts, fields of the configuration.
        position_resize: as in `load_checkpoint`.
        tokenizer: a tokenizer.json, vocab.txt or .model, or a folder that holds one, to write instead of the one beside
            `source`.
        lists: files for the outputs "answers" of a question answerer, "entities" of a pretrained ALPRO and "classes" of
            a classifier, in place of those in the folder `source`; see `read_answers`, `read_entities` and
            `read_class_names`.

    Parts that the checkpoint cannot have are initialised, always with the same numbers. The folder's config.json says
    where the numbers of heads come from, which no shape shows.

    Raises:
        UserError: one line that says what is wrong with the checkpoint, a setting or a list.
        FileNotFoundError: `tokenizer` or one of the lists is absent.
    """
    source, output = weights_of(str(source)), Path(output)
    if output.is_file() or (output / CONFIG_NAME).exists():
        raise CheckpointError(f"{output} exists already: give a folder that does not, or remove it")
    checkpoint = read_checkpoint(source)
    kind = recognise(checkpoint, origin)
    check_whole(checkpoint, kind)
    target = find_architecture(architecture or kind.architecture)
    (values,) = split_settings(overrides, target.config, what=f"{target.name} option")
    words, note = None, None
    vocab_size = _vocab_size(checkpoint, target, values)
    if tokenizer is not None:
        words, note = _given_tokenizer(Path(tokenizer), vocab_size, target), f"copied from {tokenizer}"
    elif vocab_size is not None:
        words, note = _tokenizer_beside(source, vocab_size)
    if words is not None:
        values = words.settings_of(target.config) | values
    filled = fill_model(checkpoint, kind, architecture=target.name, overrides=values, position_resize=position_resize)
    config = filled.model.config
    found = find_lists(source, lists or {}, config)
    framing = _known_framing(source, kind)
    heads = {name: str(known) for name, known in filled.heads.items()}
    write_model_folder(output, filled.model, target.name, heads=heads)
    if words is not None:
        words.save(output)
    write_lists(output, found)
    if framing is not None:
        write_reading(output, framing, recorded_fps(source))
    notes = _notes(found, source, config)
    return Conversion(target.name, filled.report, note, notes, heads, filled.random_parts)


def _vocab_size(checkpoint: Checkpoint, target: Architecture, values: Mapping[str, Any]) -> int | None:
    """Return the number of words of the model to be; None where it reads no text."""
    if not target.reads_text:
        return None
    tables = (len(table) for name, table in checkpoint.weights.items() if name.endswith(WORD_TABLES))
    config_class: Any = target.config
    return values.get("vocab_size") or next(tables, config_class.vocab_size)


def _given_tokenizer(path: Path, vocab_size: int | None, target: Architecture) -> Tokenizer:
    if vocab_size is None:
        raise UserError(f"{target.name} reads no text: leave out the tokenizer")
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(f"{path} has {tokenizer.vocab_size} entries, the model's vocabulary {vocab_size}")
    return tokenizer


def _tokenizer_beside(source: Path, vocab_size: int) -> tuple[Tokenizer | None, str]:
    """Return the tokenizer of the folder that `source` is or lies in, where it is the model's; and what to say about
    it."""
    folder = source if source.is_dir() else source.parent
    try:
        tokenizer = load_tokenizer(folder)
    except FileNotFoundError:
        return None, f"none beside {source}: give its tokenizer.json, vocab.txt or SentencePiece .model (--tokenizer)"
    except UserError as error:
        return None, f"not copied: {error}"
    if tokenizer.vocab_size != vocab_size:
        return None, f"not copied: {folder} has one of {tokenizer.vocab_size} entries, the model has {vocab_size}"
    return tokenizer, f"copied from {folder}"


def _known_framing(source: Path, kind: Kind) -> str | None:
    """Tell how the clips of `source` were framed: as it says, or as the trainings of its kind did; None: nobody knows.

    Raises CheckpointError where it says something else.
    """
    return recorded_framing(source) or kind.framing


def _notes(lists: Lists, source: Path, config: Any) -> dict[str, str]:
    """Return what to say about each list that the model could have."""
    return {
        what: f"{len(lists[what][1])} of {lists[what][0]}" if what in lists else f"none in {source}: {_remedy(what)}"
        for what in told_apart(config)
    }


def _remedy(what: str) -> str:
    without = "they go by their numbers, unless you " if what == "classes" else ""
    return f"{without}give a list, one a line (--{what})"
