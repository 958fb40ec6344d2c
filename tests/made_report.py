"""Reports for the tests of the page: real geometry of made-up states, and what may follow."""

from dataclasses import replace
from typing import Any

import numpy as np
from made_states import hidden_states

from mergekit_collapse.geometry.geometry import measure
from mergekit_collapse.recipe.yaml_edit import yaml_diff
from mergekit_collapse.report.geometry_document import (
    geometry_document,
    groups_document,
    scores_document,
)
from mergekit_collapse.report.remedy import Remedy, RemedyMember, remedy_document
from mergekit_collapse.verdict import Reason

NAMES = ("sentiment", "topic", "arithmetic")
HOSTILE = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'single' onload=x",
    "m/" + "very-long-" * 20,
    "שלום עולם \u202egnp.exe",
    "two\nlines\tand \x1b[31mred",
    "$\\alpha$ {{ 7 * 7 }} {% raw %}",
    "日本語の専門家",
    "\ud800 lone",
    "n0",
    "",
    "--> ]]> </svg><img src=x onerror=y>",
    "twelve",
)


def report(names: tuple[str, ...] = NAMES, *, layers: int = 1, noise: float = 0.8) -> Any:
    """A refused check of these experts, with a base and a task for each."""
    count, probes = len(names), 4 * (len(names) + 1)
    rng = np.random.default_rng(count)
    shared = rng.normal(size=(1, probes, 6))
    spread = np.linspace(noise / 2, noise, count + 1)[:, None, None]
    states = hidden_states(
        *(shared + spread * rng.normal(size=(count + 1, probes, 6)) for _ in range(layers))
    )
    tasks = [(f"task of {name}", i) for i, name in enumerate(names)] + [("builtin", None)]
    alpha = np.array([1 / count] * count + [0.0])
    geometry = measure(
        states,
        expert_count=count,
        task_of_probe=np.repeat(np.arange(count + 1), 4),
        tasks=tasks,
        scale="variance",
        coefficients=alpha,
        seed=0,
    )
    similarity, mds = scores_document(geometry)
    return {
        "format_version": 1,
        "verdict": {
            "decision": "refuse",
            "exit_code": 3,
            "reasons": [
                reason("distortion", ", ".join(names), geometry.ball.radius_squared, 0.05),
                *(reason("mds", n, v, 1.0) for n, v in zip(names, geometry.mds[0].mds)),  # noqa: B905
            ],
        },
        "versions": {"mergekit-collapse": "0.1.0", "mergekit": "0.1.5"},
        "timing": {"states": 3.25, "geometry": 0.125},
        "budget": {
            **{"distortion": 0.05, "rule": "ball", "over": "pooled", "space": "hidden"},
            **{"mds": 1.0, "similarity": "unrelated"},
        },
        "recipe": {
            **{"path": "recipe.yml", "sha256": "ab" * 32, "method": "linear"},
            "effective": "models:\n  - model: <b>&amp;\n\tcompat: {}\n",
        },
        "experts": [{"name": n, "model": f"./experts/{n}", "weight": 1 / count} for n in names],
        "base": "./base",
        "coefficients": {"alpha": alpha.tolist(), "exact": True, "note": None},
        "warnings": [{"subject": "topic", "message": "another vocabulary", "advice": "look"}],
        "probes": {
            **{"digest": "cd" * 32, "text_digest": "ef" * 32, "samples": 4},
            "tasks": [{"name": t, "model": None, "source": "made", "rows": 4} for t, _ in tasks],
        },
        "forward": {"device": "cpu", "dtype": "float32", "engine": "whole-model"},
        "geometry": {
            "hidden": geometry_document(geometry, "last"),
            "predictive": None,
            "predictive_reason": "the models have no head",
        },
        "similarity": {"hidden": similarity},
        "mds": {"hidden": mds},
        "groups": groups_document(geometry),
    }


def reason(rule: str, subject: str, value: float | None, limit: float | None) -> dict[str, Any]:
    return {
        **{"rule": rule, "reading": "ball, hidden space", "subject": subject},
        **{"value": value, "limit": limit, "advice": "Leave one out."},
    }


def evaluation(document: Any, source: str = "merged", *, layers: int = 4) -> dict[str, Any]:
    """A merged model that lost a fifth of one task, off the experts' plane."""
    count = len(document["experts"])
    geometry = document["geometry"]["hidden"]
    measured = [d + 0.1 for d in geometry["predicted_distortion"]]
    names = [expert["name"] for expert in document["experts"]]
    return {
        "source": source,
        "model": "./merged",
        "seconds": 3.2,
        "verdict": {
            **{"decision": "refuse", "exit_code": 4},
            "reasons": [reason("max_merging_loss", names[0], 25.0, 20.0)],
        },
        "stopped_at": None,
        "hidden": {
            **{"layers": [4], "distortion": measured, "worst": max(measured)},
            "own_task": {
                "mine": {"owner": 0, "distortion": 0.25},
                "none": {"owner": 1, "distortion": None, "distortion_reason": "too few probes"},
                "all": {"owner": None, "distortion": None, "distortion_reason": "no one owns it"},
            },
            "own_task_worst": None,
            "own_task_worst_reason": "an expert has no task",
            "predicted_distortion": geometry["predicted_distortion"],
            "lower_bound": geometry["bounds"]["converse"],
            "ball_radius_squared": geometry["ball_radius_squared"],
        },
        "predictive": None,
        "predictive_reason": "the models have no head",
        "layers": [
            {
                "layer": layer,
                "distortion": [0.1 * layer + i for i in range(count - 1)] + [None],
                **{"variance": 2.0, "variance_ratio": 0.5 + layer / 10},
                **{"effective_rank": 9.0, "rank_ratio": None},
                "rank_ratio_reason": "fewer positions than features",
            }
            for layer in range(1, layers + 1)
        ],
        "tasks": [
            {
                **{"name": "mine", "owner": 0, "metric": "accuracy", "rows": 40},
                **{"expert": 0.9, "merged": 0.675, "loss_percent": -25.0},
            },
            {
                **{"name": "better", "owner": 1, "metric": "likelihood", "rows": 4},
                **{"expert": 0.0, "merged": 0.5, "loss_percent": None},
                "loss_percent_reason": "the expert scores nothing",
            },
        ],
        "checks": [
            {"name": "finite", "passed": True, "detail": "no NaN"},
            {"name": "loads", "passed": False, "detail": "1 missing key"},
        ],
        "lm_eval": {"hellaswag": {"acc": 0.5, "alias": "h"}},
    }


def conflict(document: Any) -> dict[str, Any]:
    count = len(document["experts"])
    off = [[0.5 if i != j else 0.0 for j in range(count)] for i in range(count)]
    undefined = [[None] * count for _ in range(count)]
    return {
        **{"base": "./base", "tensors": 12, "elements": 3456, "seconds": 0.5},
        "experts": [expert["name"] for expert in document["experts"]],
        "magnitude_change_ratio": off,
        "sign_change_ratio": off,
        "conflicting_magnitude_change_ratio": undefined,
        "conflicting_magnitude_change_ratio_reason": "nothing changed",
        "cosine": [[1.0 if i == j else -0.25 for j in range(count)] for i in range(count)],
        "notes": ["one tensor is tied"],
    }


def remedy(stays: str, left: str, joined: str, *, split: bool = False) -> dict[str, Any]:
    """One expert left and another came; or both can be merged apart."""
    before = f"models:\n# mine\n- model: {stays}\n- model: {left}\n-- not a file\n"
    after = f"models:\n# mine\n- model: {stays}\n- model: {joined}\n+ 1\n"
    members = (
        RemedyMember(stays, 0.5, 0.25, 0.125, 0.0625, left=False),
        RemedyMember(left, 0.5, None, 1.75, None, left=True),
        RemedyMember(joined, None, 0.75, None, 0.03125, left=False, joined=True),
    )
    if split:  # which leaves the recipe as it is
        members = tuple(
            replace(member, weight_after=None, predicted_after=None, left=False)
            for member in members[:2]
        )
    over = Reason("distortion", "ball", left, 1.75, None, 0.25, f"Leave {left} out.")
    found = Remedy(
        action="split" if split else "substitute",
        source_sha256="ab" * 32,
        over=(over,),
        diff=None if split else yaml_diff(before, after, "recipe.yml"),
        effective=None if split else after,
        members=members,
        reading_before=1.5,
        reading_after=None if split else 0.0625,
        notes=(f"{joined} takes the place of {left}",),
        split=f"# {stays} | {left}\nname: group-1\n---\nname: group-2\n" if split else None,
    )
    return remedy_document(found)


def changed(names: tuple[str, ...] = NAMES, *, split: bool = False) -> Any:
    """A check whose recipe was changed, or could be split."""
    document = report(names[:2])
    document["remedy"] = remedy(*names[:3], split=split)
    if not split:
        document["verdict"] = {"decision": "modified", "exit_code": 0, "reasons": []}
    return document


def full(names: tuple[str, ...] = NAMES) -> Any:
    """Everything that a report can have."""
    document = report(names, layers=3)
    document["evaluation"] = evaluation(document)
    document["rehearsal"] = evaluation(document, "rehearsal", layers=0)
    document["rehearsal"]["layers_reason"] = "only the last layer is rehearsed"
    document["rehearsal"]["verdict"] = {"decision": "allow", "exit_code": 0, "reasons": []}
    document["monitor"] = None
    document["monitor_reason"] = "the recipe asks for none"
    document["parameters"] = conflict(document)
    document["verdict"]["exit_code"] = 4
    return document


def watched() -> Any:
    """A merge that was watched, and read back: the same to the digits that are shown."""
    document = full()
    document["rehearsal"], document["rehearsal_reason"] = None, "no rehearsal was due"
    document["monitor"] = evaluation(document, "monitor")
    document["monitor"] |= {"tasks": [], "checks": [], "lm_eval": None}
    document["monitor"]["hidden"]["distortion"][0] += 1e-9
    document["monitor"]["layers"][1]["variance_ratio"] += 1e-9
    return document


def nothing_merged() -> Any:
    """Every slice has one source."""
    document = report()
    why = "every slice has one source, so no two models are merged"
    document |= {"probes": None, "forward": None, "groups": [], "mds": {}, "similarity": {}}
    document["geometry"] = {
        **{"hidden": None, "hidden_reason": why, "predictive": None, "predictive_reason": why},
    }
    document["verdict"] = {"decision": "allow", "exit_code": 0, "reasons": []}
    return document
