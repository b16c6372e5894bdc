"""Figures of a run (training curves, spectral analysis, routing heat map, curvature) and of a sweep (survival, accuracy)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from least_action.config import OPERATIONS, S5_ELEMENTS, TrainerConfig
from least_action.events import find_events
from least_action.history import MetricsHistory
from least_action.survival import Survival
from studycore.figures import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd

Arrays = Mapping[str, Any]
"""What metrics.final.figure_arrays gives, as numpy arrays."""


def plot_training_curves(history: MetricsHistory, path: Path, config: TrainerConfig) -> Path:
    """Loss and accuracy on both splits over epochs, with the events shaded."""
    figure, axes = new_figure(8, 3.2, ncols=2)
    for axis, kind in zip(axes, ("loss", "acc"), strict=True):
        for split, colour in (("train", COLOURS[0]), ("test", COLOURS[1])):
            axis.plot(
                *history.series(f"{split}_{kind}"),
                color=colour,
                label="training pairs" if split == "train" else "held-out pairs",
            )
        axis.set_xlabel("epoch")
    axes[0].set_yscale("log")
    axes[0].set_ylabel("cross-entropy" if config.recipe != "orthograd_stablemax" else "StableMax cross-entropy")
    axes[1].set_ylabel("accuracy")
    events = find_events(history.rows, config.p, config.event_window)
    for name, epoch in (("memorised", events.memorised), ("0.99 held", events.grokked_99)):
        if epoch is not None:
            for axis in axes:
                axis.axvline(epoch, color="0.5", linewidth=0.8, linestyle="--" if name == "memorised" else "-")
            axes[1].annotate(
                f"{name} {epoch}",
                (epoch, 0.5 if name == "memorised" else 0.3),
                fontsize=7.5,
                color="0.3",
                xytext=(3, 0),
                textcoords="offset points",
            )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return save_figure(figure, path)


def plot_spectral_analysis(arrays: Arrays, path: Path) -> Path:
    """Where the function and the embedding have their power, by frequency of the operation's own group."""
    centred_IJ = arrays["class_logits_IJ"]
    figure, axes = new_figure(9.5, 3.0, ncols=3)
    frequencies = range(1, len(centred_IJ) // 2 + 1)
    axes[0].bar(frequencies, arrays["embedding_power_F"].tolist(), color=COLOURS[0], width=0.8)
    axes[0].set(xlabel="frequency", ylabel="share of the embedding's power")
    axes[1].bar(frequencies, arrays["logit_power_F"].tolist(), color=COLOURS[1], width=0.8)
    axes[1].set(xlabel="frequency of the result", ylabel="share of the logits' power")
    limit = float(abs(centred_IJ).max()) or 1.0
    image = axes[2].imshow(centred_IJ.T, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", rasterized=True)
    axes[2].set(xlabel="a (group order)", ylabel="b (group order)", title="logit of one class, centred")
    axes[2].grid(False)
    figure.colorbar(image, ax=axes[2], shrink=0.8)
    return save_figure(figure, path)


def plot_routing_heatmap(arrays: Arrays, path: Path) -> Path:
    """The dominant routing head of each pair, one map per routed layer. ValueError for arrays of a model without routing."""
    layers = [name.split("_")[2] for name in sorted(arrays) if name.startswith("dominant_head_")]
    if not layers:
        raise ValueError("arrays: of a model without routing, which has no dominant heads to show")
    from matplotlib.colors import ListedColormap

    heads = len(arrays[f"head_use_{layers[0]}_R"])
    figure, axes = new_figure(3.1 * len(layers) + 1, 3.2, ncols=len(layers), squeeze=False)
    images = []
    for layer, axis in zip(layers, axes[0], strict=True):
        colours = ListedColormap([COLOURS[i % len(COLOURS)] for i in range(heads)])
        grid_PP = arrays[f"dominant_head_{layer}_PP"]
        image = axis.imshow(
            grid_PP.T, cmap=colours, vmin=-0.5, vmax=heads - 0.5, origin="lower", interpolation="nearest"
        )
        use = ", ".join(f"{share:.2f}" for share in arrays[f"head_use_{layer}_R"].tolist())
        images.append(image)
        axis.set(xlabel="a", ylabel="b")
        axis.set_title(f"layer {int(layer) + 1}; mean weights {use}", fontsize=7.5)
        axis.grid(False)
    figure.colorbar(images[0], ax=axes[0].tolist(), ticks=range(heads), label="dominant head", shrink=0.8)
    return save_figure(figure, path)


def plot_curvature(history: MetricsHistory, path: Path, config: TrainerConfig) -> Path:
    """Curvature and progress measures over epochs."""
    figure, axes = new_figure(9.5, 3.0, ncols=3)
    for name, label in (("weight_hessian_trace", "weight Hessian trace"), ("fisher_trace", "Fisher trace")):
        axes[0].plot(*history.series(name), marker="o", markersize=3, label=label)
    errors = dict(zip(*history.series("weight_hessian_trace_se"), strict=True))
    epochs, values = history.series("weight_hessian_trace")
    axes[0].errorbar(
        epochs, values, yerr=[errors[epoch] for epoch in epochs], fmt="none", color=COLOURS[0], linewidth=0.8
    )
    axes[0].set_yscale("symlog")
    axes[1].plot(*history.series("jacobian_norm"), marker="o", markersize=3, label="input Jacobian, squared norm")
    axes[1].set_yscale("log")
    for name, label in (
        ("excluded_loss", "excluded (training pairs)"),
        ("restricted_loss", "restricted (all pairs)"),
        ("test_loss", "test"),
    ):
        if any(history.series(name)):  # of S5 the last one alone
            axes[2].plot(*history.series(name), label=label)
    axes[2].set_yscale("log")
    progress = "held-out loss" if config.operation == "compose" else "progress measures: loss"
    for axis, title in zip(axes, ("loss curvature", "input sensitivity", progress), strict=True):
        axis.set(xlabel="epoch", title=title)
        axis.legend(fontsize=7.5)
    return save_figure(figure, path)


def save_all_visualizations(
    arrays: Arrays, rows: Sequence[dict[str, Any]], folder: Path, config: TrainerConfig
) -> list[tuple[Path, str]]:
    """Every figure that applies, into `folder`, with what each shows; without `arrays` (of a run that has not ended, or of
    an earlier version's) only those over training."""
    history = MetricsHistory(list(rows))
    made = [
        (
            plot_training_curves(history, folder / "training_curves.svg", config),
            "Loss and accuracy over training. Dashed: memorised; solid: 0.99 test accuracy, both by windows of evaluations.",
        ),
    ]
    if "embedding_power_F" in arrays:
        made.append(
            (
                plot_spectral_analysis(arrays, folder / "spectral_analysis.svg"),
                "Power of the embedding and of the logits by frequency of the operation's group, and one class's logit over all pairs.",
            )
        )
    if any("jacobian_norm" in row for row in rows) and config.compute_weight_curvature:
        made.append(
            (
                plot_curvature(history, folder / "curvature.svg", config),
                "Curvature of the training loss (bars: standard error over probes), input sensitivity, and "
                + ("the held-out loss." if config.operation == "compose" else "Nanda et al.'s progress measures."),
            )
        )
    if any(name.startswith("dominant_head_") for name in arrays):
        made.append(
            (
                plot_routing_heatmap(arrays, folder / "routing_heatmap.svg"),
                "Dominant routing head of each pair (a, b), with each head's mean weight.",
            )
        )
    return made


def plot_survival(
    curves: Mapping[str, Survival], censored: Mapping[str, Sequence[float]], ends: Mapping[str, float], path: Path
) -> Path:
    """Kaplan-Meier curves of not having grokked, one per arm, with ticks where runs are censored."""
    figure, axis = new_figure(7.5, 3.6)
    for i, (name, curve) in enumerate(curves.items()):
        colour, end = COLOURS[i % len(COLOURS)], ends[name]
        xs, ys = [0.0, *curve.times, end], [1.0, *curve.survival, (curve.survival or [1.0])[-1]]
        axis.step(xs, ys, where="post", color=colour, label=f"{name} (n = {curve.n}, {curve.events} reached it)")
        if curve.times:
            axis.fill_between(
                [0.0, *curve.times, end],
                [1.0, *curve.low, curve.low[-1]],
                [1.0, *curve.high, curve.high[-1]],
                step="post",
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
        axis.plot(censored[name], [_height(curve, t) for t in censored[name]], "|", color=colour, markersize=9)
    axis.set(xlabel="epoch", ylabel="share below 0.99 test accuracy", ylim=(-0.03, 1.05), xlim=(0, None))
    figure.legend(fontsize=7.5, loc="outside upper center", ncols=min(3, len(curves)))
    return save_figure(figure, path)


def _height(curve: Survival, time: float) -> float:
    """S at a time."""
    return next((s for t, s in reversed(list(zip(curve.times, curve.survival, strict=True))) if t <= time), 1.0)


def plot_arm_curves(arms: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], path: Path) -> Path:
    """Test accuracy of every run, one panel per arm."""
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    figure, axes = new_figure(
        3.2 * columns, 2.4 * rows, ncols=columns, nrows=rows, sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    for axis, (name, runs) in zip(axes.flat, arms.items(), strict=False):
        for evaluations in runs:
            epochs = [row["epoch"] for row in evaluations]
            axis.plot(epochs, [row["train_acc"] for row in evaluations], color=COLOURS[0], alpha=0.5, linewidth=0.8)
            axis.plot(epochs, [row["test_acc"] for row in evaluations], color=COLOURS[1], alpha=0.8, linewidth=1)
        axis.set_title(name, fontsize=8.5)
        axis.tick_params(labelbottom=True)  # also above a panel that is not there
    axes[0, 0].plot([], [], color=COLOURS[0], label="training pairs")
    axes[0, 0].plot([], [], color=COLOURS[1], label="held-out pairs")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7.5, loc="outside upper center", ncols=2)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return save_figure(figure, path)


REGIONS = {"never memorised": "0.55", "memorised only": "0.85"}
"""Greys of the cells in which fewer than half of the seeds generalise."""
GENERALISES, GROKS = "generalises", "groks"
"""Regions of the cells in which half or more do; of the second, half or more of those after a plateau."""


def plot_atlas(table: "pd.DataFrame", path: Path) -> Path:
    """A panel an operation, all on one grid: fraction of pairs for training (across) by weight decay (up), a cell for all
    seeds; what was not run is blank."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import LogLocator, NullLocator

    operations = list(dict.fromkeys(table["operation"]))
    across, up = sorted(table["train_frac"].unique()), sorted(table["weight_decay"].unique())
    columns = min(3, len(operations))
    rows = -(-len(operations) // columns)
    width, height = 1.6 + max(1.8, 0.5 * len(across)) * columns, 0.9 + (0.6 + 0.4 * len(up)) * rows
    figure, axes = new_figure(width, height, nrows=rows, ncols=columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(operations) :]:
        axis.set_visible(False)
    scale = LogNorm(max(1, table["time"].min()), max(2, table["time"].max()))
    import matplotlib

    colours = matplotlib.colormaps["viridis_r"]
    there = set()
    for operation, axis in zip(operations, axes.flat, strict=False):
        runs = table[table["operation"] == operation]
        for (fraction, decay), cell in runs.groupby(["train_frac", "weight_decay"]):
            x, y = across.index(fraction), up.index(decay)
            region, text = cell_of(cell)
            colour = REGIONS[region] if region in REGIONS else colours(scale(float(text)))
            dark = region not in REGIONS and scale(float(text)) > 0.5
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
            if region == GROKS:
                axis.add_patch(
                    Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, fill=False, edgecolor="#D55E00", linewidth=1.6)
                )
            reached = int(cell["grokked"].sum())
            some = f"\n{reached} of {len(cell)}" if 0 < reached < len(cell) else ""
            axis.annotate(text + some, (x, y), ha="center", va="center", fontsize=8, color="white" if dark else "black")
            there.add(region)
        axis.set(xlim=(-0.5, len(across) - 0.5), ylim=(-0.5, len(up) - 0.5))
        axis.set_title(f"{title_of(operation, runs)},\n{int(runs['epochs'].max()):,} epochs at most", fontsize=8)
        axis.set_xticks(range(len(across)), [f"{f:g}" for f in across])
        axis.set_yticks(range(len(up)), [f"{d:g}" for d in up])
        axis.tick_params(labelbottom=True)  # also above a panel that is not there
        axis.grid(False)
    figure.supxlabel("fraction of the pairs for training", fontsize=9)
    figure.supylabel("weight decay", fontsize=9)
    names = [Patch(facecolor=colour, label=name) for name, colour in REGIONS.items() if name in there]
    if GROKS in there:
        names.append(
            Patch(facecolor="white", edgecolor="#D55E00", label="half or more of these after a plateau (they grok)")
        )
    figure.legend(handles=names, fontsize=7.5, ncols=3, loc="outside upper center")  # no cell lies under it
    image = matplotlib.cm.ScalarMappable(scale, colours)
    bar = figure.colorbar(
        image, ax=axes.ravel().tolist(), label="median epochs to 0.99", shrink=0.8, ticks=LogLocator(subs=(1, 2, 5)), format="%d",
    )  # fmt: skip
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return save_figure(figure, path)


def title_of(operation: Any, runs: "pd.DataFrame") -> str:
    """The operation and its group, in words."""
    return (
        f"{OPERATIONS[operation]}, {S5_ELEMENTS} elements"
        if operation == "compose"
        else f"{OPERATIONS[operation]} mod {runs['p'].iloc[0]}"
    )


def cell_of(runs: "pd.DataFrame") -> tuple[str, str]:
    """(region, text) of a cell's seeds: "generalises" or "groks" with the median time, where half or more do; else how far
    they got.

    The median is of times that are censored: with half or more observed it is one of those.
    """
    median = sorted(runs["time"].where(runs["grokked"], float("inf")))[(len(runs) - 1) // 2]
    if median != float("inf"):
        after_plateau = runs["has_plateau"][runs["grokked"].astype(bool)].mean()
        return GROKS if after_plateau >= 0.5 else GENERALISES, f"{median:.0f}"
    memorised = runs["has_memorised"].mean() >= 0.5
    return ("memorised only" if memorised else "never memorised"), "-"
