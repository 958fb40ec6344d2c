"""Which models of a recipe are merged with one another."""

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration, OutputModuleDefinition, OutputSliceDefinition

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A model in a list of the recipe, with the parameters given beside it."""

    model: ModelReference
    parameters: Settings


@dataclass(frozen=True)
class Group:
    """Sources that are merged with one another: a ``models`` list or one output slice.

    Attributes:
        label: where it stands in the YAML, such as ``models`` or ``slices[2]``.
        sources: in the order of the YAML; a base that MergeKit adds by itself is last.
        base: the base model in force here.
        layers: how many layers the slice has; None in the ``models`` form, which has all.
        layer_ranges: per source, in the ``slices`` form.
        settings: parameters that apply to every source, the nearest first.
    """

    label: str
    sources: tuple[Source, ...]
    base: ModelReference | None
    layers: int | None
    layer_ranges: tuple[tuple[int, int], ...] | None
    settings: tuple[Settings, ...]

    @property
    def models(self) -> tuple[ModelReference, ...]:
        """The sources without their parameters."""
        return tuple(source.model for source in self.sources)


def all_groups(config: MergeConfiguration) -> Iterator[Group]:
    """Every list of sources in a recipe, in the order of the YAML."""
    top = config.parameters or {}
    if config.models:
        yield _models_group("models", config.models, config, ({}, top))
    yield from _slice_groups("slices", config.slices or (), config, (top,))
    for name, module in (config.modules or {}).items():
        yield from _module_groups(name, module, config, top)


def _module_groups(
    name: str, module: OutputModuleDefinition, config: MergeConfiguration, top: Settings
) -> Iterator[Group]:
    settings = (module.parameters or {}, top)
    if module.models:
        yield _models_group(f"modules.{name}.models", module.models, config, settings)
    yield from _slice_groups(f"modules.{name}.slices", module.slices or (), config, settings)


def _models_group(
    label: str, models: Iterable[Any], config: MergeConfiguration, settings: tuple[Settings, ...]
) -> Group:
    sources = tuple(Source(m.model, m.parameters or {}) for m in models)
    base = config.base_model
    if base is not None and all(s.model != base for s in sources):
        # MergeKit does the same in this form, and in this form only.
        sources = (*sources, Source(base, {}))
    return Group(label, sources, base, None, None, settings)


def _slice_groups(
    label: str,
    slices: Iterable[OutputSliceDefinition],
    config: MergeConfiguration,
    settings: tuple[Settings, ...],
) -> Iterator[Group]:
    for index, part in enumerate(slices):
        sources = tuple(Source(s.model, s.parameters or {}) for s in part.sources)
        ranges = tuple(s.layer_range for s in part.sources)
        yield Group(
            label=f"{label}[{index}]",
            sources=sources,
            base=part.base_model or config.base_model,
            layers=ranges[0][1] - ranges[0][0] if ranges else 0,
            layer_ranges=ranges,
            settings=(part.parameters or {}, *settings),
        )


def identity(model: ModelReference) -> Hashable:
    """Equal for two spellings of one model: local folders are resolved."""
    return _place(model.model), None if model.lora is None else _place(model.lora)


def place_among(
    models: Sequence[ModelReference], wanted: ModelReference, folders: Iterable[Path]
) -> int | None:
    """Index of the first that is the wanted one, as it is written or from one of the folders.

    Args:
        models: to look among.
        wanted: its path as MergeKit resolves it, or from a folder.
        folders: tried in this order, after the path as it is written.

    Returns:
        Into ``models``; None if it is none of them.
    """
    spellings = [wanted]
    for parent in folders:
        moved = wanted.model.model_copy(update={"path": str(parent / wanted.model.path)})
        spellings.append(wanted.model_copy(update={"model": moved}))
    keys = [identity(model) for model in models]
    for spelling in spellings:
        if spelling in models:
            return models.index(spelling)
        if (key := identity(spelling)) in keys:
            return keys.index(key)
    return None


def _place(path: ModelPath) -> tuple[str, str]:
    if os.path.exists(path.path):
        return os.path.realpath(path.path), ""
    return path.path, path.revision or "main"
