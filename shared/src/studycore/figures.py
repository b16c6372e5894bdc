"""One look for all figures, saved as SVG whose bytes depend on the data alone."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from studycore.statistics import Interval

    Series = Mapping[str, Sequence["Interval | float | None"]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: distinct for colour-blind readers too."""


def new_figure(width: float = 7.0, height: float = 3.4, **subplots: Any) -> "tuple[Figure, Any]":
    """A figure and its axes (array) without a display; sizes in inches."""
    import matplotlib

    matplotlib.use("agg")
    from cycler import cycler
    from matplotlib import pyplot

    style: dict[str, Any] = {
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "font.size": 9.0,
        "legend.frameon": False,
        "svg.hashsalt": "geometry-of-learning",
        "svg.fonttype": "none",
    }
    pyplot.rcParams.update(style)  # type: ignore[arg-type]
    return pyplot.subplots(figsize=(width, height), layout="constrained", **subplots)


def save_figure(figure: "Figure", path: Path) -> Path:
    """Writes `path` (its suffix .svg or .png decides) and closes the figure."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, dpi=150)
    pyplot.close(figure)
    return path


def plot_arms(
    arms: Sequence[str],
    panels: "Mapping[str, Series]",
    path: Path,
    groups: Sequence[str] = (),
    levels: Mapping[str, Mapping[str, float]] | None = None,
    ratios: bool = False,
) -> Path:
    """Arms below each other, one panel per quantity: a dot with its 95 % interval for every series that has the arm.

    `panels`: axis label -> series -> one entry per arm. Plain numbers, which have no interval, are crosses; None is left
    out, and so is a panel of nothing else. `groups`: one per arm, a heading wherever it changes. `levels`: axis label -> name -> upright line. `ratios`: of
    quantities over their start, with a line at 1 and a logarithmic axis where they span more than a factor of 3.
    """
    there = {
        label: series for label, series in panels.items() if any(e is not None for x in series.values() for e in x)
    }
    panels = there or panels
    lines: list[tuple[str, int | None]] = []
    for i, arm in enumerate(arms):
        if groups and (i == 0 or groups[i] != groups[i - 1]):
            lines.append((groups[i], None))
        lines.append((arm, i))
    place = {i: y for y, (_, i) in enumerate(lines) if i is not None}
    most = max(len(series) for series in panels.values())
    size = (7.5 if len(panels) < 3 else 8.5, 0.9 + (0.17 + 0.05 * most) * len(lines))
    figure, axes = new_figure(*size, ncols=len(panels), sharey=True, squeeze=False)
    for axis, (label, series) in zip(axes[0], panels.items(), strict=True):
        for k, (name, entries) in enumerate(series.items()):
            colour, shift = COLOURS[k % len(COLOURS)], 0.24 * (k - (len(series) - 1) / 2)
            crosses = [(e, place[i] + shift) for i, e in enumerate(entries) if isinstance(e, int | float)]
            dots = [
                (e, place[i] + shift) for i, e in enumerate(entries) if e is not None and not isinstance(e, int | float)
            ]
            for interval, y in dots:
                axis.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.2)
            drawn: list[tuple[list[float], list[float], str, float]] = []
            drawn += [([e.estimate for e, _ in dots], [y for _, y in dots], "o", 3.5)] if dots else []
            drawn += [([e for e, _ in crosses], [y for _, y in crosses], "x", 5.0)] if crosses else []
            for n, (xs, ys, marker, points) in enumerate(drawn):
                named = name if n == 0 and len(series) > 1 else None
                axis.plot(xs, ys, marker, color=colour, markersize=points, label=named)
        for style, (name, x) in zip(cycle(("--", ":", "-.")), (levels or {}).get(label, {}).items(), strict=False):
            axis.axvline(x, color="0.4", linewidth=1.0, linestyle=style, label=name)
        if ratios:
            axis.axvline(1, color="0.4", linewidth=0.8)
            ends = [x for line in axis.lines for x in line.get_xdata()]
            if min(ends) > 0 and max(ends) > 3 * min(ends):
                axis.set_xscale("log")
                axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(label)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4 if len(panels) == 1 else 2)
    axes[0, 0].set_yticks(range(len(lines)), [text for text, _ in lines], fontsize=7.5)
    axes[0, 0].set_ylim(len(lines) - 0.4, -0.6)
    for text, (_, number) in zip(axes[0, 0].get_yticklabels(), lines, strict=True):
        text.set_fontweight("bold" if number is None else "normal")
    return save_figure(figure, path)
