"""Tensors of the models of one merge: which are missing somewhere, and whose shapes differ."""

from collections.abc import Iterable, Mapping

from mergekit import merge_methods
from mergekit.architecture import WeightInfo
from mergekit.architecture.conversion import can_convert_checkpoint_keys
from mergekit.common import ModelReference
from mergekit.merge_methods import OptionalTensorPolicy

from mergekit_collapse.findings import Finding, error, shortened, warning
from mergekit_collapse.preflight.model_facts import ModelFacts
from mergekit_collapse.recipe.groups import Group

Shapes = Mapping[str, tuple[int, ...] | None]

# Buffers that older transformers saved and newer ones compute.
_BUFFERS = ("inv_freq", "masked_bias", ".attn.bias", "position_ids", "num_batches_tracked")
# Left out of a file where they are tied to the input embedding.
_TIED = (
    "lm_head.weight",
    "decoder.weight",
    "decoder.bias",
    "embed_tokens.weight",
    "embed_out.weight",
)


def check_tensors(facts: Mapping[ModelReference, ModelFacts]) -> list[Finding]:
    """Missing tensors and mismatched shapes, each model against its definition and the first."""
    seen = [f for f in facts.values() if f.tensors is not None]
    found = [finding for f in seen for finding in _missing_by_definition(f)]
    found += _missing_by_comparison([f for f in seen if f.weights is None])
    for other in seen[1:]:
        if other.architecture == seen[0].architecture:
            found += _shapes(seen[0], other)
    return found


def _missing_by_definition(facts: ModelFacts) -> list[Finding]:
    """What MergeKit's definition asks for and the files lack, or hold besides."""
    shapes = facts.tensors or {}
    if facts.weights is None:
        return []
    required = [w for w in facts.weights if not w.optional and not _holds(shapes, w)]
    lost = [
        w.name
        for w in required
        if not can_convert_checkpoint_keys(facts.model_type, set(shapes), w.name)
    ]
    found = []
    if lost:
        message = (
            f"lacks {len(lost)} of the tensors that MergeKit needs for a {facts.architecture}: "
            f"{shortened(lost)}"
        )
        advice = "save the whole model again; where it is whole, MergeKit cannot merge this kind"
        found.append(error(facts.reference, message, advice))
    known = {n for w in facts.weights for n in (w.name, *(w.aliases or ()), *(w.tied_names or ()))}
    extra = [n for n in shapes if n not in known and not n.endswith(_BUFFERS)]
    # Where tensors are converted their names in the file say nothing.
    if extra and not required:
        message = (
            f"MergeKit leaves {len(extra)} of its tensors out, which are no part of a "
            f"{facts.architecture} to it: {shortened(extra)}"
        )
        found.append(warning(facts.reference, message, "check that the merged model needs none"))
    return found


def _missing_by_comparison(facts: list[ModelFacts]) -> list[Finding]:
    """Names that other models of the same architecture have, where MergeKit has no definition."""
    found = []
    for one in facts:
        others = [f for f in facts if f is not one and f.architecture == one.architecture]
        names = dict.fromkeys(name for f in others for name in f.tensors or ())
        lost = [n for n in names if n not in (one.tensors or {}) and not n.endswith(_BUFFERS)]
        if one.tied_embeddings:
            lost = [name for name in lost if not name.endswith(_TIED)]
        if lost:
            message = f"lacks {len(lost)} tensors that the other models have: {shortened(lost)}"
            found.append(error(one.reference, message, "merge models with the same layers"))
    return found


def check_optional_tensors(
    method: str, groups: Iterable[Group], facts: Mapping[ModelReference, ModelFacts]
) -> list[Finding]:
    """Optional tensors that only some models have: what MergeKit's method does then."""
    found = []
    for group in groups:
        members = {r: facts[r] for r in group.models if r in facts}
        lists = [f.weights for f in members.values()]
        shapes = [f.tensors for f in members.values()]
        # Slices pair layers of different numbers, and unread models say nothing.
        if group.layer_ranges is not None or len(members) < len(group.models) or None in shapes:
            continue
        definition = lists[0] if lists else None
        for weight in definition or ():
            if not weight.optional or any(other != definition for other in lists):
                continue
            having = [r for r, f in members.items() if _holds(f.tensors or {}, weight)]
            if having and len(having) < len(members):
                found.append(_optional(method, group, weight, having, list(members)))
    return found


def _optional(
    method: str,
    group: Group,
    weight: WeightInfo,
    having: list[ModelReference],
    members: list[ModelReference],
) -> Finding:
    lacking = next(r for r in members if r not in having)
    message = f"{weight.name} is in {shortened(having)} but not in {lacking}"
    spec = merge_methods.get(method).spec
    policy, alone = spec.optional_tensor_policy, len(having) == 1
    copied = alone and (
        policy is OptionalTensorPolicy.PASSTHROUGH_SINGLETON
        or (policy is OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON and having[0] == group.base)
    )
    too_few = len(having) < spec.contract.min_inputs
    if not copied and not (policy is OptionalTensorPolicy.BASE_OR_SKIP and too_few):
        try:
            spec.contract.validate_ids(having, group.base)
        except ValueError as problem:
            advice = f"{method} stops there ({problem}); save the models with the same heads"
            return error(group.label, message, advice)
    advice = "it is merged among those that have it, or left out; check that this is meant"
    return warning(group.label, message, advice)


def _shapes(first: ModelFacts, other: ModelFacts) -> list[Finding]:
    if other.hidden_size != first.hidden_size:
        return []  # said already, and then no shape agrees
    one, two = first.tensors or {}, other.tensors or {}
    by_token = {w.name for w in first.weights or () if w.vocabulary_axis is not None}
    rows = first.embedding_rows, other.embedding_rows
    differ = []
    for name, shape in one.items():
        mine = two.get(name)
        if shape is None or mine is None or shape == mine:
            continue
        # A vocabulary of another size is said once, not for every tensor that has it.
        if rows[0] != rows[1] and (name in by_token or (shape[:1], mine[:1]) == _firsts(rows)):
            continue
        differ.append(f"{name} {list(mine)} (there {list(shape)})")
    if not differ:
        return []
    message = f"{len(differ)} tensors differ in shape from {first.reference}: {shortened(differ)}"
    return [error(other.reference, message, "merge models of one size, grown from one base")]


def _firsts(rows: tuple[int | None, int | None]) -> tuple[tuple[int | None], tuple[int | None]]:
    return (rows[0],), (rows[1],)


def _holds(shapes: Shapes, weight: WeightInfo) -> bool:
    names = (weight.name, *(weight.aliases or ()), *(weight.tied_names or ()))
    return any(name in shapes for name in names)
