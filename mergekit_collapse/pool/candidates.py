"""The candidates of a pool, found and fit to be merged with one another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mergekit.common import ModelReference
from mergekit.options import MergeOptions

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.findings import Finding, printable
from mergekit_collapse.pool.pool_file import PoolFile
from mergekit_collapse.pool.pool_models import (
    configuration,
    indices_of,
    names_of,
    pool_recipe,
    references_of,
)
from mergekit_collapse.preflight.merge_rules import check_rules
from mergekit_collapse.preflight.preflight import Preflight, PreflightRequest, check_models
from mergekit_collapse.recipe.recipe import Recipe, build_recipe

Broken = Mapping[ModelReference, str]


@dataclass(frozen=True)
class Candidates:
    """Candidates that can be measured together, as a recipe that merges them all.

    Attributes:
        recipe: every usable candidate, in the order of the pool, and the base.
        preflight: of these models.
        required, excluded: indices of ``recipe.experts``.
        broken: candidates that were left out, and why.
    """

    recipe: Recipe
    preflight: Preflight
    required: tuple[int, ...]
    excluded: tuple[int, ...]
    broken: Broken


def find_candidates(pool: PoolFile, options: MergeOptions) -> Candidates:
    """Resolve the pool, and check its models as a merge of them all would be checked.

    A candidate that is missing, unreadable or of another kind than the base (without a base,
    than most others) is broken: an error, or left out under ``skip_broken``.

    Raises:
        InvalidRecipeError: the pool names a model twice, requires what it excludes or does not
            have, or candidates are broken; every broken one is named.
    """
    references = references_of(pool)
    names = names_of(pool, references)
    _require_method(pool, references)
    wanted = pool.keys.choose
    required = indices_of(pool, "must_have", wanted.must_have, references, names)
    excluded = indices_of(pool, "must_not_have", wanted.must_not_have, references, names)
    _require_possible(pool, required, excluded, names)
    broken = _broken(pool, references, options)
    if broken and not wanted.skip_broken:
        lines = "\n".join(f"  - {why}" for why in broken.values())
        raise InvalidRecipeError(
            f"{pool.path}: {len(broken)} of {len(references)} candidates cannot be merged with "
            f"the rest:\n{lines}\nmend or remove them, or set choose.skip_broken: true"
        )
    for index in required:
        if references[index] in broken:
            raise InvalidRecipeError(
                f"{pool.path}: must_have: {names[index]} cannot be merged with the rest: "
                f"{broken[references[index]]}"
            )
    usable = [i for i, reference in enumerate(references) if reference not in broken]
    _require_enough(pool, len(usable), len([i for i in excluded if i in usable]), len(broken))
    recipe = pool_recipe(pool, [references[i] for i in usable])
    recipe = replace(recipe, names=tuple(names[i] for i in usable))
    preflight = check_models(_request(recipe, options))
    if preflight.errors:  # what is about no candidate, such as a tokenizer that none has
        raise InvalidRecipeError(f"{pool.path}: " + "\n".join(map(str, preflight.errors)))
    place = {old: new for new, old in enumerate(usable)}
    return Candidates(
        recipe,
        preflight,
        tuple(place[i] for i in required),
        tuple(place[i] for i in excluded if i in place),
        broken,
    )


def _require_possible(
    pool: PoolFile, required: Sequence[int], excluded: Sequence[int], names: Sequence[str]
) -> None:
    if both := [names[i] for i in required if i in excluded]:
        raise InvalidRecipeError(
            f"{pool.path}: choose: {both[0]} is in must_have and in must_not_have; "
            "remove it from one"
        )
    count = pool.keys.choose.count
    if count is not None and len(required) > count:
        raise InvalidRecipeError(
            f"{pool.path}: choose: must_have names {len(required)} candidates, "
            f"but count is {count}; raise it or require fewer"
        )


def _require_enough(pool: PoolFile, usable: int, excluded: int, broken: int) -> None:
    need, left = pool.keys.choose.count or 2, usable - excluded
    if left < need:
        raise InvalidRecipeError(
            f"{pool.path}: {need} are to be chosen, but of {usable + broken} candidates {left} are "
            f"left: {broken} cannot be merged, {excluded} are in must_not_have; "
            "lower choose.count or add candidates"
        )


def _require_method(pool: PoolFile, references: Sequence[ModelReference]) -> None:
    """Said before anything is measured: a method that the choice could not be merged by."""
    wanted = pool.keys.choose
    some = references[: wanted.count or max(2, len(wanted.must_have))]
    keys = pool.keys
    raw = {
        "merge_method": pool.merge_method,
        "models": [{"model": str(r)} for r in some],
        "base_model": keys.base_model,
        "parameters": keys.parameters or None,
        "dtype": keys.dtype,
    }
    recipe = build_recipe(configuration(pool, raw), {"cache": False}, source="")
    if found := check_rules(pool.merge_method, recipe.groups, recipe.experts):
        raise InvalidRecipeError(f"{pool.path}: {found[0]}")


def _broken(
    pool: PoolFile, references: Sequence[ModelReference], options: MergeOptions
) -> dict[ModelReference, str]:
    found = _faults(pool, references, options)
    if pool.keys.base_model is None and 2 * len(found) > len(references):
        # More likely, the one that all the others were compared with is the odd one out.
        odd = next((r for r in references if r not in found), references[0])
        turned = [*(r for r in references if r != odd), odd]
        again = _faults(pool, turned, options)
        if len(again) < len(found):
            found = {r: again[r] for r in references if r in again}
    return found


def _faults(
    pool: PoolFile, references: Sequence[ModelReference], options: MergeOptions
) -> dict[ModelReference, str]:
    recipe = pool_recipe(pool, references, base_first=True)
    by_name = {printable(str(reference)): reference for reference in references}
    found: dict[ModelReference, str] = {}
    for fault in check_models(_request(recipe, options)).errors:
        if recipe.base is not None and fault.subject == printable(str(recipe.base)):
            raise InvalidRecipeError(f"{pool.path}: base_model: {_told(fault)}")
        if (reference := by_name.get(fault.subject)) is not None:
            found.setdefault(reference, _told(fault))
    return {r: found[r] for r in references if r in found}


def _told(fault: Finding) -> str:
    """A message that begins with the model already need not name it twice."""
    return fault.message if fault.message.startswith(fault.subject) else str(fault)


def _request(recipe: Recipe, options: MergeOptions) -> PreflightRequest:
    config = recipe.config
    return PreflightRequest(
        method=config.merge_method,
        groups=recipe.groups,
        # The first of these is what all the others are compared with.
        references=recipe.experts if recipe.base is None else (recipe.base, *recipe.experts),
        base=recipe.base,
        tokenizer_configured=config.tokenizer_source is not None,
        allow_crimes=options.allow_crimes,
        unsafe_truncate_embeddings=options.unsafe_truncate_embeddings,
        dtype=config.dtype,
        cache_dir=options.transformers_cache,
        trust_remote_code=options.trust_remote_code,
    )
