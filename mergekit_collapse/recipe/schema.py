"""The ``compat:`` block of a recipe: its keys, their defaults and what is wrong with a bad one."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from mergekit_collapse.recipe.default_limits import SHIPPED_ALONE, WITH_TASKS, DefaultLimits
from mergekit_collapse.recipe.limits import BudgetBlock, EvaluateBlock, with_defaults
from mergekit_collapse.recipe.values import (
    Block,
    Count,
    Flag,
    Number,
    Path,
    Share,
    SpaceName,
    listed,
    without_nul,
)

BUILTIN_TASK = "builtin"

# Doubled braces stand for themselves; a field is a name and nothing else, so that a
# template from a stranger can reach no attribute and evaluate nothing.
TEMPLATE_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def _samples(value: Any) -> Any:
    """One message for a bad number instead of one for each branch of the union."""
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 2):
        raise ValueError(f"auto or a whole number of at least 2 is expected, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "null" if value is None else f"{value!r:.60}"


def _layer(value: Any) -> Any:
    """One message for a bad layer instead of one for each branch of the union."""
    layers = value if isinstance(value, list | tuple) else [value]
    whole = layers and all(isinstance(k, int) and not isinstance(k, bool) for k in layers)
    if value not in ("last", "all") and not whole:
        raise ValueError(
            f"last, all, a layer's number or a list of numbers is expected, got {value!r}"
        )
    if len(set(layers)) != len(layers):
        raise ValueError(f"a layer stands twice in {value!r}; name each once")
    return tuple(value) if isinstance(value, list) else value


def _template(value: str) -> str:
    """A brace too many or too few would be taken for text, and every row give one prompt."""
    if "{" in (rest := TEMPLATE_FIELD.sub("", value)) or "}" in rest:
        raise ValueError(f"a single brace in {value!r}; close the field, or double the brace")
    return value


def _switch(value: Any) -> Any:
    """``monitor: false`` says as much as ``monitor: {enabled: false}``."""
    return {"enabled": value} if isinstance(value, bool) else value


def _pool(value: Any) -> Any:
    """One message for a bad pool instead of one for each branch of the union."""
    value = listed(value)
    if not isinstance(value, dict):
        return _candidates(value, "a list of models, or of experts with a list for each,")
    for expert in value:
        if not isinstance(expert, str) or not expert.strip():
            raise ValueError(f"an expert's name is expected before the colon, got {expert!r:.60}")
        without_nul(expert)
    return {
        expert: _candidates(listed(models), f"under {expert!r:.60} a list of models")
        for expert, models in value.items()
    }


def _candidates(value: Any, wanted: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{wanted} is expected, got {_shown(value)}")
    for model in value:
        if not isinstance(model, str) or not model.strip():
            raise ValueError(f"{wanted} is expected, got {_shown(model)} in it")
        without_nul(model)
    return tuple(value)


def _no_yaml_word(value: Any) -> Any:
    """YAML reads ``[yes, no]`` as ``[true, false]``."""
    if isinstance(value, bool | int | float):
        raise ValueError(f"a text is expected, got {str(value).lower()}; quote it, as in 'yes'")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError(f"a choice is a text that the model could answer, got {value!r}")
    return value


Template = Annotated[str, AfterValidator(_template)]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
Choice = Annotated[str, BeforeValidator(_no_yaml_word), AfterValidator(_not_blank)]


class TaskBlock(Block):
    """One task of the user's own: its rows, and the expert that it belongs to."""

    name: str = Field(min_length=1)
    data: Path
    model: Path | None = None
    split: Annotated[str, Field(min_length=1)] | None = None
    text: Template = "{text}"
    target: Template | None = None
    choices: Annotated[tuple[Choice, ...], Field(min_length=2)] | None = None

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == BUILTIN_TASK:
            raise ValueError(f"{BUILTIN_TASK!r} is the name of the shipped probes; choose another")
        return name

    @field_validator("text")
    @classmethod
    def _text_has_a_field(cls, text: str) -> str:
        if not any(match.group(1) for match in TEMPLATE_FIELD.finditer(text)):
            raise ValueError(
                f"{text!r} has no field, so every row would give the same prompt; "
                'name one in braces, such as "{text}"'
            )
        return text

    @model_validator(mode="after")
    def _choices_are_of_a_target(self) -> "TaskBlock":
        if self.choices is None:
            return self
        if self.target is None:
            raise ValueError("choices without target: say which field of a row holds the answer")
        if len({choice.strip() for choice in self.choices}) != len(self.choices):
            raise ValueError(f"a choice stands twice in {list(self.choices)}; name each once")
        return self


class ProbesBlock(Block):
    """Which prompts the models are measured on."""

    builtin: Flag = True
    samples: Annotated[Literal["auto"] | int, BeforeValidator(_samples)] = 32
    max_tokens: Count = Field(default=128, ge=2)
    seed: Count = Field(default=0, ge=0)
    tasks: tuple[TaskBlock, ...] = ()

    @model_validator(mode="after")
    def _some_probes(self) -> "ProbesBlock":
        if not self.builtin and not self.tasks:
            raise ValueError("builtin: false leaves no probes; add tasks or remove it")
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tasks have the name {twice[0]!r}; rename one")
        return self

    @property
    def default_limits(self) -> DefaultLimits:
        """What holds where the author of the block wrote no limit."""
        return WITH_TASKS if self.tasks else SHIPPED_ALONE


class MonitorBlock(Block):
    """Whether the merged layers are run on the probes as they appear, and where that ends it."""

    enabled: Flag = True
    stop_at: Annotated[Number, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _something_to_stop(self) -> "MonitorBlock":
        if self.stop_at is not None and not self.enabled:
            raise ValueError("stop_at needs the monitor; remove enabled: false")
        return self


class ReweightBlock(Block):
    """How a merge over budget gets other weights."""

    goal: Literal["minimax", "protect"] = "minimax"
    floor: Share = 0.05
    per_layer: Flag = False


class DropBlock(Block):
    """How many experts a merge over budget keeps at least."""

    min_experts: Count = Field(default=2, ge=2)


class SubstituteBlock(Block):
    """The models that may take the place of an expert over budget, of any or of the one named."""

    # Checked by _pool alone, since each branch of the union would add a message of its own.
    pool: Annotated[tuple[str, ...] | dict[str, tuple[str, ...]], BeforeValidator(_pool)] = ()

    @property
    def candidates(self) -> tuple[str, ...]:
        """All of them, as often as they are named."""
        if isinstance(self.pool, dict):
            return tuple(model for models in self.pool.values() for model in models)
        return self.pool


class CacheBlock(Block):
    """Whether results are kept for later runs, and by what a model is known again."""

    enabled: Flag = True
    hash: Literal["quick", "full"] = "quick"

    @property
    def full(self) -> bool:
        """Whether that is all of its weights, and not their headers, sizes and times."""
        return self.hash == "full"


class CompatBlock(Block):
    """The whole block. ``compat: {}`` is valid: every key has a default."""

    probes: ProbesBlock = ProbesBlock()
    space: Annotated[tuple[SpaceName, ...], BeforeValidator(listed), Field(min_length=1)] = (
        "hidden",
        "predictive",
    )
    layer: Annotated[Literal["last", "all"] | int | tuple[int, ...], BeforeValidator(_layer)] = (
        "last"
    )
    pooling: Literal["mean", "last_token", "tokens"] = "mean"
    scale: Literal["variance", "rms", "unit", "none"] = "variance"
    budget: BudgetBlock = Field(default=BudgetBlock(), validate_default=True)
    rehearse: Literal["auto", "always", "never"] = "auto"
    on_violation: Literal["abort", "warn", "reweight", "drop", "substitute", "karcher", "split"] = (
        "abort"
    )
    reweight: ReweightBlock = ReweightBlock()
    drop: DropBlock = DropBlock()
    substitute: SubstituteBlock = SubstituteBlock()
    monitor: Annotated[MonitorBlock, BeforeValidator(_switch)] = MonitorBlock()
    evaluate: Annotated[EvaluateBlock, BeforeValidator(_switch)] = Field(
        default=EvaluateBlock(), validate_default=True
    )
    report: Path | None = None
    log_to: Annotated[tuple[Tracker, ...], BeforeValidator(listed)] = ()
    cache: Annotated[CacheBlock, BeforeValidator(_switch)] = CacheBlock()

    @property
    def layers(self) -> Literal["last", "all"] | tuple[int, ...]:
        """``layer`` with a single number as a list of one."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer

    def with_tasks(self, tasks: tuple[TaskBlock, ...]) -> "CompatBlock":
        """The block with other tasks, as if it had been written so."""
        probes = self.probes.model_copy(update={"tasks": tasks})
        limits = {
            "budget": with_defaults(self.budget, probes.default_limits),
            "evaluate": with_defaults(self.evaluate, probes.default_limits),
        }
        return self.model_copy(update={"probes": probes, **limits})

    @field_validator("budget", "evaluate")
    @classmethod
    def _limits_are_of_the_probes(cls, block: Any, info: Any) -> Any:
        # pydantic's ValidationInfo, a protocol that no instance can be checked against.
        # Where the probes are wrong themselves, the block is refused for that.
        probes = info.data.get("probes")
        return block if probes is None else with_defaults(block, probes.default_limits)

    @model_validator(mode="after")
    def _budget_is_measurable(self) -> "CompatBlock":
        if self.budget.space not in self.space:
            raise ValueError(
                f"budget.space is {self.budget.space!r}, "
                f"which space: {list(self.space)} does not measure"
            )
        if self.budget.over == "own_task" and not any(task.model for task in self.probes.tasks):
            raise ValueError("budget.over: own_task needs probes.tasks with model:")
        return self

    @model_validator(mode="after")
    def _action_is_possible(self) -> "CompatBlock":
        if self.on_violation == "substitute" and not self.substitute.candidates:
            raise ValueError(
                "on_violation: substitute needs substitute.pool, a list of models, "
                "or one for each expert"
            )
        if self.on_violation != "reweight":
            return self
        if self.reweight.goal == "protect" and self.budget.distortion is None:
            raise ValueError("reweight.goal: protect needs budget.distortion, which is null")
        pooled_states = self.budget.space == "hidden" and self.budget.over == "pooled"
        if self.reweight.per_layer and not (self.layer == "all" and pooled_states):
            raise ValueError(
                "reweight.per_layer needs layer: all, and budget.space: hidden over: pooled"
            )
        return self
