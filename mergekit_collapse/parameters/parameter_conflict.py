"""The conflict of a recipe's experts in parameter space, streamed from their files."""

import time
from collections.abc import Sequence
from dataclasses import replace

from mergekit.common import ModelReference
from tqdm import tqdm

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.parameters.conflict import ConflictSums, ParameterConflict
from mergekit_collapse.parameters.task_vectors import TaskVectors

# Elements of a chunk of every expert: few enough for a processor's cache.
CHUNK_ELEMENTS = 2**15


def base_of(references: Sequence[ModelReference], base: ModelReference | None) -> ModelReference:
    """The model whose parameters are θ_0: the recipe's base, else the one that all adapt.

    Raises:
        EvaluationError: there is none.
    """
    if base is not None:
        return base
    bare = {reference.model_copy(update={"lora": None}) for reference in references}
    if len(bare) == 1 and all(reference.lora is not None for reference in references):
        return bare.pop()
    raise EvaluationError(
        "the recipe has no base, and its models are not adapters of one model, so there are no "
        "task vectors; give base_model"
    )


def parameter_conflict(
    references: Sequence[ModelReference],
    names: Sequence[str],
    base: ModelReference,
    *,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
    chunk: int = CHUNK_ELEMENTS,
) -> ParameterConflict:
    """How the experts' changes to their base conflict; see `ParameterConflict` for the formulas.

    Weights are read as they are stored and subtracted in float64. An adapter is scaling·B·A
    itself, which merged into a base of 16 bits would be rounded. Of vocabularies of different
    sizes the common first rows are compared, taken to be of the same tokens. Tensors that not
    all models have, such as a head that is tied in some, are left out and noted.

    Args:
        references: the experts, with or without an adapter.
        names: of the experts, in the same order.
        base: the model that they were trained from.
        cache_dir: of the Hub's files.
        trust_remote_code: whether code may be fetched with a model; none is run here.
        progress: whether to show a bar.
        chunk: elements of every expert in hand at once, at least a row. No temporary is larger.

    Raises:
        EvaluationError: a model is unreadable, quantized, not finite or of other shapes than the
            base; an adapter is no plain LoRA, see `LoraAdapter`.
    """
    begin = time.perf_counter()
    vectors = TaskVectors(references, base, cache_dir, trust_remote_code)
    sums = ConflictSums(len(references))
    for name in tqdm(vectors.names, "parameters", disable=not progress, leave=False):
        vectors.add(name, sums, chunk)
    found = sums.result(str(base), tuple(names), len(vectors.names), tuple(vectors.notes))
    return replace(found, seconds=time.perf_counter() - begin)
