"""What changed between two configurations, carried over to a document as its author wrote it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mergekit.common import ModelReference
from pydantic import BaseModel

from mergekit_collapse.recipe.text import FIELD


def plain(value: Any) -> Any:
    """A configuration as plain data, without defaults and without its ``compat:`` block.

    MergeKit's own dump is the same, but fails where a model's path holds a space.
    """
    if isinstance(value, ModelReference):
        return _reference(value)
    if isinstance(value, BaseModel):
        return _fields(value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def _fields(record: BaseModel) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in type(record).model_fields if name != FIELD}
    defaults = {name: field.default for name, field in type(record).model_fields.items()}
    return {name: plain(v) for name, v in values.items() if v != defaults[name]}


def _reference(model: ModelReference) -> Any:
    try:
        if ModelReference.parse(str(model)) == model:
            return str(model)
    except (ValueError, RuntimeError):
        pass  # a + or an @ that is part of a path
    return _fields(model)


def carried_over(written: Any, before: Any, after: Any) -> Any:
    """The written document with the difference between two dumps of it applied.

    Whatever the dumps do not show (keys that MergeKit ignores, a number's spelling, the
    ``compat:`` block) stays as it was written.

    Args:
        written: plain data as YAML gives it.
        before: MergeKit's dump of it.
        after: MergeKit's dump of what is wanted.
    """
    if before == after:
        return written
    if all(isinstance(value, dict) for value in (written, before, after)):
        kept = {k: v for k, v in written.items() if k in after or k not in before}
        changed = {
            key: carried_over(written[key], before[key], value)
            if key in written and key in before
            else value
            for key, value in after.items()
            if key not in before or before[key] != value
        }
        return {**kept, **changed}
    if all(isinstance(value, list) for value in (written, before, after)) and len(written) == len(
        before
    ):
        return [
            new if index is None else carried_over(written[index], before[index], new)
            for index, new in zip(counterparts(before, after), after, strict=True)
        ]
    return after


def counterparts(old: Sequence[Any], new: Sequence[Any]) -> list[int | None]:
    """For each item of a changed list, the index of the old one that it was.

    In lists of one length items are known by their place, else mappings by their ``model`` or
    ``name``, and one without a match takes what is most like it between its neighbours' matches.
    """
    if len(old) == len(new):
        return list(range(len(new)))
    found: list[int | None] = []
    following = 0
    for item in new:
        match = next((i for i in range(following, len(old)) if _same(old[i], item)), None)
        found.append(match)
        # Order is kept, so what was passed over is gone, or was replaced.
        following = following if match is None else match + 1
    for place, item in enumerate(new):
        if found[place] is None:
            before = max((i for i in found[:place] if i is not None), default=-1)
            after = min((i for i in found[place:] if i is not None), default=len(old))
            between = range(before + 1, after)
            found[place] = max(between, key=partial(_likeness_at, old, item), default=None)
    return found


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in ("model", "name"):
            if key in old or key in new:
                return old.get(key) == new.get(key)
    return bool(old == new)


def _likeness_at(items: Sequence[Any], new: Any, index: int) -> int:
    old = items[index]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return sum(old.get(key) == value for key, value in new.items())
    return 0
