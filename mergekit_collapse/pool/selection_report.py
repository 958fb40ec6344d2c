"""What was chosen from a pool, and why, as text and as a JSON document."""

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from mergekit_collapse.errors import MergeRefusedError
from mergekit_collapse.findings import printable
from mergekit_collapse.pool.chosen_text import recipe_text
from mergekit_collapse.pool.selection import Selection
from mergekit_collapse.report.evaluation_document import verdict_document
from mergekit_collapse.report.geometry_document import defined
from mergekit_collapse.report.report import cell

FORMAT_VERSION = 1
ALL_REQUIRED = "every member is in must_have, so none can make room"
_NO_NUMBER = "the number of members was given"
_MEMBERS_ONLY = "it was not chosen"
# 0 is the same, 2 unrelated.
_TWINS = 0.01
_SHOWN = 3


def selection_text(selection: Selection) -> str:
    """A table of all candidates, best first, and the verdict on the chosen ones."""
    return "\n".join([*_head(selection), *_table(selection), *_ending(selection)])


def selection_document(selection: Selection) -> dict[str, Any]:
    """Plain data for JSON: an undefined number is null beside its ``…_reason``.

    ``budget`` is what the chosen ones were judged by, ``pool_budget`` what they were sought by.
    """
    choice, geometry = selection.choice, selection.geometry
    names = selection.candidates.recipe.names
    return {
        "format_version": FORMAT_VERSION,
        "pool": str(selection.pool.path),
        "verdict": verdict_document(selection.verdict),
        "budget": selection.recipe.compat.budget.model_dump(),
        "pool_budget": selection.pool.compat.budget.model_dump(),
        "space": geometry.space,
        "layers": list(geometry.layers),
        "candidates": [_candidate(selection, index) for index in range(len(names))],
        "left_out": [
            {"model": str(model), "reason": why}
            for model, why in selection.candidates.broken.items()
        ],
        "warnings": [
            {"subject": f.subject, "message": f.message, "advice": f.advice}
            for f in selection.candidates.preflight.warnings
        ],
        "squared_distance": selection.states.squared.tolist(),
        "chosen": {
            "members": [names[i] for i in choice.members],
            "count": len(choice.members),
            "pool_ball_radius_squared": choice.radius_squared,
            "pool_lower_bound": choice.lower_bound,
            "gap": choice.gap,
            "method": "exact" if choice.exact else "search",
            "looked_at": choice.looked_at,
            **defined("largest", choice.largest, _NO_NUMBER),
            "ball_radius_squared": geometry.ball.radius_squared,
            "diameter_squared": geometry.bounds.diameter_squared,
            "center": geometry.ball.weights.tolist(),
            **defined(
                "predicted_distortion",
                list(geometry.predicted) if geometry.predicted is not None else None,
                geometry.predicted_reason,
            ),
        },
        "tried": [
            {"count": count, "verdict": verdict_document(verdict)}
            for count, verdict in selection.tried
        ],
        "probes": {
            "digest": selection.states.probes.digest,
            "tasks": [task.name for task in selection.states.probe_set.tasks],
            "rows": len(selection.states.probes.probes),
        },
        "forward": {"device": selection.states.device, "dtype": selection.states.dtype},
        "seconds": round(selection.seconds, 3),
        "recipe": recipe_text(selection),
    }


def selection_json(selection: Selection) -> str:
    """The document as text. NaN and infinity are no JSON, and raise."""
    document = selection_document(selection)
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _candidate(selection: Selection, index: int) -> dict[str, Any]:
    recipe, score = selection.candidates.recipe, selection.scores[index]
    chosen = index in selection.choice.members
    return {
        "name": recipe.names[index],
        "model": str(recipe.experts[index]),
        "chosen": chosen,
        "why": _why(selection, index),
        **defined("score", score.score, ALL_REQUIRED),
        **defined("swapped_radius_squared", score.swapped, ALL_REQUIRED),
        "added_radius_squared": score.added,
        **defined("removed_radius_squared", score.removed, _MEMBERS_ONLY),
    }


def _why(selection: Selection, index: int) -> str:
    candidates, score = selection.candidates, selection.scores[index]
    if index in candidates.required:
        return "must_have"
    if index in candidates.excluded:
        return "must_not_have"
    if index in selection.choice.members:
        return "chosen"
    if score.swapped is None:
        return ALL_REQUIRED
    if score.score is not None and score.score >= 1:
        return "would do as well in place of a member"
    return f"the ball would grow to {score.swapped:.3g} with it in place of a member"


def _head(selection: Selection) -> Iterator[str]:
    choice, geometry = selection.choice, selection.geometry
    total = len(selection.scores)
    yield (
        f"{len(choice.members)} of {total} candidates chosen; {geometry.space} space, "
        f"pooling {geometry.pooling}, scale {geometry.scale}, "
        f"{len(selection.states.probes.probes)} probes"
    )
    for finding in selection.candidates.preflight.warnings:
        yield f"  warning: {printable(str(finding))}"
    for model, why in selection.candidates.broken.items():
        yield f"  left out: {printable(str(model))}: {printable(why)}"
    how = "the best set of its size (proven)"
    if not choice.exact:
        how = f"found by search: another set of its size could save at most {choice.gap:.1%} of r²"
    yield f"  {how}; {choice.looked_at:,} partial sets looked at"
    if choice.largest is not None:
        known = "no larger one is" if choice.largest else "none larger was found that is"
        yield f"  the largest set inside the budget: {known}"


def _table(selection: Selection) -> Iterator[str]:
    """Chosen first, then by score: what the ball would be with the candidate, over what it is."""
    names = [printable(name) for name in selection.candidates.recipe.names]
    scores, members = selection.scores, selection.choice.members
    width = max(len("candidate"), *map(len, names))
    yield ""
    yield f"  {'candidate':<{width}}  {'':<6} {'score':>6} {'added':>7}  why"

    def rank(index: int) -> tuple[bool, float, float]:
        return index not in members, -(scores[index].score or 0.0), scores[index].added

    for index in sorted(range(len(names)), key=rank):
        score = scores[index]
        mark = "chosen" if index in members else ""
        yield (
            f"  {names[index]:<{width}}  {mark:<6} {cell(score.score):>6} {cell(score.added):>7}  "
            f"{_why(selection, index)}"
        )
    yield "  score: r² of the chosen set over r² with the candidate in place of a member (1 best)"
    yield "  added: r² of the chosen set with the candidate besides"
    yield from _twins(selection)


def _twins(selection: Selection) -> Iterator[str]:
    """Near copies merge best of all, and are seldom what is wanted."""
    names, squared = selection.recipe.names, selection.geometry.squared
    pairs = combinations(range(len(names)), 2)
    found = sorted((float(squared[i, j]), i, j) for i, j in pairs if squared[i, j] < _TWINS)
    for value, i, j in found[:_SHOWN]:
        yield (
            f"  note: {printable(names[i])} and {printable(names[j])} are nearly the same model "
            f"(D² {value:.2g}); name one in must_not_have to give its place to another"
        )
    if len(found) > _SHOWN:
        yield f"  note: and {len(found) - _SHOWN} more pairs of near copies"


def _ending(selection: Selection) -> Iterator[str]:
    geometry, verdict = selection.geometry, selection.verdict
    ball = geometry.ball.radius_squared
    yield ""
    yield from _other_limit(selection)
    if verdict.decision == "allow":
        yield f"ALLOWED: as a recipe of their own, their ball r² is {ball:.3g}."
        return
    refused = verdict.exit_code == MergeRefusedError.exit_code
    yield "REFUSED: the best that was found is over budget" if refused else "WARNING, over budget"
    yield from (f"  - {printable(str(reason))}" for reason in verdict.reasons)


def _other_limit(selection: Selection) -> Iterator[str]:
    """The default limit depends on tasks, which may be those of candidates that were left out."""
    sought = selection.pool.compat.budget.distortion
    judged = selection.recipe.compat.budget.distortion
    if sought != judged:
        assert sought is not None
        assert judged is not None
        yield (
            "  note: the chosen were sought by the default limit of a block with tasks, "
            f"distortion {sought:g}; none of them has one, so that theirs is {judged:g}"
        )
