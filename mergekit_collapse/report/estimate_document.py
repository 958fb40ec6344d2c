"""The estimate as plain data for JSON, with what was really used."""

from typing import Any

from mergekit_collapse.report.geometry_document import defined
from mergekit_collapse.states.estimate import Estimate
from mergekit_collapse.states.memory_use import Used
from mergekit_collapse.states.peak_memory import Memory


def estimate_document(estimate: Estimate, used: Used | None) -> dict[str, Any]:
    """Bytes, FLOPs and memory; an undefined number is null beside its ``…_reason``."""
    found = {
        "models": estimate.models,
        "bytes_read": estimate.bytes_read,
        "flops": estimate.flops,
        "memory": _memory(estimate.memory),
        "host_memory": _memory(estimate.host) if estimate.host is not None else None,
        "together": estimate.together,
        "batch_tokens": estimate.batch_tokens,
        "whole": [{"model": name, "reason": reason} for name, reason in estimate.whole],
    }
    if estimate.host is None:
        found["host_memory_reason"] = "the models run on the processor"
    if used is not None:
        found["used"] = {
            "seconds": round(used.seconds, 3),
            **defined("peak_memory", used.peak, "other processes took it, or it is not told here"),
        }
    return found


def _memory(memory: Memory) -> dict[str, int]:
    return {"peak": memory.peak, **memory.parts}
