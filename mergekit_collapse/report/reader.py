"""A ``report.json`` from anywhere, read as a stranger's file."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.json_file import Kind, first_problem, read_object, too_deep
from mergekit_collapse.report.document import FORMAT_VERSION
from mergekit_collapse.report.stored_report import StoredReport

# Thirty experts with every matrix take one or two megabytes.
LARGEST_FILE = 64 * 2**20
_KIND = Kind(
    noun="report",
    name_it="name a report.json",
    made_by="`mergekit-collapse check RECIPE` writes into RECIPE-STEM.compat/",
    make_it="make the report again with `mergekit-collapse check RECIPE`",
)


def read_report(path: Path) -> dict[str, Any]:
    """The document of a ``report.json``, checked as far as a page relies on it.

    Raises:
        InvalidRecipeError: there is no such file, or it is no JSON, no report, cut short, from a
            newer version, or holds values of the wrong type.
    """
    if path.is_dir():
        path = path / "report.json"
    document, _ = read_object(path, _KIND, LARGEST_FILE)
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
            f"{where}: not {_KIND.told}: it has no "
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
            f"{where}: {first_problem(error, 'report')}. The report is damaged or was changed by "
            "hand; make it again with `mergekit-collapse check RECIPE`"
        ) from None
    except RecursionError:
        too_deep(where, _KIND)
