"""What a change did to each expert and to the distortion that decides."""

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.judging import deciding_distortion
from mergekit_collapse.repair.change import deciding
from mergekit_collapse.report.remedy import RemedyMember
from mergekit_collapse.report.report import Report


def members_of(before: Report, after: Report) -> tuple[RemedyMember, ...]:
    """Every expert by its name: those of the recipe before, then those that joined."""
    was, now = _per_expert(before), _per_expert(after)
    members = []
    for name, (weight, predicted) in was.items():
        weight_after, predicted_after = now.get(name, (None, None))
        left = name not in now
        members.append(RemedyMember(name, weight, weight_after, predicted, predicted_after, left))
    for name, (weight, predicted) in now.items():
        if name not in was:
            members.append(RemedyMember(name, None, weight, None, predicted, False, joined=True))
    return tuple(members)


def _per_expert(report: Report) -> dict[str, tuple[float | None, float | None]]:
    """Weight and prediction of each expert by its name."""
    names, geometry = report.recipe.names, deciding(report)
    none = (None,) * len(names)
    weights = none if report.coefficients is None else report.coefficients.weights
    rows = zip(weights, geometry.predicted or none, strict=True)
    return dict(zip(names, rows, strict=True))


def reading_of(report: Report) -> float | None:
    """The distortion that a limit is about; None where there is no limit, or no reading."""
    budget = report.recipe.compat.budget
    if budget.distortion is None:
        return None
    try:
        return deciding_distortion(deciding(report), budget, report.recipe.names)
    except EvaluationError:
        return None
