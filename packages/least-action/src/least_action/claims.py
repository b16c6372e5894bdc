"""The study's claims, as data, and what they read of a finished run.

Each compares runs that differ in one thing, seed by seed. A time to grok that was not reached counts as the run's
length and makes a ratio of times a bound.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from least_action.config import TrainerConfig
from least_action.events import Events, find_events
from studycore.claims import Claim
from studycore.configuration import config_hash, to_dict
from studycore.errors import UserError
from studycore.measures import geometric_mean, paired_ratio, share
from studycore.metrics_log import read_rows

ORIGINAL, POWER = "the original study", "Power et al. 2022, arXiv:2201.02177"
DENSE = "dense runs with weight decay"
WITHOUT_OVER_WITH = paired_ratio(
    "time", "runs without weight decay", "runs with it", of="decay", by="matched_but_for_decay", censored="censored",
    alike="that differ in nothing else",
)  # fmt: skip
ROUTED_OVER_DENSE = paired_ratio(
    "time", "routed runs", "dense runs", of="routing", by="matched_but_for_routing", censored="censored",
    alike="that differ in nothing else",
)  # fmt: skip

CLAIMS = (
    Claim(
        "grokking", "Runs with weight decay reach 0.99 test accuracy", POWER, "every run", "share of runs",
        share("grokked", DENSE, of="kind"), above=0.5,
    ),
    Claim(
        "delay", "Test accuracy reaches 0.99 ten times later than training accuracy does", POWER,
        "10 times or more (AdamW)", "times, time to generalise over time to memorise",
        geometric_mean("delay_ratio", DENSE, of="kind", censored="censored"), above=10.0,
    ),
    Claim(
        "weight_decay", "Without weight decay grokking takes longer", f"{ORIGINAL}; {POWER}", "critical",
        "times, time to grok without over with", WITHOUT_OVER_WITH, above=1.0,
    ),
    Claim(
        "routing", "Routing slows grokking against the matched transformer", f"{ORIGINAL} (confounded there)",
        "4 times slower", "times, time to grok routed over dense", ROUTED_OVER_DENSE, above=1.0,
    ),
    Claim(
        "routing_fourfold", "Routing slows grokking at least fourfold", f"{ORIGINAL}'s own figure", "4 times slower",
        "times, time to grok routed over dense", ROUTED_OVER_DENSE, above=4.0,
    ),
    Claim(
        "curvature", "The weight Hessian's trace is lower after grokking than at memorisation", ORIGINAL, "falls",
        "times, trace after grokking over trace at memorisation",
        geometric_mean("curvature_ratio", DENSE, of="kind"), below=1.0,
    ),
    Claim(
        "curvature_per_loss",
        "The weight Hessian's trace per unit of training loss is lower after grokking than at memorisation",
        "this study: the trace falls with the loss alone", "falls",
        "times, trace over loss after grokking over the same at memorisation",
        geometric_mean("curvature_per_loss_ratio", DENSE, of="kind"), below=1.0,
    ),
)  # fmt: skip


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """The claims that a run or a sweep is judged by: always all; what a single run cannot tell is not run."""
    return CLAIMS


def columns(folder: Path, config: TrainerConfig) -> dict[str, Any]:
    """What claims and tables read of one finished run. UserError when it holds no evaluation."""
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder}/metrics.jsonl: holds no evaluation; resume the run first")
    events = find_events(rows, config.p, config.event_window)
    time = events.last_epoch if events.grokked_99 is None else events.grokked_99
    last = [row for row in rows if "test_acc" in row][-1]
    values = {
        **events.as_dict(),
        "time": max(1, time),
        "grokked": events.grokked_99 is not None,
        "censored": events.grokked_99 is None,
        "decay": "runs with it" if config.weight_decay > 0 else "runs without weight decay",
        "kind": DENSE if config.weight_decay > 0 and config.model_type != "routed_transformer" else None,
        "routing": {"transformer": "dense runs", "routed_transformer": "routed runs"}.get(config.model_type),
        "matched_but_for_decay": _identity(config, "weight_decay"),
        "matched_but_for_routing": _identity(config, "model_type"),
        **{name: last[name] for name in ("train_acc", "test_acc", "train_loss", "test_loss")},
    }
    if events.memorised is not None:
        values["delay_ratio"] = max(1, time) / max(1, events.memorised)
    for name, column in (
        ("curvature_ratio", "weight_hessian_trace"),
        ("curvature_per_loss_ratio", "weight_hessian_per_loss"),
    ):
        values[name] = _after_over_before(rows, events, column)
    return {name: value for name, value in values.items() if value is not None}


MEASURING = (
    "stop_after_grok", "log_every", "checkpoint_every", "compute_weight_curvature", "weight_curvature_interval",
    "curvature_probes", "metric_samples", "compute_optimizer_metrics",
)  # fmt: skip
"""Fields that say what is measured when, and leave the path of the training alone."""
ROUTING = ("routing_regularizer", "lambda_routing", "routing_heads")
"""Fields that leave a dense run's path alone."""


def _identity(config: TrainerConfig, but_for: str) -> str:
    """A name for all runs that differ in the field `but_for` alone."""
    left_out = {*MEASURING, *ROUTING, but_for}
    return config_hash({name: value for name, value in to_dict(config).items() if name not in left_out})


def _after_over_before(rows: Sequence[Mapping[str, Any]], events: Events, column: str) -> float | None:
    """The column's first measurement at or after grokking over that at or after memorisation.

    None when these are not two measurements, or not both positive: then there is no ratio.
    """
    if events.memorised is None or events.grokked_99 is None:
        return None
    measured = [row for row in rows if column in row]
    after, before = (
        next((row for row in measured if row["epoch"] >= epoch), None)
        for epoch in (events.grokked_99, events.memorised)
    )
    if after is None or before is None or after is before or min(after[column], before[column]) <= 0:
        return None
    return float(after[column] / before[column])
