"""What the document says around its tables."""

OPENING = """# Does the gate refuse the merges that collapse?

Merges of real fine-tunes, measured before and after. `python benchmarks/collapse FOLDER` makes
them, and [`benchmarks/collapse`](../benchmarks/collapse/README.md) says how; every number on
this page is printed by

    python benchmarks/collapse/evidence.py     # writes this page from benchmarks/collapse/results

A third of the tasks is *unseen*: no signal was compared, and no limit chosen, on merges in which
one of them takes part. What the chosen limits do there is in a section of its own.

A merge *collapsed* if a task lost more than 20 % of its expert's score on some 208 held-out rows:
accuracy by likelihood over the choices (a tie is wrong, so a score may be below guessing), or
the likelihood of the answer, exp of the mean log-probability of its tokens. The second loses a
fifth with .22 nats, so it is lost sooner; tables that mix both say so. AUROC is the chance that
a merge that collapsed has the higher signal than one that did not; .5 is a coin. Intervals are
95 % by a bootstrap over sets of experts, since merges of one set by several methods share their
signals; for AUROC also by a jackknife over tasks, whichever is wider.

## In short
"""

MERGES = """## The merges
"""

SIGNALS = """## Signals side by side

Merges in which no unseen task takes part. "Pairs" and "groups" are AUROC for merges of two and
of more experts; "without a task" is the range of AUROC as each task is left out with all its
merges. The package's signals are those of the worst member, and predictions are for equal
weights unless it says otherwise; gradients, CKA and conflict are means over pairs. "Without a
set" leaves out each set of experts with its merges by all methods.

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

What the default limits refuse on seen tasks, before a merge (r² on own and shipped probes) and
after it (the merged model on 32 rows a task: each task by its merging loss, scored by the first
token of the answer; where choices begin alike or the expert has none right, by its own-task
distortion in predictive space). They were chosen here: r² where hardly a good merge is refused,
the rest near the limits that err least. *As it was* is what stood here before these merges.

The second table is what r² means; the third, limits that were fitted to these merges: those that
let the smallest share of collapses through and refuse the smallest share of good merges, both
counting alike. Its last two columns are on merges of a task that the limit was fitted without, a
merge counting once for each of its tasks. The best of so many rules flatters itself.
"""

UNSEEN = """## On tasks that nothing was chosen on

The same limits. Three of the unseen six (cipher, french, record) are scored by likelihood, and few
of the others: the rows that are of one kind of score compare like with like.
"""

CUT = """## What was cut

- Every set by every method would be {planned} merges; {made} are made: groups of seen tasks by
  all methods, seen sets by `linear`, and the first of all others in random order. Those of experts
  that did not learn their task are left out of the tables.
  `weighted_karcher` is planned for a fifth of the sets, since with equal weights it gives what
  `karcher` gives.
- One base of 135 M parameters, and one encoder of 22 M. No T5 with weights was to be had
  ([which were tried](../benchmarks/collapse/encoder.md)).
- Adapters change the upper half of the layers; states of the lower half of full fine-tunes are not
  read, nor of single layers but as a mean over all.
- {held_out} held-out rows a task: a loss of 20 % is some 3 standard errors of an accuracy of .9.
- Rivals are asked about sets of seen tasks alone, MergeLens and parameter conflict about hardly a
  group (the tables say of how many merges each signal is known); 128 probes and token-wise states
  are of seen tasks as well.
- Prompts of tasks that contradict each other are shared (the benchmark's README counts them).
"""

REMEDIES = """## Does the remedy help?

Each action is given a limit that the merge is over: r² .25, `rule: weights` at 1.1 times r² for
`reweight` and `karcher` (no weights get below r²), the default for `protect`. Losses after it are
of the members that it keeps, what `protect` gives up left out; *the same before* of these members.
"""

ENCODER = """## An encoder

all-MiniLM-L6-v2, fine-tuned in full with a head for each task that is not merged
([how](../benchmarks/collapse/encoder.md)).
"""
