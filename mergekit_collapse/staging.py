"""Where a finished merge goes: to its output folder, or aside."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError

REPORT = "report.json"
_WEIGHTS = (
    "model*.safetensors",
    "pytorch_model*.bin",
    "*.safetensors.index.json",
    "*.bin.index.json",
)


def require_usable(out: Path, sources: Iterable[str], report: Path) -> None:
    """Refuse an output that could not be published, before anything is measured.

    Args:
        out: the output folder.
        sources: folders or hub ids of the models that are merged.
        report: folder of the report, which a refused merge has as well.

    Raises:
        InvalidRecipeError: ``out`` is no folder, is a model of the recipe or holds the report.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise InvalidRecipeError(f"{out}: is no folder; name a folder, or a path that is free")
    require_folder(report)
    target = Path(os.path.realpath(out))
    for source in sources:
        if os.path.isdir(source) and Path(os.path.realpath(source)) == target:
            raise InvalidRecipeError(
                f"{out}: is a model that this recipe merges, which the merge would overwrite; "
                "name another output folder"
            )
    if Path(os.path.realpath(report)).is_relative_to(target):
        raise InvalidRecipeError(
            f"compat.report: {report} lies in the output folder {out}, which a refused merge must "
            "not make; name a folder outside it"
        )


def require_folder(report: Path) -> None:
    """Refuse a report's folder that is something else, before anything is measured.

    Raises:
        InvalidRecipeError: it is there and no folder.
    """
    if os.path.lexists(report) and not report.is_dir():
        raise InvalidRecipeError(
            f"{report}: is where the report's folder must be, and is no folder; name another with "
            "compat.report, or remove it"
        )


def publish(merged: Path, out: Path) -> None:
    """Move a finished merge to ``out``.

    Onto nothing or an empty folder it is one rename. A folder that has files keeps those
    that the merge does not write, as under stock MergeKit; ``config.json``, without which
    no reader takes the folder for a model, is taken away first and comes last.

    Raises:
        EvaluationError: a folder is in the way of a file, or the output cannot be written.
    """
    out = Path(os.path.realpath(out))
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            os.replace(merged, out)
        else:
            _move_into(merged, out)
    except OSError as error:
        raise EvaluationError(
            f"{error.filename or out}: the merge cannot be put there: {error.strerror}; "
            "mend its rights, or name another output folder"
        ) from error


def rejected_place(out: Path) -> Path:
    """``OUT.rejected``, or a numbered one where something else than a rejected merge is there."""
    out = Path(os.path.realpath(out))
    place, number = out.with_name(f"{out.name}.rejected"), 1
    while os.path.lexists(place) and not _is_rejected(place):
        number += 1
        place = out.with_name(f"{out.name}.rejected-{number}")
    return place


def reject(merged: Path, place: Path) -> None:
    """Move a finished merge to ``place``, where nothing takes it for OUT.

    An earlier rejected merge there is replaced.

    Raises:
        EvaluationError: it cannot be moved.
    """
    try:
        if _is_rejected(place):
            shutil.rmtree(place)
        os.replace(merged, place)
    except OSError as error:
        raise EvaluationError(
            f"{error.filename or place}: the rejected merge cannot be put there: {error.strerror}; "
            "mend its rights or remove it"
        ) from error


def _is_rejected(place: Path) -> bool:
    """Whether a folder is a merge that was put aside, which its report says."""
    if place.is_symlink() or not place.is_dir():
        return False
    try:
        report = json.loads((place / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and {"format_version", "verdict", "evaluation"} <= set(report)


def _move_into(merged: Path, out: Path) -> None:
    made = sorted(merged.rglob("*"), key=lambda p: p.name == "config.json")
    targets = {path: out / path.relative_to(merged) for path in made}
    for path, target in targets.items():
        if target.exists() and target.is_dir() != path.is_dir():
            raise EvaluationError(
                f"{target}: is in the way of what the merge writes there; remove it, or name "
                "another output folder. Nothing was changed"
            )
    (out / "config.json").unlink(missing_ok=True)
    # A reader would take an older merge's single file before this one's shards, or the reverse.
    for old in (path for pattern in _WEIGHTS for path in out.glob(pattern)):
        old.unlink()
    for path, target in targets.items():
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
