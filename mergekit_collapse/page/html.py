"""The report as one page of HTML that needs nothing beside itself."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mergekit_collapse.findings import printable
from mergekit_collapse.page import evaluation_view as evaluations
from mergekit_collapse.page import remedy_view, verdict_view
from mergekit_collapse.page.charts import charts_available
from mergekit_collapse.page.meters import meters
from mergekit_collapse.page.numerals import limit, percent, short, three
from mergekit_collapse.page.palette import shades
from mergekit_collapse.page.space_view import space_view
from mergekit_collapse.report.reader import parse_report
from mergekit_collapse.report.stored import NOT_GIVEN
from mergekit_collapse.report.stored_report import StoredReport


def to_html(document: dict[str, Any], *, charts: bool = True) -> str:
    """The page. The same for the same document and the same matplotlib, or none.

    Args:
        document: of a ``report.json``.
        charts: draw them beside the tables, where matplotlib is installed.

    Raises:
        InvalidRecipeError: the document is no report.
    """
    report = parse_report(document)
    charts = charts and charts_available()
    page = _environment().get_template("report.html")
    return page.render(
        report=report,
        title=_title(report),
        headline=verdict_view.headline(report),
        meters=meters(report),
        reasons=verdict_view.grouped(report),
        remedy_told=None if report.remedy is None else remedy_view.told(report.remedy),
        diff=() if report.remedy is None else remedy_view.diff_lines(report.remedy),
        spaces=[space_view(report, name, one, charts=charts) for name, one in report.spaces],
        evaluations=[
            evaluations.evaluation_view(report, key, one, charts=charts)
            for key, one in report.evaluations
        ],
        profile=evaluations.expert_profile(report, charts=charts),
        group_chart=evaluations.group_drawing(report, charts=charts),
        conflict=lambda name, expert: evaluations.conflict_with_others(report, name, expert),
        charts=charts,
        light=shades(),
        dark=shades(dark=True),
        lines=(report.recipe.effective or "").splitlines(),
    )


def _title(report: StoredReport) -> str:
    name = Path(report.recipe.path).name if report.recipe.path else "a recipe"
    return f"{verdict_view.headline(report).word}: {short(name)}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mergekit_collapse.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"three": three, "limit": limit, "percent": percent, "short": short}
    return environment


def _shown(value: Any) -> Any:
    """Every text of the page goes through here: what is not printable is written out."""
    if value is None:
        return NOT_GIVEN
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value
