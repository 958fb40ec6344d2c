"""A stranger's text, made safe to stand in a line of Markdown."""

import re

from mergekit_collapse.findings import printable

# GitHub makes links of addresses and numbers, and tells whoever is mentioned.
_LINKED = re.compile(r"(?<=@)(?=\w)|(?<=#)(?=\d)|(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
_GAP = "\u200b"  # of no width, and not printable, so that no stranger's text holds one here
# An entity is text wherever it stands, also where a backslash would end a table's cell. The
# others are spared so that the file stays readable raw: an underscore inside a word marks
# nothing, and names are full of them.
_ENTITIES = re.compile(rf"[\\`|<>&~${_GAP}]")
_ESCAPED = re.compile(r"[*\[\]]|(?<![^\W_])_|_(?![^\W_])")


def plain(text: str) -> str:
    """The text on one line, with nothing in it that Markdown, HTML or GitHub would obey.

    It is to follow some text of our own: a ``#`` or ``-`` that starts a line is not escaped.
    """
    parted = _LINKED.sub(_GAP, printable(" ".join(text.split())))
    marked = _ESCAPED.sub(lambda mark: f"\0{mark[0]}", parted)
    return _ENTITIES.sub(lambda mark: f"&#{ord(mark[0])};", marked).replace("\0", "\\")
