"""Every metric of a model with its unit and meaning, as the table that the report and the verb `evaluate` show."""

from collections.abc import Mapping
from typing import Any

from studycore.report import Table
from ternary_vae.history import COVERAGE_METRICS

Metrics = Mapping[str, Any]
MEANINGS = {
    "coverage": ("share", "operations with every trit right, decoded from the mean code"),
    "covered": ("operations", "how many these are"),
    "operations": ("operations", "all there are"),
    "coverage_sampled": ("share", "coverage from one sample of the code"),
    "coverage_seen": ("share", "coverage of the operations that training saw"),
    "coverage_unseen": ("share", "coverage of those it did not see"),
    "linear_coverage_unseen": (
        "share",
        "what principal components of the seen ones restore of them, in as many dimensions",
    ),
    "unseen": ("operations", "how many these are"),
    "kl": ("nats", "KL divergence of the posterior from the prior, mean over operations"),
    "kl_of_least": ("1", "that over log N, the least that tells N operations apart"),
    "prior_coverage": ("share", "operations met by decoding ten samples of the prior for each there is"),
    "hierarchy": ("Spearman", "valuation and radius; -1 to 1, negative is right"),
    "hierarchy_ceiling": ("Spearman", "the most that radii without ties can reach, as a size"),
    "hierarchy_of_ceiling": ("share", "hierarchy over its ceiling; above 1 only by ties"),
    "somers_d": ("Somers' D", "radius given valuation; -1: every pair of levels in order"),
    "somers_d_depths": ("Somers' D", "mean over k of Somers' D among valuations k and more"),
    "min_level_gap": ("norm", "smallest distance between neighbouring levels; negative: they overlap"),
    "positive_gaps": ("levels", "neighbouring levels that do not overlap"),
    "gaps": ("levels", "neighbouring levels"),
    "tied_radius_share": ("share", "operations that share their radius with another"),
    "richness": ("norm^2", "a tenth of the levels' summed variances of the radius"),
    "richness_largest_share": (
        "share",
        "of the richness, in the level that has the most; evenly spread: one over the levels",
    ),
    "richness_hyperbolic": ("distance^2", "the same, of hyperbolic distances"),
    "hierarchy_A": ("Spearman", "hierarchy of encoder A's points"),
    "hierarchy_B": ("Spearman", "hierarchy of encoder B's points"),
    "dist_corr_geodesic": ("Pearson", "geodesic distances and 3 exp(-v(i - j)/3), random pairs"),
    "dist_corr_levels": ("Spearman", "Euclidean distances and |v_i - v_j|, random points"),
    "q": ("1", "dist_corr_levels - 1.5 hierarchy"),
    "q_original": ("1", "the original study's dist_corr_levels + 1.5 |hierarchy|"),
    "q_seed": ("1", "q_original, as version 0.1.0 called it"),
    "hierarchy_unseen": ("Spearman", "hierarchy of the operations that training did not see"),
    "hierarchy_ceiling_unseen": ("Spearman", "their own ceiling"),
    "somers_d_unseen": ("Somers' D", "of the operations that training did not see"),
    "somers_d_depths_unseen": ("Somers' D", "their mean over k of Somers' D among valuations k and more"),
    **{f"somers_d_from_{k}_unseen": ("Somers' D", f"among those of valuation {k} and more") for k in range(1, 13)},
}
"""Metric -> unit and meaning, in the order of the tables."""
FINE = ("hierarchy", "hierarchy_", "somers_d", "coverage")
"""Metrics whose last digits matter: six decimals."""


def metric_table(metrics: Metrics, beside: Mapping[str, Metrics], trained: bool = True) -> Table:
    """Every metric with its unit, beside the baselines; runs inside a sweep have none."""
    heads = {"closed_form": "closed form (no learning)", "untrained": "untrained"}
    others = {heads[name]: values for name, values in beside.items()}
    rows = []
    for name in MEANINGS:
        if any(name in values for values in (metrics, *others.values())):
            own = metrics.get(name, "none") if trained or name in COVERAGE_METRICS else "untrained"
            cells = [shown(name, value) for value in (own, *(values.get(name, "none") for values in others.values()))]
            rows.append((name, *cells, *MEANINGS[name]))
    return Table(
        "Metrics", ("metric", "trained", *others, "unit", "meaning"), rows,
        "Closed form: the radius that the default loss asks for, read off the leading trits by a rule. Untrained: the "
        "model as it is drawn. By the mean code of every operation; none: does not exist there.",
    )  # fmt: skip


def shown(name: str, value: Any) -> Any:
    """A metric as its table shows it."""
    return f"{value:.6f}" if isinstance(value, float) and name.startswith(FINE) else value
