"""What the document says around its tables."""

OPENING = """# Does the gate refuse the merges that collapse?

Merges of real fine-tunes, measured before and after. `python benchmarks/collapse FOLDER` makes
them, and [`benchmarks/collapse`](../benchmarks/collapse/README.md) says how; every number on
this page is printed by

    python benchmarks/collapse/evidence.py     # writes this page from benchmarks/collapse/results

**This is a part of the benchmark.** Groups of seen tasks are made first, then all others in random
order; this page holds those that are made by now, and the defaults have not been changed yet.

A merge *collapsed* if a task lost more than 20 % of its expert's score on some 208 held-out rows:
accuracy by likelihood over the choices (a tie is wrong, so a score may be below guessing), or
the likelihood of the answer, exp of the mean log-probability of its tokens. The second loses a
fifth with .22 nats, so it is lost sooner; tables that mix both say so. AUROC is the chance that
a merge that collapsed has the higher signal than one that did not; .5 is a coin. Intervals are
95 % by a bootstrap over sets of experts, since merges of one set by several methods share their
signals; for AUROC also by a jackknife over tasks, whichever is wider.

## The merges
"""

SIGNALS = """## Signals side by side

Merges in which no unseen task takes part. "Pairs" and "groups" are AUROC for merges of two and
of more experts; "without a task" is the range of AUROC as each task is left out with all its
merges. The package's signals are those of the worst member, and predictions are for equal
weights; gradients, CKA and conflict are means over pairs.

![AUROC of each signal](evidence/signals.svg)

![Loss of the worst task against two signals](evidence/losses.svg)
"""

COSTS = """### What they cost

Seconds of one core of two that were both busy, beyond what a signal shares with those above it.
"""

TASKS = """## Each task by itself

The same for every expert of every merge, against the loss of its own task: what a score per task
is for.
"""

RULES = """## Limits

What the default limits refuse, and what limits would that were fitted to these merges: those
that let the smallest share of collapses through and refuse the smallest share of good merges,
both counting alike. The last two columns are on merges of a task that the limit was fitted
without, a merge counting once for each of its tasks. The best of so many rules flatters itself.
"""

UNSEEN = """## On tasks that nothing was chosen on

Three of the unseen six (cipher, french, record) are scored by likelihood, and few of the others:
the rows below the first compare like with like.
"""

REMEDIES = """## Does the remedy help?
"""

ENCODER = """## An encoder

all-MiniLM-L6-v2, fine-tuned in full with a head for each task that is not merged
([how](../benchmarks/collapse/encoder.md)).
"""
