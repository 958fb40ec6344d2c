"""What MergeKit's merge methods ask of a recipe, whatever the models hold."""

import difflib
from collections.abc import Hashable, Iterable

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.merge_methods import BasePolicy, InputContract

from mergekit_collapse.findings import Finding, recipe_error
from mergekit_collapse.recipe.groups import Group, identity


def check_rules(
    method: str, groups: Iterable[Group], references: Iterable[ModelReference]
) -> tuple[Finding, ...]:
    """Check a recipe as MergeKit does when it plans, and better where it does not.

    Args:
        method: ``merge_method`` of the recipe.
        groups: all lists of sources.
        references: the experts, the bases of task vectors left out.
    """
    known = sorted(m.spec.name for m in merge_methods.registered_methods())
    if method not in known:
        near = difflib.get_close_matches(method.lower().replace("-", "_"), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        advice = f"{hint}MergeKit has {', '.join(known)}"
        return (recipe_error("merge_method", f"there is no method {method!r}", advice),)
    contract = merge_methods.get(method).spec.contract
    groups = tuple(groups)
    found = [finding for group in groups for finding in _group(method, contract, group)]
    experts = {identity(reference) for reference in references}
    several = [g for g in groups if g.layer_ranges is None or len(g.models) > 1]
    # Methods of one input, such as passthrough, merge nothing and so need no second expert.
    if len(experts) < 2 and several and contract.max_inputs != 1 and not found:
        count = "one expert only" if experts or len(several[0].models) == 1 else "no expert"
        besides = ", besides its base" if several[0].base else ""
        message = f"merges {count}{besides}, so there is nothing to compare"
        advice = "add a second expert, or remove the compat block"
        found.append(recipe_error(several[0].label, message, advice))
    return tuple(found)


def _group(method: str, contract: InputContract, group: Group) -> list[Finding]:
    found = _duplicates(group)
    if not found:
        try:
            contract.validate_ids(group.models, group.base)
        except ValueError as problem:
            got = ", ".join(map(str, group.models)) or "none"
            base = f"base_model {group.base}" if group.base else "no base_model"
            found.append(
                recipe_error(
                    group.label,
                    f"{problem}: {method} got {got}, and {base}",
                    f"{method} {_wants(contract)}",
                )
            )
    return found + _ranges(group)


def _duplicates(group: Group) -> list[Finding]:
    seen: dict[Hashable, ModelReference] = {}
    found = []
    for reference in group.models:
        first = seen.setdefault(identity(reference), reference)
        if first is not reference:
            written = "stands twice" if first == reference else f"is the same model as {first}"
            found.append(
                recipe_error(
                    group.label,
                    f"{reference} {written}",
                    "name each model once, in one spelling, with the sum of its weights",
                )
            )
    return found


def _wants(contract: InputContract) -> str:
    """A contract in words."""
    least, most = contract.min_inputs, contract.max_inputs
    what = "the base included"
    if contract.min_non_base is not None:
        least, most, what = contract.min_non_base, contract.max_non_base, "besides the base"
    if least == most:
        count = f"exactly {least}"
    else:
        count = f"at least {least}" if most is None else f"between {least} and {most}"
    models = "model" if count.endswith(" 1") else "models"
    base = {
        BasePolicy.REQUIRED: ", and needs base_model, which in slices must be one of the sources",
        BasePolicy.FORBIDDEN: ", and takes no base_model",
        BasePolicy.OPTIONAL: ", and may have a base_model",
        BasePolicy.IGNORED: "",
    }[contract.base]
    return f"takes {count} {models}, {what}{base}"


def _ranges(group: Group) -> list[Finding]:
    ranges = group.layer_ranges or ()
    advice = "write layer_range: [first, end], the end not included, of equal length in one slice"
    for reference, (start, end) in zip(group.models, ranges, strict=False):
        if start < 0 or end <= start:
            message = f"layer_range [{start}, {end}] of {reference} holds no layer"
            return [recipe_error(group.label, message, advice)]
    lengths = sorted({end - start for start, end in ranges})
    if len(lengths) > 1:
        message = f"its sources have {' and '.join(map(str, lengths))} layers"
        return [recipe_error(group.label, message, advice)]
    return []
