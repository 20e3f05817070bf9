"""What the engines know of a system: the records that it registers, and the models that these describe.

Loading, converting, training, scoring and drawing look their questions up here: how is this model scored, what can it
start from, which tasks are there. They know no system by name, so that one from outside this package, registered by
`register`, is their equal.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from fastvtp.errors import UserError, unknown_name

logger = logging.getLogger(__name__)

PRESETS = ("official", "fastvtp")
"""The released objectives, and the recommended ones."""


def _no_labels(_: Any) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One kind of model.

    Attributes:
        name: what config.json of a model folder calls it.
        config: the dataclass of its settings.
        model: the class of the model, built from a configuration.
        reads_text: whether it takes token ids, so that a tokenizer belongs to its weights.
        scored_by: the way in which `fastvtp evaluate` scores it, a name in `fastvtp.evaluation.scoring` or in the
            `Runs.scorers` of a system; None: it has no scores.
        has_embeddings: whether it compares clips with texts, as a `fastvtp.evaluation.zero_shot.VideoTextModel`.
        labels: what lists its outputs go by and how long each is, from a configuration: "answers", "classes" or
            "entities" -> number of entries. An "answers" of 1 chooses among the options of a question.
        sources: what the model takes from a checkpoint, by the architecture of the checkpoint; the values are
            `fastvtp.checkpoints.kinds.Transfer`.
        recommended: settings that the preset "fastvtp" has of each model of this kind, and models of checkpoints that
            say nothing about them.
        chosen_anew: settings that a model started from a checkpoint of another architecture does not take over.
        rows: how many rows of one clip pass the blocks of each list of modules in a step of training, those without a
            gradient left out, by the list's path in the model; from a configuration and the mean number of tokens of a
            text. None: the model does not tell.
        tower: the video tower that frozen-backbone evaluation reads, a `fastvtp.frozen.towers.VideoTower`, from a
            model; None: its clips do not become tokens of their own.
    """

    name: str
    config: type
    model: type[nn.Module]
    reads_text: bool
    scored_by: str | None = None
    has_embeddings: bool = False
    labels: Callable[[Any], Mapping[str, int]] = _no_labels
    sources: Mapping[str, Any] = field(default_factory=dict)
    recommended: Mapping[str, Any] = field(default_factory=dict)
    chosen_anew: Sequence[str] = ()
    rows: Callable[[Any, float], Mapping[str, float]] | None = None
    tower: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class NamedModel:
    """A name that `fastvtp.create_model` takes.

    Attributes:
        architecture: its kind, by name.
        settings: fields of the configuration that differ from its defaults.
        recommended: further ones, of the preset "fastvtp" alone, beside the architecture's.
    """

    architecture: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    recommended: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What a system brings to training and evaluation, which is read when the first run asks for it.

    Attributes:
        tasks: subclasses of `fastvtp.training.task.Task`.
        recipes: functions of a preset that return a `fastvtp.training.config.TrainConfig`, called by their own names.
        scorers: further ways of scoring, by the name in `Architecture.scored_by`.
        pictures: what `fastvtp visualize` draws, by the name of an architecture.
        study: what `fastvtp ablate` takes apart, a `fastvtp.ablation.studies.Study`; None: nothing.
    """

    tasks: Sequence[Any] = ()
    recipes: Sequence[Callable[[str], Any]] = ()
    scorers: Mapping[str, Callable[..., dict[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    study: Any = None


@dataclass(frozen=True, kw_only=True)
class System:
    """A family of models with all that belongs to it.

    Attributes:
        name: as in `fastvtp ablate NAME`.
        architectures: its kinds of models.
        models: names for `fastvtp.create_model`.
        kinds: the checkpoints that it can read, `fastvtp.checkpoints.kinds.Kind`.
        runs: gives what it brings to training; a function, so that models can be had without what training needs.
    """

    name: str
    architectures: Sequence[Architecture]
    models: Mapping[str, NamedModel] = field(default_factory=dict)
    kinds: Sequence[Any] = ()
    runs: Callable[[], Runs] = Runs


_SYSTEMS: dict[str, System] = {}
_INSTALLED: set[str] = set()
_WITHOUT_RUNS: set[str] = set()
_NOTHING: Mapping[str, Any] = {}


def register(system: System, *, installed: bool = False) -> None:
    """Make a system known to every command and function of this package; the same one may be registered again.

    installed: it was found by an entry point, so that nobody asked for it: where its `runs` cannot be had, it is named
    in a warning, and what others bring stays usable.

    Raises UserError where another system already has its name, or the name of one of its architectures or models.
    """
    if _SYSTEMS.get(system.name) is system:
        return
    if system.name in _SYSTEMS:
        raise UserError(f"a system {system.name!r} is registered already")
    for other in _SYSTEMS.values():
        for what, taken, wanted in (
            ("architecture", _architecture_names(other), _architecture_names(system)),
            ("model", set(other.models), set(system.models)),
        ):
            if doubled := sorted(taken & wanted):
                raise UserError(f"system {system.name!r}: {other.name} already has the {what} {doubled[0]!r}")
    _SYSTEMS[system.name] = system
    if installed:
        _INSTALLED.add(system.name)


def _architecture_names(system: System) -> set[str]:
    return {architecture.name for architecture in system.architectures}


def systems() -> Mapping[str, System]:
    """Return all registered systems by name. Raises UserError where there are none: those of this package are
    registered by `import fastvtp.systems`."""
    if not _SYSTEMS:
        raise UserError("no system is registered: import fastvtp.systems first")
    return _SYSTEMS


def architectures() -> dict[str, Architecture]:
    """Return all registered architectures by name."""
    return {architecture.name: architecture for system in systems().values() for architecture in system.architectures}


def named_models() -> dict[str, NamedModel]:
    """Return all models that have a name."""
    return {name: model for system in systems().values() for name, model in system.models.items()}


def runs_of(system: System) -> Runs:
    """Return what a system brings to training. Raises what its function raises, but for a system that was registered
    with `installed`: that one is named in a warning, and brings nothing."""
    if system.name in _WITHOUT_RUNS:
        return Runs()
    try:
        return system.runs()
    except Exception as error:  # another package's code may raise anything
        if system.name not in _INSTALLED:
            raise
        _WITHOUT_RUNS.add(system.name)
        logger.warning("nothing of the system %r can be trained: %s: %s", system.name, type(error).__name__, error)
        return Runs()


def of_all_runs(what: str, named: Callable[[Runs], Mapping[str, Any]], own: Mapping[str, Any] = _NOTHING) -> dict:
    """Return what all systems bring of one kind, by name.

    what: what it is called in a message. named: a system's share of it, by name. own: what belongs to no system. Raises
    UserError where two bring the same name.
    """
    found, owners = dict(own), dict.fromkeys(own, "fastvtp itself")
    for system in systems().values():
        for name, thing in named(runs_of(system)).items():
            if name in found:
                raise UserError(f"system {system.name!r}: {owners[name]} already has the {what} {name!r}")
            found[name], owners[name] = thing, system.name
    return found


def find_architecture(name: str) -> Architecture:
    """Find the architecture of that name. Raises UserError with the nearest known name."""
    return find("architecture", name, architectures())


def find(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """Return `known[name]`. Raises UserError with the nearest known name; `what` says what was looked for."""
    if name not in known:
        raise unknown_name(what, name, known)
    return known[name]


def architecture_of(thing: Any) -> Architecture:
    """Return the architecture of a model or of a configuration.

    Raises UserError for what no registered system has.
    """
    for architecture in architectures().values():
        if type(thing) in (architecture.config, architecture.model):
            return architecture
    raise UserError(f"{type(thing).__name__} is no model of a registered system ({', '.join(systems())})")


def check_options(name: str, config_class: Any, options: Iterable[str]) -> set[str]:
    """Return the fields of a configuration that are not among `options`.

    Raises UserError for an option of `name` that is no field, with the nearest that is.
    """
    known = {entry.name for entry in fields(config_class)}
    for option in options:
        if option not in known:
            raise unknown_name(f"{name} option", option, known)
    return known - set(options)


def model_config(name: str, *, preset: str = "fastvtp", **overrides: Any) -> Any:
    """Return the configuration behind a model's name: what the preset recommends, then its size, then `overrides`.

    Raises UserError with the nearest known name.
    """
    model = find("model", name, named_models())
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    architecture = find_architecture(model.architecture)
    config_class: Any = architecture.config
    check_options(name, config_class, overrides)
    recommended = {**architecture.recommended, **model.recommended} if preset == "fastvtp" else {}
    return config_class(**{**recommended, **model.settings, **overrides})


def build_model(config: Any, device: torch.device | str = "cpu") -> Any:
    """Build a freshly initialised model, from torch's global generator.

    It is built on the meta device first: torch's constructors would initialise everything once more, for nothing. The
    numbers are drawn on the CPU, so that a seed gives the same weights for every device. Raises ValueError where
    `init_weights` leaves a parameter or a buffer as it was, which is without any value.
    """
    with torch.device("meta"):
        model: Any = architecture_of(config).model(config)
    model.to_empty(device="cpu")
    tensors = (*model.named_parameters(), *model.named_buffers())
    real = {name: tensor.detach() for name, tensor in tensors if tensor.is_floating_point()}
    for tensor in real.values():
        tensor.fill_(torch.nan)
    model.init_weights()
    if left := [name for name, tensor in real.items() if tensor.isnan().any()]:
        raise ValueError(
            f"{type(model).__name__}.init_weights fills no {left[0]}: it must fill every parameter and every buffer, "
            "also one that __init__ gave a value, since models are built without memory first"
        )
    return model.to(device)
