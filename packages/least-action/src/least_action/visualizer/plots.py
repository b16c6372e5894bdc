"""Figures of the explorer: functions of experiments and a view."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from least_action.analysis import (
    ExperimentData,
    align_by_epoch,
    compute_derived_metrics,
    detect_phases,
    differing_fields,
    seed_bands,
    seed_groups,
    telling_fields,
    time_to_grok,
)
from least_action.analysis.architecture import layer_group
from least_action.analysis.checkpoints import Snapshot
from least_action.analysis.comparison import TASK
from least_action.config import MEASURING, OPERATIONS
from least_action.visualizer.view import BAND, LOGARITHMIC, View
from studycore import figures
from studycore.errors import UserError

COLOURS = (*figures.COLOURS[:6], "#8C6D46", "#7F7F7F")
"""Okabe and Ito's palette without black, which a dark page hides, and two more."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Of the first eight lines, the next eight, ..."""
SHADES = {"fitting": "128,128,128", "memorised": "213,94,0", "transition": "230,159,0", "reached 0.99": "0,158,115"}
"""Colours of phases, laid over the page at 9 %."""
PANELS, PANEL_GAP = 24, 78
"""Most panels of a heat map, and the pixels between two, which hold the upper one's axis and the lower one's title."""
POINTS = 60_000
"""Values in a figure, beyond which lines are drawn with every second, third, ... evaluation."""
NAMES = {
    "train_acc": "accuracy on training pairs", "test_acc": "accuracy on held-out pairs", "train_loss": "training loss",
    "test_loss": "held-out loss", "generalization_gap": "training minus held-out accuracy",
    "loss_ratio": "held-out over training loss", "lr": "learning rate", "weight_hessian_trace": "weight Hessian trace",
    "weight_hessian_per_loss": "weight Hessian trace per unit of loss", "fisher_trace": "empirical Fisher trace",
    "gradient_norm": "gradient norm", "jacobian_norm": "input Jacobian, squared norm", "hessian_trace": "input Hessian trace",
    "weight_norm": "norm of all weights", "decayed_weight_norm": "norm of decayed weights",
    "representation_norm": "representation norm", "logit_scale": "logit scale",
    "softmax_collapse": "softmax collapse, share of pairs", "gradient_over_weight_norm": "gradient over weight norm",
    "effective_lr_mean": "effective learning rate, mean", "effective_lr_max": "effective learning rate, largest",
    "adam_ratio_mean": "Adam's step in units of lr, mean", "adam_ratio_max": "Adam's step in units of lr, largest",
    "update_decay_ratio": "update over weight decay", "aligned_power": "logit power along the result",
    "key_share": "share of key frequencies", "restricted_loss": "restricted loss", "excluded_loss": "excluded loss",
    "gini_embedding": "Gini, embedding", "gini_unembedding": "Gini, unembedding",
    "spectral_smoothness": "spectral smoothness", "routing_entropy": "routing entropy, nats",
    "routing_max_use": "largest mean weight of a head", "routing_paths": "distinct paths",
    "new_pairs_acc": "accuracy on pairs new in both orders", "train_loss_float32": "training loss in float32",
    "weight_hessian_scale_free": "weight Hessian trace times squared norm", "restricted_acc": "accuracy, key frequencies alone",
    "excluded_acc": "accuracy without key frequencies", "gini_neuron_to_logit": "Gini, neuron to logit",
}  # fmt: skip


def stroke(number: int) -> dict[str, Any]:
    """Colour and dash of the line of a number; 32 differ."""
    return {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number // len(COLOURS) % len(DASHES)]}


def styled(figure: go.Figure, view: View, height: int) -> go.Figure:
    """The page's look, light or dark."""
    ink, grid = ("#e6e6e6", "rgba(255,255,255,0.14)") if view.dark else ("#1f2430", "rgba(0,0,0,0.10)")
    figure.update_layout(
        template="none", height=height, font={"color": ink, "size": 12}, margin={"l": 60, "r": 16, "t": 34, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest", uirevision="kept",
        legend={"orientation": "h", "y": -0.16 * 420 / height, "yanchor": "top", "x": 0, "font": {"size": 11}},
        legend2={"orientation": "h", "x": 1, "xanchor": "right", "y": 1 + 24 / height, "yanchor": "bottom", "font": {"size": 11}},
        hoverlabel={"namelength": -1}, modebar={"orientation": "v"},
    )  # fmt: skip
    axis = {"gridcolor": grid, "linecolor": grid, "zerolinecolor": grid, "automargin": True}
    axis |= {"title_font_size": 12, "title_standoff": 6}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_annotations(font={"color": ink, "size": 12.5})
    return figure


def message(text: str, view: View) -> go.Figure:
    """A figure that says why there is none."""
    figure = go.Figure()
    figure.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return styled(figure, view, 220)


def labels(experiments: Sequence[ExperimentData]) -> dict[str, str]:
    """A short name of each: the last part, with its sweep only where two would be the same."""
    names = [e.name.rpartition("/")[2] for e in experiments]
    return {e.name: e.name if names.count(s) > 1 else s for e, s in zip(experiments, names, strict=True)}


def curves(experiments: Sequence[ExperimentData], view: View) -> go.Figure:
    """A panel per metric over epochs. UserError when none of the runs measured any of them."""
    metrics = [name for name in view.chosen_metrics if any(has(e, name) for e in experiments)]
    if not metrics:
        wanted = ", ".join(NAMES.get(name, name) for name in view.chosen_metrics)
        raise UserError(
            f"None of the {len(experiments)} runs shown has measured {wanted}; choose other runs or metrics"
        )
    columns = min(2, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = make_subplots(
        rows, columns, shared_xaxes="all", horizontal_spacing=0.09, vertical_spacing=0.3 / rows if rows > 1 else 0,
        subplot_titles=[NAMES.get(name, name) for name in metrics],
    )  # fmt: skip
    groups = seed_groups(experiments)
    for number, metric in enumerate(metrics):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        if view.lines == BAND:
            traces = bands(groups, metric, view, legend=number == 0)
        else:
            traces = lines(experiments, metric, view, legend=number == 0)
        figure.add_traces(traces, rows=[place["row"]] * len(traces), cols=[place["col"]] * len(traces))
        figure.update_yaxes(type="log" if view.log_y and metric in LOGARITHMIC else "linear", **place)
        if metric in LOGARITHMIC and view.log_y:
            figure.update_yaxes(tickformat="~g", dtick=log_step(traces), **place)
    if view.shade:
        shade(figure, experiments[0], len(metrics), view)
    for column in range(columns):  # below the last panel of each column, which may be one row up
        row = rows if (rows - 1) * columns + column < len(metrics) else rows - 1
        figure.update_xaxes(title_text="epoch", showticklabels=True, row=row, col=column + 1)
    if view.log_x:
        figure.update_xaxes(type="log")
    if view.first is not None or view.last is not None:
        end = max(e.max_epoch for e in experiments)
        ends = [view.first or 0, end if view.last is None else view.last]
        figure.update_xaxes(range=[np.log10(max(1, x)) for x in ends] if view.log_x else ends)
    return styled(figure, view, 60 + 290 * rows + 22 * (len(experiments) // 6 if view.lines != BAND else 1))


def log_step(traces: Sequence[go.Scatter]) -> float | str:
    """The step between the labels of a logarithmic axis, as Plotly writes it, so that none covers another: whole decades, or 1,
    2 and 5 of each, or equal parts of less than that."""
    values = np.concatenate([np.asarray(trace.y, dtype="float64") for trace in traces] or [np.ones(1)])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min(), values.max()) if len(values) else (1.0, 1.0)
    decades = np.log10(high / low)
    if decades > 2:
        return float(np.ceil(decades / 5))
    return "D2" if decades > 0.7 or low == high else f"L{(high - low) / 4:.0e}"


def has(experiment: ExperimentData, metric: str) -> bool:
    """Whether the run measured it, or it follows from what it measured."""
    return not series(experiment, metric).empty


_DERIVED: dict[str, tuple[Any, pd.DataFrame]] = {}
"""By folder: the history last used, with its derived columns."""


def derived(experiment: ExperimentData) -> pd.DataFrame:
    """The history with derived columns, computed once as long as it does not change."""
    known = _DERIVED.get(str(experiment.folder))
    if known is None or known[0] is not experiment.history:
        frame = experiment.history_df
        known = (
            experiment.history,
            compute_derived_metrics(frame) if {"train_acc", "train_loss"} <= set(frame) else frame,
        )
        _DERIVED[str(experiment.folder)] = known
    return known[1]


def series(experiment: ExperimentData, metric: str) -> pd.Series:
    """The metric by epoch, where it was measured."""
    history = experiment.history
    if metric in history.column_names:
        values = history.column(metric).to_numpy().astype("float64")
    elif metric in (frame := derived(experiment)):
        values = frame[metric].to_numpy(dtype="float64")
    else:
        return pd.Series(dtype="float64")
    is_measured = ~np.isnan(values)
    return pd.Series(values[is_measured], index=history.column("epoch").to_numpy()[is_measured])


def lines(experiments: Sequence[ExperimentData], metric: str, view: View, legend: bool) -> list[go.Scatter]:
    """A line per run; with smoothing the raw one stays behind it."""
    names, traces = labels(experiments), []
    stride = max(1, sum(len(e.history) for e in experiments) * len(view.chosen_metrics) // POINTS)
    for number, experiment in enumerate(experiments):
        values, name = series(experiment, metric).iloc[::stride], names[experiment.name]
        if values.empty:
            continue
        style = stroke(number)
        common = {"x": values.index, "legendgroup": name, "name": name, "mode": "lines"}
        if view.smooth > 1:
            line = style | {"width": 1}
            traces.append(go.Scatter(**common, y=values, line=line, opacity=0.3, showlegend=False, hoverinfo="skip"))
            values = smoothed(values.to_frame(), view.smooth).iloc[:, 0]
        traces.append(go.Scatter(**common, y=values, line=style | {"width": 1.6}, showlegend=legend))
    return traces


def smoothed(table: pd.DataFrame, window: int) -> pd.DataFrame:
    """Centred moving averages. Near the ends the window shrinks on both sides alike: an average of what comes later alone
    would begin where no run began."""
    sums = np.vstack([np.zeros(table.shape[1]), table.to_numpy(dtype="float64").cumsum(axis=0)])
    places = np.arange(len(table))
    half = np.minimum(window // 2, np.minimum(places, places[::-1]))
    means = (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)[:, None]
    return pd.DataFrame(means, index=table.index, columns=table.columns)


def bands(groups: Mapping[str, Sequence[ExperimentData]], metric: str, view: View, legend: bool) -> list[go.Scatter]:
    """Mean over the seeds of each group, in a band from the lowest seed to the highest; of up to eight groups also every
    seed thinly behind."""
    traces = []
    for number, (group, members) in enumerate(groups.items()):
        aligned = _aligned(members, metric)
        if aligned.empty:
            continue
        aligned = aligned.iloc[:: max(1, aligned.size * len(groups) * len(view.chosen_metrics) // POINTS)]
        colour, label = COLOURS[number % len(COLOURS)], f"{group} ({len(members)})"
        logarithmic = view.log_y and metric in LOGARITHMIC
        if logarithmic:  # the geometric mean, as the axis shows it
            aligned = np.log(aligned.where(aligned > 0))
        band = seed_bands(aligned)
        if view.smooth > 1:
            band = smoothed(band, view.smooth)
        if logarithmic:
            band[["mean", "min", "max"]], aligned = np.exp(band[["mean", "min", "max"]]), np.exp(aligned)
        common = {"legendgroup": group, "name": label, "mode": "lines"}
        if len(members) > 1:
            if len(groups) <= len(COLOURS):
                x, y = _joined(aligned)
                thin = {"color": colour, "width": 0.7}
                traces.append(
                    go.Scatter(**common, x=x, y=y, line=thin, opacity=0.28, showlegend=False, hoverinfo="skip")
                )
            whole = band.dropna()
            around = {"x": np.r_[whole.index, whole.index[::-1]], "y": np.r_[whole["max"], whole["min"][::-1]]}
            fill = f"rgba{(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 0.18)}"
            traces.append(
                go.Scatter(**common, **around, fill="toself", fillcolor=fill, line={"width": 0}, showlegend=False, hoverinfo="skip")
            )  # fmt: skip
        line = stroke(number) | {"width": 2}
        traces.append(go.Scatter(**common, x=band.index, y=band["mean"], line=line, showlegend=legend))
    return traces


def _aligned(members: Sequence[ExperimentData], metric: str) -> pd.DataFrame:
    """As align_by_epoch has it; where all were measured at the same epochs, as seeds are, without its joins."""
    series_of = {e.name: series(e, metric) for e in members}
    first = next(iter(series_of.values())).index
    if first.is_monotonic_increasing and first.is_unique and all(first.equals(s.index) for s in series_of.values()):
        return pd.DataFrame({name: s.to_numpy() for name, s in series_of.items()}, index=first)
    if all(metric in e.history.column_names for e in members):
        return align_by_epoch(members, metric)
    return pd.concat(series_of, axis=1).sort_index()


def _joined(aligned: pd.DataFrame) -> tuple[Any, Any]:
    """All columns as one line with gaps: one trace instead of one a seed."""
    gap = np.full((1, aligned.shape[1]), np.nan)
    x = np.tile(np.r_[aligned.index.to_numpy(dtype="float64"), np.nan], aligned.shape[1])
    return x, np.vstack([aligned.to_numpy(), gap]).T.ravel()


def shade(figure: go.Figure, experiment: ExperimentData, panels: int, view: View) -> None:
    """The phases of one run behind every panel, and a legend of their own above."""
    if experiment.events is None:
        return
    phases = detect_phases(
        experiment.history_df, 1 / int(experiment.config["p"]), int(experiment.config["event_window"])
    )
    epoch_of = dict(zip(experiment.history_df["step"], experiment.history_df["epoch"], strict=True))
    shapes = []
    for name, first, last in phases.spans():
        x0, x1 = epoch_of.get(first, first), epoch_of.get(last, last)
        style: dict[str, Any] = {
            "type": "rect",
            "fillcolor": f"rgba({SHADES[name]},0.09)",
            "line": {"width": 0},
            "layer": "below",
        }
        style |= {"x0": max(1, x0) if view.log_x else x0, "x1": x1, "y0": 0, "y1": 1}
        for number in ["", *map(str, range(2, panels + 1))]:
            shapes.append(style | {"xref": f"x{number}", "yref": f"y{number} domain"})
        key = {"symbol": "square", "size": 11, "color": f"rgba({SHADES[name]},0.35)"}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=key, name=name, legend="legend2", row=1, col=1)
    figure.update_layout(shapes=shapes)


def heat_map(experiments: Sequence[ExperimentData], view: View) -> tuple[go.Figure, pd.DataFrame]:
    """Median epochs to 0.99 over two fields, and the table behind it. The runs of a cell differ in the seed alone: every
    setting of the other fields has a panel, and a run made twice counts once, by its longest.

    Unless the view names them, the fields are weight decay and fraction where both differ. UserError where nothing but
    the seed differs, and for more than PANELS panels.
    """
    by = [name for name in dict.fromkeys(heat_map_fields(experiments, view)) if name]
    if not by:
        raise UserError("The runs shown differ in no field but the seed; choose a sweep over one or two fields")
    rows, columns = heat_map_fields(experiments, view)
    others = telling_fields(experiments, beyond=by)
    longest: dict[Any, ExperimentData] = {}
    for experiment in sorted(experiments, key=lambda experiment: experiment.max_epoch):
        cell = tuple(repr(experiment.config.get(name)) for name in by)
        longest[cell, experiment.setting, experiment.seeds] = experiment
    panels: dict[tuple[Any, ...], list[ExperimentData]] = {}
    for experiment in longest.values():
        if experiment.events is not None:
            panels.setdefault(tuple(experiment.config.get(name) for name in others), []).append(experiment)
    if not panels:
        raise UserError(
            f"None of the {len(experiments)} runs shown has been evaluated yet; wait for the first evaluation"
        )
    panels = dict(sorted(panels.items(), key=lambda item: [(str(type(value)), value) for value in item[0]]))
    if len(panels) > PANELS:
        raise UserError(
            f"The runs shown have {len(panels)} settings of {', '.join(others)}, a panel each; "
            f"choose runs, or rows and columns, that leave {PANELS}"
        )
    tables = {setting: time_to_grok(runs, by) for setting, runs in panels.items()}
    every = pd.concat(tables.values())
    medians = every["median"].dropna()
    ends = (float(medians.min()), float(medians.max())) if len(medians) else (0.0, 1.0)
    alone = len(tables) == 1
    down, across = (in_order(every[name]) if name else [""] for name in (rows, columns))  # one grid for all panels
    heights = [(90 if alone else 62) * len(down)] * len(tables)
    gaps = PANEL_GAP * (len(tables) - 1)
    figure = make_subplots(
        len(tables), 1, subplot_titles=[panel_title(runs, others) for runs in panels.values()] if others else None,
        row_heights=heights, vertical_spacing=0 if alone else PANEL_GAP / (sum(heights) + gaps),
    )  # fmt: skip
    colours: list[str | None] = [None] * len(figure.layout.annotations)
    for number, table in enumerate(tables.values(), start=1):
        colours += _cells(figure, table, (rows, down), (columns, across), ends, view, number)
    styled(figure, view, (140 if alone else 78) + sum(heights) + gaps)
    for annotation, colour in zip(figure.layout.annotations, colours, strict=True):
        if colour:
            annotation.font.color = colour
            annotation.font.size = 12 if alone else 10
    parted = [table.assign(**dict(zip(others, setting, strict=True))) for setting, table in tables.items()]
    return figure, pd.concat(parted, ignore_index=True)


def heat_map_fields(experiments: Sequence[ExperimentData], view: View) -> tuple[str, str]:
    """(rows, columns): what the view names, else weight decay by fraction, else the first two fields that differ, those
    of the task last."""
    fields = [name for name in differing_fields(experiments) if name not in MEASURING]
    preferred = [name for name in ("weight_decay", "train_frac") if name in fields]
    order = [*(preferred if len(preferred) == 2 else ()), *(n for n in fields if n not in TASK), *TASK]
    order = [name for name in order if name in fields]
    rows = view.rows or next((name for name in order if name != view.columns), "")
    return rows, view.columns or next((name for name in order if name != rows), "")


def in_order(values: Iterable[Any]) -> list[Any]:
    """The different ones: numbers by size, before all else."""
    is_number = (int, float)
    return sorted(dict.fromkeys(values), key=lambda v: (0, v, "") if isinstance(v, is_number) else (1, 0, str(v)))


def panel_title(runs: Sequence[ExperimentData], others: Sequence[str]) -> str:
    """Of a panel: its setting of the other fields, the task in words, and the longest of its runs."""
    config = runs[0].config
    parts = [f"{name} {config.get(name)}" for name in others if name not in TASK]
    if len(parts) < len(others):
        group = "" if config["operation"] == "compose" else f" mod {config['p']}"
        parts = [f"{OPERATIONS[config['operation']]}{group}", *parts]
    epochs = max(int(run.config["epochs"]) for run in runs)
    return f"{', '.join(parts)}, {epochs:,} epochs at most"


def _cells(
    figure: go.Figure, table: pd.DataFrame, of_rows: tuple[str, list[Any]], of_columns: tuple[str, list[Any]],
    ends: tuple[float, float], view: View, number: int,
) -> list[str]:  # fmt: skip
    """The cells of one panel with their text, on the grid of the fields with their values. Returns the texts' colours."""
    rows, columns = of_rows[0], of_columns[0]
    down, across = (list(map(str, values)) for _, values in (of_rows, of_columns))
    values = np.full((len(down), len(across)), np.nan)
    state = values.copy()
    texts = np.full(values.shape, "", dtype=object)
    for _, cell in table.iterrows():
        position = (down.index(str(cell[rows])) if rows else 0, across.index(str(cell[columns])) if columns else 0)
        reached = not pd.isna(cell["median"])
        values[position] = cell["median"] if reached else np.nan
        state[position] = np.nan if reached else float(cell["memorised"] * 2 >= cell["n"])
        what = f"{cell['median']:.0f}" if reached else f"> {cell['last_epoch']:.0f}"
        kind = "" if reached else "<br>memorised" if state[position] else "<br>did not memorise"
        texts[position] = f"<b>{what}</b>{kind}<br>{cell['grokked']} of {cell['n']} reached 0.99"
    axes = {"x": across, "y": down, "xgap": 3, "ygap": 3}
    grey = [[0, "rgba(128,128,128,0.55)"], [1, "rgba(128,128,128,0.22)"]]
    place = {"row": number, "col": 1}
    figure.add_heatmap(z=state, **axes, colorscale=grey, zmin=0, zmax=1, showscale=False, hoverinfo="skip", **place)
    figure.add_heatmap(
        z=values, **axes, colorscale="Viridis", reversescale=True, zmin=ends[0], zmax=ends[1], text=texts,
        hovertemplate="%{text}<extra></extra>", showscale=number == 1, colorbar={"title": {"text": "epochs"}}, **place,
    )  # fmt: skip
    ink = "#e6e6e6" if view.dark else "#1f2430"
    colours = []
    for (i, j), text in np.ndenumerate(texts):
        if text:
            colours.append(ink if np.isnan(values[i, j]) else "#ffffff" if values[i, j] > sum(ends) / 2 else "#1f2430")
            figure.add_annotation(x=j, y=i, text=text, showarrow=False, **place)
    figure.update_xaxes(title_text=columns, type="category", **place)
    figure.update_yaxes(title_text=rows, type="category", **place)
    return colours


def checkpoint(snapshot: Snapshot, config: Mapping[str, Any], view: View) -> go.Figure:
    """Spectra (none of S5), norms of layers and, for a routed model, the dominant head of every pair, at one checkpoint."""
    arrays = snapshot.arrays
    figure: go.Figure
    panels: list[tuple[str, Any]] = []  # title, what draws it into a cell of the grid
    if "embedding_power_F" in arrays:
        panels = [
            (
                "embedding's power by frequency",
                lambda cell: _power(figure, arrays["embedding_power_F"], COLOURS[0], cell),
            ),
            ("logits' power by frequency", lambda cell: _power(figure, arrays["logit_power_F"], COLOURS[1], cell)),
            ("logit of one class, centred (blue: high)", lambda cell: _logit(figure, arrays["class_logits_IJ"], cell)),
        ]
    panels.append(("norms of layers", lambda cell: _norms(figure, snapshot.layer_norms, cell)))
    for name in sorted(name for name in arrays if name.startswith("dominant_head_")):
        layer = name.split("_")[2]
        panels.append(
            (
                f"dominant head, layer {int(layer) + 1}",
                lambda cell, of=arrays[name], use=arrays[f"head_use_{layer}_R"]: _heads(figure, of, use, cell),
            )
        )
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=[title for title, _ in panels], horizontal_spacing=0.2,
        vertical_spacing=0.4 / (rows + 1),
    )  # fmt: skip
    for number, (_, drawn_at) in enumerate(panels):
        drawn_at({"row": number // columns + 1, "col": number % columns + 1})
    figure.update_layout(showlegend=False)
    return styled(figure, view, 300 * rows)


def _power(figure: go.Figure, power: Any, colour: str, cell: dict[str, int]) -> None:
    figure.add_bar(x=list(range(1, len(power) + 1)), y=power, marker_color=colour, **cell)
    figure.update_xaxes(title_text="frequency", **cell)
    figure.update_yaxes(title_text="share", rangemode="tozero", **cell)


def _logit(figure: go.Figure, logits_IJ: Any, cell: dict[str, int]) -> None:
    grid = logits_IJ.T.round(3)
    limit = float(abs(grid).max()) or 1.0
    figure.add_heatmap(z=grid, zmin=-limit, zmax=limit, colorscale="RdBu", showscale=False, **cell)
    figure.update_xaxes(title_text="a (group order)", **cell)
    figure.update_yaxes(title_text="b (group order)", **cell)


def _norms(figure: go.Figure, layer_norms: Mapping[str, float], cell: dict[str, int]) -> None:
    names = list(layer_norms)[::-1]
    groups = list(dict.fromkeys(map(layer_group, layer_norms)))
    colours = [COLOURS[groups.index(layer_group(name)) % len(COLOURS)] for name in names]
    figure.add_bar(y=names, x=[layer_norms[n] for n in names], orientation="h", marker_color=colours, **cell)


def _heads(figure: go.Figure, dominant_PP: Any, use_R: Any, cell: dict[str, int]) -> None:
    count = len(use_R)
    steps = [[(i + side) / count, COLOURS[i % len(COLOURS)]] for i in range(count) for side in (0, 1)]
    figure.add_heatmap(z=dominant_PP.T, zmin=-0.5, zmax=count - 0.5, colorscale=steps, showscale=False, **cell)
    figure.update_xaxes(title_text=f"a; mean weights {', '.join(f'{x:.2f}' for x in use_R)}", **cell)
    figure.update_yaxes(title_text="b", **cell)
