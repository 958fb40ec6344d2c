"""Refuse doomed model merges: a MergeKit plugin that measures experts before they are merged.

import mergekit_collapse

report = mergekit_collapse.check("recipe.yml")
print(report.verdict.decision, report.path)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit_collapse.gate import check, evaluate, run, run_plan

__version__ = "0.1.0"
__all__ = ["__version__", "check", "evaluate", "run", "run_plan"]


def __getattr__(name: str) -> Any:
    # Only when asked for: the start-up hook imports this package into every program that
    # imports MergeKit, and most of them want nothing of the gate.
    if name in ("check", "evaluate", "run", "run_plan"):
        from mergekit_collapse import gate

        return getattr(gate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
