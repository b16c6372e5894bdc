"""The study's claims. Each compares arms that differ in one thing, seed by seed; thresholds stand here, before the run.

A time to grok that was not reached counts as the run's length (it is at least that), so ratios of times are bounds
towards 1 when the slower arm is censored.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from least_action.config import TrainerConfig
from least_action.events import Events
from studycore.claims import Statement, judge, not_run
from studycore.configuration import to_dict
from studycore.statistics import Interval, mean_interval, share_interval

GROKKING = Statement(
    "grokking", "Runs with weight decay reach 0.99 test accuracy", "Power et al. 2022, arXiv:2201.02177", "every run",
    "share of runs", 0.5, "above",
)  # fmt: skip
DELAY = Statement(
    "delay", "Test accuracy reaches 0.99 ten times later than training accuracy does", "Power et al. 2022, arXiv:2201.02177",
    "10x or more (AdamW)", "x, time to generalise over time to memorise", 10.0, "above",
)  # fmt: skip
WEIGHT_DECAY = Statement(
    "weight_decay", "Without weight decay grokking takes longer", "the seed study; Power et al. 2022", "critical",
    "x, time to grok without over with", 1.0, "above",
)  # fmt: skip
ROUTING = Statement(
    "routing", "Routing slows grokking against the matched transformer", "the seed study (confounded there)", "4x slower",
    "x, time to grok routed over dense", 1.0, "above",
)  # fmt: skip
ROUTING_FOURFOLD = Statement(
    "routing_fourfold", "Routing slows grokking at least fourfold", "the seed study's own figure", "4x slower",
    "x, time to grok routed over dense", 4.0, "above",
)  # fmt: skip
CURVATURE = Statement(
    "curvature", "The weight Hessian's trace is lower after grokking than at memorisation", "the seed study",
    "falls", "x, trace after grokking over trace at memorisation", 1.0, "below",
)  # fmt: skip
CURVATURE_PER_LOSS = Statement(
    "curvature_per_loss", "So is the trace per unit of training loss", "this study: the trace falls with the loss alone",
    "falls", "x, trace/loss after grokking over trace/loss at memorisation", 1.0, "below",
)  # fmt: skip


@dataclass(frozen=True)
class RunSummary:
    """What claims need of one finished run."""

    name: str
    config: TrainerConfig
    events: Events
    rows: Sequence[dict[str, Any]]

    @property
    def time(self) -> int:
        """Epoch of grokking at 0.99, or the last epoch when it was not reached."""
        return self.events.last_epoch if self.events.grokked_99 is None else self.events.grokked_99


def make_claims(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Every claim of the study on the finished runs; "not run" where the arms or seeds it needs are missing."""
    decayed = [run for run in runs if run.config.weight_decay > 0 and run.config.model_type != "routed_transformer"]
    grokked = [run for run in decayed if run.events.delay is not None]
    claims = []
    if decayed:
        share = share_interval(sum(run.events.grokked_99 is not None for run in decayed), len(decayed))
        claims.append(judge(GROKKING, share, "Exact binomial interval over runs."))
    else:
        claims.append(not_run(GROKKING, "No finished run with weight decay."))
    delays = [(run.time, max(1, run.events.memorised or 0)) for run in grokked]
    claims.append(_ratio_claim(DELAY, delays, "runs that grokked"))
    claims.append(_paired_claim(WEIGHT_DECAY, runs, _without_decay))
    claims.append(_paired_claim(ROUTING, runs, _routed))
    claims.append(_paired_claim(ROUTING_FOURFOLD, runs, _routed))
    for statement, column in ((CURVATURE, "weight_hessian_trace"), (CURVATURE_PER_LOSS, "weight_hessian_per_loss")):
        found = [pair for run in grokked if (pair := _after_and_before(run, column)) is not None]
        what = f"runs that grokked ({len(found)} of {len(grokked)} have two measurements, both positive)"
        claims.append(_ratio_claim(statement, found, what))
    return claims


def geometric_ratio(pairs: Sequence[tuple[float, float]]) -> Interval:
    """Geometric mean of x / y over pairs, with Student's t interval on the logarithms; at least 2 pairs."""
    interval = mean_interval([math.log(x / y) for x, y in pairs])
    return Interval(math.exp(interval.estimate), math.exp(interval.low), math.exp(interval.high), interval.n)


def _ratio_claim(statement: Statement, pairs: Sequence[tuple[float, float]], what: str) -> dict[str, Any]:
    if len(pairs) < 2:
        return not_run(statement, f"Needs at least 2 {what}; there are {len(pairs)} (more with --seeds).")
    return judge(statement, geometric_ratio(pairs), f"Geometric mean over {what}.")


def _paired_claim(
    statement: Statement, runs: Sequence[RunSummary], partner: Callable[[TrainerConfig], TrainerConfig | None]
) -> dict[str, Any]:
    """Ratio of times, treated over control, over runs with the same seed that differ as `partner` says."""
    by_config = {str(_identity(run.config)): run for run in runs}
    pairs, censored = [], 0
    for control in runs:
        treated_config = partner(control.config)
        treated = treated_config and by_config.get(str(_identity(treated_config)))
        if treated:
            pairs.append((float(max(1, treated.time)), float(max(1, control.time))))
            censored += treated.events.grokked_99 is None
    if len(pairs) < 2:
        return not_run(statement, f"Needs at least 2 pairs of runs that differ in this alone; there are {len(pairs)}.")
    note = f"Geometric mean over pairs with the same seed and split; {censored} of {len(pairs)} of the slower kind never grokked and count with their length."
    return judge(statement, geometric_ratio(pairs), note)


def _without_decay(config: TrainerConfig) -> TrainerConfig | None:
    return _changed(config, weight_decay=0.0) if config.weight_decay > 0 else None


def _routed(config: TrainerConfig) -> TrainerConfig | None:
    divides = 4 * config.hidden_dim % config.routing_heads == 0
    return _changed(config, model_type="routed_transformer") if config.model_type == "transformer" and divides else None


def _changed(config: TrainerConfig, **changes: Any) -> TrainerConfig:
    return TrainerConfig(**{**to_dict(config), **changes})


def _identity(config: TrainerConfig) -> dict[str, Any]:
    """The configuration without what arms may set and that leaves a dense run's path alone: what is measured when, and
    the settings of routing."""
    measuring: tuple[str, ...] = (
        "stop_after_grok",
        "log_every",
        "checkpoint_every",
        "compute_weight_curvature",
        "weight_curvature_interval",
    )
    measuring += ("curvature_probes", "metric_samples", "compute_optimizer_metrics")
    routing = ("routing_regularizer", "lambda_routing", "routing_heads")
    return {name: value for name, value in to_dict(config).items() if name not in measuring + routing}


def _after_and_before(run: RunSummary, column: str) -> tuple[float, float] | None:
    """The column at its first measurements at or after grokking and memorisation.

    None when these are not two measurements, or not both positive: then there is no ratio.
    """
    assert run.events.memorised is not None and run.events.grokked_99 is not None
    measured = [row for row in run.rows if column in row]
    after, before = (
        next((row for row in measured if row["epoch"] >= epoch), None)
        for epoch in (run.events.grokked_99, run.events.memorised)
    )
    if after is None or before is None or after is before or min(after[column], before[column]) <= 0:
        return None
    return after[column], before[column]
