"""The file of a plan: written whole or not at all, and read as a stranger's."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.json_file import Kind, first_problem, read_object, too_deep
from mergekit_collapse.saved_plan.record import PLAN_VERSION, SavedPlan
from mergekit_collapse.whole_file import write_whole

# A thousand shards take a quarter of a megabyte.
LARGEST_FILE = 64 * 2**20
_MARK = "plan_version"
_KIND = Kind(
    noun="plan",
    name_it="name a plan",
    made_by="`mergekit-collapse check RECIPE --plan FILE` writes",
    make_it="make the plan again with `mergekit-collapse check RECIPE --plan FILE`",
)


@dataclass(frozen=True)
class OpenedPlan:
    """A plan that was read.

    Attributes:
        path: of its file.
        sha256: of the file's bytes.
    """

    plan: SavedPlan
    path: Path
    sha256: str


def read_plan(path: Path) -> OpenedPlan:
    """The plan in a file.

    Raises:
        InvalidRecipeError: there is no such file, or it is no plan, of a newer version, damaged,
            or has a key that no plan has.
    """
    document, content = read_object(path, _KIND, LARGEST_FILE)
    version = document.get(_MARK)
    if not isinstance(version, int) or isinstance(version, bool):
        raise InvalidRecipeError(
            f"{path}: not {_KIND.told}: it has no {_MARK}; {_KIND.name_it}, which {_KIND.made_by}"
        )
    if version != PLAN_VERSION:
        upgrade = "upgrade it: pip install -U mergekit-collapse"
        raise InvalidRecipeError(
            f"{path}: has {_MARK} {version}, and this mergekit-collapse knows {PLAN_VERSION}; "
            f"{upgrade if version > PLAN_VERSION else _KIND.make_it}"
        )
    try:
        # Of the object and not of the bytes, so that no other parser sees another document.
        plan = SavedPlan.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise InvalidRecipeError(
            f"{path}: {first_problem(error, 'plan')}. The plan is damaged or was changed by hand; "
            f"{_KIND.make_it}"
        ) from None
    except RecursionError:
        too_deep(str(path), _KIND)
    return OpenedPlan(plan, path, hashlib.sha256(content).hexdigest())


def write_plan(plan: SavedPlan, path: Path) -> None:
    """Write it, whole or not at all.

    Raises:
        EvaluationError: it cannot be written.
    """
    text = json.dumps(plan.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        write_whole(path, text + "\n")
    except OSError as error:
        raise EvaluationError(
            f"{path}: the plan cannot be written: {error.strerror}; name a file in a folder that "
            "can be written"
        ) from None


def require_place(path: Path, models: Iterable[str]) -> None:
    """Refuse a place where a plan would destroy something, or change what it is about.

    Args:
        models: paths of what is merged.

    Raises:
        InvalidRecipeError: something else than a plan is there, it is a model's folder, or it
            cannot be written.
    """
    if os.path.lexists(path):
        try:
            read_object(path, _KIND, LARGEST_FILE)[0][_MARK]
        except (InvalidRecipeError, KeyError):
            raise InvalidRecipeError(
                f"--plan {path}: is there already and is no plan; remove it, or name another file"
            ) from None
    folder = Path(os.path.realpath(path)).parent
    made = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not made.is_dir() or not os.access(made, os.W_OK):
        raise InvalidRecipeError(
            f"--plan {path}: {made} is no folder that can be written; name another file"
        )
    for model in models:
        if os.path.isdir(model) and Path(os.path.realpath(model)) == folder:
            raise InvalidRecipeError(
                f"--plan {path}: lies in the folder of a model, of whose files it would be one; "
                "name a file elsewhere"
            )
