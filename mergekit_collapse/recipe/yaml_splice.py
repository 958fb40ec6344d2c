"""Edits of a YAML text that leave every other character of it where it was."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import yaml

from mergekit_collapse.recipe.document_change import counterparts
from mergekit_collapse.recipe.yaml_layout import CannotSpliceError, Layout, Splice
from mergekit_collapse.recipe.yaml_values import block, equal, flow, like

_EMPTY = re.compile(r"\s*:")


def spliced(text: str, wanted: Any) -> str:
    """The text with its values changed to the wanted ones, as plain data.

    The caller compares what the result is read as: anchors and merge keys make one place of
    two, and what stands in a comment or an odd layout is not known here.

    Raises:
        CannotSpliceError: a change has no place in the text.
        yaml.YAMLError: the text is no YAML.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found = sorted(set(_Splicer(text).changes(root, yaml.safe_load(text), wanted)))
    for first, second in itertools.pairwise(found):
        # Lines put in at one place are in order: the deeper, which sort first, belong together.
        if second.start < first.end or second.start == first.start < second.end:
            raise CannotSpliceError("two changes meet in one place, as behind an anchor")
    for splice in reversed(found):
        text = text[: splice.start] + splice.new + text[splice.end :]
    return text


class _Splicer:
    def __init__(self, text: str) -> None:
        self.text = text
        self.layout = Layout(text)

    def changes(self, node: Any, old: Any, new: Any) -> Iterator[Splice]:
        """Every splice that makes the node read as the new value."""
        if equal(old, new):
            return
        if isinstance(node, yaml.MappingNode) and isinstance(new, dict) and new:
            yield from self._mapping(node, old, new)
        elif isinstance(node, yaml.SequenceNode) and isinstance(new, list) and new:
            yield from self._sequence(node, old, new)
        elif isinstance(node, yaml.CollectionNode) and not node.flow_style:
            raise CannotSpliceError("a block is replaced where no key stands before it")
        else:
            yield self._instead(node, like(node, new))

    def _instead(self, node: Any, new: str) -> Splice:
        return Splice(node.start_mark.index, node.end_mark.index, new)

    def _mapping(self, node: Any, old: dict[Any, Any], new: dict[Any, Any]) -> Iterator[Splice]:
        keys = {k.value: (k, value) for k, value in node.value if isinstance(k, yaml.ScalarNode)}
        renamed = {name: key for name, key in _renamed(old, new).items() if name in keys}
        removed = [name for name in old if name not in new and name not in renamed]
        if node.flow_style and len(removed) > 1:
            yield self._instead(node, flow(new))
            return
        for name, key in renamed.items():
            yield self._instead(keys[name][0], like(keys[name][0], key))
            if not equal(old[name], new[key]):
                yield from self._changed_value(*keys[name], old[name], new[key])
        for name in removed:
            if name not in keys:
                raise CannotSpliceError(f"{name} comes from a merge key")
            yield self._removed_key(node, name)
        added = {}
        for name, value in new.items():
            if name in renamed.values():
                continue
            if name not in keys:
                # A key of its own wins over one that << brings.
                if name not in old or not equal(old[name], value):
                    added[name] = value
            elif not equal(old[name], value):
                yield from self._changed_value(*keys[name], old[name], value)
        if added:
            yield self._added_keys(node, added, removed)

    def _changed_value(self, key: Any, node: Any, old: Any, new: Any) -> Iterator[Splice]:
        end = key.end_mark.index
        if node.start_mark.index < end:
            # Composed before its key: an alias, whose anchor others may hold to.
            yield Splice(*self.layout.alias(key), flow(new))
            return
        collection = isinstance(node, yaml.CollectionNode) and not node.flow_style
        alike = new and _kind(old) == _kind(new)
        empty = node.start_mark.index == node.end_mark.index
        if not empty and not (collection and not alike):
            yield from self.changes(node, old, new)
            return
        match = _EMPTY.match(self.text, end)
        if match is None:
            raise CannotSpliceError("a key has no colon behind it")
        last = match.end() if empty else self.layout.last(node)
        yield Splice(match.end(), last, " " + flow(new))

    def _added_keys(self, node: Any, added: dict[Any, Any], removed: list[Any]) -> Splice:
        if node.flow_style:
            inside = flow(added)[1:-1]
            at = node.end_mark.index - 1
            if node.value:
                at = self.layout.last(node.value[-1][1], node.value[-1][0])
                inside = ", " + inside
            return Splice(at, at, inside)
        stays = [(key, value) for key, value in node.value if key.value not in removed]
        if not stays:
            raise CannotSpliceError("every key of a mapping is removed")
        column = node.value[0][0].start_mark.column
        return self.layout.line_after(self.layout.last(*reversed(stays[-1])), block(added, column))

    def _removed_key(self, node: Any, name: Any) -> Splice:
        index = next(i for i, (key, _) in enumerate(node.value) if key.value == name)
        key, value = node.value[index]
        parts = [each.start_mark.index for each, _ in node.value]
        start, end = key.start_mark.index, self.layout.last(value, key)
        if len(parts) == 1:
            raise CannotSpliceError("the only key of a mapping is removed")
        if not node.flow_style and self.layout.begins_line(start):
            return self.layout.without_lines(start, end)
        if index + 1 < len(parts):
            return Splice(start, parts[index + 1], "")
        return Splice(self.layout.last(*reversed(node.value[index - 1])), end, "")

    def _sequence(self, node: Any, old: list[Any], new: list[Any]) -> Iterator[Splice]:
        if any(item.start_mark.index < node.start_mark.index for item in node.value):
            raise CannotSpliceError("a list holds an alias")
        pairs = counterparts(old, new)
        kept = [index for index in pairs if index is not None]
        appended = new[len(kept) :]
        several = bool(node.flow_style) and len(old) - len(kept) > 1
        if not kept or several or any(index is None for index in pairs[: len(kept)]):
            if not node.flow_style:
                raise CannotSpliceError("a list becomes another")
            yield self._instead(node, flow(new))
            return
        for index, item in enumerate(node.value):
            if index not in kept:
                yield self._removed_item(node, index)
            else:
                yield from self.changes(item, old[index], new[kept.index(index)])
        if appended:
            yield self._added_items(node, appended)

    def _removed_item(self, node: Any, index: int) -> Splice:
        item = node.value[index]
        if node.flow_style:
            if index + 1 < len(node.value):
                return Splice(item.start_mark.index, node.value[index + 1].start_mark.index, "")
            return Splice(self.layout.last(node.value[index - 1]), self.layout.last(item), "")
        dash = self.layout.dash(item)
        if not self.layout.begins_line(dash):
            raise CannotSpliceError("a list begins within a line")
        return self.layout.without_lines(dash, self.layout.last(item))

    def _added_items(self, node: Any, items: list[Any]) -> Splice:
        last = self.layout.last(node.value[-1])
        if node.flow_style:
            return Splice(last, last, ", " + flow(items)[1:-1])
        dash = self.layout.dash(node.value[0])
        column = dash - (self.text.rfind("\n", 0, dash) + 1)
        return self.layout.line_after(last, [line for i in items for line in _item(i, column)])


def _item(value: Any, column: int) -> list[str]:
    """An item of a block, behind its dash."""
    if not isinstance(value, dict) or not value:
        return [" " * column + "- " + flow(value)]
    first, *rest = block(value, column + 2)
    return [" " * column + "- " + first.lstrip(), *rest]


def _renamed(old: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    """Keys that have another name in the same place of a mapping, for the same or a like list."""
    if len(old) != len(new):
        return {}
    return {
        was: now
        for was, now in zip(old, new, strict=True)
        if was not in new
        and now not in old
        and (
            equal(old[was], new[now]) or (isinstance(old[was], list) and isinstance(new[now], list))
        )
    }


def _kind(value: Any) -> object:
    """What a value has to stay to be changed piece by piece."""
    if isinstance(value, list):
        return list, {type(each) for each in value} <= {dict}
    return type(value)
