"""The page: controls, and events that turn them into a View, a figure and a link."""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported, which reads it then

import gradio as gr
import pandas as pd

import least_action.visualizer.plots as plots
from least_action.analysis import (
    ExperimentData,
    ExperimentStore,
    differing_fields,
    get_experiment_group,
    nearest_checkpoint,
    seed_groups,
    snapshot,
    telling_fields,
    time_to_grok,
)
from least_action.analysis.checkpoints import Snapshot, checkpoint_steps
from least_action.config import SPECTRA_LEFT_OUT
from least_action.visualizer.view import ALL, BAND, EACH, SECTIONS, SMOOTHEST, View, view_of
from studycore.errors import UserError

SECONDS = 3
"""Between looks at the folder."""
FEW = 4
"""Fields in the table, unless all columns are asked for."""
KEPT = 32
"""Figures that are kept, for a page that shows the same runs in the same way again."""
CSS = """
.gradio-container {max-width: none !important}
#status p, #note p {margin: 2px 0}
#table table *, #table .virtual-row * {font-size: 12px; font-family: system-ui, sans-serif !important}
/* A long name that a click has spread over its neighbours does not take their clicks. */
#table .virtual-row span.text {pointer-events: none}
#figure {min-height: 220px}
#runs .wrap-inner, #runs .wrap {max-height: 92px; overflow-y: auto}
#section .wrap, #lines .wrap {gap: 4px}
#section label, #lines label {padding: 3px 8px}
#live, #dark, #log_y, #log_x, #shade, #all_columns {padding: 5px 10px}
"""
LINK = "(query) => { history.replaceState(null, '', query ? '?' + query : location.pathname); }"
DARK = "(dark) => { document.body.classList.toggle('dark', dark); }"
HEAD = """<script>
// A zoom in one figure is the epoch range of all sections: it is written into the two fields, which redraw.
function put(id, value) {
  const field = document.querySelector('#' + id + ' input, #' + id + ' textarea');
  if (!field || field.value === String(value)) return;
  Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value').set.call(field, value);
  field.dispatchEvent(new Event('input', {bubbles: true}));
}
setInterval(() => {
  const figure = document.querySelector('#figure .js-plotly-plot');
  if (!figure || figure.dataset.linked || !figure.on) return;
  figure.dataset.linked = 'yes';
  figure.on('plotly_relayout', change => {
    if (!document.querySelector('#first')) return;
    const key = Object.keys(change).find(name => /^xaxis\\d*\\.range\\[0\\]$/.test(name));
    if (key) {
      const axis = figure.layout[key.split('.')[0]] || {};
      const real = x => axis.type === 'log' ? Math.pow(10, x) : x;
      put('first', Math.max(0, Math.round(real(change[key]))));
      put('last', Math.max(1, Math.round(real(change[key.replace('[0]', '[1]')]))));
    } else if (Object.keys(change).some(name => /^xaxis\\d*\\.autorange$/.test(name))) {
      put('first', ''); put('last', '');
    }
  });
}, 300);
</script>"""


def serve(folder: Path, host: str, port: int | None) -> None:
    """Opens the explorer and stays until it is interrupted. UserError when the address cannot be had."""
    page = build(ExperimentStore(folder))
    fonts = {name: ["system-ui", "sans-serif"] for name in ("font",)} | {"font_mono": ["ui-monospace", "monospace"]}
    try:
        page.launch(
            server_name=host, server_port=port, quiet=True, prevent_thread_lock=True, css=CSS, head=HEAD,
            theme=gr.themes.Default(**fonts), footer_links=[], ssr_mode=False, show_error=True,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--port: {port or 'none from 7860'} cannot be had ({error}); give another one") from None
    print(f"The run explorer shows {folder} on {page.local_url} (Ctrl-C ends it).", flush=True)
    page.block_thread()


_SNAPSHOTS: dict[tuple[Path, int], Snapshot] = {}


def cached_snapshot(run: ExperimentData, step: int) -> Snapshot:
    """Scrubbing back shows what was rebuilt before."""
    key = (run.folder, step)
    if key not in _SNAPSHOTS:
        if len(_SNAPSHOTS) >= 64:
            _SNAPSHOTS.pop(next(iter(_SNAPSHOTS)))
        _SNAPSHOTS[key] = snapshot(run, step)
    return _SNAPSHOTS[key]


def listed(store: ExperimentStore, view: View) -> list[str]:
    """Names of the runs that sweep and condition leave. UserError for a condition that does not fit."""
    names = store.list_experiments()
    if view.where:
        matching = set(store.query(f"SELECT experiment_name FROM runs WHERE {view.where}")["experiment_name"])
        names = [name for name in names if name in matching]
    return [name for name in names if view.sweep in ("", ALL, get_experiment_group(name))]


def at_first(store: ExperimentStore, view: View) -> View:
    """The view of a link as far as there is what it names; where it names no runs, all that sweep and condition leave."""
    names = store.list_experiments()
    kept = None if view.runs is None else tuple(name for name in view.runs if name in names)
    if view.sweep not in (ALL, *map(get_experiment_group, names)):
        newest = names and not kept and not view.where
        view = replace(view, sweep=get_experiment_group(names[-1]) if newest else ALL)
    if kept or view.runs == ():
        return replace(view, runs=kept)
    try:
        return replace(view, runs=tuple(listed(store, view)))
    except UserError:  # of_table says it
        return replace(view, runs=tuple(listed(store, replace(view, where=""))))


def link(store: ExperimentStore, view: View) -> str:
    """The view as a link's query; runs are named unless they are all that sweep and condition leave."""
    with suppress(UserError):
        if view.runs and view.runs == tuple(listed(store, view)):
            view = replace(view, runs=None)
    return view.query()


def table(store: ExperimentStore, names: Sequence[str], all_columns: bool = False) -> pd.DataFrame:
    """A row per run: its name, the fields that tell the settings apart, its events, and its state where not all are done.

    With all columns every field in which the runs differ, the last evaluation's epoch and accuracies, and the state.
    """
    runs = [store.experiments[name] for name in names]
    fields_shown = differing_fields(runs) if all_columns else telling_fields(runs)[:FEW]
    label_of, rows, with_state = plots.labels(runs), [], all_columns or any(run.state != "done" for run in runs)
    for run in runs:
        events = {} if run.events is None else run.events.as_dict()
        last = run.history.slice(len(run.history) - 1).to_pylist()[0] if len(run.history) else {}
        row = {"run": label_of[run.name]} | {name: run.config.get(name) for name in fields_shown}
        row |= {"memorised": events.get("memorised"), "reached 0.99": events.get("grokked_99")}
        if all_columns:
            row |= {name: round(last[name], 4) for name in ("train_acc", "test_acc") if last.get(name) is not None}
            row["last_epoch"] = events.get("last_epoch")
        if with_state:
            row["state"] = run.state
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else ["run", "memorised", "reached 0.99"])
    epochs = {"memorised", "reached 0.99", "last_epoch"} & set(frame)
    return frame.astype(dict.fromkeys(epochs, "Int64"))  # whole numbers beside gaps


def group_table(store: ExperimentStore, names: Sequence[str], by: str) -> pd.DataFrame:
    """A row per value of a field: how many runs have it, how many memorised and reached 0.99, and their median epochs to it."""
    groups = time_to_grok([store.experiments[name] for name in names], [by])
    medians = groups["median"].astype("Float64").round().astype("Int64")
    columns = {
        by: groups[by].map(str),
        "runs": groups["n"],
        "memorised": groups["memorised"],
        "reached 0.99": groups["grokked"],
    }
    return pd.DataFrame(columns | {"epochs": medians})


def widths(frame: pd.DataFrame) -> list[str]:
    """Of the table's columns, by the longest text of each, so that as many as can be stand side by side: a name whole, up
    to a limit, a long value cut off."""
    pixels = []
    for name in frame:
        longest = max(map(len, map(str, frame[name])), default=0)
        pixels.append(min(230 if name == "run" else 112, max(22 + round(7.8 * len(name)), 20 + 7 * longest)))
    return [f"{width}px" for width in pixels]


def status(store: ExperimentStore) -> str:
    """One or two sentences on what there is."""
    states = [e.state for e in store.experiments.values()]
    if not states and not store.broken:
        return f"There is no run in {store.root} yet; `least-action train --config sphere` makes one in half a minute."
    text = f"{len(states)} run{'s' if len(states) != 1 else ''} in {store.root}"
    if writing := states.count("running"):
        text += f", {writing} being written"
    text += "."
    if store.broken:
        first = next(iter(store.broken.values()))
        text += f" Left out, because they cannot be read: {len(store.broken)}. First: {first}."
    return text


def draw(store: ExperimentStore, view: View) -> tuple[Any, str, Callable[[], pd.DataFrame]]:
    """(figure, sentence below it, how to get the data of the figure); a mistake or a lack is the sentence."""
    runs = [store.experiments[name] for name in view.runs or () if name in store.experiments]
    runs = [run for run in runs if run.events is not None] or runs
    try:
        if not store.experiments:
            raise UserError("There is nothing to show yet")
        if not runs:
            raise UserError("No run is chosen; choose some above")
        if view.section == "Time to 0.99":
            figure, data = plots.heat_map(runs, view)
            others = telling_fields(runs, beyond=plots.heat_map_fields(runs, view))
            note = "Kaplan-Meier median over seeds of the epochs to 0.99 held-out accuracy; grey: not reached."
            note += f" A panel for each {' and '.join(others)}." if others else ""
            return figure, note, lambda: data
        if view.section == "Checkpoints":
            return draw_checkpoint(runs[0], view)
        figure = plots.curves(runs, view)
    except UserError as error:
        return plots.message(str(error), view), f"{error}.", pd.DataFrame
    note = f"Shaded: the phases of {runs[0].name}." if view.shade else ""
    if view.lines == BAND:
        note += " Lines: means over seeds, up to where the first of them ends, in a band from the lowest to the highest"
        few = len(seed_groups(runs)) <= len(plots.COLOURS)
        note += "; each seed thinly behind." if few else "."
    return figure, note, lambda: curves_data(runs, view)


def curves_data(runs: Sequence[ExperimentData], view: View) -> pd.DataFrame:
    """The values behind the curves: a row per run and evaluation."""
    data = pd.concat([plots.derived(run).assign(experiment_name=run.name) for run in runs])
    wanted = ["experiment_name", "step", "epoch", *view.chosen_metrics]
    return data[[name for name in wanted if name in data]]


def draw_checkpoint(run: ExperimentData, view: View) -> tuple[Any, str, Callable[[], pd.DataFrame]]:
    step = nearest_checkpoint(run, view.percent)
    at_step = cached_snapshot(run, step)
    kept = ", ".join(map(str, checkpoint_steps(run)))
    note = f"{run.name} at epoch {at_step.epoch} (step {step}). It keeps the checkpoints of steps {kept}."
    if run.config.get("operation") == "compose":
        note += f" {SPECTRA_LEFT_OUT}"
        norms = pd.DataFrame({"layer": list(at_step.layer_norms), "norm": list(at_step.layer_norms.values())})
        return plots.checkpoint(at_step, run.config, view), note, lambda: norms
    spectra = {name: pd.Series(at_step.arrays[name]) for name in ("embedding_power_F", "logit_power_F")}
    return plots.checkpoint(at_step, run.config, view), note, lambda: pd.DataFrame(spectra)


def export(store: ExperimentStore, view: View) -> list[str]:
    """The figure as a page of its own, and its data as CSV and Parquet, in a new folder."""
    figure, _, data_of = draw(store, view)
    folder, data = Path(tempfile.mkdtemp(prefix="least-action-")), data_of()
    name = view.section.lower().replace(" ", "-")
    figure.write_html(folder / f"{name}.html", include_plotlyjs=True)
    data.to_csv(folder / f"{name}.csv", index=False)
    data.to_parquet(folder / f"{name}.parquet")
    return [str(folder / f"{name}.{kind}") for kind in ("html", "csv", "parquet")]


def build(store: ExperimentStore) -> gr.Blocks:
    """The page over a store."""
    with gr.Blocks(title="Run explorer: least-action", analytics_enabled=False, fill_width=True) as page:
        c = controls()
        names = [f.name for f in fields(View)]
        inputs = [c[name] for name in names]
        shown = [c["figure"], c["note"], c["link"]]
        of_table_outputs = [
            c[name] for name in ("table", "status", "runs", "sweep", "group", "rows", "columns", "listed")
        ]
        of_section = [c["metrics"], c["of_curves"], c["of_heat_map"], c["of_checkpoints"]]
        plain = [n for n in names if n not in ("runs", "sweep", "group", "rows", "columns", "metrics")]
        kept: dict[tuple[int, View], tuple[Any, str]] = {}

        def view_from(*values: Any) -> View:
            given = dict(zip(names, values, strict=True))
            for name in ("runs", "metrics"):
                given[name] = tuple(given[name] or ())
            for name in ("first", "last"):
                given[name] = int(given[name]) if str(given[name]).strip().isdecimal() else None
            for name in ("group", "rows", "columns", "where"):
                given[name] = given[name] or ""
            given["sweep"] = given["sweep"] or ALL
            return View(**{**given, "percent": int(given["percent"]), "smooth": int(given["smooth"])})

        def drawn(view: View) -> list[Any]:
            """What was drawn of the same runs before is not drawn again: going back to a section costs nothing."""
            key = (store.version, view)
            if key not in kept:
                if len(kept) >= KEPT:
                    kept.pop(next(iter(kept)))
                kept[key] = draw(store, view)[:2]
            return [*kept[key], link(store, view)]

        def of_table(view: View) -> list[Any]:
            """The table, the choices of runs and fields, and the status."""
            problem = ""
            try:
                listed_names = listed(store, view)
            except UserError as error:
                listed_names, problem = listed(store, replace(view, where="")), f" {error}."
            runs = [store.experiments[name] for name in listed_names]
            groups = dict.fromkeys(map(get_experiment_group, store.list_experiments()))
            label_of = plots.labels(list(store.experiments.values()))
            there = ["", *differing_fields(runs)]
            group, rows, columns = (name if name in there else "" for name in (view.group, view.rows, view.columns))
            frame = group_table(store, listed_names, group) if group else table(store, listed_names, view.all_columns)
            return [
                gr.update(value=frame, column_widths=widths(frame)), status(store) + problem,
                gr.update(choices=[(label, name) for name, label in label_of.items()], value=list(view.runs or ())),
                gr.update(choices=[ALL, *groups], value=view.sweep), gr.update(choices=there, value=group),
                gr.update(choices=there, value=rows),
                gr.update(choices=there, value=columns), (store.version, tuple(listed_names)),
            ]  # fmt: skip

        def of_the_section(view: View) -> list[Any]:
            is_curves = bool(SECTIONS[view.section])
            metrics = gr.update(
                choices=list(SECTIONS[view.section]), value=list(view.chosen_metrics), visible=is_curves
            )
            return [
                metrics, gr.update(visible=is_curves), gr.update(visible=view.section == "Time to 0.99"),
                gr.update(visible=view.section == "Checkpoints"),
            ]  # fmt: skip

        def start(request: gr.Request) -> list[Any]:
            """The page as its link says. The clock starts with it: a tick before would draw a page that is not there yet."""
            store.refresh()
            parameters: Any = request.query_params
            view = at_first(store, view_of({name: parameters.getlist(name) for name in parameters}))
            of_plain = [getattr(view, name) for name in plain]
            return [*of_table(view), *of_the_section(view), *of_plain, *drawn(view), gr.Timer(active=True)]

        def redraw(*values: Any) -> list[Any]:
            return drawn(view_from(*values))

        def filtered(*values: Any) -> list[Any]:
            """After sweep or condition changed: the table, and all runs that it lists."""
            view = view_from(*values)
            with suppress(UserError):  # of_table says it
                view = replace(view, runs=tuple(listed(store, view)))
            return [*of_table(view), *drawn(view)]

        def ticked(seen: tuple[int, tuple[str, ...]], *values: Any) -> list[Any]:
            """What changed in the folder, if anything did. Where all runs listed are shown, so are new ones."""
            store.refresh()
            if seen[0] == store.version:
                return [gr.skip()] * (len(of_table_outputs) + len(shown))
            view = view_from(*values)
            with suppress(UserError):
                view = replace(view, runs=tuple(listed(store, view))) if view.runs == seen[1] else view
            return [*of_table(view), *drawn(view)]

        def pick(event: gr.SelectData, seen: tuple[int, tuple[str, ...]], runs: list[str], group: str) -> list[str]:
            """A click on a row of the table adds the run to those shown, or takes it out; on a group it shows that one's runs."""
            listed_runs = [store.experiments[name] for name in seen[1] if name in store.experiments]
            if group:
                return [run.name for run in listed_runs if str(run.config.get(group)) == event.row_value[0]] or runs
            label_of = plots.labels(listed_runs)
            name = next((name for name, label in label_of.items() if label == event.row_value[0]), None)
            if name is None:
                return runs
            return [run for run in runs if run != name] if name in runs else [*runs, name]

        def tabled(*values: Any) -> list[Any]:
            """After other columns were asked for: the table, and the link that says so."""
            view = view_from(*values)
            return [*of_table(view), link(store, view)]

        def section(*values: Any) -> list[Any]:
            view = view_from(*values)
            return [*of_the_section(view), *drawn(view)]

        drawn(at_first(store, View()))  # so that nobody waits for the first
        timer = gr.Timer(SECONDS, active=False)
        all_outputs = [*of_table_outputs, *of_section, *(c[name] for name in plain), *shown, timer]
        # Whatever draws waits in one line, so that the last change is the last drawn; a change while one is drawn is kept.
        quiet = {"show_progress": "hidden", "queue": True, "concurrency_id": "figure", "trigger_mode": "always_last"}
        page.load(start, None, all_outputs, show_progress="hidden")
        drawn_at_once = (
            "runs",
            "metrics",
            "lines",
            "smooth",
            "log_y",
            "log_x",
            "shade",
            "rows",
            "columns",
        )
        for name in (*drawn_at_once, "percent", "dark"):
            c[name].input(redraw, inputs, shown, **quiet)
        for name in ("first", "last"):  # a zoom writes them without a key pressed, which is no input
            c[name].change(redraw, inputs, shown, **quiet)
        c["section"].input(section, inputs, [*of_section, *shown], **quiet)
        c["sweep"].input(filtered, inputs, [*of_table_outputs, *shown], **quiet)
        for name in ("all_columns", "group"):
            c[name].input(tabled, inputs, [*of_table_outputs, c["link"]], **quiet)
        c["where"].submit(filtered, inputs, [*of_table_outputs, *shown], **quiet)
        at_once = {"show_progress": "hidden", "queue": False, "trigger_mode": "multiple"}
        c["table"].select(pick, [c["listed"], c["runs"], c["group"]], c["runs"], **at_once).then(
            redraw, inputs, shown, **quiet
        )
        c["none"].click(lambda: [], None, c["runs"], **at_once).then(redraw, inputs, shown, **quiet)
        c["link"].change(None, c["link"], None, js=LINK)
        c["dark"].change(None, c["dark"], None, js=DARK)
        c["export"].click(
            lambda *values: gr.update(value=export(store, view_from(*values)), visible=True), inputs, c["files"]
        )
        timer.tick(ticked, [c["listed"], *inputs], [*of_table_outputs, *shown], **quiet)
        c["live"].input(lambda on: gr.Timer(active=on), c["live"], timer, show_progress="hidden")
    return page


def controls() -> dict[str, Any]:
    """The page's components by name, in the order in which they stand."""
    c: dict[str, Any] = {}
    # An event that was sent before the choices changed still names the old ones: the View leaves out what is not there,
    # where Gradio would end the event with an error.
    stale = {"allow_custom_value": True}
    with gr.Row(equal_height=True):
        c["status"] = gr.Markdown("", elem_id="status")
        with gr.Row(equal_height=True):
            c["live"] = gr.Checkbox(True, label="live", elem_id="live", container=False, min_width=60)
            c["dark"] = gr.Checkbox(False, label="dark", elem_id="dark", container=False, min_width=60)
            c["export"] = gr.Button("Export figure and data", size="sm", elem_id="export", min_width=160)
    with gr.Row():
        left, right = gr.Column(scale=5, min_width=340), gr.Column(scale=8, min_width=560)
    with left:
        with gr.Column():
            c["sweep"] = gr.Dropdown([ALL], value=ALL, label="sweep", elem_id="sweep", scale=1)
            c["where"] = gr.Textbox(
                label="only runs with (SQL, then Enter)", placeholder="weight_decay > 0 AND grokked_99 < 200", elem_id="where", max_lines=1,
                scale=2,
            )  # fmt: skip
        c["table"] = gr.Dataframe(
            interactive=False, max_height=420, show_search="search", elem_id="table", show_label=False, pinned_columns=1,
        )  # fmt: skip
        with gr.Row(equal_height=True):
            c["group"] = gr.Dropdown([""], value="", label="a row for each", elem_id="group", scale=2, **stale)
            c["all_columns"] = gr.Checkbox(
                False, label="all columns", elem_id="all_columns", container=False, min_width=120
            )
        label = "shown (a click on a row adds or removes it)"
        c["runs"] = gr.Dropdown([], multiselect=True, label=label, elem_id="runs", **stale)
        c["none"] = gr.Button("Show none", size="sm", elem_id="none")
    with right:
        c["section"] = gr.Radio(list(SECTIONS), value="Training", show_label=False, elem_id="section", container=False)
        c["metrics"] = gr.Dropdown([], multiselect=True, label="metrics", elem_id="metrics", **stale)
        with gr.Row(equal_height=True) as c["of_curves"]:
            c["lines"] = gr.Radio([BAND, EACH], value=BAND, label="lines", elem_id="lines", scale=4, min_width=190)
            c["smooth"] = gr.Slider(
                1, SMOOTHEST, 1, step=2, label="smoothing", elem_id="smooth", scale=4, min_width=170
            )
            c["first"] = gr.Textbox("", label="from epoch", elem_id="first", max_lines=1, scale=1, min_width=100)
            c["last"] = gr.Textbox("", label="to epoch", elem_id="last", max_lines=1, scale=1, min_width=100)
            with gr.Column(scale=0, min_width=120):
                c["log_y"] = gr.Checkbox(True, label="log scales", elem_id="log_y", container=False)
                c["log_x"] = gr.Checkbox(False, label="log epochs", elem_id="log_x", container=False)
                c["shade"] = gr.Checkbox(True, label="phases", elem_id="shade", container=False)
        with gr.Row(visible=False) as c["of_heat_map"]:
            c["rows"] = gr.Dropdown([""], value="", label="rows", elem_id="rows")
            c["columns"] = gr.Dropdown([""], value="", label="columns", elem_id="columns")
        with gr.Row(visible=False) as c["of_checkpoints"]:
            c["percent"] = gr.Slider(
                0, 100, 100, step=1, label="percent of training, of the first run shown", elem_id="percent"
            )
        c["figure"] = gr.Plot(show_label=False, elem_id="figure")
        c["note"] = gr.Markdown("", elem_id="note")
    c["files"] = gr.File(file_count="multiple", label="figure and data", visible=False, elem_id="files")
    c["link"] = gr.Textbox("", visible="hidden", elem_id="link")
    c["listed"] = gr.State((0, ()))
    return c
