"""A checkpoint of any origin -> a model of its sizes."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvtp.architecture import build_model
from fastvtp.checkpoints.heads import KnownHeads
from fastvtp.checkpoints.kinds import Kind, recognise
from fastvtp.checkpoints.loading import LoadReport, load_recognised, parts_without
from fastvtp.checkpoints.reading import Checkpoint, read_checkpoint
from fastvtp.checkpoints.sizes import config_of_kind
from fastvtp.model_folder import CONFIG_NAME, WEIGHTS_SUFFIXES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilledModel:
    """A model that was built for a checkpoint and filled from it.

    Attributes:
        model: on the CPU.
        heads: where its numbers of heads come from, as of `fastvtp.checkpoints.sizes.FoundConfig`.
        report: of its weights.
    """

    model: Any
    heads: Mapping[str, KnownHeads]
    report: LoadReport

    @property
    def random_parts(self) -> list[str]:
        """The parts of the model that nothing in the checkpoint fills."""
        return whole_parts(self.model, self.report.fresh)


def fill_model(
    checkpoint: Checkpoint,
    kind: Kind,
    *,
    architecture: str | None = None,
    overrides: Mapping[str, Any],
    position_resize: str = "bicubic",
) -> FilledModel:
    """Build the model that a recognised checkpoint fits, and load it. Parts that such a checkpoint cannot have are
    initialised, always with the same numbers.

    architecture, overrides: as of `fastvtp.checkpoints.sizes.config_of_checkpoint`. position_resize: as of
    `fastvtp.checkpoints.loading.load_checkpoint`. Raises UserError with one line.
    """
    found = config_of_kind(checkpoint, kind, architecture=architecture, overrides=overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(found.config)
    fresh = parts_without(model, checkpoint, kind)
    report = load_recognised(
        model, checkpoint, kind, fresh=fresh, position_resize=position_resize, given=tuple(overrides)
    )
    return FilledModel(model, found.heads, report)


def open_checkpoint(
    source: str | Path, *, device: torch.device | str = "cpu", position_resize: str = "bicubic", **overrides: Any
) -> Any:
    """Open the model in a checkpoint of any origin, in evaluation mode, and log where its heads come from and which of
    its parts begin at random.

    source: a file or folder as of `fastvtp.checkpoints.reading.read_checkpoint`. position_resize, overrides: as
    of `fill_model`. Raises UserError with one line.
    """
    checkpoint = read_checkpoint(source)
    filled = fill_model(checkpoint, recognise(checkpoint), overrides=overrides, position_resize=position_resize)
    if filled.heads:
        listed = ", ".join(f"{name} {heads}" for name, heads in filled.heads.items())
        logger.info("%s: %s", checkpoint.name, listed)
    if filled.random_parts:
        logger.warning("%s: begin at random: %s", checkpoint.name, ", ".join(filled.random_parts))
    return filled.model.to(device).eval()


def whole_parts(model: nn.Module, names: Collection[str]) -> list[str]:
    """Return entries of a model's state dict as the largest parts that hold no other entries: "decoder" for all of its
    weights."""
    own, wanted = list(model.state_dict()), set(names)
    parts: dict[str, None] = {}
    for name in own:
        if name in wanted:
            pieces = name.split(".")
            stems = (".".join(pieces[:count]) for count in range(1, len(pieces)))
            whole = (s for s in stems if all(other in wanted for other in own if other.startswith(f"{s}.")))
            parts[next(whole, name)] = None
    return list(parts)


def is_foreign(folder: Path) -> bool:
    """Tell whether a folder holds weights that fastvtp did not write: a config.json of another library, or none beside
    weights."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return any(entry.suffix in WEIGHTS_SUFFIXES for entry in folder.iterdir())
    try:
        description = json.loads(path.read_text())
    except ValueError:
        return False  # whoever reads it says what is wrong with it
    return not isinstance(description, dict) or "architecture" not in description
