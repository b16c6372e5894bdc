"""The figures of the reports: F1 over the ratio, reconstruction over training, questions by their reconstruction."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from studycore.figures import COLOURS, new_figure, save_figure
from studycore.statistics import Interval

Rows = Sequence[Mapping[str, Any]]


def plot_curve(curves: Mapping[str, Mapping[float, Interval]], levels: Mapping[str, float], path: Path) -> Path:
    """F1 of each arm over the ratio with its interval; `levels`: what needs no compressor, as horizontal lines."""
    figure, axes = new_figure()
    for i, (arm, points) in enumerate(curves.items()):
        ratios = sorted(points)
        intervals = [points[ratio] for ratio in ratios]
        # Arms of one ratio stand side by side.
        x = np.array(ratios) * (1 + 0.015 * (i - len(curves) / 2))
        axes.errorbar(
            x, [p.estimate for p in intervals],
            yerr=[[p.estimate - p.low for p in intervals], [p.high - p.estimate for p in intervals]],
            marker="o", markersize=4, capsize=2, label=arm, color=COLOURS[i % len(COLOURS)],
        )  # fmt: skip
    for name, value in levels.items():
        axes.axhline(value, color="0.4", linestyle="--" if name == "raw" else ":", linewidth=1)
        axes.annotate(name, (1.0, value), xycoords=("axes fraction", "data"), fontsize=7, va="bottom", ha="right")
    ticks = sorted({ratio for points in curves.values() for ratio in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.set(xlabel="dimensions of an embedding over those of its code", ylabel="F1", ylim=(-3, 103))
    if curves:
        axes.legend(fontsize=7, ncols=2)
    return save_figure(figure, path)


def plot_training(rows: Rows, linear: Mapping[str, float], path: Path) -> Path:
    """Unexplained variance over updates, of seen and held-out token types, beside the linear inverse's."""
    figure, axes = new_figure()
    for i, (key, name) in enumerate((("nmse", "seen types"), ("held_out_nmse", "held-out types"))):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", color=COLOURS[i], label=f"adapter, {name}")
        if f"linear_{key}" in linear:
            axes.axhline(linear[f"linear_{key}"], color=COLOURS[i], linestyle=":", label=f"linear inverse, {name}")
    axes.set(xlabel="updates", ylabel="unexplained variance", ylim=(0, None))
    axes.legend(fontsize=7)
    return save_figure(figure, path)


def plot_questions(arms: Mapping[str, Rows], path: Path) -> Path:
    """F1 of questions in five groups of equal size by their paragraph's reconstruction error, one line an arm."""
    figure, axes = new_figure()
    for i, (arm, questions) in enumerate(arms.items()):
        pairs = np.array(sorted((q["error"], 100 * q["f1"]) for q in questions if "error" in q))
        if len(pairs) >= 5:
            parts = np.array_split(pairs, 5)
            axes.plot(
                [p[:, 0].mean() for p in parts],
                [p[:, 1].mean() for p in parts],
                marker="o",
                markersize=4,
                label=arm,
                color=COLOURS[i % len(COLOURS)],
            )
    axes.set(xlabel="squared error of the paragraph's rows over their squared norm", ylabel="F1", ylim=(-3, 103))
    axes.legend(fontsize=7)
    return save_figure(figure, path)


def plot_bars(names: Sequence[str], values: Sequence[float], label: str, path: Path) -> Path:
    """Bars with their names."""
    figure, axes = new_figure()
    axes.barh(range(len(names)), values, color=COLOURS[0])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return save_figure(figure, path)
