"""What the explorer shows, as one value: a link holds it, and a figure is a function of it and the store."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlencode

SECTIONS: dict[str, tuple[str, ...]] = {
    "Training": (
        "train_acc", "test_acc", "train_loss", "test_loss", "new_pairs_acc", "generalization_gap", "loss_ratio",
        "train_loss_float32", "lr",
    ),
    "Loss landscape": (
        "weight_hessian_trace", "weight_hessian_per_loss", "fisher_trace", "gradient_norm", "jacobian_norm", "hessian_trace",
        "weight_hessian_scale_free",
    ),
    "Model properties": (
        "weight_norm", "decayed_weight_norm", "representation_norm", "logit_scale", "softmax_collapse",
        "gradient_over_weight_norm",
    ),
    "Adam dynamics": (
        "effective_lr_mean", "effective_lr_max", "adam_ratio_mean", "adam_ratio_max", "update_decay_ratio",
    ),
    "Fourier and progress": (
        "aligned_power", "key_share", "restricted_loss", "excluded_loss", "restricted_acc", "excluded_acc", "gini_embedding",
        "gini_unembedding", "gini_neuron_to_logit", "spectral_smoothness",
    ),
    "Routing": ("routing_entropy", "routing_max_use", "routing_paths"),
    "Time to 0.99": (),
    "Checkpoints": (),
}  # fmt: skip
"""Sections with their metrics; the first four are shown at first. The last two have figures of their own."""
LOGARITHMIC = {
    "train_loss", "train_loss_float32", "test_loss", "loss_ratio", "restricted_loss", "excluded_loss", "weight_hessian_trace",
    "weight_hessian_per_loss", "weight_hessian_scale_free", "fisher_trace", "gradient_norm", "jacobian_norm",
    "effective_lr_mean", "effective_lr_max", "update_decay_ratio", "gradient_over_weight_norm",
}  # fmt: skip
"""Metrics that are positive and range over magnitudes; the others stay linear."""
EACH, BAND = "each run", "mean over seeds"
ALL = "all runs"
"""Instead of a sweep's name."""
SMOOTHEST = 51
"""Evaluations in the longest moving average."""


@dataclass(frozen=True)
class View:
    """Everything that the page's controls hold."""

    section: str = "Training"
    sweep: str = ""
    """Group whose runs the table lists, or ALL; empty: the newest."""
    where: str = ""
    """SQL condition on the table `runs`."""
    runs: tuple[str, ...] | None = None
    """None: all that sweep and condition leave. An empty tuple is a choice as well: none."""
    all_columns: bool = False
    """Of the table; else those that tell the runs apart and their events."""
    group: str = ""
    """Field by whose values the table's runs are summarised; empty: a row per run."""
    metrics: tuple[str, ...] = ()
    """Empty: the section's first four."""
    lines: str = BAND
    log_y: bool = True
    log_x: bool = False
    smooth: int = 1
    """Evaluations in the moving average; 1: none."""
    shade: bool = True
    first: int | None = None
    """Epoch range that all sections share; None: open."""
    last: int | None = None
    rows: str = ""
    """Fields of the heat map; empty: as `heat_map_fields` chooses."""
    columns: str = ""
    percent: int = 100
    """Of training, in the section Checkpoints."""
    dark: bool = False

    @property
    def chosen_metrics(self) -> tuple[str, ...]:
        of_section = SECTIONS[self.section]
        return tuple(name for name in self.metrics if name in of_section) or of_section[:4]

    def query(self) -> str:
        """As the part of a link after the question mark: fields at their defaults are left out, and no run at all is `runs=`."""
        plain, mine = asdict(View()), asdict(self)
        mine["metrics"] = () if self.chosen_metrics == SECTIONS[self.section][:4] else self.chosen_metrics
        parts = {name: value for name, value in mine.items() if value != plain[name]}
        if self.runs == ():
            parts["runs"] = ""
        return urlencode({k: int(v) if isinstance(v, bool) else v for k, v in parts.items()}, doseq=True)


def view_of(parameters: Mapping[str, Sequence[str]]) -> View:
    """The view of a link. Fields of the link that are missing or malformed keep their defaults."""
    plain, values = View(), {}
    for f in fields(View):
        if texts := parameters.get(f.name):
            values[f.name] = _value(f.name, texts, getattr(plain, f.name))
    view = View(**values)
    return view if view.section in SECTIONS and view.lines in (EACH, BAND) else plain


LIMITS = {"smooth": (1, SMOOTHEST), "percent": (0, 100)}


def _value(name: str, texts: Sequence[str], default: Any) -> Any:
    if name in ("runs", "metrics"):
        return tuple(text for text in texts if text)
    if isinstance(default, bool):
        return texts[0] == "1"
    if name in ("smooth", "percent", "first", "last"):
        if not texts[0].isdecimal():
            return default
        low, high = LIMITS.get(name, (0, math.inf))
        return min(max(int(texts[0]), low), high)
    return texts[0]
