"""When a run memorised and when it grokked: by windows of consecutive evaluations, never by a single touch.

An event happens at the first of `window` consecutive evaluations at which the accuracy holds; a run that ends before
has not had it and is censored at its last evaluation. Whether it then stays is told apart: the first touch, the event,
and the evaluation from which on no other fell below.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from least_action.config import TrainerConfig
from studycore.errors import DamagedRun
from studycore.metrics_log import evaluation_epochs, read_evaluations

MEMORISED = 0.99
GROKKED = 0.99
LEVELS = {"grokked_95": 0.95, "grokked_99": GROKKED}
ONSET_ABOVE_CHANCE = 0.05
PLATEAU = 0.1
"""Accuracy on new pairs below which a run that has memorised is on the plateau. It has one, and groks, when it stays there
for a window of evaluations from memorisation on; else it generalises without a plateau, at whatever epoch: one low
evaluation also lies on a curve that rises right through memorisation.

New pairs are held-out pairs whose mirror image (b, a) is held out too. Of a commutative operation a network that treats a
and b alike has the other held-out pairs by heart, so that its test accuracy starts at the training fraction.
"""


@dataclass(frozen=True)
class Events:
    """Epochs of the events; None: not within `last_epoch`."""

    memorised: int | None
    """Training accuracy at least 0.99."""
    onset: int | None
    """Generalisation begins, as `onset_of` reads it."""
    grokked_95: int | None
    grokked_99: int | None
    delay: int | None
    """grokked_99 - memorised."""
    last_epoch: int
    """Where the run is censored."""
    crossed_99: int | None = None
    """First evaluation with a test accuracy of 0.99, held or not."""
    sustained_99: int | None = None
    """First of the `window` or more evaluations up to the run's end that all have 0.99."""
    held_99: float | None = None
    """Share of the evaluations after the window of grokked_99 with a test accuracy of 0.99."""
    evaluations_after: int = 0
    """How many evaluations these are."""
    test_at_memorised: float | None = None
    """Test accuracy at the evaluation `memorised`."""
    new_at_memorised: float | None = None
    """The same on new pairs."""
    highest_new_accuracy: float | None = None
    """The highest accuracy on new pairs in the window of evaluations that begins at `memorised`."""

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


def onset_of(
    epochs: Sequence[int], test: Sequence[float], new: Sequence[float | None], chance: float, window: int
) -> int | None:
    """When generalisation begins: accuracy on new pairs leaves the plateau and is 5 points above chance.

    Test accuracy 5 points above chance in a history in which an evaluation lacks new pairs: a reading that comes too
    early for a commutative operation.
    """
    measured = [value for value in new if value is not None and not math.isnan(value)]
    if len(measured) < len(test):
        return first_window(epochs, test, chance + ONSET_ABOVE_CHANCE, window)
    return first_window(epochs, measured, max(PLATEAU, chance + ONSET_ABOVE_CHANCE), window)


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
    new = [row.get("new_pairs_acc") for row in evaluated]
    place = None if memorised is None else epochs.index(memorised)
    from_there = [] if place is None else new[place : place + window]
    known = [value for value in from_there if value is not None and not math.isnan(value)]
    level, stays = GROKKED, len(test)
    while stays > 0 and test[stays - 1] >= level:
        stays -= 1
    after = [] if grokked["grokked_99"] is None else test[epochs.index(grokked["grokked_99"]) + window :]
    return Events(
        memorised, onset_of(epochs, test, new, 1 / p, window), grokked["grokked_95"], grokked["grokked_99"], delay, epochs[-1],
        crossed_99=first_window(epochs, test, level, 1),
        sustained_99=epochs[stays] if len(test) - stays >= window else None,
        held_99=sum(value >= level for value in after) / len(after) if after else None,
        evaluations_after=len(after),
        test_at_memorised=None if place is None else test[place],
        new_at_memorised=None if place is None else new[place],
        highest_new_accuracy=max(known) if known and len(known) == len(from_there) else None,
    )  # fmt: skip


def held_from_first_touch(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Stability: of each evaluation after the first with a test accuracy of 0.99, whether it has it too. Empty where none does
    or none follows.

    Not after the window of an event: a run that reaches 0.99 and loses it within the window is then not asked, and one that
    loses it and comes back is asked from its return on.
    """
    test = [row["test_acc"] >= GROKKED for row in rows if "test_acc" in row]
    return test[test.index(True) + 1 :] if True in test else []


MEASURED = ("epoch", "train_acc", "test_acc", "train_loss", "test_loss")
"""What every evaluation holds."""


def read_history(folder: Path, config: TrainerConfig) -> list[dict[str, Any]]:
    """The rows of a finished run, up to where its configuration lets it end: `--extra-epochs` given to some runs of a sweep
    would decide which of them are censored. DamagedRun for rows that do not increase, or lack what each holds, and for
    evaluations that are missing between the first and the end: those around a hole would count as consecutive."""
    rows = read_evaluations(folder)
    place, mend = f"{folder}/metrics.jsonl", "restore it, or make the run again"
    if any(later["step"] <= sooner["step"] for sooner, later in pairwise(rows)):
        raise DamagedRun(f"{place}: its steps do not increase from row to row; {mend}")
    for number, row in enumerate(rows, start=1):
        if lacks := [name for name in MEASURED if name not in row]:
            raise DamagedRun(f"{place}: line {number} lacks {', '.join(lacks)}; {mend}")
    end = last_epoch(rows, config)
    last = max(end, rows[-1]["epoch"])
    if off := sorted({*evaluation_epochs(config.eval_every, last)} ^ {row["epoch"] for row in rows}):
        due = f"every {config.eval_every} epochs up to {last}"
        raise DamagedRun(f"{place}: evaluations are {due}, and they differ from that at epoch {off[0]}; {mend}")
    return [row for row in rows if row["epoch"] <= end]


def last_epoch(rows: Sequence[dict[str, Any]], config: TrainerConfig) -> int:
    """Where a run of the configuration ends: after its epochs, or stop_after_grok past 0.99, once the window is whole."""
    grokked = grokked_epoch([row for row in rows if row["epoch"] <= config.epochs], config)
    if config.stop_after_grok is None or grokked is None:
        return config.epochs
    evaluations = max(config.event_window, math.ceil(config.stop_after_grok / config.eval_every))
    return min(config.epochs, grokked + evaluations * config.eval_every)


def has_plateau(events: Mapping[str, Any]) -> bool:
    """Whether accuracy on new pairs stayed low for a window of evaluations after training accuracy had reached 0.99."""
    highest = events.get("highest_new_accuracy")
    return highest is not None and highest < PLATEAU  # NaN, where a table has no value, is not


def has_touched_99(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether some evaluation so far had a test accuracy of 0.99."""
    return any(row.get("test_acc", 0.0) >= GROKKED for row in rows)


def may_begin(rows: Sequence[dict[str, Any]], train_acc: float, test_acc: float, window: int) -> bool:
    """Whether the evaluation that follows `rows` may be that of `memorised` or of `grokked_99`.

    It may where an accuracy rises to the level from below and the event has not happened: what an event is compared by
    is measured there, for when the event is certain its epoch has passed.
    """
    evaluated = [row for row in rows if "test_acc" in row]
    epochs = [row["epoch"] for row in evaluated]
    for column, now, level in (("train_acc", train_acc, MEMORISED), ("test_acc", test_acc, GROKKED)):
        values = [row[column] for row in evaluated]
        rises = now >= level and (not values or values[-1] < level)
        if rises and first_window(epochs, values, level, window) is None:
            return True
    return False
