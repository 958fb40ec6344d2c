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
from mergekit_collapse.verdict import Verdict


@dataclass(frozen=True)
class Measurement:
    """All that was measured, without the states themselves: a merge follows, and they are large.

    Attributes:
        token_digest: of the probes' token ids.
        device, dtype, engine, predictive_reason: as in ``States``.
    """

    probe_set: ProbeSet
    token_digest: str
    device: str
    dtype: str
    engine: str
    hidden: Geometry
    predictive: Geometry | None
    predictive_reason: str | None


@dataclass(frozen=True)
class Report:
    """One gated recipe, from its YAML to the verdict.

    Attributes:
        measurement: None where nothing is merged, or where it is left to MergeKit.
        versions: of this package and of the libraries that computed the numbers.
        timing: seconds by stage.
        rehearsal, monitor, evaluation, parameters: of the merged model and of the weights, where
            there were any; each has a reason where not.
        path: of the ``report.json`` that it was written to, if it was.
    """

    recipe: Recipe
    coefficients: Coefficients | None
    preflight: Preflight | None
    measurement: Measurement | None
    verdict: Verdict
    versions: Mapping[str, str]
    timing: Mapping[str, float]
    rehearsal: Evaluation | None = None
    rehearsal_reason: str | None = "no rehearsal was due"
    monitor: Evaluation | None = None
    monitor_reason: str | None = "nothing was merged"
    evaluation: Evaluation | None = None
    evaluation_reason: str | None = "nothing was merged"
    parameters: ParameterConflict | None = None
    parameters_reason: str | None = "it was not asked for"
    path: Path | None = None

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
        return replace(self, verdict=Verdict("warn", 0, self.verdict.reasons))


def cell(value: float | None, reason: str | None = None) -> str:
    """A number for a table, to three digits; a dash where it is undefined for another reason."""
    if value is None:
        return "∞" if reason == INFINITE else "-"
    return f"{value:.3g}"
