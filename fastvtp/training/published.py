"""Where the settings of a recipe come from: a paper, a released code, or us."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastvtp.errors import ConfigError
from fastvtp.settings import setting_values
from fastvtp.training.config import TrainConfig

Recipe = TypeVar("Recipe", bound=Callable[..., TrainConfig])
ORIGINS = ("paper", "release", "ours")
_ATTRIBUTE = "published"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a recipe follows, and how far.

    Attributes:
        paper: the publication, with the table where there is one; "": none says it.
        release: the file of the released code; "": none was released.
        data: what it was trained on, in words.
        batch: clips whose gradients made one step there.
        clips: clips that its whole training saw, repeated ones counted as often as they came.
        settings: where values come from: a setting, or what the names of several begin with ("model.") -> "paper",
            "release" or "ours", to which a remark may be added behind a colon. Of several that fit the longest counts;
            what none fits is ours.
        differs: what the publication does and the recipe does not, a sentence each.
    """

    paper: str = ""
    release: str = ""
    data: str
    batch: int
    clips: int
    settings: Mapping[str, str] = field(default_factory=dict)
    differs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, source in self.settings.items():
            if source.partition(":")[0] not in ORIGINS:
                raise ValueError(f"settings[{name!r}] must begin with one of {', '.join(ORIGINS)}, got {source!r}")


@dataclass(frozen=True)
class SourcedSetting:
    """A setting of a recipe: its dotted name, its value as JSON holds it, and where that comes from."""

    name: str
    value: Any
    source: str


def follows(published: Published) -> Callable[[Recipe], Recipe]:
    """Mark a recipe as following a publication: a decorator."""

    def mark(recipe: Recipe) -> Recipe:
        setattr(recipe, _ATTRIBUTE, published)
        return recipe

    return mark


def published_of(recipe: Callable[..., TrainConfig]) -> Published | None:
    """Return what a recipe follows; None where it is all ours."""
    return getattr(recipe, _ATTRIBUTE, None)


def sourced_settings(
    config: TrainConfig, official: TrainConfig, published: Published | None, recipe: str
) -> list[SourcedSetting]:
    """Return all settings of a recipe, in their order.

    config: under the preset that is asked for. official: under the preset "official"; a value in which the other
    departs from it is ours, and said so. recipe: its name, for messages. Raises ConfigError where the publication is
    said to give a setting that the recipe does not have.
    """
    sources = {} if published is None else published.settings
    values, others = setting_values(config), setting_values(official)
    for key in sources:
        if not any(_covers(key, name) for name in values):
            raise ConfigError(f"{recipe} says where {key} comes from and has no such setting")
    rows = []
    for name in values:
        fitting = [key for key in sources if _covers(key, name)]
        source = sources[max(fitting, key=len)] if fitting else "ours"
        source = _unused(config, name) or source
        if values[name] != others[name]:
            source = f"ours: the preset official has {shown(others[name])}"
        rows.append(SourcedSetting(name, values[name], source))
    return rows


def _covers(key: str, name: str) -> bool:
    """Tell whether a key of `Published.settings` is a setting's name, or what it begins with."""
    return name == key or (key.endswith(".") and name.startswith(key))


def _unused(config: TrainConfig, name: str) -> str | None:
    """Return the source of a setting of the optimizer that another one makes idle; None for all others."""
    if name == "optimizer.warmup_steps" and config.optimizer.warmup_share is not None:
        return "ours: not used, where warmup_share is set"
    if name in ("optimizer.scale_by_parameter", "optimizer.momentum") and config.optimizer.algorithm != "adafactor":
        return "ours: Adafactor's, not used"
    if name in ("optimizer.betas", "optimizer.eps") and config.optimizer.algorithm == "adafactor":
        return "ours: AdamW's, not used"
    return None


def shown(value: Any) -> str:
    """Return a value as one types it behind the name of a setting."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return ",".join(map(shown, value)) if isinstance(value, list) else str(value)
