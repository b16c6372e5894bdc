"""runs/index.html and a report as a reader meets them: in a browser, on a phone, by keyboard, in the dark, in print."""

import shutil

import pandas as pd
import pytest
from conftest import SWEEP
from in_browser import LACKS, browser

from studycore.claims import Claim, Measure, NotRun, as_stored, judge_all
from studycore.files import read_json, write_json
from studycore.report import Report, Table, write_index, write_report
from studycore.statistics import Interval

pytestmark = pytest.mark.skipif(bool(LACKS), reason=f"the pages are not looked at in a browser: {LACKS}")
VERDICTS = {"supported": (2.0, 1.5, 2.5), "refuted": (0.4, 0.2, 0.7), "inconclusive": (1.1, 0.7, 1.4), "not run": None}
WHY = "Over 7 seeds of a rather long name of a measure whose runs are all there."


def claims(runs):
    """A claim of each verdict, with the names as long as real ones, each of the first of these runs."""

    def of(verdict, found):
        def compute(table):
            if found is None:
                raise NotRun("Needs 2 or more finished pairs of routed runs and dense runs; there are 0.")
            return Interval(*found, 7), WHY

        unit = "times, time to generalise without weight decay over the time with it"
        return Claim(
            verdict, f"The claim that is {verdict}, in a sentence of the length that claims have", "Power et al. 2022, arXiv:2201.02177",
            "critical, by the original study", unit, Measure("none", compute, "seeds", "time", lambda table: table[:1]), above=1.0,
        )  # fmt: skip

    made = [of(verdict, found) for verdict, found in VERDICTS.items()]
    return judge_all(made, pd.DataFrame({"run": runs, "time": 150.0}), [as_stored(claim) for claim in made])


@pytest.fixture(scope="module")
def index(made, tmp_path_factory):
    """The index over real runs of least-action, in which one sweep has a claim of every verdict."""
    root = tmp_path_factory.mktemp("pages")
    shutil.copytree(made, root / "runs" / "least-action")
    sweep = root / "runs" / "least-action" / SWEEP
    results = read_json(sweep / "results.json")
    write_json(sweep / "results.json", results | {"claims": claims(list(read_json(sweep / "manifest.json")["jobs"]))})
    wide = Table("Numbers", [f"column {i}" for i in range(14)], [[0.123456 * i for i in range(14)]] * 3)
    about = read_json(sweep / "report.json")
    write_report(sweep, Report("T", about["question"], about["answer"], [wide], []))
    write_json(sweep / "report.json", about)
    return write_index(root / "runs")


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def show(chromium):
    """Opens a page as a file; an error in its console or a request for anything else fails the test."""
    wrong, pages = [], []

    def open_page(path, width=1280, **context):
        page = chromium.new_page(viewport={"width": width, "height": 800}, **context)
        pages.append(page)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


PAGES = ("index.html", f"least-action/{SWEEP}/report.html")


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_shows_all_of_it_without_scrolling_sideways(show, index, name):
    page = show(index.parent / name, width=360)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        unfold(page)
    inside = "e => [...document.querySelectorAll(e)].filter(x => x.getBoundingClientRect().right > 360).length"
    assert page.evaluate(inside, "p, summary, summary *, figure, li, h1, h2, h3") == 0


@pytest.mark.parametrize("name", PAGES)
def test_every_link_and_fold_is_reached_by_keyboard_and_shows_the_focus(show, index, name):
    page = show(index.parent / name)
    page.evaluate("document.querySelectorAll('a[href], summary').forEach((e, i) => e.dataset.number = i)")
    wanted, reached = page.locator("a[href], summary").count(), []
    assert wanted > 5
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        number, outline, closed = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
            return [e.dataset.number, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth),
                    e.tagName === 'SUMMARY' && !e.parentElement.open] }"""
        )
        if number is None:
            continue
        assert outline >= 1
        reached.append(int(number))
        if closed:
            page.keyboard.press("Enter")
    assert sorted(set(reached)) == list(range(wanted))
    assert reached[:wanted] == sorted(reached[:wanted])  # in the order in which they stand


CONTRAST = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const part = v => (v /= 255) <= 0.04045 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || e.closest('svg, style') || !e.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.className + ': ' + text.slice(0, 40)]);
  }
  return found; }"""
"""(WCAG 2.1 contrast ratio, text) of every text that is seen; of figures' own text not, which is black on white or the
reverse."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_has_a_contrast_of_at_least_4_5(show, index, name, scheme):
    page = show(index.parent / name, color_scheme=scheme)
    unfold(page)
    found = page.evaluate(CONTRAST)
    assert len(found) > 40
    assert [text for ratio, text in found if ratio < 4.5] == []
    assert all(any(verdict in text for _, text in found) for verdict in VERDICTS)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("name", PAGES)
def test_print_is_dark_on_white_and_unfolds_the_reasons(show, index, name):
    page = show(index.parent / name, width=700, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert min(ratio for ratio, _ in page.evaluate(CONTRAST)) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    for reason in page.locator(".claim p").all():
        assert reason.evaluate(
            "e => e.checkVisibility({contentVisibilityAuto: true}) && e.getBoundingClientRect().height > 10"
        )
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")


def test_from_the_index_two_clicks_say_why_a_claim_is_refuted_and_which_runs_it_read(show, index):
    page = show(index)
    page.get_by_role("heading", name="least-action sweep").wait_for()
    reason = page.get_by_text(WHY).filter(visible=True)
    assert reason.count() == 0
    page.get_by_text("4 claims, and why").click()
    page.get_by_text("The claim that is refuted").click()
    assert reason.count() == 1
    opened = page.locator(".claim[open]")
    assert "Threshold: above 1" in opened.inner_text()
    assert "refuted" in opened.inner_text()
    assert "with time: p7_lr3e-4_wd0.0_s42 150." in opened.inner_text()
    assert opened.get_by_role("link").get_attribute("href") == f"least-action/{SWEEP}/p7_lr3e-4_wd0.0_s42/"
