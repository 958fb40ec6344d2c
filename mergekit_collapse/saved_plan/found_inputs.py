"""The inputs of a merge as they lie here now."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit.common import ModelPath

from mergekit_collapse.errors import CompatError, EvaluationError
from mergekit_collapse.preflight.hub_repository import cached_snapshot
from mergekit_collapse.saved_plan.digests import Stamp, digests, stamp
from mergekit_collapse.saved_plan.input_files import Input, Located, locate
from mergekit_collapse.saved_plan.record import Key, PlannedInput


@dataclass(frozen=True)
class FoundInputs:
    """What was found.

    Attributes:
        inputs: those that are there, with the digests of their files.
        problems: why the others are not.
        stamps: of every model's files, by which a later change is noticed without reading them.
        commits: of those that are the hub's.
        cache_dir: where these are kept.
    """

    inputs: Mapping[Key, PlannedInput]
    problems: Mapping[Key, str]
    stamps: Mapping[Path, Stamp]
    commits: Mapping[ModelPath, str]
    cache_dir: str | None

    def require_untouched(self, advice: str) -> None:
        """Raise if a model's file was written to, or another commit fetched, since it was read.

        Args:
            advice: what to do about it.

        Raises:
            EvaluationError: names it.
        """
        for path, known in self.stamps.items():
            if stamp(path) != known:
                raise EvaluationError(f"{path}: was changed meanwhile; {advice}")
        for model, commit in self.commits.items():
            # What a later reader of the same name is given.
            now = cached_snapshot(model, self.cache_dir)
            if now is None or now.name != commit:
                raise EvaluationError(f"{model}: was changed on the hub meanwhile; {advice}")


def find_inputs(
    wanted: Collection[Input],
    *,
    cache_dir: str | None,
    trust_remote_code: bool,
    progress: bool,
    local: Collection[Key] = (),
) -> FoundInputs:
    """Locate every input, and digest its files.

    Args:
        local: those that must be folders here, of which the hub is not asked.

    Raises:
        EvaluationError: a file that is there cannot be read.
    """
    located: dict[Key, Located] = {}
    problems: dict[Key, str] = {}
    for one in wanted:
        try:
            if one.key in local:
                _require_folder(one)
            located[one.key] = locate(one, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
        except CompatError as error:
            problems[one.key] = str(error)
    stamps = {
        path: stamp(path)
        for (role, _), place in located.items()
        for path in place.files.values()
        if role in ("model", "adapter", "tokenizer")
    }
    every = [path for place in located.values() for path in place.files.values()]
    read = digests(every, progress=progress)
    inputs = {
        (role, name): PlannedInput(
            role=role,
            name=name,
            commit=place.commit,
            files={file: read[path] for file, path in place.files.items()},
        )
        for (role, name), place in located.items()
    }
    commits = {
        one.source: place.commit
        for one in wanted
        if isinstance(one.source, ModelPath)
        and (place := located.get(one.key)) is not None
        and place.commit is not None
    }
    return FoundInputs(inputs, problems, stamps, commits, cache_dir)


def _require_folder(wanted: Input) -> None:
    if isinstance(wanted.source, ModelPath) and not os.path.isdir(wanted.source.path):
        raise EvaluationError(f"{wanted.name}: no such folder (seen from {os.getcwd()})")
