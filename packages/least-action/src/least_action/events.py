"""When a run memorised and when it grokked: by windows of consecutive evaluations, never by a single touch.

An event happens at the first of `window` consecutive evaluations at which the accuracy holds; a run that ends before
has not had it and is censored at its last evaluation.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from least_action.config import TrainerConfig

MEMORISED = 0.99
LEVELS = {"grokked_95": 0.95, "grokked_99": 0.99}
ONSET_ABOVE_CHANCE = 0.05


@dataclass(frozen=True)
class Events:
    """Epochs of the events; None: not within `last_epoch`."""

    memorised: int | None
    """Training accuracy at least 0.99."""
    onset: int | None
    """Test accuracy at least 5 points above chance, 1/p."""
    grokked_95: int | None
    grokked_99: int | None
    delay: int | None
    """grokked_99 - memorised."""
    last_epoch: int
    """Where the run is censored."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def first_window(epochs: Sequence[int], values: Sequence[float], level: float, window: int) -> int | None:
    """Epoch of the first of `window` consecutive values that are all at least `level`."""
    held = 0
    for i, value in enumerate(values):
        held = held + 1 if value >= level else 0
        if held == window:
            return epochs[i - window + 1]
    return None


def grokked_epoch(rows: Sequence[dict[str, Any]], config: TrainerConfig) -> int | None:
    """When the run grokked at 0.99, by the rows so far; None when it has not."""
    return find_events(rows, config.p, config.event_window).grokked_99 if rows else None


def find_events(rows: Sequence[dict[str, Any]], p: int, window: int) -> Events:
    """Events of a run's rows (those with accuracies). ValueError without any."""
    evaluated = [row for row in rows if "test_acc" in row]
    if not evaluated:
        raise ValueError("rows: none holds accuracies, so nothing can be said about events")
    epochs = [row["epoch"] for row in evaluated]
    train, test = ([row[f"{split}_acc"] for row in evaluated] for split in ("train", "test"))
    memorised = first_window(epochs, train, MEMORISED, window)
    grokked = {name: first_window(epochs, test, level, window) for name, level in LEVELS.items()}
    delay = None if memorised is None or grokked["grokked_99"] is None else grokked["grokked_99"] - memorised
    onset = first_window(epochs, test, 1 / p + ONSET_ABOVE_CHANCE, window)
    return Events(memorised, onset, grokked["grokked_95"], grokked["grokked_99"], delay, epochs[-1])
