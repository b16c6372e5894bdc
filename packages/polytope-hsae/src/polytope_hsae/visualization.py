"""Figures from what the folders hold, and the page of the feature tree. Nothing is drawn from what is missing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polytope_hsae.concepts import load_hierarchy
from studycore.figures import COLOURS, new_figure, save_figure
from studycore.files import read_json, write_atomic
from studycore.record import Record, read_arrays
from studycore.report import Picture, Table


def pictures_of(record: Record, geometry: Table | None = None) -> list[Picture]:
    """Of the geometry, over its table, and of steering: every figure whose data are there."""
    folders = _folders_of(record)
    place, pictures = record.folder / "figures", []
    if (folder := folders.get("geometry")) is not None:
        pictures += geometry_pictures(folder, place, geometry)
    table = record.table
    curves = {name: read_arrays(path) for name, path in folders.items() if name.startswith("evaluate_")}
    if curves:
        arms = {str(r["run"]): str(r["arm"]) for _, r in table.iterrows()}
        pictures.append(
            Picture(
                plot_steering(curves, arms, place / "steering.svg"),
                "Steering: what a parent's latent adds to its own words' logits and to others' by strength, and to the log-probability of its words.",
            )
        )
    return pictures


def _folders_of(record: Record) -> dict[str, Path]:
    return {str(row["run"]): Path(row["folder"]) for _, row in record.table.iterrows()}


def tree_page(record: Record) -> dict[str, Path]:
    """The page of the feature tree of the teacher's first seed, by what it shows; none before it is evaluated."""
    for name, folder in _folders_of(record).items():
        if name.startswith("evaluate_teacher") and (folder / "tree.json").exists():
            write_tree_page(read_json(folder / "tree.json"), record.folder / "feature_tree.html", name)
            return {
                "the learned tree of features, with the contexts in which each fires most": record.folder
                / "feature_tree.html"
            }
    return {}


def geometry_pictures(folder: Path, place: Path, table: Table | None = None) -> list[Picture]:
    """Of the folder of a geometry job, the first over a table."""
    arrays = read_arrays(folder)
    return [
        Picture(plot_angles(arrays, place / "angles.svg"), "Angles between parent and child minus parent, and held-out projections, beside their nulls. The finding rests on disjoint words and on held-out projection; angles from nested words are 90 degrees by algebra.", table),
        Picture(plot_polytope(arrays, load_hierarchy(folder / "concepts.json"), place / "polytope.svg"), "The parent with most children: its children's vectors on the plane of their differences (left) and with the parent's direction as height (right)."),
        Picture(plot_tree_heatmap(arrays, place / "heatmap.svg"), "Cosines of all children's vectors (left) and the same from shuffled rows (right); lines part the parents."),
    ]  # fmt: skip


def plot_explained_variance(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """A line over updates for each stage."""
    figure, ax = new_figure(6, 3.2)
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        ax.plot(
            [row["step"] for row in own],
            [row["explained_variance"] for row in own],
            marker="o",
            markersize=3,
            label=f"stage {stage}",
        )
    ax.set(xlabel="update", ylabel="explained variance")
    ax.legend()
    return save_figure(figure, path)


def plot_angles(arrays: dict[str, Any], path: Path) -> Path:
    """Histograms against nulls."""
    figure, axes = new_figure(10, 3.2, ncols=3)
    null = {name.removeprefix("null:"): values for name, values in arrays.items() if name.startswith("null:")}
    for ax, name, title in ((axes[0], "nested", "nested words (by algebra)"), (axes[1], "disjoint", "disjoint words")):
        bins = np.linspace(60, 150, 46)
        for key, label in (
            (name, "measured"),
            (f"{name}_shuffled", "shuffled rows"),
            (f"{name}_random_parent", "random parent"),
            (f"{name}_label_permutation", "random part of the parent"),
            (f"{name}_euclidean", "Euclidean"),
        ):
            if key in null:
                ax.hist(null[key], bins, density=True, histtype="step", label=label)
        ax.set(xlabel="angle, degrees", title=title)
        ax.axvline(90, color="0.7", zorder=0)
    for key, label in (
        ("child_projection", "measured"),
        ("child_projection_shuffled", "shuffled rows"),
        ("child_projection_sibling_swap", "a sibling's words"),
    ):
        axes[2].hist(null[key], 40, density=True, histtype="step", label=label)
    axes[2].set(xlabel="g . v / |v|^2 of held-out words", title="held-out projection")
    axes[0].legend(fontsize=7)
    axes[2].legend(fontsize=7)
    return save_figure(figure, path)


def plot_polytope(arrays: dict[str, Any], hierarchy: Any, path: Path) -> Path:
    """One parent's children in 2-D, and in 3-D with the parent's direction."""
    own = arrays["own_parent"]
    p = int(np.bincount(own).argmax())
    children = arrays["unified_children"][own == p]
    parent = arrays["unified_parents"][p]
    up = parent / np.linalg.norm(parent)
    flat = children - children.mean(0)
    flat = flat - np.outer(flat @ up, up)
    plane = np.linalg.svd(flat, full_matrices=False)[2][:2]
    x, y, z = children @ plane[0], children @ plane[1] if len(plane) > 1 else np.zeros(len(children)), children @ up
    figure, _ = new_figure(9, 3.6)
    figure.clear()
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection="3d")
    left.scatter(x, y, color=COLOURS[0])
    for name, a, b in zip([c.name for c in hierarchy.parents[p].children], x, y, strict=True):
        left.annotate(name.split(".")[0], (a, b), fontsize=7)
    left.set(title=hierarchy.parents[p].name, xlabel="first difference", ylabel="second difference")
    right.set(xlabel="first", ylabel="second", zlabel="along the parent")
    right.scatter(x, y, z, color=COLOURS[0])
    right.plot([0, 0], [0, 0], [0, float(np.linalg.norm(parent))], color=COLOURS[1])
    for i in range(len(x)):
        for j in range(i):
            right.plot(x[[i, j]], y[[i, j]], z[[i, j]], color="0.7", linewidth=0.6)
    return save_figure(figure, path)


def plot_tree_heatmap(arrays: dict[str, Any], path: Path) -> Path:
    """Cosines among children, in the order of their parents, beside those of one draw of shuffled rows."""
    panels = [("measured", arrays["unified_children"]), ("shuffled rows", arrays["null:unified_children_shuffled"])]
    figure, axes = new_figure(9, 4, ncols=2)
    for ax, (title, vectors) in zip(axes, panels, strict=True):
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        image = ax.imshow(units @ units.T, cmap="RdBu_r", vmin=-1, vmax=1)
        for edge in np.flatnonzero(np.diff(arrays["own_parent"])) + 0.5:
            ax.axhline(edge, color="k", linewidth=0.4)
            ax.axvline(edge, color="k", linewidth=0.4)
        ax.grid(False)
        ax.set(title=title, xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="cosine")
    return save_figure(figure, path)


def plot_purity_leakage(trained: Any, path: Path) -> Path:
    """Every seed, and means, with the base rate and what phase 1's own vectors reach where they are known."""
    figure, ax = new_figure(6, 4)
    trained = trained[trained["purity"].notna()]
    for i, (arm, rows) in enumerate(trained.groupby("arm", sort=False)):
        colour, marker = COLOURS[i % len(COLOURS)], "osD^v"[i // len(COLOURS)]
        ax.scatter(rows["leakage"], rows["purity"], color=colour, marker=marker, s=14, alpha=0.6, label=arm)
        ax.scatter(rows["leakage"].mean(), rows["purity"].mean(), color=colour, marker="x", s=60)
    if "base_rate" in trained:
        ax.axhline(trained["base_rate"].mean(), color="0.4", linewidth=0.8, linestyle="--", label="base rate")
    if {"purity_reference", "leakage_reference"} <= set(trained.columns):
        reference = trained["leakage_reference"].mean(), trained["purity_reference"].mean()
        ax.plot(*reference, "*", color="0.3", markersize=9, label="phase 1's vectors")
    ax.set(xlabel="leakage", ylabel="purity")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(figure, path)


def plot_steering(curves: dict[str, dict[str, Any]], arms: dict[str, str], path: Path) -> Path:
    """By strength, means over concepts and seeds."""
    figure, axes = new_figure(9, 3.4, ncols=2)
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for name, arrays in curves.items():
        by_arm.setdefault(arms[name], []).append(arrays)
    for i, (arm, seeds) in enumerate(by_arm.items()):
        colour, strengths = COLOURS[i % len(COLOURS)], seeds[0]["strengths"]
        axes[0].plot(strengths, np.mean([s["target"].mean(1) for s in seeds], 0), color=colour, label=arm)
        axes[0].plot(strengths, np.mean([s["off_target"].mean(1) for s in seeds], 0), color=colour, linestyle=":")
        axes[1].plot(strengths, np.mean([s["log_probability"] for s in seeds], 0), color=colour)
    axes[0].set(xlabel="strength", ylabel="logit, own words (line), others (dots)")
    axes[1].set(xlabel="strength", ylabel="change of log-probability of own words")
    axes[0].legend(fontsize=7)
    return save_figure(figure, path)


TREE_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Feature tree</title>
<style>body{font:15px/1.45 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}summary{cursor:pointer}
details{margin:.3em 0 .3em 1em}code{background:#f3f3f3}.n{color:#777}</style>
<h1>Feature tree</h1><p>{{ name }}: parents by how often they fire on 4,096 test activations, their children, and the contexts in
which each is strongest (the token that follows in brackets). A name in bold is the concept that a latent is matched to, however pure it is.</p>
{% for p in parents %}<details><summary>parent {{ p.latent }}{% if p.concept %} &middot; <b>{{ p.concept }}</b>{% if p.purity is defined %} ({{ "%.1f" | format(100 * p.purity) }} % of its activation is on
the concept, of which it finds {{ "%.0f" | format(100 * p.recall) }} %){% endif %}{% endif %}
<span class="n">fires {{ p.fires }}</span></summary><ul>{% for c in p.contexts %}<li>{{ c }}</li>{% endfor %}</ul>
{% for k in p.children %}<details><summary>child {{ k.latent }} <span class="n">fires {{ k.fires }}</span></summary>
<ul>{% for c in k.contexts %}<li>{{ c }}</li>{% endfor %}</ul></details>{% endfor %}</details>{% endfor %}</html>
"""


def write_tree_page(parents: list[dict[str, Any]], path: Path, name: str) -> Path:
    """A static page with the learned tree."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    write_atomic(path, environment.from_string(TREE_PAGE).render(parents=parents, name=name))
    return path
