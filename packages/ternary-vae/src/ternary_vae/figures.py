"""Figures of a run and of a sweep, as SVG. Clouds of points are rasterised inside them, which keeps files small."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from studycore.figures import COLOURS, new_figure, plot_arms, save_figure
from studycore.statistics import Interval
from ternary_vae.comparisons import ArmStatistics
from ternary_vae.history import Row, ordering_rows

if TYPE_CHECKING:
    from pandas import DataFrame

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STYLES = ("-", "--", ":", "-.")
ORIGINAL_BEST = {
    "sweep_curv_0.5": -0.676, "sweep_curv_1.0": -0.688, "sweep_curv_2.0": -0.702,
    "sweep2_balanced": -0.758, "sweep2_baseline": -0.752,
    "sweep3_early_stop_p5": -0.792, "sweep3_step_decay": -0.767, "sweep3_cosine": -0.695,
    "sweep4_lr_1e3": -0.790, "sweep4_lr_3e4": -0.789, "sweep4_lr_5e4": -0.783, "sweep4_lr_1e4": -0.735,
}  # fmt: skip
"""Best hierarchies that the original study's summary gives for its arms, one run each."""
ORIGINAL_STABILITY = -0.740
"""Its mean over the 25 runs that the arms sweep5 and sweep6 repeat."""


def level_colours(levels: int) -> list[Any]:
    """One colour per level, dark to bright with depth; told apart by lightness alone."""
    from matplotlib import colormaps

    # The last tenth of viridis is too bright on white.
    return [colormaps["viridis"](x) for x in np.linspace(0, 0.92, levels)]


# ----------------------------------------------------------------------------------------------------------- one run
def plot_run_curves(rows: Sequence[Row], ceiling: float | None, path: Path) -> Path:
    """Coverage over the whole run, and the hierarchy over the stage that orders radii."""
    ordering = ordering_rows(rows)
    figure, axes = new_figure(8.0, 3.0, ncols=2 if ordering else 1, squeeze=False)
    steps = [row["step"] for row in rows]
    axes[0, 0].plot(steps, [row["coverage"] for row in rows], marker="." if len(rows) < 30 else "")
    axes[0, 0].set(xlabel="update", ylabel="coverage", ylim=(-0.02, 1.04))
    starts = [b["step"] for a, b in pairwise(rows) if a["stage"] != b["stage"]]
    for step in starts:
        axes[0, 0].axvline(step, color="0.5", linewidth=0.8, linestyle="--")
        axes[0, 0].annotate(
            f"{rows[-1]['stage']} stage",
            (step, 0.05),
            fontsize=7.5,
            color="0.3",
            xytext=(3, 0),
            textcoords="offset points",
        )
    if ordering:
        epochs = [row["epoch"] for row in ordering]
        axis = axes[0, 1]
        axis.plot(epochs, [row["hierarchy"] for row in ordering], color=COLOURS[0], label="hierarchy")
        axis.plot(epochs, [row.get("somers_d", np.nan) for row in ordering], color=COLOURS[1], label="Somers' D")
        if ceiling is not None:
            axis.axhline(-ceiling, color=COLOURS[0], linewidth=0.8, linestyle="--", label="best hierarchy without ties")
        axis.axhline(-1, color=COLOURS[1], linewidth=0.8, linestyle="--")
        axis.set(
            xlabel=f"epoch of the {ordering[-1]['stage']} stage", ylabel="hierarchy, Somers' D (negative is right)"
        )
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=7.5)
    return save_figure(figure, path)


def plot_radius_by_level(v_N: Ints, norm_N: Floats, max_radius: float, path: Path) -> Path:
    """Every operation's radius by its level, spread sideways, with each level's range drawn around it."""
    levels = int(v_N.max()) + 1
    figure, axis = new_figure(7.5, 3.6)
    random = np.random.default_rng(0)
    counts = np.bincount(v_N)
    for k, colour in enumerate(level_colours(levels)):
        r = norm_N[v_N == k]
        side = random.uniform(-0.28, 0.28, len(r))
        axis.scatter(
            k + side, r, s=float(np.clip(60 / len(r) ** 0.4, 2, 24)), color=colour, alpha=0.9 if len(r) < 500 else 0.35,
            linewidth=0, rasterized=True,
        )  # fmt: skip
        axis.plot([k - 0.34, k + 0.34, k + 0.34, k - 0.34, k - 0.34],
                  [r.min(), r.min(), r.max(), r.max(), r.min()], color="0.25", linewidth=0.7)  # fmt: skip
    axis.axhline(max_radius, color="0.5", linewidth=0.8, linestyle="--")
    axis.set(
        ylim=(0, max_radius * 1.06), ylabel="radius (Euclidean norm)", xlabel="level (valuation), and its operations"
    )
    axis.set_xticks(range(levels), [f"{k}\n{counts[k]:,}" for k in range(levels)])
    axis.grid(visible=False, axis="x")
    return save_figure(figure, path)


def plot_ball(xy_N2: Floats, v_N: Ints, curvature: float, path: Path) -> Path:
    """Points seen flat in a disk, the whole ball and its middle; colours are levels, deep ones drawn last and larger."""
    from matplotlib.patches import Circle

    levels, edge = int(v_N.max()) + 1, curvature**-0.5
    inner = max(1.15 * float(np.linalg.norm(xy_N2[v_N > 0], axis=1).max()), 1e-3)
    figure, axes = new_figure(8.4, 4.1, ncols=2)
    for axis, limit in zip(axes, (edge * 1.03, min(inner, edge * 1.03)), strict=True):
        axis.add_patch(Circle((0, 0), edge, fill=False, color="0.3", linewidth=1))
        for k, colour in enumerate(level_colours(levels)):
            shown_N = (v_N == k) & (np.abs(xy_N2).max(1) <= limit)
            few = k > 3
            # Opaque and without smoothed edges where they are many: such an image is a tenth of the size.
            axis.scatter(
                *xy_N2[shown_N].T, s=(2 + 3.2 * k) * (1 if axis is axes[1] else 0.5), color=colour, rasterized=True, zorder=2 + k,
                edgecolor="white" if few else "none", linewidth=0.4 if few else 0, antialiased=few,
                label=f"{k}" if axis is axes[1] else None,
            )  # fmt: skip
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axis.grid(visible=False)
        axis.tick_params(labelsize=7)
    axes[0].set_title("the whole ball", fontsize=9)
    axes[1].set_title("its middle, as far as level 1 and deeper ones reach", fontsize=9)
    legend = figure.legend(*axes[1].get_legend_handles_labels(), title="level", loc="outside right center", fontsize=8)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
            handle.set_sizes([30])  # type: ignore[attr-defined]
    return save_figure(figure, path)


# ------------------------------------------------------------------------------------------------------------- sweep
def mean_curve(runs: "DataFrame") -> tuple[list[int], Floats, Floats, Floats]:
    """Epochs, mean, smallest and largest value over the runs that lasted until then."""
    values: dict[int, list[float]] = {}
    for row in (row for rows in runs["ordering_rows"] for row in rows):
        values.setdefault(row["epoch"], []).append(row["hierarchy"])
    epochs = sorted(values)
    parts = [np.array([statistic(values[epoch]) for epoch in epochs]) for statistic in (np.mean, np.min, np.max)]
    return epochs, parts[0], parts[1], parts[2]


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the part, up to an underscore, that all begin with."""
    common = 0
    while len(names) > 1 and len({name[: common + 1] for name in names}) == 1 and common < min(map(len, names)) - 1:
        common += 1
    cut = names[0].rfind("_", 0, common) + 1 if common else 0
    return [name[cut:] for name in names]


def plot_phase_curves(runs: "DataFrame", ceiling: float | None, path: Path) -> Path:
    """Hierarchy by epoch, one panel per phase: each arm's mean over its runs, and the range of them."""
    phases = {str(phase): own for phase, own in runs.groupby("phase", sort=False)}
    columns = min(2, len(phases))
    lines = -(-len(phases) // columns)
    figure, axes = new_figure(4.5 * columns, 2.9 * lines, ncols=columns, nrows=lines, sharey=True, squeeze=False)
    for axis in axes.flat[len(phases) :]:
        axis.set_visible(False)
    later: list[float] = []
    for axis, (phase, own) in zip(axes.flat, phases.items(), strict=False):
        arms = {str(arm): of_arm for arm, of_arm in own.groupby("arm_without_draw", sort=False)}
        for i, (of_arm, label) in enumerate(zip(arms.values(), short_names(list(arms)), strict=True)):
            epochs, mean, low, high = mean_curve(of_arm)
            # Arms that agree lie on each other: broken lines let both be seen.
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
            axis.plot(
                epochs, mean, style, color=colour, linewidth=1.3, label=label, marker="." if len(epochs) < 3 else ""
            )
            axis.fill_between(epochs, low, high, color=colour, alpha=0.10, linewidth=0)
            later += mean[1:].tolist()
        if ceiling is not None:
            axis.axhline(-ceiling, color="0.4", linewidth=0.8, linestyle="--")
        axis.set_title(phase, fontsize=9)
        axis.legend(fontsize=7, ncols=2 if len(arms) > 4 else 1, loc="upper right")
    # The first evaluations, of projections as they were drawn, may lie anywhere: they must not squeeze the rest.
    if later:
        top, bottom = float(np.quantile(later, 0.97)), min(*later, -(ceiling or 0.0))
        axes[0, 0].set_ylim(bottom - 0.03 * (1 + top - bottom), top + 0.12 * (top - bottom) + 0.02)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("hierarchy (negative is right)", fontsize=9)
    return save_figure(figure, path)


def original_best(arm: str) -> float | None:
    """What the original study's summary gives for an arm; None where it gives nothing."""
    return ORIGINAL_STABILITY if arm in ("sweep5", "sweep6") else ORIGINAL_BEST.get(arm)


def plot_effects(statistics: Sequence[ArmStatistics], ceiling: float | None, path: Path) -> Path:
    """Best and final hierarchy of every arm with 95 % intervals, by phase; crosses are the original study's figures."""
    label = "hierarchy (negative is right)"
    series: dict[str, list[Interval | float | None]] = {
        "best of the run": [arm.best_interval or arm.best for arm in statistics],
        "end of the run": [arm.final_interval or arm.final for arm in statistics],
        "original study's best": [original_best(arm.arm) for arm in statistics],
    }
    levels = {} if ceiling is None else {"ceiling without ties": -ceiling}
    names, phases = [arm.arm for arm in statistics], [arm.phase for arm in statistics]
    return plot_arms(names, {label: series}, path, phases, {label: levels})


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (hierarchy, richness) points that no other beats in both: more negative hierarchy, larger richness."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def plot_pareto(runs: "DataFrame", closed_form: Mapping[str, Any] | None, ceiling: float | None, path: Path) -> Path:
    """Hierarchy and richness of every run's last model, and the front of those that no other beats in both."""
    figure, axis = new_figure(7.5, 3.8)
    phases: dict[str, list[tuple[float, float]]] = {}
    for phase, own in runs[runs["richness"] > 0].groupby("phase", sort=False):
        phases[str(phase)] = list(zip(own["final_hierarchy"], own["richness"], strict=True))
    markers = "os^Dv<>pP*"
    for i, (phase, points) in enumerate(phases.items()):
        axis.scatter(
            *zip(*points, strict=True), s=16, marker=markers[i % len(markers)], color=COLOURS[i % len(COLOURS)],
            alpha=0.75, linewidth=0, label=phase,
        )  # fmt: skip
    front = pareto_front([point for points in phases.values() for point in points])
    if front:
        axis.step(*zip(*front, strict=True), where="post", color="0.2", linewidth=1, label="front")
    if closed_form is not None:
        axis.plot([closed_form["hierarchy"]], [closed_form["richness"]], "k*", markersize=9, label="closed form")
    if ceiling is not None:
        axis.axvline(-ceiling, color="0.4", linewidth=0.8, linestyle="--")
    axis.set(yscale="log", xlabel="hierarchy at the end (left is better)", ylabel="richness (Euclidean; up is better)")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(figure, path)
