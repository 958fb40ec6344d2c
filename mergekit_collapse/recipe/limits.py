"""The limits of a ``compat:`` block: of ``budget`` before a merge, of ``evaluate`` after it."""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mergekit_collapse.recipe.default_limits import (
    MAX_MERGING_LOSS,
    MAX_OWN_DISTORTION,
    WITH_TASKS,
    DefaultLimits,
)
from mergekit_collapse.recipe.values import (
    Block,
    Flag,
    Number,
    Share,
    SpaceName,
    listed,
    without_nul,
)

LmEvalTask = Annotated[str, Field(min_length=1), AfterValidator(without_nul)]


class BudgetBlock(Block):
    """The limits, and which reading is held against them. Null switches a limit off.

    By itself it has the default limits of a block with tasks.
    """

    distortion: Annotated[Number, Field(ge=0)] | None = WITH_TASKS.distortion
    rule: Literal["ball", "corollary", "weights"] = "ball"
    over: Literal["pooled", "own_task"] = "pooled"
    space: SpaceName = "hidden"
    mds: Annotated[Number, Field(ge=1)] | None = None
    similarity: Literal["unrelated", "group_max", "group_minmax"] = "unrelated"

    @model_validator(mode="after")
    def _rules_fit(self) -> "BudgetBlock":
        if self.distortion is None and self.mds is None:
            off = "distortion is null, and mds is off unless you give it a number"
            off = "distortion and mds are both null" if self.wrote("mds") else off
            raise ValueError(f"{off}, so nothing decides; give one of them a number")
        if self.over == "own_task" and self.rule == "corollary":
            raise ValueError(
                "rule: corollary bounds pooled probes only; "
                "use over: pooled, or rule: ball or weights"
            )
        return self


class EvaluateBlock(Block):
    """What the merged model is held against. Null switches a limit off.

    By itself it has the default limits of a block with tasks.
    """

    enabled: Flag = True
    max_distortion: Annotated[Number, Field(ge=0)] | None = WITH_TASKS.max_distortion
    max_merging_loss: Annotated[Number, Field(ge=0)] | None = MAX_MERGING_LOSS
    max_own_distortion: Annotated[Number, Field(ge=0)] | None = MAX_OWN_DISTORTION
    min_variance_ratio: Share | None = 0.5
    min_rank_ratio: Share | None = 0.5
    on_collapse: Literal["reject", "warn"] = "reject"
    lm_eval: Annotated[tuple[LmEvalTask, ...], BeforeValidator(listed)] = ()


Limits = TypeVar("Limits", BudgetBlock, EvaluateBlock)


def with_defaults(block: Limits, defaults: DefaultLimits) -> Limits:
    """The block with the default limits of its probes; what the author wrote stays.

    A default does not count as written, so that other probes can have theirs.
    """
    values = dict(block)
    for key in ("distortion", "max_distortion"):
        if key in values and not block.wrote(key):
            values[key] = getattr(defaults, key)
    return type(block).model_construct(_fields_set=block.model_fields_set, **values)
