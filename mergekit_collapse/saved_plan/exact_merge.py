"""MergeKit's merge, held to the files that were verified."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.saved_plan.found_inputs import FoundInputs

Merge = Callable[..., Any]

_UNKEPT = (
    "the merge is not the planned one, and nothing of it was kept. Merge again when nobody writes "
    "there"
)


def exact(merge: Merge, verified: FoundInputs) -> Merge:
    """The same merge; it fails where a model was written to since it was verified.

    Args:
        merge: MergeKit's own ``run_merge``.
    """

    def merged(
        config: MergeConfiguration,
        out_path: str,
        options: MergeOptions,
        config_source: str | None = None,
    ) -> Any:
        with _from_the_files(config.referenced_models(), options) as own:
            made = merge(config, out_path, own, config_source)
        verified.require_untouched(_UNKEPT)
        return made

    return merged


@contextmanager
def _from_the_files(models: list[ModelReference], options: MergeOptions) -> Iterator[MergeOptions]:
    """With nothing that an earlier merge left.

    MergeKit knows merged adapters in its cache, and weights that it has open, by their names
    alone, whatever became of the files since.
    """
    with ExitStack() as ending:
        if options.lora_merge_cache is not None and any(model.lora for model in models):
            holder = _made(options.lora_merge_cache)
            adapters = tempfile.TemporaryDirectory(prefix="plan-", dir=holder)
            own = ending.enter_context(adapters)
            options = options.model_copy(update={"lora_merge_cache": own})
        _forget(models)
        ending.callback(_forget, models)
        yield options


def _made(folder: str) -> str:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(
            f"--lora-merge-cache {folder}: cannot be made: {error.strerror}; name another folder"
        ) from error
    return folder


def _forget(models: list[ModelReference]) -> None:
    for model in models:
        LoaderCache.loaders.pop(model, None)
