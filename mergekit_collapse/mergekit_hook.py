"""The one module that hooks MergeKit: a ``compat`` field, a gate before its merge, two methods.

``mergekit-evolve`` needs no exception here. It builds every candidate in
``ModelGenome.genotype_merge_config`` from a fixed set of keys, and its own configuration has no
field that could hold a block; so no candidate carries one, and what carries none is merged
untouched.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import click
import yaml
from pydantic.fields import FieldInfo

from mergekit_collapse.click_errors import at_the_edge
from mergekit_collapse.errors import CompatError, InvalidRecipeError
from mergekit_collapse.recipe.compat_source import CompatSource
from mergekit_collapse.recipe.context import recipe_context
from mergekit_collapse.recipe.text import FIELD, lost_block
from mergekit_collapse.switch import SWITCH, gate_mode

_WRAPPED = "__mergekit_collapse__"
_PARAMETERS = ["merge_config", "out_path", "options", "config_source"]


def install() -> None:
    """Hook MergeKit in this process, whether or not the start-up file did."""
    import mergekit.config
    import mergekit.merge
    import mergekit.merge_methods

    extend_configuration(mergekit.config)
    wrap_run_merge(mergekit.merge)
    register_merge_methods(mergekit.merge_methods)


def is_installed() -> bool:
    """Whether a ``compat:`` block is honoured in this process."""
    config, merge = sys.modules.get("mergekit.config"), sys.modules.get("mergekit.merge")
    return (
        config is not None
        and merge is not None
        and FIELD in config.MergeConfiguration.model_fields
        and hasattr(merge.run_merge, _WRAPPED)
    )


def extend_configuration(module: ModuleType) -> None:
    """Add ``compat`` to ``mergekit.config.MergeConfiguration``.

    The class itself is extended, not replaced: whoever imported it before has the field too.
    """
    configuration = module.MergeConfiguration
    if FIELD in configuration.model_fields:
        return
    annotation: Any = CompatSource | None
    field = FieldInfo.from_annotated_attribute(annotation, None)
    # A configuration without a block looks as it does without the plugin.
    field.repr = False
    configuration.model_fields[FIELD] = field
    configuration.__annotations__[FIELD] = annotation
    configuration.model_rebuild(force=True)
    # It has the old configuration's schema built in.
    module.ConfigReader.model_rebuild(force=True)


def register_merge_methods(_module: ModuleType) -> None:
    """Add ``weighted_karcher`` and ``rescaled_mean`` to MergeKit's registry."""
    from mergekit_collapse.merge_methods import register_methods

    register_methods()


def wrap_run_merge(module: ModuleType) -> None:
    """Put the gate before ``mergekit.merge.run_merge``, wherever that is bound already.

    Raises:
        TypeError: ``run_merge`` is not called as in MergeKit 0.1.5.
    """
    original = module.run_merge
    if hasattr(original, _WRAPPED):
        return
    signature = inspect.signature(original)
    if list(signature.parameters) != _PARAMETERS:
        expected = ", ".join(_PARAMETERS)
        raise TypeError(f"run_merge{signature} is not the run_merge({expected}) of mergekit 0.1.5")

    @functools.wraps(original)
    def run_merge(*args: Any, **kwargs: Any) -> Any:
        try:
            call = signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)  # which says it in its own words
        call.apply_defaults()
        config, out_path, options, config_source = (call.arguments[name] for name in _PARAMETERS)
        try:
            if getattr(config, FIELD, None) is None:
                _refuse_lost_block(config_source)
            else:
                return _gated(original, config, out_path, options, config_source)
        except CompatError as error:
            raise at_the_edge(error) from error
        return original(*args, **kwargs)

    setattr(run_merge, _WRAPPED, True)
    module.run_merge = run_merge  # type: ignore[attr-defined]
    _replace_everywhere(original, run_merge)


def _gated(
    merge: Callable[..., Any], config: Any, out_path: str, options: Any, config_source: str | None
) -> Any:
    # Only now: a merge without a block needs nothing of what the gate imports.
    from mergekit_collapse import gate

    return gate.gated_merge(config, out_path, options, config_source, merge=merge)


def _replace_everywhere(original: object, replacement: object) -> None:
    """In the modules that imported it before, under any name."""
    for module in list(sys.modules.values()):
        try:
            # Neither getattr nor vars: a lazy module would load what it stands for.
            names = object.__getattribute__(module, "__dict__")
        except AttributeError:  # sys.modules may hold any object
            continue
        for name in [name for name, value in list(names.items()) if value is original]:
            names[name] = replacement


def _refuse_lost_block(config_source: str | None) -> None:
    """Whoever wrote a block wanted a gate, so the merge must not pass without one.

    ``compat:`` with nothing after it is null, which is what no block at all is validated to, and
    a misspelt key is dropped. Only the text tells: what mergekit-yaml hands over, or what
    mergekit-multi read.
    """
    context = recipe_context()
    try:
        if config_source is None and context.config_file is not None:
            config_source = context.config_file.read_text(encoding="utf-8")
        documents = list(yaml.safe_load_all(config_source or ""))
    except (OSError, UnicodeError, yaml.YAMLError):
        return  # a program's own text; MergeKit has its configuration, and that has no block
    mappings = (document for document in documents if isinstance(document, dict))
    lost = next(filter(None, map(lost_block, mappings)), None)
    if lost is None:
        return
    problem = f"{context.config_file or 'recipe'}: {lost}"
    if (mode := gate_mode()) == "1":
        raise InvalidRecipeError(problem)
    click.echo(f"mergekit-collapse: {SWITCH}={mode}: merging ungated: {problem}", err=True)
