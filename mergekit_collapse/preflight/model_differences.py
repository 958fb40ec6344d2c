"""Models of one merge against one another: what cannot be merged, and what merges survive."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergekit.common import ModelReference

from mergekit_collapse.findings import Finding, error, recipe_error, shortened, warning
from mergekit_collapse.preflight.adapter_files import misfits
from mergekit_collapse.preflight.model_facts import ModelFacts
from mergekit_collapse.recipe.groups import Group

_SIZES = {
    "hidden_size": "hidden size",
    "heads": "attention heads",
    "kv_heads": "key/value heads",
    "intermediate_size": "intermediate size",
}
_QUANTISED_DTYPES = ("I8", "U8", "F8", "I4", "U4", "F4")


def check_alone(facts: ModelFacts) -> list[Finding]:
    """What is wrong with a model by itself: quantised, an inconsistent size, a misfit adapter."""
    found = []
    packed = facts.quantization
    if packed is None and facts.dtypes and facts.dtypes[0].startswith(_QUANTISED_DTYPES):
        packed = facts.dtypes[0]
    if packed is not None:
        found.append(
            error(
                facts.reference,
                f"is quantised ({packed}), and quantised weights cannot be averaged",
                "take the original model, or save a dequantised copy",
            )
        )
    rows, said = facts.embedding_rows, facts.vocab_size
    # Padded vocabularies say so under a name of their own.
    padded = "padded_vocab_size" in facts.settings
    if rows is not None and said is not None and rows != said and not padded:
        found.append(
            error(
                facts.reference,
                f"config.json says vocab_size {said:,}, but the embedding has {rows:,} rows",
                "correct config.json, or save the model again after resize_token_embeddings",
            )
        )
    return found + _adapter(facts)


def _adapter(facts: ModelFacts) -> list[Finding]:
    adapter = facts.adapter
    if adapter is None:
        return []
    base = facts.reference.partition("+")[0]
    if wrong := misfits(adapter, facts.tensors) if facts.tensors is not None else ():
        return [
            error(
                facts.reference,
                f"the adapter does not fit its base: {shortened(wrong)}; it was trained on "
                f"{adapter.declared_base or 'a model that it does not name'}",
                "write it behind the model it was trained on",
            )
        ]
    declared, called = adapter.declared_base, {base, base.partition("@")[0], *facts.also_called}
    if not declared or declared in called:
        return []
    if os.path.realpath(declared) in {os.path.realpath(name) for name in called}:
        return []
    message = f"the adapter was trained on {declared}, and its shapes fit {base}"
    return [warning(facts.reference, message, "make sure that the two are the same model")]


def compare(
    facts: Sequence[ModelFacts],
    *,
    allow_crimes: bool = False,
    rows_may_differ: bool = False,
    dtype: str | None = None,
) -> list[Finding]:
    """Compare every model with the first.

    Args:
        facts: in the order of the recipe.
        allow_crimes: MergeKit's option; other architectures are then a warning.
        rows_may_differ: MergeKit will bring vocabularies to one size.
        dtype: the recipe's; where given, differing dtypes are converted and no matter.
    """
    found: list[Finding] = []
    for other in facts[1:]:
        found += _compare_two(facts[0], other, allow_crimes, rows_may_differ, dtype)
    return found


def _compare_two(
    first: ModelFacts,
    other: ModelFacts,
    allow_crimes: bool,
    rows_may_differ: bool,
    dtype: str | None,
) -> list[Finding]:
    def against(what: str, mine: Any, theirs: Any) -> str:
        return f"{what} is {_brief(mine)}, but {_brief(theirs)} in {first.reference}"

    found = []
    name = other.reference
    if other.architecture != first.architecture:
        kind = warning if allow_crimes else error
        message = against("the architecture", other.architecture, first.architecture)
        found.append(kind(name, message, "merge models of one architecture"))
    for key, what in _SIZES.items():
        mine, theirs = getattr(other, key), getattr(first, key)
        if mine != theirs:
            message = against(what, mine, theirs)
            found.append(error(name, message, "merge models of one size, grown from one base"))
    mine, theirs = other.embedding_rows, first.embedding_rows
    if mine != theirs and None not in (mine, theirs):
        kind = warning if rows_may_differ else error
        advice = "set tokenizer_source in the recipe, which aligns vocabularies token by token"
        found.append(kind(name, against("embedding rows", mine, theirs), advice))
    if other.tied_embeddings != first.tied_embeddings:
        message = against("tie_word_embeddings", other.tied_embeddings, first.tied_embeddings)
        advice = "check that the merged model ties as it should; it takes the base's setting"
        found.append(warning(name, message, advice))
    mine, theirs = other.dtypes[:1], first.dtypes[:1]
    if dtype is None and mine and theirs and mine != theirs:
        message = against("the dtype", mine[0], theirs[0])
        found.append(warning(name, message, "set dtype in the recipe to choose one"))
    if other.architecture == first.architecture:
        # A key that only one has comes from another version of transformers, as a rule.
        keys = [k for k in first.settings if k in other.settings]
        differ = [k for k in keys if first.settings[k] != other.settings[k]]
        if differ:
            lines = (f"{k} {_brief(other.settings[k])}" for k in differ)
            theirs = (_brief(first.settings[k]) for k in differ)
            pairs = [f"{a} (there {b})" for a, b in zip(lines, theirs, strict=True)]
            message = f"config.json differs from {first.reference}'s: {shortened(pairs)}"
            advice = "these change what a model computes; the merge takes the base's values"
            found.append(warning(name, message, advice))
    if other.chat_template and first.chat_template and other.chat_template != first.chat_template:
        message = f"its chat template differs from {first.reference}'s"
        found.append(warning(name, message, "set chat_template in the recipe to choose one"))
    return found


def check_layers(
    groups: Iterable[Group], facts: Mapping[ModelReference, ModelFacts]
) -> list[Finding]:
    """Layer counts: equal where whole models are merged, and no range past a model's end."""
    found = []
    for group in groups:
        known = [r for r in group.models if r in facts and _layers(facts[r], group.label)]
        counts = {reference: _layers(facts[reference], group.label) for reference in known}
        for index, reference in enumerate(group.models):
            if group.layer_ranges is None or reference not in counts:
                continue
            start, end = group.layer_ranges[index]
            if end > (counts[reference] or 0):
                message = f"layer_range [{start}, {end}] goes past the {counts[reference]} layers"
                advice = f"end it at {counts[reference]} at most"
                found.append(recipe_error(group.label, f"{message} of {reference}", advice))
        if group.layer_ranges is None:
            for reference in known[1:]:
                if counts[reference] != counts[known[0]]:
                    message = f"has {counts[reference]} layers, but {known[0]} {counts[known[0]]}"
                    advice = "choose layers by slices, or merge models of one depth"
                    found.append(error(reference, message, advice))
    return found


def _layers(facts: ModelFacts, label: str) -> int | None:
    """Layers of the module that a list of the recipe is about."""
    inside = label.removeprefix("modules.")
    for module, count in facts.layers_by_module.items():
        if inside != label and inside.startswith(f"{module}."):
            return count
    return facts.layers


def _brief(value: object) -> str:
    text = f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
