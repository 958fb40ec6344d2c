"""The preflight: whether a recipe's models can be merged at all, before any weight is read.

Configurations, safetensors headers, indices and tokenizer files are enough for it. MergeKit
finds most of these faults itself, but after the download and often after part of the merge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.common import ModelReference

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.findings import Finding, error, recipe_error, warning
from mergekit_collapse.preflight.merge_rules import check_rules
from mergekit_collapse.preflight.model_differences import check_alone, check_layers, compare
from mergekit_collapse.preflight.model_facts import ModelFacts, read_model, with_adapter
from mergekit_collapse.preflight.tensor_differences import check_optional_tensors, check_tensors
from mergekit_collapse.preflight.tokenizers_agree import (
    SAMPLE_TEXTS,
    check_rows,
    compare_tokenizers,
    load_tokenizer,
)
from mergekit_collapse.recipe.groups import Group


@dataclass(frozen=True)
class PreflightRequest:
    """A recipe, as far as the preflight is concerned.

    Attributes:
        method: ``merge_method``.
        groups: every list of sources, in the order of the YAML.
        references: the experts, in the order of the YAML.
        base: the base model, where it is no expert itself.
        tokenizer_configured: the recipe has ``tokenizer_source`` or ``tokenizer``.
        adapters_can_be_merged: false where MergeKit has no ``--lora-merge-cache``, without
            which it stops at the first LoRA.
        dtype: the recipe's ``dtype``.
        texts: what the tokenizers are compared on.
    """

    method: str
    groups: tuple[Group, ...]
    references: tuple[ModelReference, ...]
    base: ModelReference | None = None
    tokenizer_configured: bool = False
    allow_crimes: bool = False
    unsafe_truncate_embeddings: bool = False
    adapters_can_be_merged: bool = True
    trust_remote_code: bool = False
    cache_dir: str | None = None
    dtype: str | None = None
    texts: tuple[str, ...] = SAMPLE_TEXTS

    @property
    def models(self) -> tuple[ModelReference, ...]:
        """Every model of the recipe once: experts, base, and what stands in a group only."""
        grouped = (r for g in self.groups for r in g.models)
        base = () if self.base is None else (self.base,)
        return tuple(dict.fromkeys((*self.references, *base, *grouped)))


@dataclass(frozen=True)
class Preflight:
    """What the files of a recipe's models say.

    Attributes:
        facts: of every model that could be read, in the order of the request.
        findings: everything found, errors first.
    """

    facts: Mapping[ModelReference, ModelFacts]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that stop the merge."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Differences that the merge survives."""
        return tuple(f for f in self.findings if f.severity == "warning")

    @property
    def tokenizer_model(self) -> ModelReference:
        """The first model that has a tokenizer, which is taken for those that have none."""
        return next(r for r, f in self.facts.items() if f.tokenizer_digest is not None)

    def raise_errors(self) -> None:
        """Raise all errors in one message, if there are any.

        Raises:
            InvalidRecipeError: the recipe itself is wrong, whatever else is.
            EvaluationError: models are unreadable or do not fit one another.
        """
        errors = self.errors
        if not errors:
            return
        message = str(errors[0])
        if len(errors) > 1:
            message = f"{len(errors)} errors:\n" + "\n".join(f"  - {e}" for e in errors)
        if any(e.invalid_recipe for e in errors):
            raise InvalidRecipeError(message)
        raise EvaluationError(message)


def check_models(plan: PreflightRequest) -> Preflight:
    """Check a recipe and its models from small files and headers alone.

    Never raises for a bad model: whatever is wrong becomes a finding, so that one run
    shows all of it.
    """
    rules = check_rules(plan.method, plan.groups, plan.references)
    adapted = [str(reference) for reference in plan.models if reference.lora is not None]
    if adapted and not plan.adapters_can_be_merged:
        message = f"is a LoRA, one of {len(adapted)}, and MergeKit has no folder to merge it in"
        rules = (*rules, recipe_error(adapted[0], message, "give --lora-merge-cache FOLDER"))
    facts, found = _read(plan)
    known = list(facts.values())
    for one in known:
        found += check_alone(one)
    found += compare(
        known,
        allow_crimes=plan.allow_crimes,
        rows_may_differ=plan.tokenizer_configured or plan.unsafe_truncate_embeddings,
        dtype=plan.dtype,
    )
    found += check_layers(plan.groups, facts)
    found += check_tensors(facts)
    if not rules:
        found += check_optional_tensors(plan.method, plan.groups, facts)
    found += _tokenizers(plan, facts)
    # The same base under several adapters is found at fault once for each.
    every = dict.fromkeys((*rules, *found))
    return Preflight(facts, tuple(sorted(every, key=lambda f: f.severity != "error")))


def _read(plan: PreflightRequest) -> tuple[dict[ModelReference, ModelFacts], list[Finding]]:
    facts: dict[ModelReference, ModelFacts] = {}
    found: list[Finding] = []
    bases: dict[ModelReference, ModelFacts] = {}
    for reference in plan.models:
        base = reference.model_copy(update={"lora": None})
        try:
            if base not in bases:
                bases[base] = read_model(
                    base, cache_dir=plan.cache_dir, trust_remote_code=plan.trust_remote_code
                )
            one = bases[base]
            if reference.lora is not None:
                one = with_adapter(one, reference, cache_dir=plan.cache_dir)
            facts[reference] = one
        except EvaluationError as problem:
            message, _, advice = str(problem).rpartition("; ")
            found.append(error(reference, message, advice))
    return facts, found


def _tokenizers(
    plan: PreflightRequest, facts: Mapping[ModelReference, ModelFacts]
) -> list[Finding]:
    """Load one tokenizer of each kind, and compare them."""
    having = [r for r, f in facts.items() if f.tokenizer_digest is not None]
    if not facts:
        return []
    if not having:
        advice = "save a tokenizer beside one of them; text cannot be measured without"
        return [error("tokenizer", "no model of the recipe has one", advice)]
    found = [
        warning(r, "has no tokenizer", f"the one of {having[0]} is taken for it")
        for r in facts
        if r not in having
    ]
    # Adapters share their base's tokenizer, and fine-tunes usually their base's bytes.
    by_digest: dict[str | None, tuple[ModelReference, Any]] = {}
    for reference in having:
        digest = facts[reference].tokenizer_digest
        if digest not in by_digest:
            try:
                tokenizer = load_tokenizer(
                    reference, cache_dir=plan.cache_dir, trust_remote_code=plan.trust_remote_code
                )
            except EvaluationError as problem:
                message, _, advice = str(problem).rpartition("; ")
                found.append(error(reference, message, advice))
                continue
            by_digest[digest] = (reference, tokenizer)
        rows = facts[reference].embedding_rows or facts[reference].vocab_size
        if rows is not None:
            found += check_rows(str(reference), by_digest[digest][1], rows, plan.texts)
    named: Sequence[tuple[str, Any]] = [(str(r), t) for r, t in by_digest.values()]
    return [*found, *compare_tokenizers(named, plan.texts)]
