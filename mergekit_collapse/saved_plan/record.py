"""A plan as its file holds it: what was decided, what is to be merged, and what it is made of."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mergekit_collapse.errors import MergeRefusedError
from mergekit_collapse.recipe.values import Path
from mergekit_collapse.report.remedy import Remedy
from mergekit_collapse.verdict import Verdict

PLAN_VERSION = 1

Role = Literal["recipe", "model", "adapter", "tokenizer", "probes", "lm_eval"]
Key = tuple[Role, str]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """A part of the file: every key is known, and of its own type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PlannedFile(Part):
    """One file's content."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class PlannedInput(Part):
    """A model, an adapter or whatever else is read.

    Attributes:
        name: as the recipe writes it.
        commit: of the hub; None for what lies in a folder.
        files: by their names in that folder.
    """

    role: Role
    name: Text
    commit: Text | None
    files: dict[str, PlannedFile]

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.role, self.name


class PlannedOptions(Part):
    """Those of MergeKit's options that the merged model depends on."""

    allow_crimes: bool
    unsafe_truncate_embeddings: bool
    lora_merge_dtype: str | None
    device: Text
    multi_gpu: bool
    out_shard_size: Annotated[int, Field(gt=0)]
    copy_tokenizer: bool
    clone_tensors: bool
    trust_remote_code: bool
    random_seed: int | None
    write_model_card: bool
    safe_serialization: bool


class PlannedRecipe(Part):
    """The recipe.

    Attributes:
        path: of the file as it was written.
        sha256: of its text.
        folder: what paths in its block are relative to.
        working_directory: what paths of models are relative to.
        effective: the YAML that is merged.
    """

    path: Path
    sha256: Digest
    folder: Path
    working_directory: Path
    effective: str


class PlannedExpert(Part):
    """An expert of the effective recipe."""

    name: Text
    model: Text


class PlannedRehearsal(Part):
    """Whether the merge is judged before it is published, as ``rehearse`` says and as it was."""

    wanted: Literal["auto", "always", "never"]
    due: bool


class PlannedProbes(Part):
    """Digests of the probes' texts and of their token ids."""

    text_digest: Digest
    digest: Digest


class Readings(Part):
    """What was held against the limits; None where it is infinite, undefined or has no limit."""

    space: Literal["hidden", "predictive"]
    ball_radius_squared: float
    distortion: float | None
    mds: tuple[float | None, ...]


class SavedPlan(Part):
    """A plan.

    Attributes:
        verdict: what the check came to, a rehearsal included; a refusal plans no merge.
        gate: what the geometry of the effective recipe alone decided.
        readings: behind it; None where no two models are merged.
        remedy: how the recipe was changed, where it was.
        probes: None where nothing is measured.
    """

    plan_version: int
    verdict: Verdict
    gate: Verdict
    readings: Readings | None
    recipe: PlannedRecipe
    experts: tuple[PlannedExpert, ...]
    rehearsal: PlannedRehearsal
    remedy: Remedy | None
    options: PlannedOptions
    probes: PlannedProbes | None
    versions: dict[str, str]
    inputs: tuple[PlannedInput, ...]

    @property
    def refused(self) -> bool:
        """Whether there is no merge to be made."""
        return self.verdict.exit_code != 0

    @property
    def by_key(self) -> dict[Key, PlannedInput]:
        """Inputs by role and name."""
        return {one.key: one for one in self.inputs}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "SavedPlan":
        if problem := next(_contradictions(self), None):
            raise ValueError(problem)
        return self


def _contradictions(plan: SavedPlan) -> Iterator[str]:
    for name, verdict in (("verdict", plan.verdict), ("gate", plan.gate)):
        due = MergeRefusedError.exit_code if verdict.decision == "refuse" else 0
        if verdict.exit_code != due:
            yield f"{name}: {verdict.decision} has exit_code {due}, not {verdict.exit_code}"
    effective = plan.remedy.effective if plan.remedy is not None else None
    if effective is not None and effective != plan.recipe.effective:
        yield "remedy.effective: is not the recipe that is merged"
    if plan.verdict.decision == "modified" and effective is None:
        yield "verdict: modified, but no change is in remedy"
    if plan.remedy is not None and plan.verdict.decision not in ("modified", "refuse"):
        yield f"remedy: changes a recipe of which the verdict is {plan.verdict.decision}"
    if len({expert.name for expert in plan.experts}) != len(plan.experts):
        yield "experts: two of them have one name"
    if len(plan.by_key) != len(plan.inputs):
        yield "inputs: one of them stands twice"
