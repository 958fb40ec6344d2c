"""The ``compat:`` block that a recipe starts with, written under what is there."""

import json
import re
from typing import Any

import yaml
from mergekit.config import MergeConfiguration

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.recipe.default_limits import SHIPPED_ALONE, WITH_TASKS
from mergekit_collapse.recipe.recipe import Recipe, build_recipe
from mergekit_collapse.recipe.schema import BUILTIN_TASK, CompatBlock
from mergekit_collapse.recipe.text import FIELD, lost_block, require_distinct_keys
from mergekit_collapse.recipe.validation import parse_compat

_MOST_EXAMPLES = 4
# Words that YAML reads as themselves, wherever they stand.
_PLAIN = re.compile(r"(?!(?i:null|true|false|yes|no|on|off|y|n)$)(\./|\.\./)*[A-Za-z_][\w./-]*")


def add_block(text: str) -> str:
    """A recipe's text with a ``compat:`` block of the defaults, and nothing else changed.

    The block says what its main keys do. Tasks are commented out, one for each of the first
    experts, with the recipe's own names.

    Raises:
        InvalidRecipeError: the text is no MergeKit recipe, has a block already, holds several
            documents, or is written as ``{...}``, in which comments have no place.
    """
    document = _recipe(text)
    recipe = _resolved(document, text)
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    if root.flow_style:
        raise InvalidRecipeError(
            f"the recipe is written in braces, where a block with comments has no place; put "
            f'"{FIELD}": {{}} in it, which gates with the defaults'
        )
    first = root.value[0][0].start_mark
    lines = [" " * first.column + line if line else line for line in _lines(recipe)]
    newline = "\r\n" if "\r\n" in text else "\n"
    for added in (_at_end(text, lines, newline), _before_first(text, lines, newline, first)):
        if _is_text_with_block(added, document):
            return added
    raise InvalidRecipeError(
        f"found no place for a block in this layout; write `{FIELD}: {{}}` into it yourself"
    )


def _recipe(text: str) -> dict[str, Any]:
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidRecipeError(f"not valid YAML: {error}") from None
    if len(documents) > 1:
        raise InvalidRecipeError(
            f"holds {len(documents)} documents, a mergekit-multi file; write `{FIELD}: {{}}` into "
            "each document whose merge is to be gated"
        )
    if not documents or not isinstance(documents[0], dict):
        raise InvalidRecipeError("a MergeKit recipe is a mapping of keys such as merge_method")
    return documents[0]


def _resolved(document: dict[str, Any], text: str) -> Recipe:
    if FIELD in document and document[FIELD] is not None:
        raise InvalidRecipeError(f"has a `{FIELD}:` block already; edit that one")
    if (lost := lost_block(document)) is not None:
        raise InvalidRecipeError(lost)
    require_distinct_keys(text, "recipe")
    try:
        config = MergeConfiguration.model_validate(document)
    except (ValueError, RuntimeError, TypeError) as error:
        raise InvalidRecipeError(f"MergeKit does not accept this recipe: {error}") from None
    return build_recipe(config, {}, source=text)


def _lines(recipe: Recipe) -> list[str]:
    d, alone, tasks = CompatBlock(), SHIPPED_ALONE, WITH_TASKS
    return [
        f"{FIELD}:  # read by mergekit-collapse: measured before the merge, judged after it",
        "  probes:",
        f"    builtin: {_word(d.probes.builtin)}  # the general prompts that come with it",
        f"    samples: {d.probes.samples}  # at most this many prompts of each task; or auto",
        *(f"    # {line}" for line in _tasks(recipe)),
        "  budget:  # null switches a limit off",
        # What goes by the tasks stays a default, or it would be another's when they come in.
        f"    # distortion: {alone.distortion}  # of the best merge from every expert; "
        f"{tasks.distortion} with tasks",
        f"  # refuses {alone.refuses} (docs/evidence.md),",
        f"  # with tasks {tasks.refuses}",
        "    mds: null  # Merging Difficulty Score, of each expert: told, and finds no more",
        f"  rehearse: {d.rehearse}  # auto: merge and measure where the limit is close; "
        "or always, never",
        f"  on_violation: {d.on_violation}  # or warn; or mend it: reweight, drop, karcher, split",
        "  evaluate:  # the merged model",
        f"    # max_distortion: {alone.max_distortion}  # from any expert; "
        f"{tasks.max_distortion} with tasks",
        # By default only, for models that have answers.
        f"    # max_own_distortion: {d.evaluate.max_own_distortion}  # of the answers on a task "
        "without a target",
        f"    max_merging_loss: {d.evaluate.max_merging_loss:g}  # percent, of the worst task "
        "that has a target",
        f"    on_collapse: {d.evaluate.on_collapse}  # or warn",
    ]


def _tasks(recipe: Recipe) -> list[str]:
    """Examples that are valid as soon as their ``#`` is removed and their files are there."""
    lines = ["tasks:  # prompts of your own, each task with the expert whose it is"]
    for name, model in list(zip(recipe.names, recipe.experts, strict=True))[:_MOST_EXAMPLES]:
        known = name if name != BUILTIN_TASK else f"{name}-task"
        lines += [
            f"  - name: {_quoted(known)}",
            f"    model: {_quoted(str(model))}",
            f"    data: {_quoted(f'probes/{known}.jsonl')}",
        ]
        if len(lines) == 4:
            lines[-1] += "  # .jsonl .csv .parquet .txt, relative to this file"
            lines += [
                '    text: "{text}"  # fields of a row',
                '    target: "{label}"  # the right answer: with it a rehearsal scores the task',
            ]
    return lines if len(lines) > 1 else []


def _word(value: bool) -> str:
    return "true" if value else "false"


def _quoted(value: str) -> str:
    """On one line: no name, however odd, may end the comment that it stands in."""
    if _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _at_end(text: str, lines: list[str], newline: str) -> str:
    """Behind everything, but before a line of three dots, which ends the document."""
    events = list(yaml.parse(text, Loader=yaml.SafeLoader))
    end: Any = next(e for e in events if isinstance(e, yaml.DocumentEndEvent))
    at = end.start_mark.index if end.explicit else len(text)
    head = text[:at]
    gap = newline if head.endswith("\n") else newline * 2
    return head + gap + newline.join(lines) + newline + text[at:]


def _before_first(text: str, lines: list[str], newline: str, first: Any) -> str:
    """Where the last value is a text that new lines would change."""
    at = first.index - first.column
    return text[:at] + newline.join(lines) + newline * 2 + text[at:]


def _is_text_with_block(text: str, document: dict[str, Any]) -> bool:
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    if not isinstance(read, dict) or FIELD not in read:
        return False
    return parse_compat(read.pop(FIELD)) == CompatBlock() and read == document
