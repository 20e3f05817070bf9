"""Checkpoints of any origin -> fastvtp's own folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

from fastvtp.checkpoints.companions import (
    find_lists,
    known_framing,
    notes_about,
    write_lists,
)
from fastvtp.checkpoints.kinds import recognise
from fastvtp.checkpoints.loading import (
    LoadReport,
    absent_parts,
    load_released,
)
from fastvtp.checkpoints.names import WORD_TABLES
from fastvtp.checkpoints.reading import Checkpoint, read_checkpoint
from fastvtp.checkpoints.sizes import config_of_released
from fastvtp.data.text import Tokenizer
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.errors import CheckpointError, UserError, unknown_name
from fastvtp.model_folder import CONFIG_NAME, weights_of, write_model_folder, write_reading
from fastvtp.settings import parse_value
from fastvtp.systems.catalogue import ARCHITECTURES, build_model


@dataclass(frozen=True)
class Conversion:
    """architecture: of the folder written. report: of its weights. tokenizer: what became of the vocabulary, in words;
    None where the model reads no text. lists: the same of "answers", "entities" and "classes", of those that the model
    tells apart."""

    architecture: str
    report: LoadReport
    tokenizer: str | None
    lists: Mapping[str, str]


def convert(
    source: str | Path,
    output: str | Path,
    *,
    architecture: str | None = None,
    origin: str | None = None,
    overrides: Sequence[str] = (),
    position_resize: str = "bicubic",
    tokenizer: str | Path | None = None,
    answers: str | Path | None = None,
    entities: str | Path | None = None,
    classes: str | Path | None = None,
) -> Conversion:
    """Write the model in `source` to the folder `output`, with the tokenizer that lies beside it, and with its lists of
    answers, entities and classes and how its clips were read where a folder has them. ALPRO's release squashes frames.

    source: as in `load_released`, or the folder of a run. architecture, origin: as in `config_of_released`. overrides:
    "key=value" strings, fields of the config. position_resize: as in `load_released`. tokenizer: a tokenizer.json,
    vocab.txt or .model, or a folder that holds one, to write instead of the one beside `source`. answers, entities,
    classes: lists for the outputs of a question answerer, of a pretrained ALPRO and of a classifier, see
    `read_answers`, `read_entities` and `read_class_names`, in place of those in the folder `source`.

    Parts that the checkpoint cannot have are initialised, always with the same numbers. Raises UserError with one line,
    and FileNotFoundError where `tokenizer` or one of the lists is absent.
    """
    source, output = weights_of(str(source)), Path(output)
    if output.is_file() or (output / CONFIG_NAME).exists():
        raise CheckpointError(f"{output} exists already: give a folder that does not, or remove it")
    checkpoint = read_checkpoint(source)
    kind = recognise(checkpoint, origin)
    architecture = architecture or kind.architecture
    values = _parse(overrides, architecture)
    words, note = None, None
    vocab_size = _vocab_size(checkpoint, architecture, values)
    if tokenizer is not None:
        words, note = _given_tokenizer(Path(tokenizer), vocab_size, architecture), f"copied from {tokenizer}"
    elif vocab_size is not None:
        words, note = _tokenizer_beside(source, vocab_size)
    if words is not None:
        known, config_class = words.model_settings, ARCHITECTURES[architecture][0]
        values = {name: known[name] for name in known if hasattr(config_class, name)} | values
    config = config_of_released(checkpoint, origin, architecture=architecture, **values)
    given = {"answers": answers, "entities": entities, "classes": classes}
    lists = find_lists(source, given, architecture, config)
    framing = known_framing(source, kind.origin)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config)
    report = load_released(
        model, checkpoint,
        origin=origin, fresh=absent_parts(model, checkpoint, origin=origin), position_resize=position_resize,
    )  # fmt: skip
    write_model_folder(output, model, architecture)
    if words is not None:
        words.save(output)
    write_lists(output, lists)
    if framing is not None:
        write_reading(output, framing)
    return Conversion(architecture, report, note, notes_about(lists, source, architecture, config))


def _parse(overrides: Sequence[str], architecture: str) -> dict[str, Any]:
    if architecture not in ARCHITECTURES:
        return {}  # which config_of_released says
    hints = get_type_hints(ARCHITECTURES[architecture][0])
    values = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise UserError(f"expected key=value, got {override!r}")
        if name not in hints:
            raise unknown_name(f"{architecture} option", name, hints)
        values[name] = parse_value(text, hints[name], name)
    return values


def _vocab_size(checkpoint: Checkpoint, architecture: str, values: Mapping[str, Any]) -> int | None:
    """Words of the model to be; None: it reads no text."""
    config_class = ARCHITECTURES[architecture][0] if architecture in ARCHITECTURES else None
    if not hasattr(config_class, "vocab_size"):
        return None
    tables = (len(t) for name, t in checkpoint.weights.items() if name.endswith(WORD_TABLES))
    return values.get("vocab_size") or next(tables, config_class.vocab_size)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def _given_tokenizer(path: Path, vocab_size: int | None, architecture: str) -> Tokenizer:
    if vocab_size is None and architecture in ARCHITECTURES:
        raise UserError(f"{architecture} reads no text: leave out the tokenizer")
    tokenizer = load_tokenizer(path)
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UserError(f"{path} has {tokenizer.vocab_size} entries, the model's vocabulary {vocab_size}")
    return tokenizer


def _tokenizer_beside(source: Path, vocab_size: int) -> tuple[Tokenizer | None, str]:
    """The tokenizer of the folder that `source` is or lies in, where it is the model's; and what to say about it."""
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
