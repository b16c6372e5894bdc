"""One look for all figures, saved as SVG whose bytes depend on the data alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
