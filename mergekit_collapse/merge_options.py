"""MergeKit's options in the terms of each stage."""

import os
from typing import Any

from mergekit.options import MergeOptions

from mergekit_collapse.byte_size import EXAMPLES, parse_size
from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.preflight.preflight import PreflightRequest
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.states.loader import LoadOptions, choose_dtype

MEMORY_VARIABLE = "MERGEKIT_COLLAPSE_MAX_MEMORY"


class GateOptions(MergeOptions, frozen=True):  # type: ignore[misc,call-arg]  # MergeKit ships no types
    """MergeKit's options, and what the measuring may take beside them.

    Attributes:
        max_memory: as in ``LoadOptions``; None for what the environment says.
    """

    max_memory: int | None = None


def with_memory(options: MergeOptions, max_memory: int | None) -> MergeOptions:
    """The options with a limit of memory, unless that is None."""
    if max_memory is None:
        return options
    given = {name: getattr(options, name) for name in options.model_fields_set}
    return GateOptions(**given, max_memory=max_memory)


def hub_options(options: MergeOptions) -> dict[str, Any]:
    """Where models of the Hub are kept, and whether their code may run."""
    return {
        "cache_dir": options.transformers_cache,
        "trust_remote_code": options.trust_remote_code,
    }


def load_options(options: MergeOptions) -> LoadOptions:
    """How models are loaded and run.

    Raises:
        InvalidRecipeError: a device that torch does not have, or no size in the environment.
    """
    device = options.device or "cpu"
    try:
        dtype = choose_dtype(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidRecipeError(
            f"device {device!r} cannot be used: {error}; choose --device cpu or one that torch has"
        ) from None
    limit = _max_memory(options)
    progress = not options.quiet
    return LoadOptions(device, dtype, progress=progress, max_memory=limit, **hub_options(options))


def _max_memory(options: MergeOptions) -> int | None:
    if isinstance(options, GateOptions) and options.max_memory is not None:
        return options.max_memory
    text = os.environ.get(MEMORY_VARIABLE, "").strip()
    if not text:
        return None
    if not (limit := parse_size(text)):
        raise InvalidRecipeError(
            f"environment variable {MEMORY_VARIABLE}: got {text[:60]!r}; write a size such as "
            f"{EXAMPLES}"
        )
    return limit


def preflight_request(recipe: Recipe, options: MergeOptions, merging: bool) -> PreflightRequest:
    """What the preflight is asked.

    Args:
        merging: whether a merge follows.
    """
    config = recipe.config
    return PreflightRequest(
        method=config.merge_method,
        groups=recipe.groups,
        references=recipe.experts,
        base=recipe.base,
        tokenizer_configured=config.tokenizer_source is not None or config.tokenizer is not None,
        allow_crimes=options.allow_crimes,
        adapters_can_be_merged=not merging or options.lora_merge_cache is not None,
        unsafe_truncate_embeddings=options.unsafe_truncate_embeddings,
        dtype=config.dtype,
        **hub_options(options),
    )
