"""The findings in a few lines, each computed from the tables."""

from collections.abc import Iterator, Sequence

import numpy as np
from evidence_encoder import by_default
from evidence_rules import full
from evidence_signals import shown
from evidence_theorem import lower_bound, of_different_tasks
from merge_rows import MergeRow
from rules import before, over_any, rates, rejected
from signal_names import limits_said
from signal_quality import Quality, quality

from mergekit_collapse.recipe.limits import EvaluateBlock
from mergekit_collapse.study.error_rates import ErrorRates


def summary(rows: Sequence[MergeRow]) -> Iterator[str]:
    """What stands, with its numbers."""
    seen = [row for row in rows if not row.unseen]
    unseen = [row for row in rows if row.unseen]
    limits, early = EvaluateBlock(), before(tasks=True)
    yield (
        f"- **Before a merge** the default, {limits_said(early)}, refuses "
        f"{_both(rates(seen, over_any(seen, early)))}; on tasks that it was not chosen on, "
        f"{_both(rates(unseen, over_any(unseen, early)))}."
    )
    yield (
        "- **After it, or in a rehearsal**, 32 rows a task tell more: the default "
        f"({_after(limits)}) refuses {_both(rates(seen, rejected(seen, limits)))}; on unseen "
        f"tasks, {_both(rates(unseen, rejected(unseen, limits)))}. So a rehearsal is what to trust"
        " where a merge matters, and a `target:` for its tasks is worth more than any limit."
    )
    yield (
        "- **On an encoder**, which it was not chosen on either, the limit before the merge refuses"
        f" {_both(by_default())}: there all that a merge can spoil lies in the state that is read."
    )
    ball, loss = _known(seen, "gate.ball"), _known(seen, "measured.few_loss")
    conflict, count = _known(seen, "sign_change_ratio"), _known(seen, "experts")
    norm, base = _known(seen, "largest_norm"), _known(seen, "base_score")
    yield (
        f"- AUROC for a collapse of seen tasks: r² {shown(ball.auroc)}, the loss on those rows"
        f" {shown(loss.auroc)}; the length of the longest task vector alone {shown(norm.auroc)},"
        f" the base's own score {shown(base.auroc)}, the mere number of experts"
        f" {shown(count.auroc)}, sign conflict of the parameters {shown(conflict.auroc)}"
        f" (on {conflict.rows} of {ball.rows} merges)."
    )
    pairs = [row for row in seen if len(row.members) == 2]
    names = {
        "r²": "gate.ball",
        "predicted distortion of the recipe": "recipe.predicted",
        "vector length": "largest_norm",
        "the base's score": "base_score",
        "sign conflict": "sign_change_ratio",
        "linear CKA": "cka_mean",
        "gradients at the base": "gradient_base_l2",
    }
    told = {label: _known(pairs, name).auroc.value for label, name in names.items()}
    shares = ", ".join(f"{label} {value:.2f}" for label, value in told.items())
    scored = _known(pairs, "measured.few_loss").auroc.value
    yield (
        f"- **Among {len(pairs)} pairs alone** nothing that is known before a merge tells it well:"
        f" AUROC {shares}; the loss on those rows {scored:.2f}."
    )
    apart = of_different_tasks(rows)
    below, over = lower_bound(apart)
    yield (
        f"- **The lower bound holds**: {below} of {len(apart)} merges of different tasks have a"
        f" worst distortion below r², and it is {np.median(over):.1f} times r² in the"
        " median."
    )


def _known(rows: Sequence[MergeRow], name: str) -> Quality:
    found = quality(rows, name, 20.0)
    if found is None:
        raise ValueError(f"too few merges have {name!r}; make more of them")
    return found


def _after(limits: EvaluateBlock) -> str:
    return (
        f"a task by its loss, over {limits.max_merging_loss:g} %; by its distortion in predictive"
        f" space, over {limits.max_own_distortion:g}, where no loss is known"
    )


def _both(found: ErrorRates) -> str:
    recall, wrong = (full(share, counted=False) for share in (found.recall, found.false_refusal))
    return f"{recall} of the collapses and {wrong} of the rest"
