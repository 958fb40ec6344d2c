"""A MergeKit recipe as the gate sees it: which models are merged, in the order of the YAML."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mergekit import merge_methods
from mergekit.common import ModelReference, dtype_from_name
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import BasePolicy

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.groups import Group, all_groups, place_among
from mergekit_collapse.recipe.schema import CompatBlock, TaskBlock
from mergekit_collapse.recipe.text import FIELD, lost_block, read_text, require_distinct_keys
from mergekit_collapse.recipe.validation import parse_compat

# These interpolate from the base to the other model: their base is merged, not subtracted.
_BASE_IS_MERGED = frozenset({"slerp", "nearswap", "arcee_fusion"})


@dataclass(frozen=True)
class Recipe:
    """A recipe with a ``compat:`` block, resolved but with no file of a model opened.

    Attributes:
        path: the YAML file, where known.
        folder: what paths in the block are relative to.
        source: the YAML text, as written where known, else as MergeKit prints it.
        config: MergeKit's own record of it.
        groups: every list of sources, one-source slices included.
        experts: each model whose tensors the method merges, once, in the order of the YAML.
        names: a short unique name for each expert.
        base: the model that task vectors are taken from, where it is no expert itself.
        owners: per task of the block, the index of the expert it belongs to, or None.
        merges: the folder in which mergekit-multi puts earlier merges, where it runs.
    """

    path: Path | None
    folder: Path
    source: str
    config: MergeConfiguration
    compat: CompatBlock
    groups: tuple[Group, ...]
    experts: tuple[ModelReference, ...]
    names: tuple[str, ...]
    base: ModelReference | None
    owners: tuple[int | None, ...]
    merges: Path | None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where an expert may lie that the block names by its model: see ``expert_named``."""
        return _folders(self.folder, self.merges)

    @property
    def sha256(self) -> str:
        """Digest of the YAML text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def merges_nothing(self) -> bool:
        """True where every list has one source, as in a stack of slices."""
        return all(len(group.sources) == 1 for group in self.groups)

    @property
    def models(self) -> tuple[ModelReference, ...]:
        """The experts, then the base if there is one: the order of every matrix."""
        return self.experts if self.base is None else (*self.experts, self.base)

    @property
    def model_names(self) -> tuple[str, ...]:
        """A name for each of ``models``."""
        return self.names if self.base is None else (*self.names, "base")


def read_yaml(path: Path) -> tuple[dict[str, Any], str]:
    """The mapping in a YAML file, and its text.

    Raises:
        InvalidRecipeError: unreadable, not UTF-8, not YAML, or not one mapping.
    """
    text = read_text(path)
    return _mapping(text, path), text


def _mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidRecipeError(f"{path}: not valid YAML: {error}") from None
    if len(documents) > 1:
        raise InvalidRecipeError(
            f"{path}: holds {len(documents)} documents, a mergekit-multi file, whose later merges "
            "need the earlier ones; run mergekit-multi, which gates each of them"
        )
    if not documents or not isinstance(documents[0], dict):
        raise InvalidRecipeError(
            f"{path}: a MergeKit recipe is a mapping of keys such as merge_method"
        )
    return documents[0]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file; one without a ``compat:`` block gets the default block.

    Raises:
        InvalidRecipeError: the file, the recipe or its block is wrong.
    """
    return parse_recipe(read_text(path), path)


def parse_recipe(text: str, path: Path, folder: Path | None = None) -> Recipe:
    """The recipe in a text, as ``read_recipe`` would read it.

    Args:
        path: the file that it is of, which is not opened.
        folder: what paths in the block are relative to; by default that of the file.

    Raises:
        InvalidRecipeError: the recipe or its block is wrong.
    """
    raw = _mapping(text, path)
    if (lost := lost_block(raw)) is not None:
        raise InvalidRecipeError(f"{path}: {lost}")
    compat = raw.pop(FIELD, {})
    try:
        config = MergeConfiguration.model_validate(raw)
    # MergeKit's validators raise RuntimeError, pydantic's ValidationError is a ValueError.
    except (ValueError, RuntimeError, TypeError) as error:
        raise InvalidRecipeError(f"{path}: MergeKit does not accept this recipe: {error}") from None
    return build_recipe(config, compat, source=text, path=path, folder=folder)


def build_recipe(
    config: MergeConfiguration,
    compat: Any,
    *,
    source: str | None = None,
    path: Path | None = None,
    merges: Path | None = None,
    folder: Path | None = None,
) -> Recipe:
    """Resolve experts, base and the owners of tasks.

    Args:
        config: MergeKit's record; it is copied, since MergeKit's planner rewrites it.
        compat: the value of the ``compat`` key, not validated yet.
        source: the YAML text, where known.
        path: the YAML file, where known.
        merges: the folder in which mergekit-multi puts earlier merges, where it runs.
        folder: what paths in the block are relative to; by default the file's, else the working
            directory.

    Raises:
        InvalidRecipeError: the block is invalid, or a task names a model that is not merged.
    """
    config = config.model_copy(deep=True)
    if (text := source if source is not None else _text(path)) is not None:
        require_distinct_keys(text, path or "recipe")
    block = parse_compat(compat)
    _require_known_dtypes(config)
    groups = tuple(all_groups(config))
    experts = _experts(config.merge_method, groups)
    bases = [g.base for g in groups if len(g.sources) > 1 and g.base not in (None, *experts)]
    if folder is None:
        folder = path.resolve().parent if path is not None else Path.cwd()
    return Recipe(
        path=path,
        folder=folder,
        source=source if source is not None else config.to_yaml(),
        config=config,
        compat=block,
        groups=groups,
        experts=experts,
        names=short_names(experts),
        base=bases[0] if bases else None,
        owners=tuple(
            _owner(i, t, experts, _folders(folder, merges))
            for i, t in enumerate(block.probes.tasks)
        ),
        merges=merges,
    )


def _text(path: Path | None) -> str | None:
    """Of the file that mergekit-multi read its documents from."""
    try:
        return path.read_text(encoding="utf-8") if path is not None else None
    except (OSError, UnicodeError):
        return None


def _require_known_dtypes(config: MergeConfiguration) -> None:
    """MergeKit looks only when it has merged the first tensor."""
    for key in ("dtype", "out_dtype"):
        if (name := getattr(config, key)) is not None:
            try:
                dtype_from_name(name)
            except RuntimeError:
                raise InvalidRecipeError(
                    f"{key}: MergeKit has no {name!r}; write float32, float16 or bfloat16"
                ) from None


def _experts(method: str, groups: tuple[Group, ...]) -> tuple[ModelReference, ...]:
    """Every source that is merged with another, without the bases of task vectors."""
    try:
        policy = merge_methods.get(method).spec.contract.base
    except RuntimeError:
        policy = BasePolicy.IGNORED  # preflight says what is wrong with the method
    base_is_merged = policy is BasePolicy.IGNORED or method in _BASE_IS_MERGED
    found: dict[ModelReference, None] = {}
    for group in groups:
        if len(group.sources) > 1:
            for source in group.sources:
                if base_is_merged or source.model != group.base:
                    found.setdefault(source.model)
    return tuple(found)


def short_names(models: tuple[ModelReference, ...]) -> tuple[str, ...]:
    """The last part of each path, and as many parts more as tell the experts apart."""
    paths = [(m.lora or m.model).path.replace("\\", "/").rstrip("/").split("/") for m in models]
    for length in range(1, max((len(p) for p in paths), default=0) + 1):
        names = ["/".join(p[-length:]) for p in paths]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(str(m) for m in models)


def expert_named(
    text: str, experts: Sequence[ModelReference], folders: Sequence[Path]
) -> int | None:
    """Index of the expert whose model a key of the block names; None if it is none of them.

    Args:
        text: a model as MergeKit reads it, or its way from one of the folders.
        experts: of the recipe.
        folders: the recipe's own, then that of earlier merges of mergekit-multi.

    Raises:
        ValueError, RuntimeError: the text is no model reference.
    """
    return place_among(experts, ModelReference.parse(text), folders)


def _folders(folder: Path, merges: Path | None) -> tuple[Path, ...]:
    return (folder,) if merges is None else (folder, merges)


def _owner(
    index: int, task: TaskBlock, experts: tuple[ModelReference, ...], folders: Sequence[Path]
) -> int | None:
    if task.model is None:
        return None
    where = f"compat.probes.tasks[{index}].model"
    try:
        found = expert_named(task.model, experts, folders)
    except (ValueError, RuntimeError) as error:
        raise InvalidRecipeError(
            f"{where}: {task.model!r} is no model reference: {error}"
        ) from None
    if found is not None:
        return found
    raise InvalidRecipeError(
        f"{where}: {task.model} is not merged by this recipe; "
        f"its experts are {', '.join(str(m) for m in experts)}"
    )
