"""The figures of the reports: F1 over the ratio, reconstruction over training, questions by their reconstruction."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentwire_adapter.metrics.token_types import BANDS, DECODERS, KINDS, Group
from studycore.figures import COLOURS, new_figure, save_figure
from studycore.statistics import Interval

Rows = Sequence[Mapping[str, Any]]


ARMS = {
    "nearest": "nearest row of the model's own table", "nearest_int4": "the same, codes of 4-bit integers",
    "linear": "linear inverse (PCA)", "adapter": "trained adapter", "phase2": "adapter, also trained through the model (KL)",
    "phase2_ppl": "the same, on the prompt's perplexity", "int8": "adapter, codes of 8-bit integers",
    "int4": "adapter, codes of 4-bit integers", "fewer": "fewer tokens of the paragraph, rest whole",
    "adapter_paragraph": "adapter for the paragraph, rest whole",
}  # fmt: skip
MARKERS = "osD^vPX<>*h"
"""As many as arms and more, and of another number than the colours: no two arms look alike."""
LEVELS = {"raw": "uncompressed prompt", "question_only": "without the paragraph", "shuffled": "another paragraph"}
LEVEL_LINES = {"raw": "--", "question_only": ":", "shuffled": "-."}


def plot_curve(curves: Mapping[str, Mapping[float, Interval]], levels: Mapping[str, float], path: Path) -> Path:
    """F1 of each arm at each ratio with its interval, arms side by side; `levels`: what needs no compressor, as lines."""
    figure, axes = new_figure(8.5, 3.8)
    ratios = sorted({ratio for points in curves.values() for ratio in points})
    for i, (arm, points) in enumerate(curves.items()):
        own = sorted(points)
        intervals = [points[ratio] for ratio in own]
        # A place of its own for each arm: many lie at 0, and would cover each other.
        x = [ratios.index(ratio) + 0.8 * ((i + 0.5) / len(curves) - 0.5) for ratio in own]
        style = list(ARMS).index(arm) if arm in ARMS else i
        axes.errorbar(
            x, [p.estimate for p in intervals],
            yerr=[[p.estimate - p.low for p in intervals], [p.high - p.estimate for p in intervals]],
            linestyle="", marker=MARKERS[style % len(MARKERS)], markersize=5, capsize=2, label=ARMS.get(arm, arm),
            color=COLOURS[style % len(COLOURS)],
        )  # fmt: skip
    for name, value in levels.items():
        axes.axhline(
            value, color="0.4", linestyle=LEVEL_LINES.get(name, ":"), linewidth=1, label=LEVELS.get(name, name)
        )
    for edge in range(len(ratios) - 1):
        axes.axvline(edge + 0.5, color="0.85", linewidth=0.8)
    axes.set_xticks(range(len(ratios)), [f"{ratio:g} times smaller" for ratio in ratios])
    axes.grid(False, axis="x")
    axes.set(xlabel="code of a token's embedding", ylabel="F1 of the answers", ylim=(-3, 103))
    if curves or levels:
        figure.legend(fontsize=7.5, loc="outside right upper")
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
    figure.legend(fontsize=7, loc="outside right upper")
    return save_figure(figure, path)


def plot_questions(arms: Mapping[tuple[str, str], Rows], path: Path) -> Path:
    """F1 of questions in five groups of equal size by their paragraph's reconstruction error, one line of each (arm, ratio):
    a colour an arm, a marker a ratio."""
    figure, axes = new_figure(8.5, 3.8)
    names, ratios = (list(dict.fromkeys(keys)) for keys in zip(*arms, strict=True))
    for (arm, ratio), questions in arms.items():
        pairs = np.array(sorted((q["error"], 100 * q["f1"]) for q in questions if "error" in q))
        if len(pairs) >= 5:
            parts = np.array_split(pairs, 5)
            axes.plot(
                [p[:, 0].mean() for p in parts],
                [p[:, 1].mean() for p in parts],
                marker=MARKERS[ratios.index(ratio) % len(MARKERS)],
                markersize=4,
                label=f"{ARMS[arm]}, {ratio}",
                color=COLOURS[names.index(arm) % len(COLOURS)],
            )
    axes.set(xlabel="squared error of the paragraph's rows over their squared norm", ylabel="F1", ylim=(-3, 103))
    figure.legend(fontsize=7.5, loc="outside right upper")
    return save_figure(figure, path)


def plot_types(ratios: Mapping[str, Sequence[Group]], path: Path) -> Path:
    """Unexplained variance by how often a token type is counted, one panel a ratio: the decoders by colour, types that the
    fits saw filled and those held out hollow."""
    figure, axes = new_figure(8.5, 3.4, ncols=max(len(ratios), 1), sharey=True, squeeze=False)
    for panel, (ratio, groups) in zip(axes[0], ratios.items(), strict=False):
        bands = [band for band in BANDS if any(group.band == band for group in groups)]
        for k, (decoder, kind) in enumerate((d, kind) for d in DECODERS for kind in KINDS):
            own = [group for group in groups if (group.decoder, group.kind) == (decoder, kind)]
            colour, values = COLOURS[DECODERS.index(decoder)], [group.unexplained for group in own]
            panel.errorbar(
                [bands.index(group.band) + 0.16 * (k - 1.5) for group in own], [value.estimate for value in values],
                yerr=[[v.estimate - v.low for v in values], [v.high - v.estimate for v in values]], linestyle="", capsize=2,
                marker="os"[DECODERS.index(decoder)], markersize=5, color=colour,
                markerfacecolor=colour if kind == "seen" else "white",
                label=f"{ARMS[decoder]}, {'types that the fits saw' if kind == 'seen' else 'types held out'}",
            )  # fmt: skip
        panel.set_xticks(range(len(bands)), bands, rotation=60, fontsize=7.5)
        panel.set_title(f"{ratio.removesuffix('x')} times smaller", fontsize=9)
    axes[0, 0].set(ylabel="unexplained variance", ylim=(0, None))  # once all are drawn: the panels share it
    figure.supxlabel("count of the token type in the text that the fits are of", fontsize=9)
    named = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    if named:
        figure.legend(named.values(), named, fontsize=7.5, loc="outside upper center", ncols=2)
    return save_figure(figure, path)


def plot_bars(names: Sequence[str], values: Sequence[float], label: str, path: Path) -> Path:
    """Bars with their names."""
    figure, axes = new_figure()
    axes.barh(range(len(names)), values, color=COLOURS[0])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return save_figure(figure, path)
