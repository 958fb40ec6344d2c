"""The record that a gated recipe ends in: every stage's own record, and the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.geometry.geometry import Geometry
from mergekit_collapse.geometry.merging_difficulty import INFINITE, MergingDifficulty
from mergekit_collapse.parameters.conflict import ParameterConflict
from mergekit_collapse.preflight.preflight import Preflight
from mergekit_collapse.probes.probes import ProbeSet
from mergekit_collapse.recipe.coefficients import Coefficients
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.report.remedy import Remedy
from mergekit_collapse.states.estimate import Estimate
from mergekit_collapse.states.memory_use import Used
from mergekit_collapse.stopping import Stop
from mergekit_collapse.verdict import Verdict, concerns

MADE_BEFORE = "the merge was made before"


@dataclass(frozen=True)
class Measurement:
    """All that was measured, in numbers.

    The states behind them are in ``Material``, which lives until the merge was judged.

    Attributes:
        token_digest: of the probes' token ids.
        device, dtype, engine, predictive_reason, cached, estimate: as in ``States``.
        stop: where measuring in rounds stopped; None where there were none.
        used: what running the models and measuring distances took in truth.
    """

    probe_set: ProbeSet
    token_digest: str
    device: str
    dtype: str
    engine: str
    hidden: Geometry
    predictive: Geometry | None
    predictive_reason: str | None
    cached: tuple[str, ...] = ()
    stop: Stop | None = None
    estimate: Estimate | None = None
    used: Used | None = None


@dataclass(frozen=True)
class FollowedPlan:
    """The file of a plan that was followed, and the digest of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Report:
    """One gated recipe, from its YAML to the verdict.

    Attributes:
        measurement: None where nothing is merged, or where it is left to MergeKit.
        versions: of this package and of the libraries that computed the numbers.
        timing: seconds by stage.
        remedy: how ``recipe`` was changed, where it was, or why it was not.
        rehearsal, monitor, evaluation, parameters: of the merged model and of the weights, where
            there were any; each has a reason where not.
        path: of the ``report.json`` that it was written to, if it was.
        geometry_verdict: what the geometry alone decided; None where it is ``verdict``.
        plan: that ``recipe`` comes from, if it does.
    """

    recipe: Recipe
    coefficients: Coefficients | None
    preflight: Preflight | None
    measurement: Measurement | None
    verdict: Verdict
    versions: Mapping[str, str]
    timing: Mapping[str, float]
    remedy: Remedy | None = None
    remedy_reason: str | None = "the recipe was not changed"
    rehearsal: Evaluation | None = None
    rehearsal_reason: str | None = "no rehearsal was due"
    monitor: Evaluation | None = None
    monitor_reason: str | None = "nothing was merged"
    evaluation: Evaluation | None = None
    evaluation_reason: str | None = "nothing was merged"
    parameters: ParameterConflict | None = None
    parameters_reason: str | None = "it was not asked for"
    path: Path | None = None
    geometry_verdict: Verdict | None = None
    plan: FollowedPlan | None = None

    @property
    def gate_verdict(self) -> Verdict:
        """What the gate decided before there was a merged model to look at."""
        own = self.geometry_verdict or self.verdict
        changed = self.remedy is not None and self.remedy.effective is not None
        return Verdict("modified", 0, own.reasons) if changed else own

    @property
    def given_up(self) -> tuple[str, ...]:
        """Names of the experts that the change knowingly left over a limit."""
        left = self.verdict.reasons if self.verdict.decision == "modified" else ()
        names = self.recipe.names
        return tuple(name for name in names if any(concerns(r, [name]) for r in left))

    @property
    def made_before(self) -> bool:
        """Whether the verdict is about a finished merge alone, which no gate let pass."""
        why = {self.monitor_reason, self.rehearsal_reason}
        return self.evaluation is not None and why == {MADE_BEFORE}

    @property
    def deciding(self) -> Geometry | None:
        """The geometry of the space that decides."""
        if self.measurement is None:
            return None
        if self.recipe.compat.budget.space == "predictive":
            return self.measurement.predictive
        return self.measurement.hidden

    @property
    def difficulty(self) -> MergingDifficulty | None:
        """The reading of the Merging Difficulty Score that decides."""
        geometry = self.deciding
        if geometry is None:
            return None
        return geometry.difficulty(self.recipe.compat.budget.similarity)

    def as_warning(self) -> "Report":
        """The same report with a refusal turned into a warning."""
        if self.verdict.decision != "refuse":
            return self
        own = self.geometry_verdict
        if own is not None and own.decision == "refuse":
            own = Verdict("warn", 0, own.reasons)
        verdict = Verdict("warn", 0, self.verdict.reasons)
        return replace(self, verdict=verdict, geometry_verdict=own)


def cell(value: float | None, reason: str | None = None) -> str:
    """A number for a table, to three digits; a dash where it is undefined for another reason."""
    if value is None:
        return "∞" if reason == INFINITE else "-"
    return f"{value:.3g}"
