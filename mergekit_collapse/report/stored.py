"""What a stored report may hold: its numbers, and the parts that are not about distances."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

NOT_GIVEN = "not in this report"
# No state of a model in any precision is that long; beyond it, sums and squares overflow.
LARGEST = 1e100
LARGEST_COUNT = 10**15


def _measurable(value: float) -> float:
    if not abs(value) <= LARGEST:
        raise ValueError("no number that could have been measured")
    return value


def _countable(value: int) -> int:
    if not abs(value) <= LARGEST_COUNT:
        raise ValueError("nothing that could have been counted")
    return value


def _not_negative(value: float | int) -> float | int:
    if not value >= 0:
        raise ValueError("must not be negative")
    return value


Number = Annotated[float, Strict(), Field(allow_inf_nan=False), AfterValidator(_measurable)]
Squared = Annotated[Number, AfterValidator(_not_negative)]
Whole = Annotated[int, Strict(), AfterValidator(_countable)]
Count = Annotated[Whole, AfterValidator(_not_negative)]
Flag = Annotated[bool, Strict()]
Vector = tuple[Number | None, ...]
Matrix = tuple[tuple[Squared, ...], ...]


class Part(BaseModel):
    """A part of the document. Every key may be missing, and unknown ones are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def why(self, key: str, index: int | None = None) -> str:
        """The reason beside a null, one of a list where there are several."""
        reason = (self.model_extra or {}).get(f"{key}_reason")
        if isinstance(reason, list) and index is not None and index < len(reason):
            reason = reason[index]
        if isinstance(reason, list):
            reason = next((one for one in reason if one), None)
        return reason if isinstance(reason, str) and reason else NOT_GIVEN


class StoredReason(Part):
    """One limit that is passed."""

    rule: str = ""
    reading: str = ""
    subject: str = ""
    value: Number | None = None
    limit: Number | None = None
    advice: str = ""


class StoredVerdict(Part):
    """Of the whole report, or of one evaluation."""

    decision: Literal["allow", "warn", "refuse", "modified"]
    exit_code: Whole
    reasons: tuple[StoredReason, ...] = ()


class StoredExpert(Part):
    """One source of the merge, in the order of the recipe."""

    name: str
    model: str = ""
    weight: Number | None = None


class StoredBudget(Part):
    """The limits, and which reading is held against them."""

    distortion: Squared | None = None
    rule: str = "ball"
    over: str = "pooled"
    space: str = "hidden"
    mds: Number | None = None
    similarity: str = "unrelated"


class StoredCoefficients(Part):
    """The recipe's α over the experts, then the base if any."""

    alpha: tuple[Number, ...] | None = None
    exact: Flag | None = None
    note: str | None = None


class StoredWarning(Part):
    """What the preflight said."""

    subject: str = ""
    message: str = ""
    advice: str = ""


class StoredTask(Part):
    """Where probes came from."""

    name: str
    model: str | None = None
    source: str | None = None
    rows: Count | None = None


class StoredProbes(Part):
    """All probes."""

    digest: str | None = None
    text_digest: str | None = None
    tasks: tuple[StoredTask, ...] = ()
    samples: Any = None


class StoredPlan(Part):
    """The plan that was followed."""

    path: str | None = None
    sha256: str | None = None


class StoredRecipe(Part):
    """What was to be merged."""

    path: str | None = None
    sha256: str | None = None
    method: str | None = None
    effective: str | None = None
