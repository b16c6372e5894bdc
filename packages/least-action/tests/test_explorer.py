"""The run explorer in a real browser, over real and damaged runs; and its view and figures without one."""

import json
import shutil
import time
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from conftest import SWEEP
from in_browser import LACKS, browser, explorer, lines, titles, wait_for_figure
from test_analysis import fabricated, rows_of

from least_action.analysis import ExperimentLoader, ExperimentStore
from least_action.cli import STUDY, main
from least_action.config import SPECTRA_LEFT_OUT
from least_action.visualizer.view import ALL, BAND, EACH, SECTIONS, View, view_of
from studycore.execution import report_on

in_a_browser = pytest.mark.skipif(bool(LACKS), reason=f"the explorer is not looked at in a browser: {LACKS}")


# ------------------------------------------------------------------------------------------------- without a browser
def test_a_view_survives_its_link():
    view = View(
        section="Routing", runs=("a/b c", "d&e"), metrics=("routing_entropy",), lines=EACH, smooth=7, first=10, last=200,
        where="lr > 1e-3 AND weight_decay = 0", log_y=False, dark=True, rows="lr", percent=0, all_columns=True, group="p",
    )  # fmt: skip
    assert view_of(parse_qs(view.query())) == view
    none = View(runs=(), sweep="a")
    assert view_of(parse_qs(none.query(), keep_blank_values=True)) == none
    assert none.query() != View(sweep="a").query()
    assert View().query() == View(metrics=View().chosen_metrics).query() == ""
    assert view_of({}) == View()
    assert view_of({"section": ["Rooting"]}) == View()
    assert view_of({"smooth": ["many"], "unknown": ["1"], "first": ["-3"]}) == View()
    assert view_of({"smooth": ["99999"], "percent": ["101"]}) == View(smooth=51, percent=100)


def test_a_link_names_what_is_there(made):
    from least_action.visualizer.app import at_first, link, listed

    store = ExperimentStore(made)
    all_names = tuple(store.list_experiments())
    newest = at_first(store, View())
    assert newest.sweep == SWEEP
    assert newest.runs == tuple(name for name in all_names if name.startswith(SWEEP))
    assert link(store, newest) == f"sweep={SWEEP}"
    none = at_first(store, View(sweep=SWEEP, runs=()))
    assert none.runs == ()
    assert link(store, none) == f"sweep={SWEEP}&runs="
    assert at_first(store, View(sweep=ALL)).runs == all_names
    assert link(store, View(sweep=ALL, runs=all_names)) == "sweep=all+runs"
    assert at_first(store, View(sweep="gone", runs=("gone/a",))) == newest
    one = at_first(store, View(runs=("routed", "gone")))
    assert (one.sweep, one.runs) == (ALL, ("routed",))
    nothing = at_first(store, View(where="lr > 9"))
    assert (nothing.where, nothing.runs) == ("lr > 9", ())
    assert listed(store, View(where="weight_decay = 0", sweep=ALL)) == [n for n in all_names if "wd0.0" in n]
    assert at_first(store, View(where="no_such > 1")).runs == all_names


def test_the_table_names_runs_and_leaves_open_what_was_not_reached(made):
    from least_action.visualizer.app import FEW, table

    store = ExperimentStore(made)
    names = [name for name in store.list_experiments() if name.startswith(SWEEP)]
    frame = table(store, names)
    assert frame["run"].tolist() == [name.removeprefix(f"{SWEEP}/") for name in names]
    assert list(frame) == ["run", "lr", "weight_decay", "memorised", "reached 0.99"]
    assert frame["reached 0.99"].isna().all()
    assert list(table(store, [])) == ["run", "memorised", "reached 0.99"]
    more = table(store, names, all_columns=True)
    assert more["last_epoch"].tolist() == [30] * 8
    assert list(more)[1:3] == ["lr", "weight_decay"] and list(more)[-1] == "state"
    mixed = table(
        store, store.list_experiments()
    )  # the routed run differs in more, of which what tells it apart is shown
    assert len(list(mixed)) <= 1 + FEW + 2 and "stop_after_grok" not in mixed


def test_the_lowest_panel_of_each_column_has_its_epochs(made):
    from least_action.visualizer.plots import curves

    runs = [ExperimentLoader(made).load("routed")]
    for count, axes in ((1, "1"), (2, "12"), (3, "23"), (4, "34")):
        metrics = ("train_acc", "test_acc", "train_loss", "test_loss")[:count]
        figure = curves(runs, View(metrics=metrics))
        named = [a.plotly_name for a in figure.select_xaxes() if a.title.text == "epoch"]
        assert sorted(name.removeprefix("xaxis") or "1" for name in named) == list(axes)


def test_lines_of_many_arms_differ_and_phases_have_a_legend(tmp_path):
    from least_action.visualizer.plots import curves

    runs = [f"a{number}_s0" for number in range(12)]
    for name in runs:
        fabricated(tmp_path, name, rows_of([0.1, 0.1, 0.1, 1, 1, 1]))
    experiments = list(ExperimentStore(tmp_path).experiments.values())
    figure = curves(experiments, View(metrics=("test_acc",)))
    drawn = [t for t in figure.data if t.mode == "lines" and t.showlegend is not False]
    assert len({(t.line.color, t.line.dash) for t in drawn}) == len(drawn) == 12
    named = [t.name for t in figure.data if t.legend == "legend2"]
    assert named
    assert set(named) <= {"fitting", "memorised", "transition", "reached 0.99"}
    assert not [t for t in curves(experiments, View(shade=False)).data if t.legend == "legend2"]


def test_every_metric_that_a_run_records_has_a_section():
    from least_action.metrics.training import TrainingMetrics
    from least_action.visualizer.plots import NAMES

    shown = {name for metrics in SECTIONS.values() for name in metrics}
    recorded = set(TrainingMetrics.__dataclass_fields__) - {"step", "epoch", "key_frequencies", "layer_weight_norms"}
    assert {n for n in recorded - shown if not n.endswith(("_original", "_se"))} == set()
    assert shown == set(NAMES)


def test_figures_of_every_section(made):
    from least_action.visualizer.app import draw, export

    store = ExperimentStore(made)
    names = tuple(name for name in store.list_experiments() if name.startswith(SWEEP))
    for section in SECTIONS:
        runs = ("routed",) if section == "Routing" else names
        for view in (
            View(section=section, runs=runs),
            View(section=section, runs=runs, lines=EACH, smooth=3, log_x=True, dark=True),
        ):
            figure, note, data = draw(store, view)
            assert len(figure.data) > 0, (section, note)
            assert len(data()) > 0
    files = [Path(path) for path in export(store, View(runs=names))]
    assert [path.suffix for path in files] == [".html", ".csv", ".parquet"]
    assert len(files[1].read_text().splitlines()) == 1 + 8 * 7


def test_bands_are_means_over_the_seeds_of_an_arm(made):
    from least_action.visualizer.plots import curves

    loader = ExperimentLoader(made)
    runs = [loader.load(f"p7_lr3e-4_wd1.0_s{seed}") for seed in (42, 43)]
    figure = curves(runs, View(metrics=("test_acc",)))
    (mean,) = [trace for trace in figure.data if trace.showlegend]
    expected = (runs[0].history_df["test_acc"] + runs[1].history_df["test_acc"]) / 2
    assert list(mean.y) == pytest.approx(expected.tolist())
    assert mean.name == "p7_lr3e-4_wd1.0 (2)"


def test_the_heat_map_tells_never_from_not_memorised(tmp_path):
    from least_action.visualizer.plots import heat_map

    fabricated(tmp_path, "a", rows_of([0.1, 1, 1]), weight_decay=1.0, lr=0.1)
    fabricated(tmp_path, "b", rows_of([0.1, 0.1, 0.1]), weight_decay=0.0, lr=0.1)
    fabricated(tmp_path, "c", rows_of([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]), weight_decay=0.0, lr=0.2)
    store = ExperimentStore(tmp_path)
    figure, table = heat_map(list(store.experiments.values()), View())
    texts = [a.text for a in figure.layout.annotations]
    assert len(texts) == len(table) == 3
    rows, columns = list(figure.data[1].y), list(figure.data[1].x)
    # By index: the browser would take the name "0.1" of a category for a place between two of them.
    at = {(rows[a.y], columns[a.x]): a.text for a in figure.layout.annotations}
    assert "<b>10</b>" in at["0.1", "1.0"] or "<b>10</b>" in at["1.0", "0.1"]
    assert any("<b>10</b><br>1 of 1 reached 0.99" in text for text in texts)
    assert any("> 20</b><br>memorised" in text for text in texts)
    assert any("> 20</b><br>did not memorise" in text for text in texts)


def test_every_panel_of_a_heat_map_has_the_same_grid_in_order(tmp_path):
    """Of an atlas whose runs without weight decay have one fraction, and one operation a single cell."""
    from least_action.visualizer.plots import heat_map, in_order

    points = [("add", 0.3, 0.0), ("add", 0.15, 1.0), ("add", 0.3, 1.0), ("add", 0.5, 1.0), ("subtract", 0.5, 1.0)]
    for number, (operation, fraction, decay) in enumerate(points):
        rows = rows_of([0.1, 1, 1])
        settings = {"operation": operation, "p": 5, "epochs": 99, "train_frac": fraction, "weight_decay": decay}
        fabricated(tmp_path, f"r{number}", rows, **settings)
    figure, _ = heat_map(list(ExperimentStore(tmp_path).experiments.values()), View())
    panels = [trace for trace in figure.data if trace.showscale is not False or trace.text is not None]
    assert len(panels) == 2
    for panel in panels:
        assert (list(panel.x), list(panel.y)) == (["0.15", "0.3", "0.5"], ["0.0", "1.0"])
    assert in_order(["b", 10, None, 9.5, "a", 10]) == [9.5, 10, None, "a", "b"]


def test_smoothing_begins_where_the_line_does_and_leaves_a_straight_one_alone():
    from least_action.visualizer.plots import smoothed

    straight = pd.DataFrame({"a": np.arange(20.0), "b": 3.0}, index=range(0, 200, 10))
    pd.testing.assert_frame_equal(smoothed(straight, 7), straight)
    noise = pd.DataFrame({"a": np.random.default_rng(0).normal(size=21)})
    smooth = smoothed(noise, 5)["a"]
    assert smooth.iloc[10] == pytest.approx(noise["a"].iloc[8:13].mean())
    assert (smooth.iloc[0], smooth.iloc[-1]) == pytest.approx((noise["a"].iloc[0], noise["a"].iloc[-1]))
    assert smooth.iloc[1] == pytest.approx(noise["a"].iloc[:3].mean())


@pytest.mark.parametrize(
    ("low", "high", "step"), [(1e-3, 1e4, 2.0), (0.01, 1.0, "D2"), (0.6, 0.9, "L8e-02"), (2.0, 2.0, "D2")]
)
def test_labels_of_a_logarithmic_axis_stand_apart(low, high, step):
    import plotly.graph_objects as go

    from least_action.visualizer.plots import log_step

    assert log_step([go.Scatter(y=[low, 0.0, None]), go.Scatter(y=[high, float("inf")])]) == step
    assert log_step([go.Scatter(y=[0.0])]) == "D2"


def test_the_table_has_a_row_for_each_value_of_a_field(tmp_path):
    from least_action.visualizer.app import group_table

    for name, accuracies, decay in (("a", [0.1, 1, 1], 1.0), ("b", [0.1, 0.1, 1], 1.0), ("c", [0.1, 0.1, 0.1], 0.0)):
        fabricated(tmp_path, name, rows_of(accuracies), weight_decay=decay)
    store = ExperimentStore(tmp_path)
    frame = group_table(store, store.list_experiments(), "weight_decay")
    assert frame.astype(object).where(frame.notna(), None).to_dict("list") == {
        "weight_decay": ["0.0", "1.0"], "runs": [1, 2], "memorised": [1, 2], "reached 0.99": [0, 1], "epochs": [None, 10],
    }  # fmt: skip
    assert (
        group_table(store, [n for n in store.list_experiments() if n.endswith("c")], "weight_decay")["epochs"]
        .isna()
        .all()
    )


def test_the_atlas_is_drawn_by_fraction_and_decay_one_operation_at_a_time(tmp_path):
    from least_action.visualizer.plots import heat_map

    for operation, p, late in (("add", 5, 1), ("compose", 120, 2)):
        for fraction in (0.2, 0.4):
            for decay in (0.0, 1.0):
                rows = rows_of([0.1] * late + [1, 1, 1])
                name = f"{operation}{fraction}{decay}"
                fabricated(
                    tmp_path, name, rows, operation=operation, p=p, epochs=99, train_frac=fraction, weight_decay=decay
                )
    figure, table = heat_map(list(ExperimentStore(tmp_path).experiments.values()), View())
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("train_frac", "weight_decay")
    assert table.groupby("operation")["n"].agg(list).to_dict() == {"add": [1] * 4, "compose": [1] * 4}
    assert set(table[table["operation"] == "add"]["median"]) != set(table[table["operation"] == "compose"]["median"])
    titles = [a.text for a in figure.layout.annotations if "reached" not in a.text]
    assert [title.partition(",")[0] for title in titles] == ["addition mod 5", "composition in S5"]
    figure, table = heat_map(list(ExperimentStore(tmp_path).experiments.values()), View(rows="operation"))
    assert figure.layout.yaxis.title.text == "operation" and table["n"].tolist() == [1] * 8
    assert table["train_frac"].tolist() == [0.2] * 4 + [0.4] * 4


def test_a_cell_of_the_heat_map_counts_seeds_of_one_setting(tmp_path):
    """p by rate by decay, as in transformer_sweep: a panel each modulus, where one map would take three settings for seeds."""
    from least_action.visualizer.app import draw
    from least_action.visualizer.plots import PANELS

    for p in (17, 113):
        for lr in (0.1, 0.2):
            for decay in (0.0, 0.5, 1.0):
                late = 3 if decay == 0 else 1
                for seed in (0, 1):
                    rows, name = rows_of([0.1] * late + [1, 1]), f"p{p}_lr{lr}_wd{decay}_s{seed}"
                    more = {"operation": "add", "epochs": 99 + seed, "seed": seed}
                    fabricated(tmp_path, name, rows, p=p, lr=lr, weight_decay=decay, **more)
    more = {"operation": "add", "epochs": 100, "p": 17, "lr": 0.1, "weight_decay": 1.0}
    fabricated(tmp_path / "again", "a", rows_of([0.1, 1, 1]), **more)  # setting and seed of another: no further seed
    store = ExperimentStore(tmp_path)
    figure, note, data = draw(store, View(section="Time to 0.99", runs=tuple(store.list_experiments())))
    table = data()
    assert table["n"].tolist() == [2] * 12 and table["p"].tolist() == [17] * 6 + [113] * 6
    titles = [a.text for a in figure.layout.annotations if "reached" not in a.text]
    assert titles == ["addition mod 17, 100 epochs at most", "addition mod 113, 100 epochs at most"]
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("weight_decay", "lr")
    assert note.endswith("A panel for each p.")
    by_decay = draw(store, View(section="Time to 0.99", runs=tuple(store.list_experiments()), rows="p", columns="lr"))
    assert [a.text for a in by_decay[0].layout.annotations][:3] == [f"weight_decay {x}, 100 epochs at most" for x in (0.0, 0.5, 1.0)]  # fmt: skip
    many = [f"m{i}" for i in range(PANELS + 1)]
    for i, name in enumerate(many):
        fabricated(
            tmp_path,
            name,
            rows_of([0.1, 1, 1]),
            p=7,
            lr=0.1 * (i % 2),
            weight_decay=0.1 * (i % 3),
            init_std=float(i),
            epochs=9,
        )
    store.refresh()
    view = View(section="Time to 0.99", runs=tuple(many[:PANELS]), rows="lr", columns="weight_decay")
    assert len(draw(store, view)[2]()) == PANELS  # so many panels find room
    view = View(section="Time to 0.99", runs=tuple(many), rows="lr", columns="weight_decay")
    assert f"{PANELS + 1} settings of init_std, a panel each; choose runs" in draw(store, view)[1]


def test_runs_of_other_settings_are_lines_of_their_own(tmp_path):
    from least_action.visualizer.plots import curves

    for sweep, p in (("x", 59), ("y", 113)):
        for seed in (0, 1):
            fabricated(tmp_path, f"{sweep}/sphere_s{seed}", rows_of([p / 200, 0.5]), p=p, seed=seed)
    experiments = list(ExperimentStore(tmp_path).experiments.values())
    drawn = {t.name: list(t.y) for t in curves(experiments, View(metrics=("test_acc",))).data if t.showlegend}
    assert drawn == {"sphere, p 59 (2)": [59 / 200, 0.5], "sphere, p 113 (2)": [113 / 200, 0.5]}


def test_grokked_is_not_said_of_what_counts_without_a_plateau(made, tmp_path):
    """A run that generalises while it memorises has reached 0.99 and has not grokked."""
    from least_action.visualizer.app import draw, table

    for seed in (0, 1):
        fabricated(tmp_path, f"a{seed}", rows_of([0.1, 1, 1, 1], [0.1, 1, 1, 1]), lr=0.1 + seed, seed=seed)
    store = ExperimentStore(tmp_path)
    names = tuple(store.list_experiments())
    said = [*SECTIONS, *table(store, names)]
    for section in ("Training", "Time to 0.99"):
        figure, note, _ = draw(store, View(section=section, runs=names))
        said += [note, *(a.text for a in figure.layout.annotations), *(trace.name or "" for trace in figure.data)]
    assert [text for text in said if "grok" in text.lower()] == []
    assert {"reached 0.99", "<b>10</b><br>1 of 1 reached 0.99"} <= set(said)


def test_a_checkpoint_of_s5_is_shown_without_spectra_and_says_why(tmp_path, small, train):
    from least_action.visualizer.app import draw

    train(small(operation="compose", p=120, train_frac=0.02, epochs=10), tmp_path / "s5")
    figure, note, data = draw(ExperimentStore(tmp_path), View(section="Checkpoints", runs=("s5",)))
    assert SPECTRA_LEFT_OUT in note and "more than one dimension" in note
    assert [a.text for a in figure.layout.annotations] == ["norms of layers"]
    assert len(figure.data) == 1 and set(data()) == {"layer", "norm"}
    report_on(STUDY, tmp_path / "s5")
    report = (tmp_path / "s5" / "report.html").read_text()
    assert "irreducible representations have more than one dimension" in report
    assert "Curvature of the training loss" in report and "Nanda" not in report


def test_empty_and_odd_selections_are_sentences(made, tmp_path):
    from least_action.visualizer.app import draw, status

    empty = ExperimentStore(tmp_path)
    assert "There is no run in" in status(empty)
    assert "nothing to show yet" in draw(empty, View())[1]
    store = ExperimentStore(made)
    assert "No run is chosen" in draw(store, View())[1]
    assert (
        "has measured routing entropy"
        in draw(store, View(section="Routing", runs=tuple(store.list_experiments()[1:3])))[1]
    )
    one = (f"{SWEEP}/p7_lr3e-4_wd1.0_s42",)
    assert "differ in no field" in draw(store, View(section="Time to 0.99", runs=one))[1]
    fabricated(tmp_path, "no_checkpoint", rows_of([0.1]))
    assert (
        "keeps no checkpoint"
        in draw(ExperimentStore(tmp_path), View(section="Checkpoints", runs=("no_checkpoint",)))[1]
    )
    fabricated(tmp_path, "no_rows", [])
    shown = ExperimentStore(tmp_path)
    assert "has measured" in draw(shown, View(runs=("no_rows",)))[1]


def test_mistakes_on_the_command_line_are_one_sentence(tmp_path, capsys):
    assert main(["visualize", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["visualize", "--prt", "1"]) == 2


def test_it_listens_on_this_machine_alone_unless_told_otherwise(monkeypatch, tmp_path):
    from least_action.visualizer import app

    given = []
    monkeypatch.setattr(app, "serve", lambda *arguments: given.append(arguments))
    assert main(["visualize", str(tmp_path)]) == 0
    assert main(["visualize", str(tmp_path), "--host", "0.0.0.0", "--port", "7000"]) == 0
    assert given == [(tmp_path, "127.0.0.1", None), (tmp_path, "0.0.0.0", 7000)]


# ----------------------------------------------------------------------------------------------------- in a browser
@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def served(made, tmp_path_factory):
    """(address, folder) of an explorer over a copy of the real runs, one of them broken."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("served") / "runs"))
    (folder / SWEEP / "p7_lr1e-3_wd1.0_s43" / "manifest.json").write_text("{")
    with explorer(folder) as address:
        yield address, folder


@pytest.fixture
def page(chromium, served):
    """A page that fails the test for an error in its console, and for a request to anywhere else."""
    found = chromium.new_page(viewport={"width": 1280, "height": 1100})
    wrong = []
    found.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("request", lambda request: wrong.append(request.url) if elsewhere(request.url) else None)
    found.wrong = wrong
    yield found
    said = list(wrong)  # closing cuts requests off
    found.close()
    assert said == []


def open_again(page):
    """The link in the address bar, opened anew. What requests say that are cut off by leaving is no fault of the page's."""
    link = page.url
    assert page.wrong == []
    page.goto("about:blank")
    page.wrong.clear()
    page.goto(link)


def elsewhere(url):
    return url.startswith(("http", "ws")) and "//127.0.0.1:" not in url


def open_page(page, address, query=""):
    page.goto(f"{address}/?{query}")
    wait_for_figure(page)


def field(page, name):
    return page.locator(f"#{name} input, #{name} textarea").first


def choose(page, control, text):
    """Picks one more in a dropdown."""
    page.locator(f"#{control} input").first.click()
    page.get_by_role("option", name=text, exact=False).first.click()
    page.keyboard.press("Escape")


def click_row(page, name):
    """Of the table, where the row is seen; a hidden copy of it, by which its columns are measured, has the same texts."""
    box = page.locator("#table .virtual-row[data-index]", has_text=name).last.bounding_box()
    page.mouse.click(box["x"] + 20, box["y"] + box["height"] / 2)


def query(page):
    """Of the address; asked of the page, since page.url follows only while Playwright is at work."""
    return parse_qs(page.evaluate("location.search").removeprefix("?"), keep_blank_values=True)


def until(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@in_a_browser
def test_first_view_shows_a_sweep_and_says_what_is_broken(page, served):
    open_page(page, served[0])
    assert len(titles(page)) >= 4
    until(lambda: len(lines(page)) == 4, "a line for each arm of the newest sweep")
    # Gradio shows its own progress in the same place at first.
    until(lambda: page.locator("#status").inner_text().startswith("8 runs in"), "the number of runs")
    assert "cannot be read: 1" in page.locator("#status").inner_text()
    page.wait_for_timeout(4000)  # longer than between looks at the folder: it has not changed
    assert len(lines(page)) == 4
    assert query(page) == {"sweep": [SWEEP]}


@in_a_browser
def test_the_fields_that_differ_are_seen_in_a_narrow_window(chromium, served):
    page = chromium.new_page(viewport={"width": 1000, "height": 1100})
    open_page(page, served[0])
    heads = page.locator("#table .virtual-row, #table th, #table [role=columnheader]")
    until(lambda: heads.count() > 0, "a head")
    seen = """name => [...document.querySelectorAll('#table th')].filter(e => e.innerText.trim() === name).some(e => {
        const head = e.getBoundingClientRect(), whole = document.querySelector('#table').getBoundingClientRect();
        return head.width > 0 && head.right <= whole.right + 1 && head.bottom > whole.top; })"""
    for name in ("lr", "weight_decay"):
        until(lambda: page.evaluate(seen, name), name)  # noqa: B023
    assert not page.evaluate(seen, "state") and not page.evaluate(seen, "last_epoch")
    page.locator("#all_columns input").click()
    until(lambda: query(page).get("all_columns") == ["1"], "the link says so")
    until(lambda: page.locator("#table th", has_text="last_epoch").count() > 0, "all columns")
    page.close()


@in_a_browser
def test_a_group_of_the_table_is_chosen_by_a_click(chromium, served):
    page = chromium.new_page(viewport={"width": 1280, "height": 1100})
    open_page(page, served[0], "group=weight_decay")
    until(lambda: page.locator("#table .virtual-row[data-index]", has_text="0.0").count() > 0, "the groups")
    click_row(page, "0.0")
    until(lambda: len(query(page).get("runs", [])) == 4, "the four runs of the first weight decay")
    assert query(page)["group"] == ["weight_decay"]
    page.close()


@in_a_browser
def test_two_runs_by_a_click_each_and_another_metric(page, served):
    open_page(page, served[0])
    page.locator("#none").click()
    wait_for_figure(page, "No run is chosen")
    names = [f"p7_lr1e-3_wd0.0_s{seed}" for seed in (42, 43)]
    for number, name in enumerate(names):
        click_row(page, name)
        until(lambda: query(page).get("runs") == [f"{SWEEP}/{n}" for n in names[: number + 1]], name)  # noqa: B023
    page.locator("#lines").get_by_text(EACH).click()
    until(lambda: lines(page) == names, "two lines")
    page.locator("#section").get_by_text("Model properties").click()
    wait_for_figure(page, "representation norm")
    choose(page, "metrics", "softmax_collapse")
    wait_for_figure(page, "softmax collapse")
    until(lambda: lines(page) == names, "still the two")


@in_a_browser
def test_a_zoom_is_the_epoch_range_of_every_section_and_the_link_restores_it(page, served):
    open_page(page, served[0], f"sweep={SWEEP}&lines=each+run")
    area = page.locator("#figure .nsewdrag").first.bounding_box()
    left, width, middle = area["x"], area["width"], area["y"] + area["height"] / 2
    page.mouse.move(left + 0.3 * width, middle)
    page.mouse.down()
    page.mouse.move(left + 0.7 * width, middle, steps=8)
    page.mouse.up()
    until(lambda: {"first", "last"} <= query(page).keys(), "the zoom is in the link")
    ends = [int(query(page)[name][0]) for name in ("first", "last")]
    assert 3 <= ends[0] < ends[1] <= 27
    page.locator("#section").get_by_text("Model properties").click()
    wait_for_figure(page, "representation norm")
    shown = "() => document.querySelector('#figure .js-plotly-plot')._fullLayout.xaxis.range.map(Math.round)"
    until(lambda: page.evaluate(shown) == ends, "in another section too")
    open_again(page)
    wait_for_figure(page, "representation norm")
    until(lambda: page.evaluate(shown) == ends, "after a reload too")


@in_a_browser
def test_the_cells_of_the_heat_map_have_their_text_inside(page, served):
    open_page(page, served[0], f"section=Time+to+0.99&sweep={SWEEP}")
    wait_for_figure(page, "reached 0.99")
    places = page.evaluate(
        """() => [...document.querySelectorAll('#figure .annotation')].map(e => {
        const box = e.getBoundingClientRect(); return [Math.round(box.x), Math.round(box.y)]; })"""
    )
    assert len(places) == 4
    assert len({x for x, _ in places}) == len({y for _, y in places}) == 2


@in_a_browser
def test_no_run_is_a_choice_that_the_link_keeps(page, served):
    open_page(page, served[0])
    page.locator("#none").click()
    until(lambda: query(page) == {"sweep": [SWEEP], "runs": [""]}, "the link says that there is none")
    open_again(page)
    wait_for_figure(page, "No run is chosen")
    click_row(page, "p7_lr1e-3_wd0.0_s42")
    until(lambda: len(lines(page)) == 1, "one line")


@in_a_browser
def test_the_theme_switches_and_stays_by_link(page, served):
    open_page(page, served[0])
    ink = "() => getComputedStyle(document.querySelector('#figure .gtitle, #figure .annotation-text')).fill"
    light, drawn = page.evaluate(ink), lines(page)
    page.locator("#dark input").click()
    until(lambda: page.evaluate(ink) != light, "the figure's text changes")
    assert page.evaluate("document.body.classList.contains('dark')")
    until(lambda: lines(page) == drawn, "the lines stay")
    open_again(page)
    until(lambda: page.evaluate("document.body.classList.contains('dark')"), "dark after reload")


@in_a_browser
def test_a_run_in_progress_is_followed(page, served):
    address, folder = served
    live = folder / "live"
    shutil.copytree(folder / "routed", live)
    manifest = json.loads((live / "manifest.json").read_text())
    (live / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    (live / "history.parquet").unlink()
    rows = (live / "metrics.jsonl").read_text().splitlines(keepends=True)
    (live / "metrics.jsonl").write_text("".join(rows[:4]))
    open_page(page, address, "runs=live&lines=each+run&section=Training")
    points = "document.querySelector('#figure .js-plotly-plot').calcdata.flatMap(t => t.map(p => p.x))"
    end = f"() => Math.max(...{points}.filter(Number.isFinite))"
    until(lambda: page.evaluate(end) == 15, "four rows")
    (live / "metrics.jsonl").write_text("".join(rows))
    until(lambda: page.evaluate(end) == 30, "all rows")
    shutil.rmtree(live)


@in_a_browser
def test_filters_sections_of_their_own_and_export(page, served):
    open_page(page, served[0])
    field(page, "where").fill("weight_dcay > 0")
    page.keyboard.press("Enter")
    page.locator("#status").get_by_text("no column 'weight_dcay'; near it are weight_decay").wait_for(timeout=30_000)
    field(page, "where").fill("weight_decay = 0 AND lr < 1e-3")
    page.keyboard.press("Enter")
    until(lambda: len(lines(page)) == 1, "one arm is left")
    field(page, "where").fill("")
    page.keyboard.press("Enter")
    until(lambda: len(lines(page)) > 1, "all again")
    page.locator("#section").get_by_text("Time to 0.99").click()
    wait_for_figure(page, "reached 0.99")
    page.locator("#section").get_by_text("Checkpoints").click()
    wait_for_figure(page, "norms of layers")
    page.locator("#export").click()
    page.locator("#files").get_by_text("checkpoints").first.wait_for(timeout=60_000)


def test_the_default_lines_are_over_seeds():
    assert View().lines == BAND


@in_a_browser
def test_an_empty_folder_and_its_first_run_show_a_sentence_and_no_traceback(chromium, made, tmp_path):
    with explorer(tmp_path) as address:
        page = chromium.new_page()
        open_page(page, address)
        until(lambda: "There is no run in" in page.locator("#status").inner_text(), "a sentence")
        shutil.copytree(made / "routed", tmp_path / "routed")
        until(lambda: page.locator("#status").inner_text().startswith("1 run in"), "the first run is seen")
        wait_for_figure(page, "accuracy on held-out pairs")
        page.reload()
        wait_for_figure(page, "accuracy on held-out pairs")
        assert page.get_by_text("Error", exact=True).count() == 0
        page.close()
