"""A merged model as tables and charts: layers, own tasks, scores, parameters."""

from dataclasses import dataclass

from markupsafe import Markup

from mergekit_collapse.page.charts import groups_chart, profile_chart
from mergekit_collapse.page.numerals import short, three
from mergekit_collapse.report.stored_evaluation import StoredEvaluation
from mergekit_collapse.report.stored_report import StoredReport

TITLES = {
    "rehearsal": "The rehearsal",
    "monitor": "While it was merged",
    "evaluation": "The merged model",
}
RATIOS = {"variance_ratio": "Variance", "rank_ratio": "Effective rank"}


@dataclass(frozen=True)
class EvaluationView:
    """One evaluation.

    Attributes:
        key: where the document has it.
        title: what the page calls it.
        charts: by caption; empty without charts or layers.
        own: space, task, its owner, distortion, and why that is None; without tasks that are
            no expert's.
        loss_scale: the longest bar of the merging losses, in percent.
        scores, harness: whether there is something to say of merging loss, and of lm-eval: what
            was found, or why it was not where it could have been.
        same_as: title of the evaluation that shows the very tables of layers and of own tasks,
            which are then not shown again; or empty.
    """

    key: str
    title: str
    document: StoredEvaluation
    charts: dict[str, Markup]
    own: tuple[tuple[str, str, int, float | None, str], ...]
    loss_scale: float
    scores: bool
    harness: bool
    same_as: str


def evaluation_view(
    report: StoredReport, key: str, evaluation: StoredEvaluation, *, charts: bool
) -> EvaluationView:
    """Tables of one evaluation; layers as drawings too, where there are charts."""
    same_as = _same_as(report, key, evaluation)
    losses = [t.loss_percent for t in evaluation.tasks if t.loss_percent is not None]
    own = tuple(
        (space, task, one.owner, one.distortion, one.why("distortion"))
        for space, measured in (
            ("hidden", evaluation.hidden),
            ("predictive", evaluation.predictive),
        )
        if measured is not None
        for task, one in measured.own_task.items()
        if one.owner is not None
    )
    drawn = _layer_charts(report, key, evaluation) if charts and evaluation.layers else {}
    # A monitor scores nothing, and lm-eval wants a folder.
    finished = key == "evaluation"
    return EvaluationView(
        key=key,
        title=TITLES[key],
        document=evaluation,
        charts=drawn,
        own=own,
        loss_scale=max([abs(loss) for loss in losses], default=0.0) or 1.0,
        scores=bool(evaluation.tasks) or key != "monitor",
        harness=bool(evaluation.lm_eval) or (finished and _asks_for_lm_eval(report)),
        same_as=same_as,
    )


def _same_as(report: StoredReport, key: str, evaluation: StoredEvaluation) -> str:
    """What was watched is, to the digits that are shown, what was read back."""
    for other, earlier in report.evaluations:
        if other == key:
            break
        if evaluation.layers and _shown(evaluation) == _shown(earlier):
            return TITLES[other]
    return ""


def _shown(evaluation: StoredEvaluation) -> list[object]:
    spaces = (evaluation.hidden, evaluation.predictive)
    own = [
        [(task, one.owner, _digits(one.distortion)) for task, one in space.own_task.items()]
        for space in spaces
        if space is not None
    ]
    layers = [
        (
            layer.layer,
            *map(_digits, layer.distortion),
            *(_digits(getattr(layer, name)) for name in RATIOS),
        )
        for layer in evaluation.layers
    ]
    return [own, layers]


def _digits(value: float | None) -> str | None:
    return None if value is None else three(value)


def _asks_for_lm_eval(report: StoredReport) -> bool:
    found = (report.model_extra or {}).get("evaluate")
    return isinstance(found, dict) and bool(found.get("lm_eval"))


def _layer_charts(
    report: StoredReport, key: str, evaluation: StoredEvaluation
) -> dict[str, Markup]:
    layers = [layer.layer for layer in evaluation.layers]
    names = report.names
    who = ", ".join(f"{i + 1} is {short(name)}" for i, name in enumerate(names))
    distortion = {
        str(i + 1): [
            layer.distortion[i] if layer.distortion else None for layer in evaluation.layers
        ]
        for i in range(len(names))
    }
    caption = "Distortion of every expert, by layer"
    found = {
        caption: profile_chart(
            layers,
            distortion,
            prefix=f"{key}-distortion",
            title=caption,
            description=f"One line for each expert: {who}. The table below has the numbers.",
        )
    }
    for name, what in RATIOS.items():
        values = [getattr(layer, name) for layer in evaluation.layers]
        if any(value is not None for value in values):
            caption = f"{what} of the merged model over the experts' mean, by layer"
            found[caption] = profile_chart(
                layers,
                {"": values},
                prefix=f"{key}-{name.replace('_', '-')}",
                title=caption,
                description="1 is as the experts have it. The table below has the numbers.",
                limits={"": 1.0},
            )
    return found


def expert_profile(report: StoredReport, *, charts: bool) -> Markup | None:
    """Δ² and r² by layer in the deciding space, where several layers were measured."""
    geometry = report.deciding
    if not charts or geometry is None or not geometry.profile:
        return None
    return profile_chart(
        [layer.layer for layer in geometry.profile],
        {
            "Δ²": [layer.diameter_squared for layer in geometry.profile],
            "r²": [layer.ball_radius_squared for layer in geometry.profile],
        },
        prefix="profile",
        title="Spread of the experts, by layer",
        description="Largest squared distance Δ² and ball r². The table below has the numbers.",
    )


def group_drawing(report: StoredReport, *, charts: bool) -> Markup | None:
    """The K curve, with the limit where the ball is what decides."""
    if not charts or not report.groups:
        return None
    budget = report.budget
    ball = budget.rule == "ball" and budget.over == "pooled"
    return groups_chart(
        {point.k: point.worst_ball_radius_squared for point in report.groups},
        budget.distortion if ball else None,
        prefix="groups",
        description=f"K from 1 to {report.groups[-1].k}. The table below has the groups by name.",
    )


def conflict_with_others(report: StoredReport, name: str, expert: int) -> float | None:
    """Mean of a conflict of parameters over the other experts; None where one is undefined."""
    pairs = report.parameters.metrics()[name] if report.parameters is not None else ()
    values = [value for other, value in enumerate(pairs[expert]) if other != expert]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
