"""A JSON object in a file that anyone may have written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.findings import printable


@dataclass(frozen=True)
class Kind:
    """What a file should be, for the messages about one that is not.

    Attributes:
        noun: such as ``report``.
        name_it: what to name instead, such as ``name a report.json``.
        made_by: which command writes one, and where.
        make_it: how to make one anew.
    """

    noun: str
    name_it: str
    made_by: str
    make_it: str

    @property
    def told(self) -> str:
        """``a report of mergekit-collapse``."""
        return f"a {self.noun} of mergekit-collapse"


def read_object(path: Path, kind: Kind, largest: int) -> tuple[dict[str, Any], bytes]:
    """The object in a file, and the file's bytes.

    Args:
        largest: bytes; a larger file is not read.

    Raises:
        InvalidRecipeError: there is no such file, or it is no text, no JSON, cut short, holds
            anything but an object, or a key twice.
    """
    if not path.is_file():
        raise InvalidRecipeError(f"{path}: no such file; {kind.name_it}, which {kind.made_by}")
    try:
        if (size := path.stat().st_size) > largest:
            raise InvalidRecipeError(
                f"{path}: {size:,} bytes, and no {kind.noun} has more than {largest:,}; "
                f"{kind.name_it}"
            )
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InvalidRecipeError(
            f"{path}: cannot be read: {error.strerror}; give yourself the right to read it"
        ) from None
    except UnicodeDecodeError:
        raise InvalidRecipeError(f"{path}: not a text file; {kind.name_it}") from None
    return _object(path, text, kind), content


def first_problem(error: ValidationError, whole: str) -> str:
    """The first problem, by its place in the document, and how many more there are.

    Args:
        whole: what to call the document itself.
    """
    problems = error.errors(include_url=False, include_context=False)
    place = ".".join(str(part) for part in problems[0]["loc"])
    message = problems[0]["msg"].removeprefix("Value error, ")
    got = problems[0]["input"]
    shown = f" (got {got!r:.60})" if not isinstance(got, dict | list) else ""
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return printable(f"{place or whole}: {message}{shown}{more}")


def too_deep(where: str, kind: Kind) -> NoReturn:
    """Raise: nesting on which a parser gives up.

    Raises:
        InvalidRecipeError: always.
    """
    raise InvalidRecipeError(
        f"{where}: lists within lists without end, which no {kind.noun} has; {kind.name_it}"
    ) from None


def _object(path: Path, text: str, kind: Kind) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_distinct)
    except RecursionError:
        too_deep(str(path), kind)
    except ValueError as error:
        cut = " (it ends in the middle, as if cut short)" if _ends_early(error, text) else ""
        raise InvalidRecipeError(f"{path}: not JSON{cut}: {error}; {kind.make_it}") from None
    if not isinstance(found, dict):
        raise InvalidRecipeError(
            f"{path}: not {kind.told}: it holds a {type(found).__name__}, not an object; "
            f"{kind.name_it}"
        )
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys a reader keeps the last, another the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {printable(twice)!r} stands twice in one object")
    return found


def _ends_early(error: ValueError, text: str) -> bool:
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())
