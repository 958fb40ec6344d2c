"""Files that hold a change: the documents of a split, and a repaired recipe."""

from pathlib import Path

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.recipe.yaml_edit import edit_yaml
from mergekit_collapse.repair.changed_recipe import written_block
from mergekit_collapse.repair.moved_block import moved_block
from mergekit_collapse.repair.split_recipes import SPLIT_FILE
from mergekit_collapse.report.report import Report
from mergekit_collapse.whole_file import write_whole


def write_split(report: Report, folder: Path) -> None:
    """Put the documents of a split beside the report.

    Raises:
        EvaluationError: the folder cannot be written.
    """
    if report.remedy is None or report.remedy.split is None:
        return
    _write(folder / SPLIT_FILE, report.remedy.split, "name another folder in compat.report")


def write_fixed(report: Report, path: Path) -> None:
    """Write the changed recipe where it can be run from; nothing where none was allowed.

    Raises:
        EvaluationError: the file cannot be written.
    """
    # A rehearsal may have refused what was changed.
    if report.remedy is None or report.verdict.decision != "modified":
        return
    recipe = report.recipe
    block = moved_block(recipe, path.absolute().parent)
    text = recipe.source
    if block != written_block(recipe):
        text = edit_yaml(text, recipe.config, recipe.config, block).text
    _write(path, text, "name another file")


def _write(path: Path, text: str, otherwise: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise EvaluationError(
            f"{path}: cannot be written: {error.strerror}; mend its rights, or {otherwise}"
        ) from error
