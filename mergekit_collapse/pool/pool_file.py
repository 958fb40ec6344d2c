"""A pool file: candidates, what is to be chosen from them, and the recipe that it becomes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.recipe import read_yaml
from mergekit_collapse.recipe.schema import CompatBlock
from mergekit_collapse.recipe.text import require_distinct_keys
from mergekit_collapse.recipe.validation import mistakes, parse_compat
from mergekit_collapse.recipe.values import Count, Flag
from mergekit_collapse.recipe.values import Path as ModelPath


def _mapped(value: Any) -> Any:
    """``- ./a`` means ``- model: ./a``."""
    return {"model": value} if isinstance(value, str) else value


def _choose(value: Any) -> Any:
    """``choose: 8`` means ``choose: {count: 8}``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {"count": value} if whole else value


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CandidateKeys(_Keys):
    """One model that may be merged: a folder, a hub id, or ``BASE+ADAPTER``."""

    model: ModelPath
    name: Annotated[str, Field(min_length=1)] | None = None


class ChooseKeys(_Keys):
    """What is wanted. Without ``count``, as many as are inside the budget."""

    count: Annotated[Count, Field(ge=2)] | None = None
    must_have: tuple[ModelPath, ...] = ()
    must_not_have: tuple[ModelPath, ...] = ()
    skip_broken: Flag = False


class PoolKeys(_Keys):
    """The whole file. Keys that are not about choosing go into the recipe as they are."""

    candidates: Annotated[
        tuple[Annotated[CandidateKeys, BeforeValidator(_mapped)], ...], Field(min_length=2)
    ]
    choose: Annotated[ChooseKeys, BeforeValidator(_choose)] = ChooseKeys()
    merge_method: str | None = None
    base_model: ModelPath | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    dtype: str | None = None
    tokenizer_source: str | None = None
    compat: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "PoolKeys":
        names = [c.name for c in self.candidates if c.name is not None]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two candidates have the name {twice[0]!r}; rename one")
        return self


_PARTS: dict[str | int, type[BaseModel]] = {"candidates": CandidateKeys, "choose": ChooseKeys}


@dataclass(frozen=True)
class PoolFile:
    """A pool, valid in itself; no file of a model is opened.

    Attributes:
        path: the YAML file; data files of ``compat`` are relative to its folder, and models, as
            in every recipe, to the working directory.
        text: as written.
        compat: ``keys.compat``, validated.
    """

    path: Path
    text: str
    keys: PoolKeys
    compat: CompatBlock

    @property
    def merge_method(self) -> str:
        """The method of the recipe: task arithmetic where there is a base, else a mean."""
        default = "linear" if self.keys.base_model is None else "task_arithmetic"
        return self.keys.merge_method or default


def read_pool(path: Path, count: int | None = None) -> PoolFile:
    """Read and validate a pool file.

    Args:
        path: the YAML file.
        count: in the place of ``choose.count``.

    Raises:
        InvalidRecipeError: every mistake in one message, each with its path in the YAML.
    """
    document, text = read_yaml(path)
    require_distinct_keys(text, path)
    try:
        keys = PoolKeys.model_validate(document)
    except ValidationError as error:
        lines = "\n".join(mistakes(error, PoolKeys, _PARTS))
        raise InvalidRecipeError(f"{path}: the pool is invalid:\n{lines}") from None
    if count is not None:
        if count < 2:
            raise InvalidRecipeError(f"--count {count}: a merge has at least two experts")
        keys = keys.model_copy(update={"choose": keys.choose.model_copy(update={"count": count})})
    compat = parse_compat(keys.compat)
    chosen = keys.choose
    if chosen.count is None and compat.budget.distortion is None:
        raise InvalidRecipeError(
            f"{path}: choose.count is not given and compat.budget.distortion is null, so nothing "
            "says how many to choose; give one of them a number"
        )
    total = len(keys.candidates)
    if chosen.count is not None and chosen.count > total:
        raise InvalidRecipeError(
            f"{path}: choose.count is {chosen.count}, but there are {total} candidates; "
            "lower it or add some"
        )
    return PoolFile(path, text, keys, compat)
