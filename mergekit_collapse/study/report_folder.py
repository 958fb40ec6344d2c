"""All reports in a folder, each a stranger's file."""

import os
from collections.abc import Iterator
from pathlib import Path

from mergekit_collapse.errors import CompatError, InvalidRecipeError
from mergekit_collapse.report.reader import parse_report, read_report
from mergekit_collapse.report.stored_report import StoredReport
from mergekit_collapse.study.finished_merges import Unused

_NAME = "report.json"


def read_reports(folder: Path) -> tuple[tuple[tuple[str, StoredReport], ...], tuple[Unused, ...]]:
    """Every ``report.json`` below a folder, and every ``.json`` in the folder itself.

    Others are not opened: merged models lie there too, with JSON files of their own. Links to
    folders are not followed.

    Returns:
        Paths and reports by path, and what could not be read.

    Raises:
        InvalidRecipeError: there is no such folder.
    """
    if not folder.is_dir():
        raise InvalidRecipeError(
            f"{folder}: no such folder; name one that holds reports, such as the OUT.compat/ and "
            "MERGED.evaluation/ of your merges"
        )
    found: list[tuple[str, StoredReport]] = []
    unused: list[Unused] = []
    for path in sorted(_files(folder, unused)):
        try:
            found.append((str(path), parse_report(read_report(path), str(path))))
        except CompatError as error:
            unused.append(Unused(str(path), "unreadable", str(error).removeprefix(f"{path}: ")))
    return tuple(found), tuple(unused)


def _files(folder: Path, unused: list[Unused]) -> Iterator[Path]:
    def closed(error: OSError) -> None:
        unused.append(Unused(str(error.filename), "unreadable", f"{error.strerror}"))

    for place, _, names in os.walk(folder, onerror=closed):
        here = Path(place)
        for name in names:
            if name == _NAME or (here == folder and name.endswith(".json")):
                yield here / name
