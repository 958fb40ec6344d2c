"""A ``report.json`` from anywhere, read as a stranger's file."""

import json
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.findings import printable
from mergekit_collapse.report.document import FORMAT_VERSION
from mergekit_collapse.report.stored_report import StoredReport

# Thirty experts with every matrix take one or two megabytes.
LARGEST_FILE = 64 * 2**20


def read_report(path: Path) -> dict[str, Any]:
    """The document of a ``report.json``, checked as far as a page relies on it.

    Raises:
        InvalidRecipeError: there is no such file, or it is no JSON, no report, cut short, from a
            newer version, or holds values of the wrong type.
    """
    if path.is_dir():
        path = path / "report.json"
    if not path.is_file():
        raise InvalidRecipeError(
            f"{path}: no such file; name a report.json, which `mergekit-collapse check RECIPE` "
            "writes into RECIPE-STEM.compat/"
        )
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise InvalidRecipeError(
                f"{path}: {size:,} bytes, and no report has more than {LARGEST_FILE:,}; "
                "name a report.json"
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRecipeError(
            f"{path}: cannot be read: {error.strerror}; give yourself the right to read it"
        ) from None
    except UnicodeDecodeError:
        raise InvalidRecipeError(f"{path}: not a text file; name a report.json") from None
    document = _json(path, text)
    parse_report(document, str(path))
    return document


def parse_report(document: dict[str, Any], where: str = "the report") -> StoredReport:
    """The document as a record.

    Raises:
        InvalidRecipeError: as ``read_report``.
    """
    version = document.get("format_version")
    if "verdict" not in document or not isinstance(version, int):
        raise InvalidRecipeError(
            f"{where}: not a report of mergekit-collapse: it has no "
            f"{'verdict' if isinstance(version, int) else 'format_version'}; name the report.json "
            "that `mergekit-collapse check` or a gated merge wrote"
        )
    if version > FORMAT_VERSION:
        raise InvalidRecipeError(
            f"{where}: has format_version {version}, and this mergekit-collapse knows "
            f"{FORMAT_VERSION}; upgrade it: pip install -U mergekit-collapse"
        )
    try:
        return StoredReport.model_validate(document)
    except ValidationError as error:
        raise InvalidRecipeError(
            f"{where}: {_first(error)}. The report is damaged or was changed by hand; make it "
            "again with `mergekit-collapse check RECIPE`"
        ) from None
    except RecursionError:
        _too_deep(where)


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        _too_deep(str(path))
    except ValueError as error:
        cut = " (it ends in the middle, as if cut short)" if _ends_early(error, text) else ""
        raise InvalidRecipeError(
            f"{path}: not JSON{cut}: {error}; make the report again with "
            "`mergekit-collapse check RECIPE`"
        ) from None
    if not isinstance(document, dict):
        raise InvalidRecipeError(
            f"{path}: not a report of mergekit-collapse: it holds a "
            f"{type(document).__name__}, not an object; name a report.json"
        )
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _ends_early(error: ValueError, text: str) -> bool:
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())


def _too_deep(where: str) -> NoReturn:
    raise InvalidRecipeError(
        f"{where}: lists within lists without end, which no report has; name a report.json"
    ) from None


def _first(error: ValidationError) -> str:
    """The first problem, by its place in the document, and how many more there are."""
    problems = error.errors(include_url=False, include_context=False)
    place = ".".join(str(part) for part in problems[0]["loc"])
    message = problems[0]["msg"].removeprefix("Value error, ")
    got = problems[0]["input"]
    shown = f" (got {got!r:.60})" if not isinstance(got, dict | list) else ""
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return printable(f"{place or 'report'}: {message}{shown}{more}")
