"""The figures of the reports, from rows and arrays of run folders."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrofit.metrics.matrix_rows import MatrixRow
from retrofit.metrics.summaries import mean_rows
from studycore.figures import COLOURS, new_figure, save_figure

LINES = ("-", "--", "-.", (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Rows = Sequence[Mapping[str, Any]]


def curve_style(i: int) -> tuple[str, Any, str]:
    """(colour, line, marker) of the i-th curve of a figure; the first 28 differ, also where they lie on each other."""
    return COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]


def layer_ticks(layers: int) -> list[int]:
    """Every layer, or every so many of a deep model."""
    return list(range(0, layers, -(-layers // 16) or 1))


CONDITIONING = {
    "ff_gram_original": ("Conditioning of the FFN's activations", "condition number, the original study's"),
    "act_kappa_centred_median": ("Conditioning of the FFN's activations", "condition number, median over layers"),
    "up_kappa_median": ("Conditioning of the up projections", "condition number, median over layers"),
}
"""The panel's title and the words of its axis."""


def plot_trajectories(rows_of: Mapping[str, Sequence[Rows]], path: Path) -> Path:
    """Two panels over steps: conditioning and perplexity; thin lines are seeds, thick their mean.

    Conditioning is ff_gram_original, or, where that is infinite at some step, the first other one that never is.
    """
    every_row = [row for seeds in rows_of.values() for rows in seeds for row in rows]
    conditioning = next((key for key in CONDITIONING if all(key in row for row in every_row)), "ff_gram_original")
    figure, (left, right) = new_figure(9.0, 3.4, ncols=2)
    for i, (name, seeds) in enumerate(rows_of.items()):
        # Arms that keep the function lie on each other: broken lines and markers of falling size let all be seen.
        colour, style, marker = curve_style(i)
        for axis, key in ((left, conditioning), (right, "trajectory_ppl")):
            for rows in seeds if len(seeds) > 1 else ():
                if points := [(row["step"], row[key]) for row in rows if key in row]:
                    axis.plot(*zip(*points, strict=True), color=colour, alpha=0.3, linewidth=0.7, linestyle=style)
            if points := [(row["step"], row[key]) for row in mean_rows(seeds) if key in row]:
                axis.plot(
                    *zip(*points, strict=True), color=colour, linewidth=1.6, linestyle=style, label=name,
                    marker=marker if len(points) < 12 else "", markersize=max(8 - i, 3),
                )  # fmt: skip
    title, words = CONDITIONING[conditioning]
    left.set(xlabel="updates", ylabel=words, title=title)
    right.set(xlabel="updates", ylabel="perplexity", title="Validation perplexity")
    for axis, key, wide in ((left, conditioning, 10), (right, "trajectory_ppl", 1.5)):
        values = [row[key] for row in every_row if key in row]
        if values and max(values) > wide * min(values) > 0:
            axis.set_yscale("log")
    if len(rows_of) > 1:
        figure.legend(*right.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    return save_figure(figure, path)


def plot_layers(merged: Mapping[str, Rows], path: Path) -> Path:
    """kappa(W) of the up projections by layer; arms stand side by side, since some are equal."""
    figure, axis = new_figure(7.5, 3.4)
    start = next(iter(merged.values()))[0].get("up_kappa", [])
    axis.plot(range(len(start)), start, color="grey", linewidth=3, alpha=0.5, label="step 0")
    for i, (name, rows) in enumerate(merged.items()):
        values = rows[-1].get("up_kappa", [])
        colour, _, marker = curve_style(i)
        places = [layer + 0.6 * ((i + 0.5) / len(merged) - 0.5) for layer in range(len(values))]
        axis.plot(places, values, marker=marker, markersize=4, color=colour, label=name, linestyle="")
    axis.set(
        xlabel="layer", ylabel="condition number of the up projection", yscale="log", xticks=layer_ticks(len(start))
    )
    figure.legend(fontsize=7, loc="outside right upper")
    return save_figure(figure, path)


def plot_front(fronts: Mapping[str, Sequence[Any]], bounds: tuple[float, float], path: Path) -> Path:
    """Percent of perplexity over percent of kappa beside continued training, one line per penalty, labelled by weight.

    `fronts`: points with kappa and perplexity as intervals; `bounds`: the corner in which a penalty helps.
    """
    figure, axis = new_figure(7.5, 4.0)
    axis.plot([0], [0], marker="o", color="grey", linestyle="", label="continued training")
    for i, (name, points) in enumerate(fronts.items()):
        colour, line, marker = curve_style(i)
        x, y = ([getattr(p, what).estimate for p in points] for what in ("kappa", "perplexity"))
        axis.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=5, label=name)
        for p in points:
            k, q = p.kappa, p.perplexity
            axis.plot([k.low, k.high], [q.estimate, q.estimate], color=colour, linewidth=0.7)
            axis.plot([k.estimate, k.estimate], [q.low, q.high], color=colour, linewidth=0.7)
            axis.annotate(
                f"{p.weight:g}", (k.estimate, q.estimate), fontsize=6, xytext=(3, 3), textcoords="offset points"
            )
    left, bottom = axis.get_xlim()[0], axis.get_ylim()[0]
    axis.fill_between([min(left, 1.2 * bounds[0]), bounds[0]], bottom, bounds[1], color="grey", alpha=0.15, linewidth=0)
    axis.set(
        xlabel="condition number of the up projections, % beside continued training", ylabel="perplexity, % beside it"
    )
    figure.legend(fontsize=7, loc="outside right upper")
    return save_figure(figure, path)


# ----------------------------------------------------------------------------------------------------------- measure
def kind_of(name: str) -> str:
    """The last two parts of a matrix's name that are no numbers: attn.c_proj is another kind than mlp.c_proj."""
    return ".".join([part for part in name.split(".") if not part.isdigit()][-2:])


def plot_spectra(spectra: Mapping[str, Any], path: Path) -> Path:
    """s_i / s_1 over i / k, one line per matrix, drawn by kind of matrix."""
    figure, axis = new_figure(7.5, 3.8)
    kinds = list(dict.fromkeys(map(kind_of, spectra)))
    labelled: set[str] = set()
    for name, s_k in spectra.items():
        kind, largest = kind_of(name), max(float(s_k.max()), 1e-300)
        y = [max(float(s) / largest, 1e-12) for s in s_k]
        x = [i / max(len(y) - 1, 1) for i in range(len(y))]
        colour, line, _ = curve_style(kinds.index(kind))
        label = None if kind in labelled else kind
        axis.plot(x, y, color=colour, linestyle=line, alpha=0.6, linewidth=0.9, label=label)
        labelled.add(kind)
    axis.set(xlabel="index over rank", ylabel="singular value over the largest", yscale="log")
    figure.legend(fontsize=7, loc="outside right upper")
    return save_figure(figure, path)


def plot_kappas(rows: Sequence[MatrixRow], path: Path) -> Path:
    """kappa by matrix, in order of depth; singular ones leave a gap."""
    figure, axis = new_figure(7.5, 3.4)
    deepest = 0
    for i, kind in enumerate(dict.fromkeys(kind_of(row.name) for row in rows)):
        own = [row.kappa if math.isfinite(row.kappa) else math.nan for row in rows if kind_of(row.name) == kind]
        colour, line, marker = curve_style(i)
        deepest = max(deepest, len(own))
        axis.plot(range(len(own)), own, marker=marker, markersize=4, color=colour, linestyle=line, label=kind)
    axis.set(xlabel="layer", ylabel="kappa(W)", yscale="log", xticks=layer_ticks(deepest))
    figure.legend(fontsize=7, loc="outside right upper")
    return save_figure(figure, path)
