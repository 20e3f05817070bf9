"""Which kind of checkpoint a file is, and what a model takes from one: the records that systems register of theirs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastvtp.architecture import systems
from fastvtp.checkpoints.heads import CONFIG_FILE, HeadTable, KnownHeads, known_heads
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.errors import CheckpointError, unknown_name

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by fastvtp's names."""


def _states_nothing(_: Checkpoint) -> dict[str, Any]:
    return {}


def _shows_nothing(_: Shapes, checkpoint: str, __: Mapping[str, Any]) -> dict[str, Any]:
    raise CheckpointError(f"{checkpoint}: its shapes do not show which model it fits")


def _same_place(name: str, _: Any) -> str:
    return name


def accepted(_: Sequence[str]) -> str:
    """Return "", no reason to refuse a checkpoint, see `Kind.refuses`."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of checkpoint.

    Attributes:
        origin: whose names its tensors bear, as in `fastvtp convert --origin`.
        architecture: that of fastvtp whose weights it holds; or a name of its own where it `fills` a part of some.
        marks: prefixes of names, of which it has all.
        names: its names -> fastvtp's.
        place: (fastvtp's name, configuration) -> the name in a model of that configuration, where models of one
            architecture divide the same layers differently.
        ignores: regular expressions for entries that no model here has a use for.
        prepare: done to the tensors before they are renamed; and to their shapes alone (meta tensors).
        settings: what its config.json, or an axis of its arrays, states about fastvtp's settings. Raises
            CheckpointError for what no model here computes.
        stated_by: what states those, in words.
        sizes: (shapes, what messages call the checkpoint, settings that are given) -> the settings that shapes show.
            Raises CheckpointError where they show none.
        heads: heads of the sizes that were released, which no shape shows.
        fills: where it is no whole model, what it is and which part it fills, in words.
        refuses: fastvtp's names -> why the checkpoint cannot be used; "" where it can.
        framing: how its training brought frames to the model's size, see `ClipReading`; None: nobody knows.
        note: what to warn of when it is loaded.
    """

    origin: str
    architecture: str
    marks: tuple[str, ...]
    names: Callable[[str], str] = str
    place: Callable[[str, Any], str] = _same_place
    ignores: tuple[str, ...] = ()
    prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    settings: Callable[[Checkpoint], dict[str, Any]] = _states_nothing
    stated_by: str = CONFIG_FILE
    sizes: Callable[[Shapes, str, Mapping[str, Any]], dict[str, Any]] = _shows_nothing
    heads: tuple[HeadTable, ...] = ()
    fills: str = ""
    refuses: Callable[[Sequence[str]], str] = accepted
    framing: str | None = None
    note: str = ""

    def ignored(self, name: str) -> bool:
        """Tell whether no model here has a use for an entry."""
        return any(re.search(pattern, name) for pattern in self.ignores)

    def shapes(self, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
        """Return shapes of a checkpoint's tensors by fastvtp's names, those that nobody uses left out."""
        # without their values: joining the parts of attention would copy them
        prepared = self.prepare({name: tensor.to("meta") for name, tensor in checkpoint.weights.items()})
        return {self.names(name): tuple(tensor.shape) for name, tensor in prepared.items() if not self.ignored(name)}

    def known_heads(self, values: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, KnownHeads]:
        """Return what is known of the heads of a checkpoint whose shapes show `values` and that states `stated`."""
        return known_heads(self.heads, values, stated, self.stated_by)

    def has_heads(self, setting: str, values: Mapping[str, Any]) -> bool:
        """Tell whether a checkpoint whose shapes show `values` has the part whose heads `setting` counts."""
        return any(table.setting == setting and table.size(values) is not None for table in self.heads)


@dataclass(frozen=True)
class Transfer:
    """What a model takes from a checkpoint of its own or of another architecture.

    Attributes:
        moves: the start of a checkpoint's name -> the starts that it becomes in the model; the first that fits counts,
            and other names stay.
        optional: starts of entries that may be left over.
        fresh: parts of the model that such a checkpoint may lack.
        needed: parts of the model that it must have; empty: all others.
        adapt: done to the prepared tensors first.
        states: whether what the checkpoint's config.json states holds for the parts that are taken.
    """

    moves: tuple[tuple[str, tuple[str, ...]], ...] = ()
    optional: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    states: bool = True

    def targets(self, name: str) -> list[str]:
        """Return the names in the model of a checkpoint's entry."""
        for prefix, replacements in self.moves:
            if name.startswith(prefix):
                return [replacement + name.removeprefix(prefix) for replacement in replacements]
        return [name]


def own_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the config.json of a fastvtp model folder states."""
    own = (checkpoint.config or {}).get("config")
    return own if isinstance(own, dict) else {}


def own_kinds(
    sizes: Callable[[Shapes, str, Mapping[str, Any]], dict[str, Any]],
    marks: Mapping[str, tuple[str, ...]],
    heads: tuple[HeadTable, ...] = (),
) -> tuple[Kind, ...]:
    """Return the kinds of fastvtp's own model folders: architecture -> prefixes of names, of which its weights have
    all. sizes, heads: as of `Kind`."""
    return tuple(
        Kind(origin="fastvtp", architecture=architecture, marks=own, settings=own_settings, sizes=sizes, heads=heads)
        for architecture, own in marks.items()
    )


def kinds() -> tuple[Kind, ...]:
    """Return the kinds of all registered systems, each once; several systems may read the same."""
    found: dict[int, Kind] = {}
    for system in systems().values():
        found |= {id(kind): kind for kind in system.kinds}
    return tuple(found.values())


def origins() -> tuple[str, ...]:
    """Return the origins whose checkpoints can be read."""
    return tuple(dict.fromkeys(kind.origin for kind in kinds()))


def recognise(checkpoint: Checkpoint, origin: str | None = None) -> Kind:
    """Return the kind of `checkpoint`, among those of `origin` where that is given.

    Of several whose marks are all there, it is the one with the most marks, of these the first. Raises UserError with
    one line.
    """
    if origin is not None and origin not in origins():
        raise unknown_name("origin", origin, origins())
    fitting = [
        kind
        for kind in kinds()
        if origin in (None, kind.origin)
        and all(any(name.startswith(mark) for name in checkpoint.weights) for mark in kind.marks)
    ]
    if not fitting:
        raise CheckpointError(
            f"{checkpoint.name} is no checkpoint of {origin or ', '.join(origins())}: "
            f"its {len(checkpoint.weights)} tensors begin with {', '.join(sorted(checkpoint.weights)[:3])}"
        )
    return max(fitting, key=lambda kind: len(kind.marks))
