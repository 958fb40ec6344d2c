"""The report's numbers in the experiment tracker that a team has already."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.formats.scalars import PREFIX, profiles, scalars

Tracker = Literal["tensorboard", "wandb", "mlflow"]
Series = Mapping[str, Sequence[tuple[int, float]]]

_BATCH = 1000  # the most metrics that MLflow takes at once


def require_trackers(to: Sequence[Tracker]) -> None:
    """Say that a tracker is missing before anything is measured.

    Raises:
        InvalidRecipeError: its package is not installed.
    """
    for name in to:
        if not _installed(name):
            raise InvalidRecipeError(
                f"compat.log_to: {name} is not installed here; install it with "
                f"`pip install 'mergekit-collapse[{name}]'`, or take it out of log_to"
            )


def log_scalars(document: dict[str, Any], to: Sequence[Tracker], folder: Path) -> None:
    """Log the document's numbers to each tracker.

    W&B and MLflow log into the run that the program is in, else into one of their own, which
    is ended again. Where they send it is theirs to know: ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``.

    Args:
        to: names of trackers; nothing is logged where there are none.
        folder: for TensorBoard's event files, in ``folder/tensorboard``, and W&B's own.

    Raises:
        InvalidRecipeError: a tracker's package is not installed.
        EvaluationError: a tracker would not take the numbers.
    """
    require_trackers(to)
    write: dict[Tracker, Callable[[dict[str, float], Series, Path], None]] = {
        "tensorboard": _tensorboard,
        "wandb": _wandb,
        "mlflow": _mlflow,
    }
    for name in to:
        try:
            write[name](scalars(document), profiles(document), folder)
        except Exception as error:  # each has a family of its own, and of its libraries'
            raise EvaluationError(
                f"compat.log_to: {name} did not take the numbers: {type(error).__name__}: "
                f"{first_line(error)}; mend its settings, or take it out of log_to"
            ) from error


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is being imported, or was put out of reach
        return False


def _tensorboard(values: dict[str, float], layers: Series, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value)
        for name, points in layers.items():
            for layer, value in points:
                writer.add_scalar(name, value, layer)


def _wandb(values: dict[str, float], layers: Series, folder: Path) -> None:
    wandb: Any = importlib.import_module("wandb")
    own = None
    if wandb.run is None:
        folder.mkdir(parents=True, exist_ok=True)
        own = wandb.init(project=PREFIX, dir=str(folder))
    run = own or wandb.run
    axis = f"{PREFIX}/layer_number"
    run.define_metric(axis)
    run.define_metric(f"{PREFIX}/layer/*", step_metric=axis)
    run.log(values)
    for layer in sorted({layer for points in layers.values() for layer, _ in points}):
        row = {
            name: dict(points)[layer] for name, points in layers.items() if layer in dict(points)
        }
        run.log({axis: layer, **row})
    if own is not None:
        own.finish()


def _mlflow(values: dict[str, float], layers: Series, _folder: Path) -> None:
    mlflow: Any = importlib.import_module("mlflow")

    own = mlflow.active_run() is None
    if own:
        mlflow.start_run(run_name="mergekit-collapse")
    try:
        rest = iter(values.items())
        while batch := dict(islice(rest, _BATCH)):
            mlflow.log_metrics(batch)
        for name, points in layers.items():
            for layer, value in points:
                mlflow.log_metric(name, value, step=layer)
    finally:
        if own:
            mlflow.end_run()
