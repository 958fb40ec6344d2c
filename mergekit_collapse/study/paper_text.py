"""The study of the paper's tables as a person reads it."""

from collections.abc import Iterator

from mergekit_collapse.study.anova import Effect
from mergekit_collapse.study.columns import columns, p_text
from mergekit_collapse.study.correlation_text import (
    level_lines,
    misprint_lines,
    printed_p_lines,
    robustness_lines,
)
from mergekit_collapse.study.method_against_task import AVERAGES
from mergekit_collapse.study.paper_study import PaperStudy
from mergekit_collapse.study.score_counts import merged_scores


def paper_text(study: PaperStudy) -> str:
    """Eight sections, each about one thing that the paper prints."""
    sections = (
        iter(["The printed tables, recomputed", f"  Source: {study.tables.source}"]),
        printed_p_lines(study),
        misprint_lines(study.misprint),
        robustness_lines(study),
        level_lines(study),
        _score_lines(study),
        _analysis_lines(study),
        _consistency_lines(study),
        _selection_lines(study),
    )
    return "\n\n".join("\n".join(lines) for lines in sections)


def _score_lines(study: PaperStudy) -> Iterator[str]:
    yield "5. Eq. 1 from Table 2: are the losses ratios of whole numbers of right answers?"
    yield from columns(
        ["task", "rows", "losses", "fit Eq. 1", "by chance", "fit points"],
        (
            [
                one.task,
                f"{one.rows}",
                f"{one.losses}",
                f"{one.as_ratio}",
                f"{one.by_chance:.1f}",
                f"{one.as_points}",
            ]
            for one in study.counts
        ),
    )
    yield "  by chance: of losses drawn from 0.0 to -100.0; points: a difference of scores"
    yield "  Scores of the merged models, by Eq. 1:"
    for size in study.tables.sizes:
        rows = zip(size.methods, merged_scores(size), strict=True)
        yield from columns(
            [size.size, *size.tasks],
            [
                ["expert", *(f"{score:.1f}" for score in size.finetuned)],
                *([method, *(f"{score:.1f}" for score in scores)] for method, scores in rows),
            ],
        )
    tasks = [one.task for one in study.below_half]
    two_way = sum(size.loss.size - len(size.methods) for size in study.tables.sizes)
    yield (
        f"  Under 50 on a task of two answers: {len(tasks)} of {two_way}; "
        f"on WNLI {tasks.count('WNLI')} of {sum(len(s.methods) for s in study.tables.sizes)}"
    )


def _analysis_lines(study: PaperStudy) -> Iterator[str]:
    yield "6. Method against task: analysis of variance of the losses"
    rows = []
    for one in study.analyses:
        for number, factor in enumerate(("method", "task")):
            alone, together = one.factors.alone[number], one.factors.together[number]
            other = one.factors.together[1 - number]
            rows.append(
                [
                    f"{one.table}: {', '.join(one.methods)}" if number == 0 else "",
                    factor,
                    f"{together.share:.3f}",
                    *_effect(alone),
                    *_effect(together),
                    "stronger" if together.p_value < other.p_value else "",
                    p_text(one.factors.ranks[number]) if one.factors.ranks else "",
                ]
            )
    header = ["share", "F one-way", "p", "F two-way", "p", "", "p of ranks"]
    yield from columns(["losses", "factor", *header], rows)
    yield "  share: of the sum of squares; stronger: lesser p, two-way; ranks: Friedman's test"
    yield "  Largest difference of losses on a task, in percent:"
    for size in study.tables.sizes:
        pairs = [d for d in study.distances if d.size == size.size]
        copies = [d.largest for d in pairs if {d.first, d.second} <= set(AVERAGES)]
        ties, dare = (
            next(d.largest for d in pairs if {d.first, d.second} == {"LA", other})
            for other in ("TIES", "DARE")
        )
        yield (
            f"    {size.size}: among {', '.join(AVERAGES)} {max(copies):.1f}; "
            f"LA to TIES {ties:.1f}; LA to DARE {dare:.1f}"
        )


def _effect(effect: Effect) -> list[str]:
    return [f"F({effect.df}, {effect.df_error}) {effect.f:.2f}", p_text(effect.p_value)]


def _consistency_lines(study: PaperStudy) -> Iterator[str]:
    yield "7. Which readings of the similarity can have given the printed MDS?"
    rows = []
    for group, found in zip(study.tables.groups, study.consistency, strict=True):
        ends = set.intersection(*map(set, found.furthest)) if found.furthest else set()
        pairs = len(group.mds) * (len(group.mds) - 1) // 2
        rows.append(
            [
                group.name,
                _yes(bool(found.furthest)),
                f"{len(found.furthest)} of {pairs}",
                ", ".join(group.tasks[end] for end in sorted(ends)) or "none",
                f"{found.mean_distance:.2f}",
                _yes(found.minmax),
            ]
        )
    header = ["group_max", "furthest pairs", "in each of them", "mean distance", "group_minmax"]
    yield from columns(["group", *header], rows)
    yield "  furthest pairs: pairs of experts that can be the furthest apart under group_max"
    yield "  mean distance: over pairs, the furthest being 1, under group_max"


def _yes(fits: bool) -> str:
    return "possible" if fits else "impossible"


def _selection_lines(study: PaperStudy) -> Iterator[str]:
    yield "8. The selection guide, as printed"
    yield from columns(
        ["group", "worst MDS", "worst loss"],
        (
            [one.name, f"{one.worst_mds:.2f}", f"{one.worst_loss:.1f}"]
            for one in study.tables.selection
        ),
    )
    check = study.selection
    yield (
        f"  From the table of group {check.group}: highest MDS {check.worst_mds:.2f}, "
        f"lowest best loss {check.worst_loss:.1f}"
    )
    yield "  Of the others the paper prints no tasks: they cannot be recomputed"
