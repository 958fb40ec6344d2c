"""The report as GitHub-flavoured Markdown: what a reviewer wants to see beside a merge."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mergekit_collapse.formats.change import change_line, member_table
from mergekit_collapse.formats.missing_keys import complete
from mergekit_collapse.formats.plain import plain
from mergekit_collapse.formats.readings import deciding, measured, reason_text, scores
from mergekit_collapse.formats.stages import Check, Stage, ending, stages
from mergekit_collapse.report.report import cell

Block = Sequence[str]

_NOTHING_MERGED = "Nothing was measured: every slice has one source, so no two models are merged."


def to_markdown(document: dict[str, Any]) -> str:
    """The document as a summary."""
    document = complete(document)
    return joined(
        [
            [f"## mergekit-collapse: {ending(document).word}"],
            *decisions(document),
            experts(document),
            *_distances(document),
            tasks(document),
            checks(document),
            _other_scores(document),
            footing(document),
        ]
    )


def joined(blocks: Iterable[Block]) -> str:
    """Blocks of lines with an empty line between them; empty ones are left out."""
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def decisions(document: dict[str, Any]) -> Iterator[Block]:
    """What each stage decided and why, and what the preflight warned of."""
    for stage in stages(document):
        yield [f"{stage.name.capitalize()}: **{stage.decision}**{stage.told}.", *_reasons(stage)]
    if document["hint"] is not None:
        yield [plain(document["hint"])]
    if document["remedy"] is not None:
        yield from _remedy(document["remedy"])
    if deciding(document) is None:
        yield [_NOTHING_MERGED]
    found = [f"{one['subject']}: {one['message']}; {one['advice']}" for one in document["warnings"]]
    yield [f"- Warning: {plain(text)}" for text in found]


def _remedy(found: dict[str, Any]) -> Iterator[Block]:
    """The change and its diff; indented, since no line of it can end such a block."""
    changed = found["diff"] or found["split"]
    if not changed:
        return
    what = "Changed" if found["diff"] else "Could be merged as"
    yield [f"{what} ({plain(change_line(found))}):"]
    if rows := [[plain(text) for text in row] for row in member_table(found)]:
        yield _table(rows[0], rows[1:])
    yield [f"    {line}" for line in changed.splitlines()]
    yield [f"- Note: {plain(note)}" for note in found["notes"]]


def experts(document: dict[str, Any]) -> Block:
    """The table of the experts: weight, score, predicted and measured distortion."""
    geometry = deciding(document)
    if geometry is None:
        return []
    budget = document["budget"]
    heads = ["expert", "weight", f"MDS ({plain(budget['similarity'])})", "predicted distortion"]
    found, predicted = measured(document), geometry["predicted_distortion"]
    rows = []
    for index, (expert, (score, why)) in enumerate(
        zip(document["experts"], scores(document), strict=True)
    ):
        row = [plain(expert["name"]), cell(expert["weight"]), cell(score, why)]
        row.append(cell(predicted[index] if predicted else None))
        row += [cell(found[index])] if found else []
        rows.append(row)
    return _table(heads + ["measured distortion"] * bool(found), rows)


def tasks(document: dict[str, Any]) -> Block:
    """The table of the tasks: what the expert and the merged model reach."""
    found = document["evaluation"] or document["rehearsal"] or {"tasks": []}
    heads = ["task", "measure", "rows", "expert", "merged", "merging loss"]
    rows = []
    for task in found["tasks"]:
        loss, numbers = task["loss_percent"], [cell(task["expert"]), cell(task["merged"])]
        shown = cell(loss) if loss is None else f"{loss:+.1f} %"
        rows.append(
            [
                plain(task["name"]),
                plain(task["metric"] or "-"),
                str(task["rows"] or "-"),
                *numbers,
                shown,
            ]
        )
    return _table(heads, rows) if rows else []


def checks(document: dict[str, Any]) -> Block:
    """The table of what was looked at after the merge, apart from the numbers above."""
    rows = [
        [
            stage.name,
            plain(check.reading.name),
            plain(_said(check)),
            check.outcome,
        ]
        for stage in stages(document)[1:]
        for check in stage.checks
        if check.reading.rule not in ("distortion", "merging_loss")
    ]
    return _table(["stage", "check", "", "outcome"], rows) if rows else []


def footing(document: dict[str, Any]) -> Block:
    """What the numbers stand on: space, probes, plan and versions."""
    lines = []
    geometry, probes = deciding(document), document["probes"]
    if geometry is not None and probes is not None:
        rows = sum(task["rows"] or 0 for task in probes["tasks"])
        forward = document["forward"] or {}
        where = [plain(str(forward[key])) for key in ("device", "dtype") if key in forward]
        bounds, settings = geometry["bounds"], f"space {document['budget']['space']}"
        settings += f", pooling {geometry['pooling']}, scale {geometry['scale']}"
        lines += [
            f"Δ² {_within(geometry, 'diameter_squared')}, "
            f"every merge ≥ {cell(bounds['converse'])}, "
            f"enclosing ball r² {_within(geometry, 'ball_radius_squared')}, "
            f"Jung ({bounds['jung_dimension']}) {cell(bounds['jung'])}, "
            f"corollary {cell(bounds['corollary'])}; {plain(settings)}.",
            f"{rows} probes, token digest {plain((probes['digest'] or '-')[:16])}, "
            f"on {', '.join(where)}.",
        ]
    if (plan := document["plan"]) is not None:
        lines.append(f"Plan followed: sha256 {plain(plan['sha256'] or '-')}.")
    versions = (f"{plain(name)} {plain(version)}" for name, version in document["versions"].items())
    return [*lines, f"Versions: {', '.join(versions)}."]


def _reasons(stage: Stage) -> Block:
    lines = [f"- {plain(reason_text(reason))}" for reason in stage.reasons]
    return ["", *lines] if lines else []


def _distances(document: dict[str, Any]) -> Iterator[Block]:
    geometry = deciding(document)
    if geometry is None:
        return
    yield ["Squared distances (0 the same, 2 unrelated):"]
    squared, names = geometry["squared_distance"], [plain(e["name"]) for e in document["experts"]]
    to_base = (geometry["to_base"] or {}).get("squared_distance")
    rows = []
    for index, name in enumerate(names):
        row = ["·" if i == index else f"{value:.2f}" for i, value in enumerate(squared[index])]
        rows.append([f"{index + 1} {name}", *row, *([f"{to_base[index]:.2f}"] if to_base else [])])
    heads = ["", *(str(index + 1) for index in range(len(names))), *(["base"] if to_base else [])]
    yield _table(heads, rows)


def _other_scores(document: dict[str, Any]) -> Block:
    """Of the evaluation harness."""
    found = (document["evaluation"] or {}).get("lm_eval") or {}
    rows = [
        [plain(task), plain(metric), cell(value)]
        for task, metrics in found.items()
        for metric, value in metrics.items()
    ]
    return _table(["lm-eval task", "metric", "merged"], rows) if rows else []


def _within(geometry: dict[str, Any], key: str) -> str:
    """The number with its interval, where it has one."""
    interval = geometry["confidence"][key]
    if interval["low"] is None or interval["high"] is None:
        return cell(geometry[key])
    return f"{cell(geometry[key])} ({cell(interval['low'])} to {cell(interval['high'])})"


def _said(check: Check) -> str:
    if check.outcome != "passed" or check.reading.value is None:
        return check.text  # a reason, which has the number in it
    return ", ".join(part for part in (cell(check.reading.value), check.text) if part)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Block:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
