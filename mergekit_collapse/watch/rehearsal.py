"""The recipe's real merge in memory: planned and computed by MergeKit, watched, never written."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_collapse.evaluation.evaluation import Evaluation
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.watch.substitution import may_reorder, planned_with
from mergekit_collapse.watch.watch import MergeStopped, Watch


def rehearse(
    recipe: Recipe, options: MergeOptions, watch: Watch, merge: Callable[..., Any]
) -> Evaluation | None:
    """Merge layer by layer on the probes; every tensor is let go of after its layer.

    Args:
        options: MergeKit's own. Adapters are merged into a temporary folder if it has none.
        merge: MergeKit's own ``run_merge``.

    Returns:
        What was seen; None where the watch is blind.

    Raises:
        EvaluationError: the merge does not fit the probes.
    """
    if watch.blind is not None:
        return None
    in_order = may_reorder(recipe.config, options)
    with scratch(recipe, options) as (folder, kept):
        # Several GPUs merge the layers in no order, and one is enough for a rehearsal.
        own = kept.model_copy(update={"copy_tokenizer": False, "multi_gpu": False})
        try:
            with planned_with(watch.plan, saving=False, in_layer_order=in_order):
                merge(recipe.config.model_copy(deep=True), str(folder / "rehearsal"), own)
        except MergeStopped:
            pass  # the evaluation says at which layer, and why
    return watch.evaluation() if watch.blind is None else None


@contextmanager
def scratch(recipe: Recipe, options: MergeOptions) -> Iterator[tuple[Path, MergeOptions]]:
    """A folder that is gone afterwards, and options for a merge into it that nobody keeps."""
    with tempfile.TemporaryDirectory(prefix="mergekit-collapse-") as name:
        folder = Path(name)
        cache = options.lora_merge_cache or str(folder / "adapters")
        try:
            yield (
                folder,
                options.model_copy(update={"lora_merge_cache": cache, "write_model_card": False}),
            )
        finally:
            # MergeKit keeps its loaders for the process; those of the folder are gone with it.
            for model in recipe.config.referenced_models():
                if model.lora is not None and options.lora_merge_cache is None:
                    LoaderCache.loaders.pop(model, None)
