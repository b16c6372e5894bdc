"""Results and reports: self-contained, escaped, never a number where there is none."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest

from studycore.claims import Claim, Condition, Measure, NotRun, as_stored, judge, judge_all
from studycore.errors import UserError
from studycore.figures import new_figure, save_figure
from studycore.files import read_json
from studycore.report import (
    EXPLORATORY,
    NOT_APPLICABLE,
    Picture,
    Report,
    Table,
    claims_text,
    configuration_name,
    figure_of,
    number,
    placed,
    verdict_counts,
    write_index,
    write_report,
    write_results,
)
from studycore.statistics import Interval

HOSTILE = "<script>alert(\"x\")</script> & 'q' | `c`\nnew {{ line }}"


def raises(sentence):
    def compute(table):
        raise NotRun(sentence)

    return Measure("none", compute)


def statement(name, *texts, threshold=1.0):
    """A claim as claims.json has it."""
    return as_stored(Claim(name, *texts, Measure("none", lambda table: None), above=threshold)) | {"registered": True}


def not_run(facts, sentence):
    """The same claim where the input is missing."""
    texts = [facts[name] for name in ("statement", "source", "predicted", "unit")]
    claim = Claim(facts["id"], *texts, raises(sentence), above=facts["threshold"])
    return judge_all([claim], None, [as_stored(claim)])[0]


STATEMENT = statement("a", "it is larger", "somebody", "about 2", "bits")
CLAIMS = [judge(STATEMENT, Interval(1.5, 1.2, 1.8, 7), "seven seeds"), not_run(STATEMENT, "no seeds")]
VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """Elements with their attributes; an element that is not closed, or closed twice, is an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def picture(path):
    figure, axis = new_figure(2, 2)
    axis.plot([1, 2], label="a")
    axis.legend()
    return Picture(save_figure(figure, path), "what it shows")


@pytest.fixture
def finished(new_run):
    """A finished run with results."""

    def make(name="run", verb="train", claims=CLAIMS, **changes):
        run = new_run(name, verb=verb, **changes)
        write_results(run.folder, "studycore", verb, {"loss": 0.5}, claims)
        run.finish("done", "")
        return run.folder

    return make


def full(folder):
    table = Table("Numbers", ("name", "value"), [("a", 0.123456), ("b", None), ("c", 12345678)], "A note.")
    folded = Table("Details", ("x",), [(1,)], folded=True)
    pictures = [
        picture(folder / "figures" / "p.svg"),
        picture(folder / "figures" / "more" / "p.svg"),
        picture(folder / "p.png"),
    ]
    return Report("Title", "Question?", "Answer.", [table, folded], pictures, ["a deviation"])


def test_results_hold_what_the_contract_names_and_no_nan(tmp_path):
    write_results(tmp_path, "toy", "train", {"loss": 1.0}, CLAIMS)
    assert read_json(tmp_path / "results.json") == {
        "schema_version": 1, "study": "toy", "verb": "train", "metrics": {"loss": 1.0}, "claims": CLAIMS,
    }  # fmt: skip
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path, "toy", "train", {"loss": float("nan")}, [])


def test_a_report_says_everything_once(finished):
    folder = finished()
    path = write_report(folder, full(folder))
    page, text = Page(path.read_text()), (folder / "report.md").read_text()
    said = ["Title", "Question?", "Answer.", "Numbers", "0.123", "12,345,678", "A note.", "Details", "what it shows"]
    said += ["a deviation", "it is larger", "1.50 [1.20, 1.80] bits", "about 2", "seven seeds", "toy train"]
    for words in said:
        assert words in page.text, words
        assert words in text or words == "seven seeds", words
    assert "lr: 0.1" in page.text  # the configuration
    # The answer first, then the main figure, the claims, the tables, and what is folded away.
    order = [
        "Question?",
        "Answer.",
        "Of 2 claims: 1 supported and 1 not run.",
        "what it shows",
        "it is larger",
        "Numbers",
    ]
    places = [page.text.index(words) for words in [*order, "More figures", "Details", "To repeat this run"]]
    assert places == sorted(places)
    assert read_json(folder / "report.json") == {
        "question": "Question?", "answer": "Answer.", "figure": ["figures/p.svg", "what it shows"]
    }  # fmt: skip


def test_what_was_not_measured_is_not_run_and_never_a_number(finished):
    folder = finished(claims=[CLAIMS[1]])
    page = Page(write_report(folder, Report("T", "Q", "A", [Table("N", ("a",), [(None,)])])).read_text())
    assert page.text.count("not run") >= 4  # verdict, figure, cell, the note on verdicts
    assert "None" not in page.text
    markdown = (folder / "report.md").read_text()
    assert "| not run | it is larger | not run: no seeds | 0 |" in markdown
    assert "None" not in markdown


def test_a_missing_value_is_an_error_and_not_a_blank(finished):
    folder = finished(claims=[{k: v for k, v in CLAIMS[0].items() if k != "predicted"}])
    with pytest.raises(UserError, match=r"results\.json: .* \(see its claims, entry 1\)"):
        write_report(folder, Report("T", "Q", "A"))
    assert not (folder / "report.html").exists()
    with pytest.raises(UserError, match=r"results\.json: there is no such file"):
        write_report(folder.parent, Report("T", "Q", "A"))


def test_nothing_is_fetched_from_anywhere(finished, tmp_path):
    folder = finished()
    html = write_report(folder, full(folder)).read_text()
    for tag, attributes in Page(html).elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name.split(":")[-1] in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", html)
    for _, attributes in Page(write_index(tmp_path).read_text()).elements:
        assert ":" not in attributes.get("href", "")


def test_hostile_text_stays_text(finished, tmp_path):
    facts = statement("a", HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    claims = [judge(facts, Interval(1.5, 1.2, 1.8, 7), HOSTILE), not_run(facts, HOSTILE)]
    folder = finished("studycore/a b#?<i>", claims=claims, config={"x": HOSTILE}, argv=[HOSTILE])
    shown = picture(folder / "figures" / 'p"<b>.svg')
    shown.caption = HOSTILE
    table = Table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, 1)], HOSTILE)
    path = write_report(folder, Report(HOSTILE, HOSTILE, HOSTILE, [table], [shown], [HOSTILE]))
    plain = Page(path.read_text())
    assert not {"script", "i", "b"} & {tag for tag, _ in plain.elements}
    assert plain.text.count('<script>alert("x")</script>') >= 12
    index = Page(write_index(tmp_path).read_text())
    assert not {"script", "i"} & {tag for tag, _ in index.elements}
    assert {a["href"] for tag, a in index.elements if tag == "a"} == {"studycore/a%20b%23%3F%3Ci%3E/report.html"}


def test_identifiers_of_several_pictures_are_distinct_and_found(finished):
    folder = finished()
    elements = Page(write_report(folder, full(folder)).read_text()).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) > 20
    assert len(set(ids)) == len(ids)
    used = [value for _, a in elements for name, value in a.items() if name.endswith("href") and value.startswith("#")]
    used += [
        f"#{name}" for _, a in elements for value in a.values() if value for name in re.findall(r"url\(#(.*?)\)", value)
    ]
    assert used
    assert {name[1:] for name in used} <= set(ids)


def test_markdown_tables_are_well_formed(finished):
    facts = statement("a", "a | b", "s\nt", "p|q", "u|v")
    folder = finished(claims=[judge(facts, Interval(1.5, 1.2, 1.8, 7), ""), not_run(facts, "w|x\ny")])
    table = Table("T", ("a|b", "c"), [("x | y", None), ("line\nbreak", 1.0), ("\\|", True)])
    write_report(folder, Report("T", "Q", "A", [table, Table("U", ("one",), [(1,), (2,)])]))
    blocks = re.findall(r"(?:^\|.*\n)+", (folder / "report.md").read_text(), flags=re.MULTILINE)
    widths = []
    for block in blocks:
        rows = [re.split(r"(?<!\\)\|", line) for line in block.splitlines()]
        assert all(row[0] == row[-1] == "" for row in rows)
        assert len({len(row) for row in rows}) == 1, block
        assert all(cell == "---" for cell in rows[1][1:-1])
        widths.append((len(rows) - 2, len(rows[0]) - 2))
    assert widths == [(2, 6), (3, 2), (2, 1)]


@pytest.mark.parametrize(
    ("interval", "direction", "places"),
    [
        (Interval(1.5, 1.2, 1.8, 7), "above", (122.5, 156.2, 190.0)),
        (Interval(0.5, 0.2, 0.8, 7), "below", (10.0, 43.8, 77.5)),
        (Interval(1.0, 0.9, 1.2, 7), "above", (55.0, 100.0, 190.0)),
        (Interval(1.0, 1.0, 1.0, 7), "above", (100.0, 100.0, 100.0)),
    ],
)
def test_a_claims_line_has_its_threshold_in_the_middle(interval, direction, places):
    claim = judge(STATEMENT | {"direction": direction}, interval, "")
    found = placed(claim)
    assert (found["low"], found["point"], found["high"]) == places
    assert not found["open_low"]
    assert not found["open_high"]
    for bound in ("at_least", "at_most"):
        found = placed(judge(STATEMENT, dataclasses.replace(interval, **{bound: True}), ""))
        assert (found["open_high"], found["open_low"]) == (bound == "at_least", bound == "at_most")


def test_verdicts_are_counted_in_a_sentence():
    two = judge(STATEMENT, Interval(0.5, 0.2, 0.8, 7), "")
    assert verdict_counts([]) == ""
    assert verdict_counts(CLAIMS[:1]) == "Its one claim: supported."
    assert verdict_counts([*CLAIMS, two, two]) == "Of 4 claims: 1 supported, 2 refuted and 1 not run."


def test_the_index_answers_first_and_names_the_studies_without_a_run(finished, tmp_path, monkeypatch):
    folder = finished("studycore/a")
    write_report(folder, Report("T", "What is it?", "It is so.", pictures=[picture(folder / "figures" / "p.svg")]))
    others = [SimpleNamespace(name="studycore", question="?"), SimpleNamespace(name="other", question="And that?")]
    monkeypatch.setattr("studycore.report.installed_studies", lambda: others)
    page = Page(write_index(tmp_path).read_text())
    order = ["What is it?", "It is so.", "Of 2 claims", "what it shows", "it is larger", "The one run", "Not run yet"]
    places = [page.text.index(words) for words in [*order, "And that? make other"]]
    assert places == sorted(places)
    assert "make studycore" not in page.text


def test_somebody_elses_index_is_not_replaced(tmp_path):
    (tmp_path / "index.html").write_text("<html>mine</html>")
    with pytest.raises(UserError, match=r"holds an index\.html of somebody else's"):
        write_index(tmp_path)
    assert (tmp_path / "index.html").read_text() == "<html>mine</html>"
    write_index(tmp_path / "runs")
    write_index(tmp_path / "runs")


def test_the_same_run_gives_the_same_bytes(finished):
    folder = finished()
    one = write_report(folder, full(folder)).read_bytes()
    assert write_report(folder, full(folder)).read_bytes() == one


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not run"), (True, "yes"), (False, "no"), (1234567, "1,234,567"), (0.0, "0"), (-0.0, "0"), (3.0, "3"),
        (0.123456, "0.123"),
        (123.456, "123"), (999.4, "999"), (999.6, "1,000"), (12345.6, "12,346"), (1e6, "1.00e+06"), (1.5e-7, "1.5e-07"),
        (-0.5, "-0.5"), ("text", "text"), (float("nan"), "nan"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_an_end_that_is_not_at_the_threshold_is_not_rounded_onto_it():
    """ "0.080 [0.000, 0.143]" beside a threshold of 0 hides why the verdict is inconclusive."""

    def shown(low, high):
        return figure_of(judge(STATEMENT | {"threshold": 0.0}, Interval(0.08, low, high, 5), ""))

    assert figure_of({"measured": 0.08, "interval95": [-0.0002, 0.143]}) == "0.080 [0.000, 0.143]"  # of no claim
    assert shown(-0.0002, 0.143) == "0.0800 [-0.0002, 0.1430]"
    assert shown(0.0, 0.143) == "0.080 [0.000, 0.143]"
    assert shown(-1e-12, 0.143) == "0.080 [0.000, 0.143]"  # which no four digits more would show


def test_a_reason_shows_the_measure_and_the_runs_with_their_values(finished):
    claim = Claim(
        "a", "it is larger", "s", "p", "u", of_x(), above=1.0, when=Condition("all `x` are there", lambda t: "")
    )
    table = pd.DataFrame({"run": ["one", "two", "three"], "x": [1.9, 2.1, None], "y": [0.0, 0.0, 7.0]})
    (judged,) = judge_all([claim], table, [as_stored(claim)])
    assert (judged["measure"], judged["when"], judged["units"]) == ("mean(x)", "all `x` are there", "seeds")
    assert (judged["metric"], judged["runs"]) == ("x", {"one": 1.9, "two": 2.1})
    folder = finished(claims=[judged, CLAIMS[0]], argv=["toy", "sweep", "--config", "small"])
    manifest = read_json(folder / "manifest.json")
    manifest["jobs"] = {name: {"folder": f"at {name}"} for name in ("one", "three")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    page = Page(write_report(folder, Report("Title", "Q", "A")).read_text())
    assert "n = 3 seeds" in page.text
    assert "Measured: mean(x) , when all `x` are there ." in page.text
    assert "The 2 runs behind it, with x : one 1.9, two 2.1." in page.text
    # Of the other claim nothing says which runs it read.
    assert "The 2 runs behind it: one , three ." in page.text
    assert "Title: small" in page.text
    assert "3 seeds |" in (folder / "report.md").read_text()
    one, three = "at%20one/", "at%20three/"
    assert [a["href"] for tag, a in page.elements if tag == "a"] == [one, one, three, one, three]


def of_x():
    return Measure("mean(x)", lambda table: (Interval(2.0, 1.5, 2.5, 3), "how"), "seeds", "x", lambda table: table[:2])


def test_many_claims_stand_by_verdict_with_a_jump_to_each(finished):
    refuted = judge(STATEMENT | {"statement": "it is smaller"}, Interval(0.5, 0.2, 0.8, 7), "")
    folder = finished(claims=[CLAIMS[1], refuted, *[CLAIMS[0]] * 7])
    page = Page(write_report(folder, Report("T", "Q", "A")).read_text())
    places = [page.text.index(words) for words in ("Jump to:", "it is larger", "it is smaller", "1 of 9 claims")]
    assert places == sorted(places)
    jumps = [a["href"] for tag, a in page.elements if tag == "a"]
    assert jumps == ["#supported", "#refuted", "#not-run"]
    assert {name[1:] for name in jumps} <= {a.get("id") for _, a in page.elements}
    few = finished("few", claims=[CLAIMS[1], refuted])
    assert "Jump to:" not in write_report(few, Report("T", "Q", "A")).read_text()


def test_a_report_without_claims_says_so_and_code_in_notes_is_set_as_code(finished):
    folder = finished(claims=[])
    page = write_report(folder, Report("T", "Q", "A", notes=["Run `make it` <b>."])).read_text()
    assert "<li>Run <code>make it</code> &lt;b&gt;.</li>" in page
    for text in (page, (folder / "report.md").read_text()):
        assert "Nothing is claimed of these runs" in text
    folder = finished("other")
    assert "Nothing is claimed" not in write_report(folder, Report("T", "Q", "A")).read_text()


def test_a_page_beside_the_report_is_linked(finished):
    folder = finished()
    page = write_report(folder, Report("T", "Q", "A", pages={"the tree": folder / "a tree.html"})).read_text()
    assert '<a href="a%20tree.html">the tree</a>' in page
    assert "[the tree](a tree.html)" in (folder / "report.md").read_text()


def test_a_picture_is_named_by_its_caption(finished):
    folder = finished()
    elements = Page(write_report(folder, full(folder)).read_text()).elements
    captions = {a["id"] for tag, a in elements if tag == "figcaption"}
    assert len(captions) == 3
    assert {a["aria-labelledby"] for tag, a in elements if tag in ("svg", "img") and "aria-labelledby" in a} == captions


def test_claims_for_a_terminal():
    lines = claims_text(CLAIMS).splitlines()
    assert lines[0].split() == ["SUPPORTED", "it", "is", "larger"]
    assert lines[1].strip() == "measured 1.50 [1.20, 1.80] bits, n = 7; predicted about 2"
    assert lines[2].split()[:2] == ["NOT", "RUN"]
    assert lines[3].strip() == "no seeds"


def test_an_interval_has_no_end_on_the_side_of_its_censored_runs():
    plain, upper, lower, neither = (
        figure_of(judge(STATEMENT, Interval(1.5, 1.2, 1.8, 7, *flags), ""))
        for flags in ((False, False), (True, False), (False, True), (True, True))
    )
    assert plain == "1.50 [1.20, 1.80]"
    assert upper == "at least 1.50 [1.20, not reached]"
    assert lower == "at most 1.50 [not reached, 1.80]"
    assert neither == "unknown 1.50 [not reached, not reached]"


def test_what_was_added_after_the_run_and_what_is_a_bound_are_marked(finished, tmp_path):
    late = judge(STATEMENT | {"registered": False}, Interval(1.5, 1.2, 1.8, 7, at_least=True), "")
    lines = claims_text([late]).splitlines()
    assert lines[1].strip() == "measured at least 1.50 [1.20, not reached] bits, n = 7; predicted about 2"
    assert lines[2].strip() == EXPLORATORY
    folder = finished("studycore/run", claims=[late])
    page = Page(write_report(folder, Report("T", "Q", "A")).read_text())
    pages = [page.text, (folder / "report.md").read_text(), Page(write_index(tmp_path).read_text()).text]
    for text in pages:
        assert "at least 1.50" in text
        assert EXPLORATORY in text
    folder = finished("studycore/other")
    write_report(folder, Report("T", "Q", "A"))
    assert EXPLORATORY not in (folder / "report.md").read_text()


def test_the_index_has_every_claim_of_the_newest_finished_run_of_each_verb(finished, new_run, tmp_path, capsys):
    assert "No runs yet" in write_index(tmp_path / "fresh").read_text()

    def claim(text):
        return [judge(statement("a", text, "s", "p", "u", threshold=0.0), Interval(1, 0.5, 2, 3), "")]

    runs = tmp_path / "runs"
    for name, verb, text, started in (
        ("one/a", "train", "older claim", "2020"), ("one/b", "train", "newer claim", "2021"),
        ("one/c", "sweep", "sweep claim", "2019"),
        ("two/a", "train", "claim of two", "2018"), ("two/b", "train", "damaged claim", "2022"),
    ):  # fmt: skip
        folder = finished(f"runs/{name}", verb, claim(text))
        manifest = read_json(folder / "manifest.json")
        manifest["times"]["started"] = started
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if name != "one/c":
            write_report(folder, Report("T", "Q", "A"))
    (runs / "two" / "b" / "results.json").write_text("{")
    unfinished = new_run("runs/two/c")
    write_results(unfinished.folder, "two", "train", {}, claim("unfinished claim"))
    unfinished.close()
    (runs / "two" / "d").mkdir()
    (runs / "two" / "d" / "manifest.json").write_text("{")
    (runs / "empty").mkdir()
    (runs / "a file").write_text("")
    page = Page(write_index(runs).read_text())
    for words in ("newer claim", "sweep claim", "claim of two", "interrupted", "All 3 runs", "one/a"):
        assert words in page.text, words
    for words in ("older claim", "damaged claim", "unfinished claim", "empty", "two/d"):
        assert words not in page.text, words
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert all((runs / link).exists() for link in links if "one/c" not in link)
    errors = capsys.readouterr().err
    assert "two/b/results.json" in errors
    assert "two/d/manifest.json" in errors


def test_a_configuration_without_claims_does_not_hide_the_one_that_has_them(finished, tmp_path):
    """As `sweep --config full && sweep --config atlas` makes them; an older run of the same configuration gives way."""
    supported, refuted = CLAIMS[0], judge(STATEMENT, Interval(0.5, 0.2, 0.8, 7), "")
    other = {**supported, "id": "b", "statement": "another claim"}
    for name, argv, claims, answer, started in (
        ("one/a", ["--config", "full"], [supported], "Older answer.", "2019"),
        ("one/b", ["--config=full.yaml"], [supported, refuted], "Full answer.", "2020"),
        ("one/c", ["--config", "atlas"], [], "Atlas answer.", "2021"),
        ("one/d", ["--lr", "1"], [CLAIMS[1]], "Lr answer.", "2022"),
        ("one/e", ["--lr", "2"], [other], "Momentum answer.", "2023"),
    ):
        folder = finished(f"runs/{name}", "sweep", claims, argv=["one", "sweep", *argv])
        manifest = read_json(folder / "manifest.json")
        manifest["times"]["started"] = started
        (folder / "manifest.json").write_text(json.dumps(manifest))
        write_report(folder, Report("T", "Q", answer))
    page = Page(write_index(tmp_path / "runs").read_text())
    order = [
        "one sweep full",
        "Full answer. Of 2 claims",
        "2 claims, and why",
        "Momentum answer.",
        "Lr answer.",
        "Atlas answer.",
    ]
    places = [page.text.index(words) for words in [*order, "All 5 runs"]]
    assert places == sorted(places)
    assert "Older answer." not in page.text
    assert {"one/b/report.html", "one/c/report.html"} <= {a.get("href") for tag, a in page.elements if tag == "a"}
    assert [configuration_name(a) for a in (["--config", "x/y.yml"], ["--config"], ["--lr", "1"], [])] == [
        "x/y",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("point", "low", "high", "text"),
    [
        (0.007833, -0.27824, 0.2977, "0.01 [-0.28, 0.30]"), (3264.4, 2761.2, 3851.9, "3,260 [2,760, 3,850]"),
        (0.00044753, 7.6235e-05, 0.00081882, "0.00045 [0.00008, 0.00082]"), (1.0, 1.0, 1.0, "1 [1, 1]"),
        (-0.0001, -0.03, 0.04, "0.000 [-0.030, 0.040]"), (84.58, 76.25, 92.08, "84.6 [76.2, 92.1]"),
        (9719.1, 8249.4, 11447.4, "9,700 [8,200, 11,400]"), (4e-7, 3e-8, 8e-7, "4.0e-07 [3e-08, 8.0e-07]"),
        (0.0, -1e-9, 1e-9, "0 [-1.0e-09, 1.0e-09]"), (0.5, 0.5, 0.5 + 1e-12, "0.5 [0.5, 0.5]"),
    ],
)  # fmt: skip
def test_a_figure_has_as_many_digits_as_its_interval_carries(point, low, high, text):
    assert figure_of(Interval(point, low, high, 5)) == text
    assert figure_of(judge(STATEMENT, Interval(point, low, high, 5), "")) == text


def test_a_share_that_must_hold_in_every_seed_holds_at_its_end_alone(finished):
    facts = STATEMENT | {"threshold": 0.45, "of_every_unit": True}
    claim = judge(facts, Interval(0.6, 0.147, 0.947, 5), "3 of 5.")
    place = placed(claim)
    assert (place["low"], place["point"], place["high"], place["threshold"]) == (36.5, 118.0, 180.5, 91.0)
    left, width = place["holds"]
    assert place["point"] < left < placed(judge(facts, Interval(1.0, 0.48, 1.0, 5), ""))["point"] == 190 < left + width
    assert claim["why"] == "refuted: the claim is of all 5, and a single one that fails refutes it. 3 of 5."
    page = Page(write_report(finished(claims=[claim, *CLAIMS]), Report("T", "Q", "A")).read_text()).text
    assert "0.60 [0.15, 0.95] bits, n = 5, and every one must pass" in page
    assert "Threshold: every one passes, and the interval lies above 0.45." in page
    assert "Where every seed must pass" in page
    assert "and every one must pass" in claims_text([claim])
    ordinary = Page(write_report(finished("other"), Report("T", "Q", "A")).read_text()).text
    assert "every one" not in ordinary
    assert "Where every seed" not in ordinary


def test_a_claim_that_is_not_run_says_the_command_that_would_run_it(finished):
    missing = CLAIMS[1] | {"command": "toy sweep --config full"}
    folder = finished(claims=[missing])
    page = Page(write_report(folder, Report("T", "Q", "A")).read_text()).text
    assert "no seeds To run it: toy sweep --config full ." in page
    assert "To run it: `toy sweep --config full`." in (folder / "report.md").read_text()
    assert "to run it: toy sweep --config full" in claims_text([missing])
    assert "to run it" not in claims_text(CLAIMS)


def test_a_figures_numbers_are_folded_under_it(finished):
    folder = finished()
    shown = picture(folder / "figures" / "p.svg")
    shown.table = Table("Arms", ("arm", "x"), [("a", 0.25), ("b", NOT_APPLICABLE)], "A note.")
    page = Page(write_report(folder, Report("T", "Q", "A", [], [shown])).read_text())
    assert "what it shows Arms: the numbers arm x a 0.25 b \N{EN DASH} A note. Claims" in page.text
    assert "## Arms" in (folder / "report.md").read_text()
