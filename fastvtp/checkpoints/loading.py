"""Released checkpoints, and fastvtp's own of another architecture, into a model."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastvtp.architecture import architecture_of, architectures
from fastvtp.checkpoints.kinds import Kind, Transfer, recognise
from fastvtp.checkpoints.reading import Checkpoint, read_checkpoint
from fastvtp.checkpoints.sizes import different_sizes, log_heads
from fastvtp.errors import CheckpointError, UserError, few_of, unknown_name
from fastvtp.modules.fitting import POSITION_RESIZES, resize_table
from fastvtp.modules.positions import (
    GridPositionsConfig,
    OnGrid,
    describe_positions,
    take_trained_sizes,
    trained_sizes,
)

logger = logging.getLogger(__name__)

_HEAD_NORMS = ("norm", "decoder.transformer.norm", "video_norm", "text_norm")


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint. loaded, fresh: the model's names that were filled, and that kept what they held.
    ignored: the checkpoint's names that were left; where a tensor was taken apart or joined with others, the parts' or
    the whole's. resized: position tables that were cut, resized, interpolated or rebuilt, in words."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]
    resized: tuple[str, ...]


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor] | Checkpoint,
    *,
    origin: str | None = None,
    fresh: Sequence[str] = (),
    position_resize: str = "bicubic",
) -> LoadReport:
    """Copy a checkpoint of VideoMAE, SimVTP, ALPRO, VideoPrism, transformers' VideoMAE or VideoPrism, BERT, a ViT, CLIP
    or fastvtp into `model`, all or nothing.

    model: one of fastvtp's, initialised. source: a .pth, .pt, .bin, .safetensors or .npz file, a folder, or tensors by
    name. origin: "videomae", "simvtp", "alpro" (also LAVIS's), "videoprism", "hf_videomae", "hf_videoprism", "bert",
    "vit", "clip" or "fastvtp"; None: told by the names. fresh: parts of the model that keep their initialisation, such
    as ("norm", "head") where a classifier starts from pretraining. position_resize: how ALPRO's patch positions are
    brought to another number of patches: "bicubic" on their grid, or "official", nearest in the flattened index.

    BERT and ViT fill parts of a model; the rest stays as it is. SimVTP's models take a BERT's embeddings, ALPRO's all
    its layers and its word head where there is one; a ViT becomes ALPRO's video encoder, its attention being that
    within frames and, in a copy, that along time, which begins without effect. Position tables of captions that are
    longer than the model's are cut, those of frames resized to the nearest; those of tubelets are fixed and not part of
    checkpoints: the model's become those of the frames and the image size that the checkpoint was trained at, which
    `model.config` keeps, brought to its own as its setting `positions` says. A released VideoMAE or SimVTP was trained
    at 16 frames of 224 pixels; another checkpoint says it in its config.json, or else counts as trained at the model's
    own. What transformers' VideoMAE states as eps of its LayerNorms comes along, into `model.config` too.

    Each table that is cut, resized, interpolated or rebuilt is named in a warning.

    VideoPrism's encoder is taken out of its video-text model or classifier, and put into either. A ViT or CLIP's image
    tower becomes its blocks within frames, see `fastvtp.checkpoints.image_towers`; its position tables are resized as
    the encoder itself resizes them.

    Raises CheckpointError with one line that lists missing, unexpected and wrongly shaped entries, a few of them where
    they are many (its `problems` are all), and ends in what to set where the checkpoint is of another size; UserError
    where `origin`, `fresh` or `position_resize` name nothing.
    """
    checkpoint = read_checkpoint(source)
    kind = recognise(checkpoint, origin)
    report = load_recognised(model, checkpoint, kind, fresh=fresh, position_resize=position_resize)
    log_heads(checkpoint, kind, model.config)
    return report


def load_recognised(
    model: nn.Module,
    checkpoint: Checkpoint,
    kind: Kind,
    *,
    fresh: Sequence[str] = (),
    position_resize: str = "bicubic",
    given: Collection[str] = (),
) -> LoadReport:
    """Run `load_checkpoint` on a checkpoint that is read and recognised. given: settings of the model that somebody
    gave, in place of what the checkpoint's config.json states."""
    if position_resize not in POSITION_RESIZES:
        raise unknown_name("position_resize", position_resize, POSITION_RESIZES)
    transfer = _transfer(checkpoint, kind, model)
    if kind.note:
        logger.warning("%s: %s", checkpoint.name, kind.note)
    own = model.state_dict()
    _check_fresh(fresh, model, own)
    loaded: dict[str, Tensor] = {}
    ignored: list[str] = []
    resized: list[str] = []
    stated = kind.settings(checkpoint) if transfer.states else {}
    stated = {name: value for name, value in stated.items() if name not in given}
    problems = _different_settings(stated, model)
    for original, tensor in transfer.adapt(kind.prepare(checkpoint.weights)).items():
        name = kind.place(kind.names(original), model.config)
        targets = [target for target in transfer.targets(name) if not _under(target, fresh)]
        used = [target for target in targets if target in own]
        if not used:
            known = not targets or kind.ignored(original) or name.startswith(transfer.optional)
            (ignored if known else problems).append(original if known else f"unexpected {original}")
        for target in used:
            fitted, change = resize_table(target, tensor, own[target], position_resize)
            if fitted.shape != own[target].shape:
                problems.append(f"{original} is {list(tensor.shape)}, the model's {target} {list(own[target].shape)}")
            if target in loaded:
                problems.append(f"{original} and another entry are both {target}")
            loaded[target] = fitted
            resized += [change] if change else []
    needed = [name for name in own if not transfer.needed or _under(name, transfer.needed)]
    missing = [name for name in needed if name not in loaded and not _under(name, fresh)]
    problems += [f"missing {name}" for name in missing]
    if problems:
        absent = [part for part in transfer.fresh if any(_under(name, (part,)) for name in missing)]
        hint = f" (to start these parts afresh: fresh={(*fresh, *absent)})" if absent else ""
        listed = few_of(problems) + hint + _advice(checkpoint, kind, model)
        raise CheckpointError(f"{checkpoint.name} does not fit {type(model).__name__}: {listed}", problems)
    model.load_state_dict(loaded, strict=False)
    _take_norm_eps(stated, model)
    resized += _take_positions(checkpoint, kind, model, stated, loaded)
    for change in resized:
        logger.warning("%s: %s", checkpoint.name, change)
    return LoadReport(tuple(loaded), tuple(name for name in own if name not in loaded), tuple(ignored), tuple(resized))


def absent_parts(
    model: nn.Module, source: str | Path | Mapping[str, Tensor] | Checkpoint, *, origin: str | None = None
) -> tuple[str, ...]:
    """Return the parts of `model` that a checkpoint of another architecture cannot fill, for `fresh` of
    `load_checkpoint`."""
    checkpoint = read_checkpoint(source)
    return parts_without(model, checkpoint, recognise(checkpoint, origin))


def parts_without(model: Any, checkpoint: Checkpoint, kind: Kind) -> tuple[str, ...]:
    """Return `absent_parts` of a checkpoint that is read and recognised."""
    transfer = _transfer(checkpoint, kind, model)
    entries = transfer.adapt(kind.prepare(checkpoint.weights))
    names = [kind.place(kind.names(name), model.config) for name in entries]
    filled = {target for name in names for target in transfer.targets(name)}
    return tuple(
        part
        for part in transfer.fresh
        if (names := [name for name in model.state_dict() if _under(name, (part,))]) and filled.isdisjoint(names)
    )


def _transfer(checkpoint: Checkpoint, kind: Kind, model: nn.Module) -> Transfer:
    target = architecture_of(model)
    if kind.architecture not in target.sources:
        fitting = [name for name, other in architectures().items() if kind.architecture in other.sources]
        raise CheckpointError(
            f"{checkpoint.name} is a {kind.architecture}, from which no {target.name} can start (but "
            f"{', '.join(fitting)})"
        )
    if refusal := kind.refuses([kind.names(name) for name in checkpoint.weights]):
        raise CheckpointError(f"{checkpoint.name} {refusal}")
    return target.sources[kind.architecture]


def _different_settings(stated: Mapping[str, Any], model: Any) -> list[str]:
    """Return what a folder's config.json states otherwise and no shape shows."""
    own = asdict(model.config)
    return [
        f"{name} is {stated[name]}, the model has {own[name]}"
        for name in ("num_heads", "decoder_num_heads", "text_num_heads", "softcap")
        if name in stated and name in own and stated[name] != own[name]
    ]


def _advice(checkpoint: Checkpoint, kind: Kind, model: Any) -> str:
    """Return what the checkpoint is and the model is not, and how to make it so, as a sentence that ends a message; ""
    where both are of one size."""
    sizes = different_sizes(checkpoint, kind, model.config)
    if not sizes:
        return ""
    known = {name: _as_typed(value) for name, value in sizes.items() if value is not None}
    unknown = " and ".join(f"model.{name}" for name in sizes if name not in known)
    described = ", ".join(f"{name} {value}" for name, value in known.items())
    words = known.pop("vocab_size", None)
    cures = ["set " + " ".join(f"model.{name}={value}" for name, value in known.items())] if known else []
    if unknown:
        cures = [", and ".join([*cures, f"{unknown} as it was trained (nothing in it shows how many)"])]
    if words is not None:  # no setting of a run: it follows from the tokenizer
        cures.append(
            f"give the tokenizer of its {words} words (data.tokenizer=FILE; for a model built in Python, "
            f"vocab_size={words})"
        )
    return f". The checkpoint is {described}: {' and '.join(cures)}"


def _as_typed(value: Any) -> str:
    """Return a setting as one types it behind its name."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _take_norm_eps(stated: Mapping[str, Any], model: Any) -> None:
    """Compute the LayerNorms of tubelets as the checkpoint states."""
    eps = {name: stated[name] for name in ("norm_eps", "head_norm_eps") if name in stated}
    if not eps:
        return
    model.config = replace(model.config, **eps)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and not name.startswith("text_embeddings"):
            module.eps = model.config.head_norm_eps if name in _HEAD_NORMS else model.config.norm_eps


def _take_positions(
    checkpoint: Checkpoint, kind: Kind, model: Any, stated: Mapping[str, Any], loaded: Mapping[str, Tensor]
) -> list[str]:
    """Let a model's fixed positions be those of the checkpoint's training, where parts with such were loaded. Returns
    what was done, in words."""
    parts = [name for name, module in model.named_modules() if isinstance(module, OnGrid)]
    config: Any = model.config
    if not isinstance(config, GridPositionsConfig) or not any(_under(name, parts) for name in loaded):
        return []
    try:
        shown = kind.sizes(kind.shapes(checkpoint), checkpoint.name, asdict(config))
    except CheckpointError:
        shown = {}  # its sizes cannot be told
    sizes = trained_sizes({**shown, **stated})
    for name, size in sizes.items():
        if getattr(config, name) not in (None, size):
            logger.warning(
                "%s: %s %s is kept, the checkpoint has %s", checkpoint.name, name, getattr(config, name), size
            )
    if not sizes and config.trained_frames is None and config.trained_image_size is None:
        logger.warning(
            "%s: taken as trained at the model's %d frames of %d pixels, since nothing says it (or else set "
            "trained_frames and trained_image_size)",
            *(checkpoint.name, model.config.num_frames, model.config.image_size),
        )
    take_trained_sizes(model, sizes)
    change = describe_positions(model.config)
    return [change] if change else []


def _check_fresh(fresh: Sequence[str], model: nn.Module, own: Mapping[str, Tensor]) -> None:
    if isinstance(fresh, str):
        raise UserError(f'fresh must be a sequence of names, such as ("{fresh}",), got {fresh!r}')
    known = {name for name, _ in model.named_modules()} | set(own)
    for part in fresh:
        if part.rstrip(".") not in known:
            parts = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"fresh names {part!r}, which {type(model).__name__} does not have (its parts: {parts})")


def _under(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(part.rstrip(".") + ".") for part in parts)
