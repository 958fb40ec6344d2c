"""What the document says around its tables."""

OPENING = """# Does the gate refuse the merges that collapse?

Merges of real fine-tunes, measured before and after. `python benchmarks/collapse FOLDER` makes
them, and [`benchmarks/collapse`](../benchmarks/collapse/README.md) says how; every number on
this page is printed by

    python benchmarks/collapse/evidence.py     # writes this page from benchmarks/collapse/results

A merge *collapsed* if a task that its expert had learned lost more than 20 % of the expert's
score on 208 held-out rows (accuracy by likelihood, or the likelihood of the answer itself).
AUROC is the chance that a merge that collapsed has the higher signal than one that did not; .5
is a coin. Intervals are 95 %, from a bootstrap over sets of experts, since merges of one set by
several methods share their signals.

## The merges
"""

SIGNALS = """## Signals side by side

Merges in which no unseen task takes part. "Pairs" and "groups" are AUROC for merges of two and
of more experts; "without a task" is the range of AUROC as each task is left out with all its
merges. Of a set, a signal is that of its worst member.

![AUROC of each signal](evidence/signals.svg)

![Loss of the worst task against two signals](evidence/losses.svg)
"""

TASKS = """## Each task by itself

The same for every expert of every merge, against the loss of its own task: what a score per task
is for.
"""

RULES = """## Limits

What the default limits refuse, and what limits would that were fitted to these merges: those
that let the smallest share of collapses through and refuse the smallest share of good merges,
both counting alike. The last two columns are on merges of a task that the limit was fitted
without.
"""

UNSEEN = """## On tasks that nothing was chosen on
"""

REMEDIES = """## Does the remedy help?
"""

ENCODER = """## An encoder

all-MiniLM-L6-v2, fine-tuned in full with a head for each task that is not merged
([how](../benchmarks/collapse/encoder.md)).
"""
