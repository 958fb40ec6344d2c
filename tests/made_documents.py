"""Documents of every ending, and with the names that a stranger might choose."""

import copy
import functools
import json

import made_report
import numpy as np
from mergekit.config import MergeConfiguration
from test_shown import PROBES
from test_shown import made_report as measured_report

from mergekit_collapse.recipe.recipe import build_recipe
from mergekit_collapse.report.document import to_json
from mergekit_collapse.report.report import MADE_BEFORE, Report
from mergekit_collapse.verdict import ALLOW

HOSTILE = (
    "::error::x\n::set-output name=a::b",
    "]]></failure><script>alert(1)</script>&amp;",
    "a|b `c` **d** [e](javascript:f) <img src=x>",
    "\x1b[2J\x00\ufffe\u202e@someone #12 ##[add-mask]y%0Az",
)


def states(count=3, seed=0):
    """All near each other but the last, which is the opposite of the others."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(PROBES, 8))
    near = common + 0.1 * rng.normal(size=(count, PROBES, 8))
    return np.concatenate([near[:-1], -common[None]])


@functools.cache
def text_of(count, odd, seed, budget):
    """Measured once: most of the time goes there."""
    names = ("near", "close", "odd")[:count]
    made = states(count if odd else count + 1, seed)[:count]
    return to_json(measured_report(made, names, **dict(budget)))


def refused(**budget):
    return json.loads(text_of(3, True, 0, tuple(budget.items())))


def allowed(seed=0, **budget):
    return json.loads(text_of(2, False, seed, tuple(budget.items())))


def warned():
    report = measured_report(states(), ("near", "close", "odd"))
    return json.loads(to_json(report.as_warning()))


def nothing_merged():
    config = MergeConfiguration.model_validate(
        {
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": "only", "layer_range": [0, 2]}]}],
        }
    )
    recipe = build_recipe(config, {})
    assert recipe.merges_nothing
    versions = {"mergekit-collapse": "0.1.0"}
    return json.loads(
        to_json(Report(recipe, None, None, None, ALLOW, versions, {"preflight": 0.25}))
    )


def reason(rule, subject, value, limit, reading="measured, hidden space", advice="Mend it."):
    found = {"rule": rule, "reading": reading, "subject": subject, "value": value}
    return {**found, "limit": limit, "advice": advice}


def evaluation(names, *reasons, exit_code=4, source="merged", decision="refuse"):
    """What was seen of a merged model; without reasons it is allowed."""
    verdict = {"decision": "allow", "exit_code": 0, "reasons": []}
    if reasons:
        verdict = {"decision": decision, "exit_code": exit_code, "reasons": list(reasons)}
    distortion = [0.125 * (index + 1) for index in range(len(names))]
    hidden = {
        "layers": [1],
        "distortion": distortion,
        "worst": distortion[-1],
        "own_task": {"first": {"owner": 0, "distortion": 0.25}},
        "own_task_worst": 0.25,
        "predicted_distortion": distortion,
        "lower_bound": 0.01,
        "ball_radius_squared": 0.02,
    }
    layers = [
        {
            "layer": layer,
            "distortion": distortion,
            "variance": 1.0,
            "variance_ratio": 0.9 - layer / 10,
            "effective_rank": 5.0,
            "rank_ratio": 0.8,
        }
        for layer in (0, 1, 2)
    ]
    score = {"metric": "accuracy", "rows": 12, "expert": 0.8, "merged": 0.6}
    tasks = [
        {"name": "first", "owner": 0, **score, "loss_percent": -25.0},
        {
            "name": "second",
            "owner": 1,
            **score,
            "loss_percent": None,
            "loss_percent_reason": "the expert scores 0",
        },
    ]
    return {
        "source": source,
        "model": "out",
        "seconds": 3.25,
        "verdict": verdict,
        "stopped_at": None,
        "hidden": hidden,
        "predictive": None,
        "predictive_reason": "it was not asked for",
        "layers": layers,
        "tasks": tasks,
        "checks": [
            {"name": "finite", "passed": True, "detail": "no NaN and no infinity"},
            {"name": "loads", "passed": True, "detail": "every key was expected"},
        ],
        "lm_eval": {"arc_easy": {"acc,none": 0.5}},
    }


def published(**change):
    """Merged, evaluated and allowed."""
    document = {**allowed(), "rehearsal": None, "rehearsal_reason": "not near a limit"}
    document["evaluation"] = evaluation(("near", "close"), **change)
    document["timing"] = {"preflight": 0.5, "states": 1.25, "evaluation": 3.25}
    return document


def rejected():
    """Allowed by the gate; two limits and a check say no afterwards."""
    document = published()
    lost = reason("max_merging_loss", "near on first", 25.0, 20, "accuracy .8 became .6")
    unknown = reason("min_other_thing", "layer 7", 0.1, 0.5)
    broken = reason("check", "loads", None, None, "keys are missing")
    document["evaluation"] = evaluation(("near", "close"), broken, lost, unknown)
    document["evaluation"]["checks"][1] |= {"passed": False, "detail": "keys are missing"}
    return worse(document, document["evaluation"])


def worse(document, found):
    """The verdict of a later stage stands at the top, and keeps what the gate gave."""
    reasons = [*document["gate"]["reasons"], *found["verdict"]["reasons"]]
    verdict = {**copy.deepcopy(found["verdict"]), "reasons": copy.deepcopy(reasons)}
    return {**document, "verdict": verdict}


def rehearsed():
    """Refused by a rehearsal, whose verdict stands at the top as well."""
    document = allowed()
    over = reason("max_distortion", "close", 0.25, 0.2)
    found = evaluation(("near", "close"), over, exit_code=3, source="rehearsal")
    return {**document, "rehearsal": found, "verdict": copy.deepcopy(found["verdict"])}


def stopped():
    """Ended as it was merged, at a layer."""
    document = allowed()
    over = reason("finite", "layer 2", None, None, "NaN")
    found = evaluation(("near", "close"), over, source="monitor")
    found |= {"stopped_at": 2, "hidden": None, "tasks": [], "checks": [], "lm_eval": None}
    return worse({**document, "monitor": found}, found)


def overruled():
    """Refused by the geometry, allowed by a rehearsal: borderline."""
    document = allowed()
    gate = reason("distortion", "near, close", 0.31, 0.3, "ball, hidden space")
    document["gate"] = {"decision": "refuse", "exit_code": 3, "reasons": [gate]}
    return {**document, "rehearsal": evaluation(("near", "close"), source="rehearsal")}


def made_before():
    """The geometry would refuse, and the finished merge is within its limits."""
    document = {**overruled(), "rehearsal": None, "monitor_reason": MADE_BEFORE}
    return {**document, "evaluation": evaluation(("near", "close"))}


def changed():
    """An expert gave way to another."""
    verdict = {"decision": "modified", "exit_code": 0, "reasons": []}
    found = made_report.remedy("near", "odd", "close")
    return {**allowed(), "verdict": verdict, "gate": verdict, "remedy": found}


def split():
    """Refused, and what could be merged instead."""
    return {**refused(), "remedy": made_report.remedy("near", "odd", "close", split=True)}


def renamed(part, names):
    """The document with every text that holds a name changed, keys too."""
    if isinstance(part, dict):
        return {renamed(key, names): renamed(value, names) for key, value in part.items()}
    if isinstance(part, list):
        return [renamed(one, names) for one in part]
    if isinstance(part, str):
        for old, new in names.items():
            part = part.replace(old, new)
    return part


def hostile():
    document = renamed(refused(), dict(zip(("near", "close", "odd"), HOSTILE, strict=False)))
    found = evaluation(HOSTILE[:3], reason("max_distortion", HOSTILE[1], 0.375, 0.3, HOSTILE[2]))
    for text, task in zip(HOSTILE[2:], found["tasks"], strict=True):
        task["name"] = text
    found["checks"][0] |= {"name": HOSTILE[3], "detail": HOSTILE[0]}
    found["lm_eval"] = {HOSTILE[0]: {HOSTILE[2]: 0.25}}
    document["warnings"] = [
        {"subject": HOSTILE[3], "message": HOSTILE[2], "advice": HOSTILE[1]},
    ]
    document["versions"][HOSTILE[1]] = HOSTILE[3]
    document["recipe"] |= {"path": HOSTILE[0], "method": HOSTILE[3]}
    document["remedy"] = made_report.remedy(*HOSTILE[:3])
    document["probes"]["digest"] = HOSTILE[2]
    document = {**document, "evaluation": found, "timing": {HOSTILE[3]: 1.0}}
    return worse(document, found)


MAKERS = {
    "allowed": (allowed, 0),
    "warned": (warned, 0),
    "refused": (refused, 3),
    "nothing merged": (nothing_merged, 0),
    "published": (published, 0),
    "rejected": (rejected, 4),
    "rehearsed": (rehearsed, 3),
    "stopped": (stopped, 4),
    "overruled": (overruled, 0),
    "made before": (made_before, 0),
    "changed": (changed, 0),
    "split": (split, 3),
    "hostile": (hostile, 4),
}
