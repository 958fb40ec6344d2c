"""Where a recipe's parameters stand, so that a copy of it can be given others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import ConditionalParameter, InputModelDefinition, MergeConfiguration

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.groups import Group, Settings, all_groups
from mergekit_collapse.recipe.recipe import Recipe, build_recipe


class UnchangeableRecipeError(InvalidRecipeError):
    """The wanted change cannot be written into this recipe; the message says what can."""


def resolved(config: MergeConfiguration) -> Recipe:
    """The recipe without its block and its text, which no change of weights looks at."""
    return build_recipe(config, {}, source="")


@dataclass(frozen=True)
class Place:
    """One group, and the parts of the configuration that it was read from.

    Attributes:
        group: as `all_groups` gives it.
        sources: the very list of the configuration, which may lack the base that MergeKit adds.
        owner: the configuration, module or slice whose ``parameters`` are the nearest that
            apply to all of them.
    """

    group: Group
    sources: list[Any]
    owner: Any


def places(config: MergeConfiguration) -> Iterator[Place]:
    """Every group of a configuration with its place, in the order of the YAML."""
    found: list[tuple[list[Any], Any]] = []
    for owner in (config, *(config.modules or {}).values()):
        if owner.models:
            found.append((owner.models, owner))
        found += [(part.sources, part) for part in owner.slices or ()]
    for group, (sources, owner) in zip(all_groups(config), found, strict=True):
        yield Place(group, sources, owner)


def holders(config: MergeConfiguration) -> Iterator[Any]:
    """Whatever may have ``parameters`` for several sources: the whole, modules, slices."""
    for owner in (config, *(config.modules or {}).values()):
        yield owner
        yield from owner.slices or ()


def source_of(place: Place, model: ModelReference) -> Any:
    """The entry of a model, added where only MergeKit would have added it: a base, last."""
    for source in place.sources:
        if source.model == model:
            return source
    place.sources.append(InputModelDefinition(model=model))
    return place.sources[-1]


def parameter(method: str, name: str) -> Any:
    """MergeKit's specification of a method's parameter, or None where it has none of the name."""
    found = (p for p in merge_methods.get(method).spec.parameters if p.name == name)
    return next(found, None)


def in_force(name: str, scopes: Iterable[Settings], spec: Any) -> Any:
    """One setting that reads as a whole chain of scopes does, the nearest first.

    What the filters of one scope let through falls to the next scope, and at last to the
    default of the method; None where nothing gives a value.

    Raises:
        UnchangeableRecipeError: a filter gives an empty list, which only MergeKit can read.
    """
    conditions: list[ConditionalParameter] = []
    for scope in scopes:
        setting = scope.get(name)
        if setting is None or setting == []:
            continue
        if not _is_conditional(setting):
            if not conditions:
                return setting
            setting = ConditionalParameter(value=setting)
        listed = setting if isinstance(setting, list) else [setting]
        if any(condition.value == [] for condition in listed):
            raise UnchangeableRecipeError(
                f"the parameter {name!r} has a filter with an empty list; give it a value"
            )
        conditions += listed
        if any(condition.filter in (None, "*") for condition in listed):
            return conditions
    if not spec.required:
        if not conditions:
            return spec.default
        conditions.append(ConditionalParameter(value=spec.default))
    return conditions or None


def mapped(setting: Any, change: Callable[[Any], Any]) -> Any:
    """A setting with its scalars and gradients changed, and its filters kept.

    Args:
        setting: a scalar, a gradient, a condition or a list of conditions.
        change: takes a scalar or a whole gradient, and returns either.
    """
    if isinstance(setting, ConditionalParameter):
        return setting.model_copy(update={"value": change(setting.value)})
    if _is_conditional(setting):
        return [mapped(condition, change) for condition in setting]
    return change(setting)


def straight(validate: Callable[[Any], Any], slope: float, offset: float = 0) -> Any:
    """``x → slope x + offset`` for `mapped`; a gradient stays one, since both are linear."""

    def change(value: Any) -> Any:
        if isinstance(value, list):
            return [change(each) for each in value]
        return tidy(slope * float(validate(value)) + offset)

    return change


def towards(now: float, new: float) -> tuple[float, float]:
    """Slope and offset of the line from ``now`` to ``new`` that leaves nobody outside [0, 1].

    A share that falls is scaled; where it rises, what is left of 1 is.
    """
    if abs(new - now) <= 1e-12:
        return 1.0, 0.0
    if new < now:
        return new / now, 0.0
    slope = (1 - new) / (1 - now)
    return slope, 1 - slope


def is_zero_number(setting: Any, validate: Callable[[Any], Any]) -> bool:
    """Whether a setting is a plain 0, or a gradient of nothing else."""
    values = setting if isinstance(setting, list) else [setting]
    return not _is_conditional(setting) and all(validate(value) == 0 for value in values)


def put(holder: Any, name: str, setting: Any) -> None:
    """Set a parameter of a source, slice, module or configuration."""
    holder.parameters = {**(holder.parameters or {}), name: setting}


def tidy(value: float) -> float:
    """Twelve digits: what people can read, and far finer than any weight matters."""
    return float(f"{value:.12g}")


def _is_conditional(setting: Any) -> bool:
    first = setting[0] if isinstance(setting, list) and setting else setting
    return isinstance(first, ConditionalParameter)
