"""What a stored report may hold about the distances between experts."""

from pydantic import Field

from mergekit_collapse.report.stored import (
    Count,
    Flag,
    Matrix,
    Number,
    Part,
    Squared,
    Vector,
    Whole,
)


class StoredInterval(Part):
    """Over resamples of the probes."""

    low: Number | None = None
    high: Number | None = None


class StoredConfidence(Part):
    """Of the pooled readings."""

    level: Number | None = None
    diameter_squared: StoredInterval = StoredInterval()
    ball_radius_squared: StoredInterval = StoredInterval()
    predicted_worst: StoredInterval = StoredInterval()
    own_task_minimax: StoredInterval = StoredInterval()
    own_task_predicted_worst: StoredInterval = StoredInterval()
    mds: dict[str, tuple[StoredInterval, ...]] = Field(default_factory=dict)


class StoredBounds(Part):
    """What follows from Δ² for the worst distortion of a merge."""

    converse: Squared | None = None
    jung: Squared | None = None
    jung_dimension: Count | None = None
    corollary: Squared | None = None


class StoredToBase(Part):
    """Distances of every expert to the base."""

    distance: tuple[Squared, ...] | None = None
    squared_distance: tuple[Squared, ...] | None = None


class StoredOwnTask(Part):
    """One task's own probes."""

    owner: Count | None = None
    rows: Count | None = None
    squared_distance: Matrix | None = None
    predicted_distortion: Number | None = None


class StoredLayer(Part):
    """One layer by itself."""

    layer: Whole
    diameter_squared: Squared | None = None
    ball_radius_squared: Squared | None = None


class StoredGeometry(Part):
    """One space, as measured on the experts."""

    layers: tuple[Whole, ...] = ()
    pooling: str | None = None
    scale: str | None = None
    dimension: Count | None = None
    squared_distance: Matrix
    to_base: StoredToBase | None = None
    diameter_squared: Squared
    diameter_pair: tuple[Count, ...] | None = None
    ball_radius_squared: Squared
    bounds: StoredBounds = StoredBounds()
    optimistic: Flag = False
    center: tuple[Number, ...] | None = None
    predicted_distortion: Vector | None = None
    confidence: StoredConfidence = StoredConfidence()
    profile: tuple[StoredLayer, ...] = ()
    own_task: dict[str, StoredOwnTask] = Field(default_factory=dict)
    own_task_minimax: Number | None = None
    own_task_predicted_worst: Number | None = None


class StoredGrouping(Part):
    """One point of the K curve."""

    k: Count
    worst_ball_radius_squared: Squared
    groups: tuple[tuple[Count, ...], ...] = ()
    exact: Flag = True
