"""Where the pieces of a YAML text begin and end, lines and comments included."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

_ALIAS = re.compile(r"\s*:\s*(\*[^\s,\[\]{}]+)")


class CannotSpliceError(ValueError):
    """The text is written in a way in which this change has no place."""


@dataclass(frozen=True, order=True)
class Splice:
    """Characters ``start`` to ``end`` of a text become ``new``."""

    start: int
    end: int
    new: str


class Layout:
    """A text beside the nodes that it was composed to."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.newline = "\r\n" if "\r\n" in text else "\n"

    def alias(self, key: Any) -> tuple[int, int]:
        """The place of an alias behind a key, which has no mark of its own."""
        match = _ALIAS.match(self.text, key.end_mark.index)
        if match is None:
            raise CannotSpliceError("an alias stands in an unusual place")
        return match.start(1), match.end(1)

    def last(self, node: Any, key: Any = None) -> int:
        """Where a node's last character is; a block's own mark lies behind the comments after."""
        if key is not None and node.start_mark.index < key.end_mark.index:
            return self.alias(key)[1]
        if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            if isinstance(node, yaml.MappingNode):
                return self.last(*reversed(node.value[-1]))
            return self.last(node.value[-1])
        start, end = node.start_mark.index, node.end_mark.index
        return int(start + len(self.text[start:end].rstrip()))

    def line_after(self, at: int, lines: list[str]) -> Splice:
        """New lines under the line in which something ends, behind its comment."""
        end = self.text.find("\n", at)
        end = len(self.text) if end < 0 else end - (self.text[end - 1 : end] == "\r")
        return Splice(end, end, "".join(self.newline + line for line in lines))

    def without_lines(self, start: int, end: int) -> Splice:
        """The whole lines of a block, with the comment behind its last word."""
        first = self.text.rfind("\n", 0, start) + 1
        last = self.text.find("\n", end)
        return Splice(first, len(self.text) if last < 0 else last + 1, "")

    def begins_line(self, at: int) -> bool:
        return not self.text[self.text.rfind("\n", 0, at) + 1 : at].strip()

    def dash(self, item: Any) -> int:
        before = self.text[: item.start_mark.index].rstrip(" ")
        if not before.endswith("-"):
            raise CannotSpliceError("an item does not stand behind its dash")
        return len(before) - 1
