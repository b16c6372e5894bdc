"""Figures of one run: training curves, spectral analysis, routing heat map, curvature."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from least_action.config import TrainerConfig
from least_action.data import all_pairs
from least_action.events import find_events
from least_action.metrics.fourier import character_power, embedding_fourier_norms, grid_logits
from least_action.metrics.training import MetricsHistory
from least_action.models import GrokTransformer, OneHotModel, PairModel
from studycore.figures import COLOURS, new_figure, save_figure


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
    for name, epoch in (("memorised", events.memorised), ("grokked", events.grokked_99)):
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
    axes[0].legend()
    return save_figure(figure, path)


def plot_spectral_analysis(model: PairModel, path: Path, config: TrainerConfig) -> Path:
    """Where the function and the embedding have their power, by frequency of the operation's own group."""
    pairs = all_pairs(config.p, config.operation)
    device = next(model.parameters()).device
    with torch.no_grad():
        logits_NP = model.forward_pairs(pairs.a_N.to(device), pairs.b_N.to(device)).logits_NP.cpu()
    grid_IJK = grid_logits(logits_NP, pairs, config.p, config.operation)
    share_F = character_power(grid_IJK).share_F
    if isinstance(model, OneHotModel):
        table_PD = model.input.weight.T[: config.p]
    else:
        assert isinstance(model, GrokTransformer)
        table_PD = model.token.weight[: config.p]
    norms_B = embedding_fourier_norms(table_PD.detach().cpu(), config.p, config.operation)
    n = len(grid_IJK)
    power_F = torch.nn.functional.pad(norms_B.square(), (0, len(norms_B) % 2)).reshape(-1, 2).sum(dim=1)
    centred_IJ = (grid_IJK - grid_IJK.mean(dim=(0, 1)))[:, :, 1]

    figure, axes = new_figure(9.5, 3.0, ncols=3)
    frequencies = range(1, n // 2 + 1)
    axes[0].bar(frequencies, (power_F / power_F.sum()).tolist(), color=COLOURS[0], width=0.8)
    axes[0].set(xlabel="frequency", ylabel="share of the embedding's power")
    axes[1].bar(frequencies, share_F.tolist(), color=COLOURS[1], width=0.8)
    axes[1].set(xlabel="frequency of the result", ylabel="share of the logits' power")
    limit = float(centred_IJ.abs().max()) or 1.0
    image = axes[2].imshow(
        centred_IJ.T.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", rasterized=True
    )
    axes[2].set(xlabel="a (group order)", ylabel="b (group order)", title="logit of one class, centred")
    axes[2].grid(False)
    figure.colorbar(image, ax=axes[2], shrink=0.8)
    return save_figure(figure, path)


def plot_routing_heatmap(model: PairModel, path: Path, config: TrainerConfig) -> Path:
    """The dominant routing head of each pair, one map per routed layer. ValueError for a model without routing."""
    if not model.routed:
        raise ValueError(f"model_type: {config.model_type} has no routing to show")
    pairs = all_pairs(config.p, config.operation)
    device = next(model.parameters()).device
    with torch.no_grad():
        routing = model.forward_pairs(pairs.a_N.to(device), pairs.b_N.to(device)).routing
    from matplotlib.colors import ListedColormap

    heads = routing[0].shape[-1]
    figure, axes = new_figure(3.1 * len(routing) + 1, 3.2, ncols=len(routing), squeeze=False)
    images = []
    for layer, (axis, weights_NR) in enumerate(zip(axes[0], routing, strict=True)):
        grid = torch.full((config.p, config.p), float("nan"))
        grid[pairs.a_N, pairs.b_N] = weights_NR.cpu().argmax(dim=-1).float()
        colours = ListedColormap([COLOURS[i % len(COLOURS)] for i in range(heads)])
        image = axis.imshow(
            grid.T.numpy(), cmap=colours, vmin=-0.5, vmax=heads - 0.5, origin="lower", interpolation="nearest"
        )
        use = ", ".join(f"{share:.2f}" for share in weights_NR.mean(dim=0).tolist())
        images.append(image)
        axis.set(xlabel="a", ylabel="b")
        axis.set_title(f"layer {layer + 1}; mean weights {use}", fontsize=7.5)
        axis.grid(False)
    figure.colorbar(images[0], ax=axes[0].tolist(), ticks=range(heads), label="dominant head", shrink=0.8)
    return save_figure(figure, path)


def plot_curvature(history: MetricsHistory, path: Path, config: TrainerConfig) -> Path:
    """Curvature and progress measures over epochs."""
    figure, axes = new_figure(9.5, 3.0, ncols=3)
    for name, label in (("weight_hessian_trace", "weight Hessian trace"), ("fisher_trace", "Fisher trace")):
        epochs, values = history.series(name)
        axes[0].plot(epochs, values, marker="o", markersize=3, label=label)
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
        axes[2].plot(*history.series(name), label=label)
    axes[2].set_yscale("log")
    for axis, title in zip(axes, ("loss curvature", "input sensitivity", "progress measures: loss"), strict=True):
        axis.set(xlabel="epoch", title=title)
        axis.legend(fontsize=7.5)
    return save_figure(figure, path)


def save_all_visualizations(
    model: PairModel, rows: Sequence[dict[str, Any]], folder: Path, config: TrainerConfig
) -> list[tuple[Path, str]]:
    """Every figure that applies, into `folder`, with what each shows."""
    history = MetricsHistory(list(rows))
    made = [
        (
            plot_training_curves(history, folder / "training_curves.svg", config),
            "Loss and accuracy over training. Dashed: memorised; solid: grokked (0.99), both by windows of evaluations.",
        ),
        (
            plot_spectral_analysis(model, folder / "spectral_analysis.svg", config),
            "Power of the embedding and of the logits by frequency of the operation's group, and one class's logit over all pairs.",
        ),
    ]
    if any("jacobian_norm" in row for row in rows) and config.compute_weight_curvature:
        made.append(
            (
                plot_curvature(history, folder / "curvature.svg", config),
                "Curvature of the training loss (bars: standard error over probes), input sensitivity, and Nanda et al.'s progress measures.",
            )
        )
    if model.routed:
        made.append(
            (
                plot_routing_heatmap(model, folder / "routing_heatmap.svg", config),
                "Dominant routing head of each pair (a, b), with each head's mean weight.",
            )
        )
    return made
