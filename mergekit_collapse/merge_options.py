"""MergeKit's options in the terms of each stage."""

from typing import Any

from mergekit.options import MergeOptions

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.preflight.preflight import PreflightRequest
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.states.loader import LoadOptions, choose_dtype


def hub_options(options: MergeOptions) -> dict[str, Any]:
    """Where models of the Hub are kept, and whether their code may run."""
    return {
        "cache_dir": options.transformers_cache,
        "trust_remote_code": options.trust_remote_code,
    }


def load_options(options: MergeOptions) -> LoadOptions:
    """How models are loaded and run.

    Raises:
        InvalidRecipeError: a device that torch does not have.
    """
    device = options.device or "cpu"
    try:
        dtype = choose_dtype(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidRecipeError(
            f"device {device!r} cannot be used: {error}; choose --device cpu or one that torch has"
        ) from None
    return LoadOptions(device, dtype, progress=not options.quiet, **hub_options(options))


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
