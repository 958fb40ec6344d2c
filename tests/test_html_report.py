"""The page says the verdict, why, and every number; it needs nothing and obeys no one's names."""

import html
import re
import sys
from html.parser import HTMLParser

import made_report
import numpy as np
import pytest
from hypothesis import given
from made_states import gaussian_points, point_sets, squared_distances

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.geometry.enclosing_ball import enclosing_ball
from mergekit_collapse.page.html import to_html
from mergekit_collapse.page.numerals import percent, short, three
from mergekit_collapse.page.palette import STEPS, contrast, shades, step
from mergekit_collapse.page.plane_map import plane_map
from mergekit_collapse.page.seriation import order_by_similarity

pytestmark = pytest.mark.slow

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, and that every one is closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


PAGES = {
    "check": made_report.report,
    "full": made_report.full,
    "two": lambda: made_report.full(made_report.NAMES[:2]),
    "hostile": lambda: made_report.full(made_report.HOSTILE),
    "nothing": made_report.nothing_merged,
    "changed": made_report.changed,
    "changed, hostile": lambda: made_report.changed(made_report.HOSTILE),
    "split": lambda: made_report.changed(split=True),
    "watched": made_report.watched,
}


@pytest.fixture(scope="module", params=PAGES)
def page(request):
    return Page(to_html(PAGES[request.param]()))


# --- the verdict comes first


@pytest.mark.parametrize(
    ("decision", "code", "says"),
    [
        ("allow", 0, "Allowed"),
        ("warn", 0, "Warning: over a limit"),
        ("refuse", 3, "Refused before the merge"),
        ("refuse", 4, "Rejected after the merge"),
        ("refuse", 1, "Could not be evaluated"),
        ("modified", 0, "Allowed after a change"),
    ],
)
def test_the_verdict_is_the_heading(decision, code, says):
    document = made_report.report()
    document["verdict"] |= {"decision": decision, "exit_code": code}
    text = to_html(document)
    heading = re.search(r"<h1>.*</span> (.*)</h1>", text)
    assert heading is not None
    assert heading.group(1) == says
    assert text.index("<h1>") < text.index("<table>")


def test_a_merged_model_that_fails_is_rejected_whatever_the_check_said():
    document = made_report.full()
    document["verdict"] = {"decision": "allow", "exit_code": 0, "reasons": []}
    page = Page(to_html(document))
    assert "Rejected after the merge" in page.text
    assert "One reading is outside its limit." in page.text


def test_a_merged_model_that_passes_confirms_it():
    document = made_report.full()
    document["verdict"] = {"decision": "allow", "exit_code": 0, "reasons": []}
    document["evaluation"]["verdict"] = document["verdict"]
    assert "Allowed and confirmed" in Page(to_html(document)).text


def test_a_merge_that_was_stopped_is_not_said_to_be_made():
    document = made_report.report()
    document["monitor"] = made_report.evaluation(document, "monitor")
    document["monitor"]["stopped_at"] = 2
    page = Page(to_html(document))
    assert "Rejected while merging" in page.text
    assert "Stopped at layer 2; nothing was written." in page.text
    assert "were merged" not in page.text
    # Where it only warned, the merge went on.
    document["monitor"]["verdict"] |= {"decision": "warn", "exit_code": 0}
    assert "nothing was written" not in Page(to_html(document)).text


def test_a_prediction_that_was_overruled_is_not_said_to_be_inside():
    document = made_report.report()
    document["gate"] = document["verdict"]
    document["verdict"] = {"decision": "allow", "exit_code": 0, "reasons": []}
    assert "Refused before the merge" in Page(to_html(document)).text
    document["rehearsal"] = made_report.evaluation(document, "rehearsal")
    document["rehearsal"]["verdict"] = document["verdict"]
    page = Page(to_html(document))
    assert "Allowed" in page.text
    assert "The prediction is outside a limit" in page.text
    assert "Every reading" not in page.text


def test_a_refused_rehearsal_is_said_to_be_one():
    document = made_report.report()
    document["rehearsal"] = made_report.evaluation(document, "rehearsal")
    document["rehearsal"]["verdict"]["exit_code"] = 3
    assert "Refused in rehearsal" in Page(to_html(document)).text


def test_values_limits_and_advice_are_told():
    document = made_report.report()
    page = Page(to_html(document))
    for reason in document["verdict"]["reasons"]:
        assert f"{three(reason['value'])} {reason['subject']}" in page.text
    assert "limit 0.05, passed" in page.text
    assert "Leave one out." in page.text


def test_an_infinite_score_is_over_its_limit():
    document = made_report.report()
    document["mds"]["hidden"] |= {
        "unrelated": [None, 1.5, 1.5],
        "unrelated_reason": ["infinite", None, None],
    }
    page = Page(to_html(document))
    assert "∞ limit 1, passed" in page.text


def test_nothing_merged_says_so():
    page = Page(to_html(made_report.nothing_merged()))
    assert "Every slice has one source, so no two models are merged." in page.text
    assert "passed" not in page.text


# --- what was changed


def test_a_change_shows_members_readings_notes_and_the_diff():
    text = to_html(made_report.changed())
    page = Page(text)
    assert "What was changed substitute" in page.text
    assert "Distortion 1.50 → 0.0625 , limit 0.05" in page.text
    for row in (
        "sentiment stays 0.500 0.250 0.125 0.0625",
        "topic − left out 0.500 – 1.75 –",
        "arithmetic + taken in – 0.750 – 0.0312",
    ):
        assert row in page.text, row
    assert "As it was written, it was over distortion of topic" in page.text
    assert "arithmetic takes the place of topic" in page.text
    assert "Each side is in the scale of the experts of its time." in page.text


def test_the_marks_of_a_diff_are_text():
    text = to_html(made_report.changed())
    pre = re.search(r'<pre class="diff".*?</pre>', text, re.DOTALL).group()
    assert re.findall(r"<ins>(.*?)</ins>", pre) == ["+- model: arithmetic", "++ 1"]
    # A removed line that begins with -- is not the name of a file.
    assert re.findall(r"<del>(.*?)</del>", pre) == ["-- model: topic", "--- not a file"]
    assert [line[:3] for line in re.findall(r'<span class="quiet">(.*?)</span>', pre)] == [
        *("---", "+++", "@@ "),
    ]
    shown = html.unescape(re.sub(r"<[^>]*>", "", pre))
    assert shown.rstrip("\n") == made_report.changed()["remedy"]["diff"].rstrip("\n")


def test_a_diff_is_escaped_like_everything_else():
    text = to_html(made_report.changed(made_report.HOSTILE))
    assert "<script" not in text
    assert " - model: &lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_split_shows_the_recipes_and_nothing_after():
    page = Page(to_html(made_report.changed(split=True)))
    assert "What would fit split" in page.text
    assert "Refused before the merge" in page.text
    assert "name: group-1 --- name: group-2" in page.text
    assert "Weight after" not in page.text


def test_recipes_are_shown_line_by_line_as_they_are():
    text = to_html(made_report.changed(split=True))
    recipes = re.findall(r"<pre tabindex[^>]*>(.*?)</pre>", text, re.DOTALL)
    assert [html.unescape(one) for one in recipes] == [
        "# sentiment | topic\nname: group-1\n---\nname: group-2\n",
        "models:\n  - model: <b>&amp;\n\\tcompat: {}\n",
    ]


def test_what_was_tried_in_vain_is_said():
    document = made_report.report()
    document |= {"remedy": None, "remedy_reason": "drop: every choice is over"}
    assert "No change of the recipe: drop: every choice is over." in Page(to_html(document)).text


# --- numbers and reasons


def test_every_distance_is_in_the_table():
    document = made_report.report()
    text = to_html(document)
    heat = text[text.index('<table class="heat">') :]
    shown = re.findall(r'<td class="(?:h\d+|self)">([^<]+)</td>', heat)[:9]
    expected = [three(v) for row in document["geometry"]["hidden"]["squared_distance"] for v in row]
    assert sorted(shown) == sorted(expected)


def test_what_is_undefined_says_why():
    page = Page(to_html(made_report.full(), charts=False))
    for reason in (
        "the expert scores nothing",
        "too few probes",
        "fewer positions than features",
        "no such layer",
        "only the last layer is rehearsed",
        "the models have no head",
        "the recipe asks for none",
        "nothing changed",
    ):
        assert reason in page.text, reason
    assert "None" not in page.text


def test_no_cell_of_a_table_is_empty_but_beside_a_reason():
    text = to_html(made_report.full(), charts=False)
    assert re.findall(r'<td class="num">\s*</td>', text) == []
    assert "nan" not in Page(text).text


def test_every_part_of_a_full_report_is_there():
    page = Page(to_html(made_report.full()))
    for part in ("−25.0 %", "accuracy", "✓ passed", "✕ failed", "hellaswag", "Rank ratio"):
        assert part in page.text, part
    for part in ("The rehearsal", "The merged model", "Conflict of parameters", "cd" * 32):
        assert part in page.text, part
    assert "one tensor is tied" in page.text
    assert "compat: {}" in page.text


def part_of(text, key):
    return Page(re.search(rf'<section aria-labelledby="of-{key}">.*?</section>', text, re.S)[0])


def test_what_the_watch_saw_is_not_shown_twice():
    document = made_report.watched()
    text = to_html(document)
    shown = part_of(text, "monitor")
    told = "the numbers are those of The merged model ."
    assert told in shown.text
    assert not [tag for tag, _ in shown.elements if tag in ("table", "svg")]
    assert "No predictive distortion" not in shown.text
    assert "Layer" in part_of(text, "evaluation").text
    assert told not in part_of(text, "evaluation").text
    # One number that differs, in either table, and both are there.
    for change in (
        lambda one: one["layers"][1].update(variance_ratio=0.25),
        lambda one: one["layers"][2]["distortion"].__setitem__(0, 0.5),
        lambda one: one["hidden"]["own_task"]["mine"].update(distortion=0.5),
        lambda one: one.update(layers=one["layers"][:2]),
    ):
        document = made_report.watched()
        change(document["monitor"])
        shown = part_of(to_html(document), "monitor")
        assert told not in shown.text
        assert "Variance ratio" in shown.text
        assert "On each expert's own task, as measured" in shown.text


def test_only_tasks_of_an_expert_are_among_its_own():
    text = part_of(to_html(made_report.full()), "evaluation").text
    assert "mine 1 sentiment hidden 0.250 none 2 topic hidden too few probes Layer" in text
    assert "no one owns it" not in text


def test_what_was_never_asked_of_a_model_has_no_heading():
    document = made_report.watched()
    text = to_html(document)
    for heading in ("Merging loss", "lm-eval"):
        assert f"{heading} " not in part_of(text, "monitor").text
        assert f"{heading} " in part_of(text, "evaluation").text
    document["evaluation"] |= {"tasks": [], "tasks_reason": "no task has targets", "lm_eval": None}
    shown = part_of(to_html(document), "evaluation").text
    assert "Merging loss Not measured: no task has targets." in shown
    assert "lm-eval" not in shown
    document["evaluate"] = {"lm_eval": ["hellaswag"]}
    document["evaluation"]["lm_eval_reason"] = "a check failed"
    assert "lm-eval Not run: a check failed." in part_of(to_html(document), "evaluation").text


def test_the_deciding_space_comes_first():
    document = made_report.report()
    document["geometry"]["predictive"] = document["geometry"]["hidden"]
    document["mds"]["predictive"] = document["mds"]["hidden"]
    for space in ("hidden", "predictive"):
        document["budget"]["space"] = space
        spaces = re.findall(r'<h2 id="space-(\w+)">', to_html(document))
        assert spaces[0] == space
        assert len(spaces) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (0.3, "0.300"), (1.0, "1.00"), (18.94, "18.9"), (322.9, "323")),
        *((1234.0, "1,230"), (999.7, "1,000"), (4.56e-7, "4.56×10⁻⁷"), (-0.5, "−0.500")),
        *((1e99, "1.00×10⁹⁹"), (999_999.0, "1.00×10⁶")),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert three(value) == text


def test_a_change_has_its_sign():
    assert [percent(v) for v in (-12.34, 0.0, 5.0)] == ["−12.3 %", "0 %", "+5.00 %"]


def test_long_names_keep_both_ends():
    assert short("a" * 50 + "z", 20) == "aaaaaa…aaaaaaaaaaaaz"
    assert len(short("x" * 1000)) == 34


# --- it is a page of its own


def test_every_element_is_closed(page):
    assert page.elements[0] == ("html", {"lang": "en"})


def test_nothing_is_loaded_and_nothing_runs(page):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", attributes.get("style") or "")


def test_the_policy_forbids_it_too(page):
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_ids_are_unique_and_every_reference_leads_somewhere(page):
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if "href" in attributes:
            assert attributes["href"][1:] in ids
        for name in re.findall(r"url\(#([\w.-]+)\)", " ".join(map(str, attributes.values()))):
            assert name in ids


def test_tables_and_figures_can_be_heard(page):
    for tag, attributes in page.elements:
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or (
                attributes["role"] == "img" and attributes["aria-label"]
            )


def test_names_are_text_and_nothing_else(page):
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_hostile_names_are_shown_as_they_are():
    text = to_html(made_report.full(made_report.HOSTILE))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }} {% raw %}" in Page(text).text
    assert "\\ud800 lone" in text
    text.encode("utf-8")


def test_the_same_document_gives_the_same_page():
    assert to_html(made_report.full()) == to_html(made_report.full())


# --- with charts and without


def test_charts_take_the_colours_and_letters_of_the_page():
    pytest.importorskip("matplotlib")
    text = to_html(made_report.full())
    drawn = re.findall(r'<svg viewBox="[^"]*" version="1.1".*?</svg>', text, re.DOTALL)
    assert len(drawn) == 5  # the map, two of layers, the experts' profile, the K curve
    for chart in drawn:
        assert "<title>" in chart
        assert "<desc>" in chart
        assert "currentColor" in chart
        assert not re.search(r"#[0-9a-f]{6}\b", chart)
        assert "font-family" not in chart
        assert "<text" in chart
    assert "2 topic</text>" in text
    assert "matplotlib.pyplot" not in sys.modules


def test_drawing_leaves_settings_of_matplotlib_alone():
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context():
        plain = to_html(made_report.full())
        matplotlib.rcParams["font.size"] = 40
        matplotlib.rcParams["svg.fonttype"] = "path"
        before = dict(matplotlib.rcParams)
        assert to_html(made_report.full()) == plain
        assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_every_table_is_there():
    page = Page(to_html(made_report.full(), charts=False))
    assert page.text.count("pip install 'mergekit-collapse[report]'") == 1
    assert "figure" not in {tag for tag, _ in page.elements}
    assert "details" in {tag for tag, _ in page.elements}  # of the pairs, and no other
    assert "Variance ratio" in page.text


def test_charts_are_found_to_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'mergekit-collapse[report]'" in to_html(made_report.report())


# --- colours


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_on_every_shade(dark):
    scale = shades(dark)
    assert len(scale) == STEPS
    for shade in scale:
        assert contrast(shade.background, shade.ink) >= 4.5


@pytest.mark.parametrize("dark", [False, True])
def test_shades_differ_in_lightness_alone_too(dark):
    light = [contrast("#000000", shade.background) for shade in shades(dark)]
    assert light == sorted(light, reverse=not dark)


def test_contrast_is_that_of_the_guidelines():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_ink_of_the_page_stands_out(mode):
    text = to_html(made_report.report())
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    inks = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[mode == "dark"]))
    for name in ("ink", "quiet", "allow", "warn", "refuse", "unknown", "limit"):
        for ground in ("ground", "panel"):
            assert contrast(inks[name], inks[ground]) >= 4.5, name
    for ground in ("added", "removed"):
        assert contrast(inks["ink"], inks[ground]) >= 7
    for name in (f"series-{i}" for i in range(1, 9)):
        assert contrast(inks[name], inks["ground"]) >= 4.5, name


def test_shades_follow_the_distance():
    assert [step(v, 2.0) for v in (0.0, 0.5, 1.99, 2.0, 1e99)] == [0, 6, 11, 11, 11]
    assert step(1.0, 0.0) == 0


# --- the map and the order


def test_points_of_a_plane_are_found_again():
    points = gaussian_points(3, 6, 2)
    squared = squared_distances(points)
    other = np.array([0.4, -0.2])
    delta = ((points - other) ** 2).sum(axis=1)
    ball = enclosing_ball(squared)
    found = plane_map(squared, {"merged": delta.tolist()}, ball.weights.tolist(), 1.0)
    everything = np.array([(p.x, p.y) for p in (*found.experts, found.others["merged"])])
    assert squared_distances(everything) == pytest.approx(
        squared_distances(np.vstack([points, other]))
    )
    assert found.kept == pytest.approx(1)
    assert found.others["merged"].off_squared == pytest.approx(0, abs=1e-12)
    middle = np.array([found.center.x, found.center.y])
    assert ((everything[:6] - middle) ** 2).sum(1).max() == pytest.approx(ball.radius_squared)


@given(point_sets(min_count=3))
def test_the_plane_and_what_is_off_it_make_the_whole_distance(points):
    squared = squared_distances(points)
    other = points.mean(axis=0) + 0.3
    delta = ((points - other) ** 2).sum(axis=1)
    found = plane_map(squared, {"merged": delta.tolist()}, None, 0.0)
    place, centre = found.others["merged"], points.mean(axis=0)
    whole = place.x**2 + place.y**2 + place.off_squared
    # What is left of twins by rounding is a plane of its own, far below what is drawn.
    size = max(float(squared.max()), float(delta.max()))
    assert whole == pytest.approx(((other - centre) ** 2).sum(), abs=1e-5 * size)
    total = sum(p.x**2 + p.y**2 + p.off_squared for p in found.experts)
    assert total == pytest.approx(((points - centre) ** 2).sum(), abs=1e-5 * size)
    assert 0 <= found.kept <= 1 + 1e-9


def test_of_two_experts_up_is_the_distance_from_their_line():
    found = plane_map(np.array([[0.0, 4.0], [4.0, 0.0]]), {"merged": [10.0, 10.0]}, [0.5, 0.5], 1.0)
    assert found.upright
    assert (found.others["merged"].x, found.others["merged"].y) == pytest.approx((0, 3))
    assert found.center.x == pytest.approx(0)


@given(point_sets())
def test_the_order_holds_every_expert_once(points):
    order = order_by_similarity(squared_distances(points))
    assert sorted(order) == list(range(len(points)))


def test_experts_on_a_line_are_put_in_line():
    line = np.array([3.0, 0.0, 5.0, 1.0, 4.0, 2.0])[:, None]
    assert order_by_similarity(squared_distances(line)) == (1, 3, 5, 0, 4, 2)


def test_what_is_no_report_makes_no_page():
    with pytest.raises(InvalidRecipeError, match="not a report"):
        to_html({})
