"""All tasks of the zoo: what an expert is trained for, and what a merge can lose."""

import json
from dataclasses import replace
from pathlib import Path

from made_tasks import MADE_TASKS
from rows import Row, Task, divide, write
from text_tasks import TEXT_TASKS
from word_tasks import WORD_TASKS
from zoo import ROTATED

TASKS = {**TEXT_TASKS, **WORD_TASKS, **MADE_TASKS}


def rotated(task: Task) -> Task:
    """Every answer replaced by the next one: a task that contradicts the first."""
    if task.choices is None:
        raise ValueError(f"task {task.name} has no choices to change over")
    after = dict(zip(task.choices, (*task.choices[1:], task.choices[0]), strict=True))

    def changed(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return tuple(Row(row.prompt, after[row.answer]) for row in rows)

    parts = {part: changed(getattr(task, part)) for part in ("train", "probes", "held_out")}
    return replace(task, name=f"{task.name}-rotated", **parts)


def write_tasks(sources: Path, folder: Path) -> None:
    """Write every task's rows to ``folder``/tasks and their choices to ``folder``/tasks.json."""
    choices = {}
    for name, (rows, offered) in TASKS.items():
        task = divide(name, offered, rows(sources))
        write(task, folder / "tasks")
        choices[name] = offered
        if name in ROTATED:
            write(rotated(task), folder / "tasks")
            choices[f"{name}-rotated"] = offered
        print(f"{name}: {len(task.train)} to train on, {len(task.held_out)} held out", flush=True)
    (folder / "tasks.json").write_text(
        json.dumps({name: {"choices": offered} for name, offered in choices.items()}, indent=1),
        encoding="utf-8",
    )
