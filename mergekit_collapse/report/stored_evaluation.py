"""What a stored report may hold about a merged model, and about its experts' parameters."""

from pydantic import Field

from mergekit_collapse.report.stored import (
    Count,
    Flag,
    Number,
    Part,
    Squared,
    StoredVerdict,
    Vector,
    Whole,
)

Pairs = tuple[tuple[Number | None, ...], ...]
CONFLICTS = (
    "magnitude_change_ratio",
    "sign_change_ratio",
    "conflicting_magnitude_change_ratio",
    "cosine",
)


class StoredOwnDistortion(Part):
    """How far the merged model is from a task's owner, on that task."""

    owner: Count | None = None
    distortion: Number | None = None


class StoredMeasured(Part):
    """One space: the merged model against every expert."""

    layers: tuple[Whole, ...] = ()
    distortion: tuple[Squared | None, ...] = ()
    worst: Squared | None = None
    own_task: dict[str, StoredOwnDistortion] = Field(default_factory=dict)
    own_task_worst: Number | None = None
    predicted_distortion: Vector | None = None
    lower_bound: Squared | None = None
    ball_radius_squared: Squared | None = None


class StoredMergedLayer(Part):
    """One layer: distortions, and activations of the merged model over those of the experts."""

    layer: Whole
    distortion: tuple[Squared | None, ...] = ()
    variance: Number | None = None
    variance_ratio: Number | None = None
    effective_rank: Number | None = None
    rank_ratio: Number | None = None


class StoredScore(Part):
    """Merging loss of one task (Eq. 1): negative means worse than the expert."""

    name: str
    owner: Count | None = None
    metric: str | None = None
    rows: Count | None = None
    expert: Number | None = None
    merged: Number | None = None
    loss_percent: Number | None = None


class StoredCheck(Part):
    """One thing that is either so or not."""

    name: str
    passed: Flag
    detail: str | None = None


class StoredEvaluation(Part):
    """A merged model, measured: rehearsed, watched, or finished."""

    source: str = ""
    model: str | None = None
    seconds: Number | None = None
    verdict: StoredVerdict | None = None
    stopped_at: Whole | None = None
    hidden: StoredMeasured | None = None
    predictive: StoredMeasured | None = None
    layers: tuple[StoredMergedLayer, ...] = ()
    tasks: tuple[StoredScore, ...] = ()
    checks: tuple[StoredCheck, ...] = ()
    lm_eval: dict[str, dict[str, Number | str | None]] | None = None

    def space(self, name: str) -> StoredMeasured | None:
        """What was measured in one space."""
        return self.hidden if name == "hidden" else self.predictive


class StoredParameters(Part):
    """Conflict of the experts' parameters: one matrix over pairs for each metric."""

    base: str | None = None
    tensors: Count | None = None
    elements: Count | None = None
    experts: tuple[str, ...] = ()
    magnitude_change_ratio: Pairs | None = None
    sign_change_ratio: Pairs | None = None
    conflicting_magnitude_change_ratio: Pairs | None = None
    cosine: Pairs | None = None
    notes: tuple[str, ...] = ()
    seconds: Number | None = None

    def metrics(self) -> dict[str, Pairs]:
        """Those that are there, by name."""
        found = {name: getattr(self, name) for name in CONFLICTS}
        return {name: pairs for name, pairs in found.items() if pairs is not None}
