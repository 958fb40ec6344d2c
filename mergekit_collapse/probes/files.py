"""Rows of a user's probe file or hub data set, each with the place to name in an error."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_collapse.errors import EvaluationError

Row = tuple[str, Mapping[str, Any]]


def read_rows(path: Path, task: str) -> Iterator[Row]:
    """Rows of a ``.jsonl``, ``.csv``, ``.parquet`` or ``.txt`` file, one at a time.

    A line of a ``.txt`` file has the one field ``text``; blank lines are passed over.

    Raises:
        EvaluationError: missing, unreadable, not UTF-8 or malformed, with the line.
    """
    name = f"probe task {task!r}: {path}"
    try:
        yield from FILE_KINDS[path.suffix.lower()](path, name)
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{name}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    except FileNotFoundError:
        raise EvaluationError(
            f"{name}: no such file; paths are relative to the folder of the recipe"
        ) from None
    except OSError as error:
        raise EvaluationError(f"{name}: cannot be read: {error.strerror or error}") from None


def read_hub(dataset: str, split: str | None, task: str, path: Path) -> Iterator[Row]:
    """Rows of a hub data set, streamed; ``split`` defaults to its validation or first split.

    Raises:
        EvaluationError: no such data set, no network, or ``dataset`` was meant as a file.
    """
    name = f"probe task {task!r}: {dataset}"
    # os.path, since Path.exists raises where a name is too long for any file.
    if (
        os.path.exists(path)
        or dataset.startswith((".", "/", "~"))
        or path.suffix in (".json", ".tsv")
    ):
        raise EvaluationError(
            f"{name}: not a probe file; its name must end in {', '.join(FILE_KINDS)}"
        )
    import datasets  # slow to import, and only hub tasks need it

    try:
        if split is None:
            splits = datasets.get_dataset_split_names(dataset)
            split = "validation" if "validation" in splits else splits[0]
        rows = datasets.load_dataset(dataset, split=split, streaming=True)
        for index, row in enumerate(rows):
            yield f"{name} [{split}] row {index + 1}", row
    except EvaluationError:
        raise
    except Exception as error:  # the hub's client raises from five libraries
        raise EvaluationError(
            f"{name}: the data set cannot be read from the hub: {type(error).__name__}: {error}. "
            "Check its name and the network, or save the rows in a .jsonl file"
        ) from None


def _jsonl(path: Path, name: str) -> Iterator[Row]:
    for where, line in _lines(path, name):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise EvaluationError(f"{where}: an object of fields is expected, got {line[:60]!r}")
        yield where, row


def _text(path: Path, name: str) -> Iterator[Row]:
    for where, line in _lines(path, name):
        yield where, {"text": line}


def _lines(path: Path, name: str) -> Iterator[tuple[str, str]]:
    # utf-8-sig: spreadsheets and editors on Windows begin a file with a byte-order mark.
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{name}:{number}", line.rstrip("\n")


def _csv(path: Path, name: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        # Strict: else a quote that nobody closes takes the rest of the file for one cell.
        reader = csv.DictReader(lines, restkey="", strict=True)
        try:
            _require_distinct(reader.fieldnames or (), name)
            for row in reader:
                where = f"{name}:{reader.line_num}"
                if "" in row:
                    raise EvaluationError(
                        f"{where}: more cells than the header has; quote cells that hold a comma"
                    )
                # A short row's missing cells are None, which a template refuses by name.
                yield where, row
        except csv.Error as error:
            raise EvaluationError(f"{name}:{reader.line_num}: not CSV: {error}") from None


def _parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with pq.ParquetFile(path) as table:
            _require_distinct(table.schema_arrow.names, name)
            for number, row in enumerate(
                row for batch in table.iter_batches(1024) for row in batch.to_pylist()
            ):
                yield f"{name} row {number + 1}", row
    except pa.ArrowException as error:
        raise EvaluationError(f"{name}: not a Parquet file: {error}") from None


def _require_distinct(columns: Sequence[str], name: str) -> None:
    """Of two columns with one name, a row would keep the last."""
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise EvaluationError(f"{name}: two columns are called {twice[0]!r}; rename one")


FILE_KINDS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _text,
}
