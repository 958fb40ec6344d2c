"""The page in a real browser: whole, quiet, and no wider than a telephone."""

import re
import shutil
import struct
import subprocess

import made_report
import pytest

from mergekit_collapse.page.html import to_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason=f"no browser on the path: install one of {', '.join(BROWSERS)}"
    ),
]

# Asks every element how wide it is, and how much was loaded; in a copy of the page, which itself
# runs nothing.
MEASURE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(e => {
  if (e.closest(".wide, pre, .hidden, svg")) return false;
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.tagName + "." + e.className);
document.documentElement.dataset.measured =
  [innerWidth, document.documentElement.scrollWidth,
   performance.getEntriesByType("resource").length, wide.join(" ")].join(";");
</script>"""

PAGES = {
    "check": made_report.report,
    "full": made_report.full,
    "hostile": lambda: made_report.full(made_report.HOSTILE),
    "nothing": made_report.nothing_merged,
    "changed": made_report.changed,
    "watched": made_report.watched,
}


@pytest.fixture
def browse(tmp_path):
    def run(text, *options, width=1100, height=900):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        command = [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},{height}"),
            *(*options, (tmp_path / "page.html").as_uri()),
        ]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        return done.stdout.decode("utf-8")

    return run


@pytest.mark.parametrize("name", PAGES)
def test_the_page_arrives_whole(browse, name):
    dom = browse(to_html(PAGES[name]()), "--dump-dom")
    assert dom.count("<h1>") == 1
    assert "The recipe as it was judged" in dom
    assert "it needs no network" in dom
    assert "<script" not in dom.lower()


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_and_nothing_is_wider_than_a_telephone(browse, name):
    # A window of a desktop browser is at least 500 wide, so a frame stands for the telephone.
    text = to_html(PAGES[name]())
    inner = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", f"{MEASURE}</body>")
    escaped = inner.replace("&", "&amp;").replace('"', "&quot;")
    frame = (
        f'<iframe id="f" style="width:400px;height:800px;border:0" srcdoc="{escaped}"></iframe>'
        "<script>f.onload = () => document.documentElement.dataset.measured ="
        " f.contentDocument.documentElement.dataset.measured</script>"
    )
    dom = browse(frame, "--dump-dom", "--virtual-time-budget=5000")
    measured = re.search(r'<html data-measured="(\d+);(\d+);(\d+);([^"]*)"', dom)
    assert measured is not None
    assert measured.groups() == ("400", "400", "0", "")


def test_the_picture_is_light_or_dark_as_the_reader_likes(browse, tmp_path):
    text = to_html(made_report.full())
    sizes = []
    for scheme in (0, 1):
        picture = tmp_path / f"{scheme}.png"
        options = (f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}")
        browse(text, *options, width=800, height=600)
        data = picture.read_bytes()
        sizes.append(struct.unpack(">II", data[16:24]))
    assert sizes == [(800, 600)] * 2
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()
