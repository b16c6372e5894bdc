"""What is reported: formulas of radii and points (radii.py), a model's metrics (evaluate.py), results of a run (final.py)."""

from ternary_vae.metrics.radii import (
    coverage,
    dist_corr_geodesic,
    dist_corr_levels,
    hierarchy,
    hierarchy_ceiling,
    level_gaps,
    mid_ranks,
    pearson,
    q,
    q_original,
    radius_metrics,
    richness,
    somers_d,
    tied_radius_share,
)

__all__ = [
    "coverage",
    "dist_corr_geodesic",
    "dist_corr_levels",
    "hierarchy",
    "hierarchy_ceiling",
    "level_gaps",
    "mid_ranks",
    "pearson",
    "q",
    "q_original",
    "radius_metrics",
    "richness",
    "somers_d",
    "tied_radius_share",
]
