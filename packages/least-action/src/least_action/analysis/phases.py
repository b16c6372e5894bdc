"""Phases of a run from its history, by windows of evaluations as in least_action.events: never by a single touch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from least_action.events import GROKKED, MEMORISED, first_window, onset_of
from studycore.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

WINDOW = 5


@dataclass(frozen=True)
class GrokkingPhases:
    """Steps (updates) at which phases begin; None: not within the history."""

    memorization_start: int | None
    """Training accuracy holds 0.99."""
    memorization_end: int | None
    """After memorising, generalisation begins (`onset_of`): the transition begins."""
    grokking_start: int | None
    """Test accuracy holds 0.99."""
    plateau_start: int | None
    """From here on test accuracy stays at 0.99 or more to the end; None for a run that ends below."""
    last_step: int
    """Where what has not happened is censored."""

    @property
    def delay(self) -> int | None:
        """From memorising to grokking, in steps."""
        if self.memorization_start is None or self.grokking_start is None:
            return None
        return self.grokking_start - self.memorization_start

    def spans(self) -> list[tuple[str, int, int]]:
        """(name, first step, last step) of each phase that there was, for shading."""
        starts = [
            ("fitting", 0),
            ("memorised", self.memorization_start),
            ("transition", self.memorization_end),
            ("reached 0.99", self.grokking_start),
        ]
        begun = [(name, start) for name, start in starts if start is not None]
        ends = [start for _, start in begun[1:]] + [self.last_step]
        return [(name, start, end) for (name, start), end in zip(begun, ends, strict=True) if end > start]


def detect_phases(history: "pd.DataFrame", chance: float = 0.0, window: int = WINDOW) -> GrokkingPhases:
    """Phases of a history with step, train_acc and test_acc; `chance` is the accuracy of guessing, 1 / p.

    With new_pairs_acc too the transition begins when accuracy on new pairs rises: test accuracy starts at the training
    fraction where mirror images are known.
    UserError when a column is missing or nothing was evaluated.
    """
    evaluated = _evaluated(history)
    steps, train, test = (evaluated[name].tolist() for name in ("step", "train_acc", "test_acc"))
    memorised = first_window(steps, train, MEMORISED, window)
    grokked = first_window(steps, test, GROKKED, window)
    new = evaluated["new_pairs_acc"].tolist() if "new_pairs_acc" in evaluated else [None] * len(test)
    risen = onset_of(steps, test, new, chance, window)
    leaves = None if risen is None or memorised is None else max(risen, memorised)
    if leaves is not None and grokked is not None:
        leaves = min(leaves, max(grokked, memorised or 0))
    below = [step for step, value in zip(steps, test, strict=True) if value < GROKKED]
    after = [step for step in steps if not below or step > below[-1]]
    return GrokkingPhases(memorised, leaves, grokked, after[0] if grokked is not None and after else None, steps[-1])


def analyze_grokking(history: "pd.DataFrame", window: int = WINDOW) -> dict[str, float | int | bool | None]:
    """How well a run grokked: shares are of the evaluations from grokking on, None for a run that did not."""
    evaluated = _evaluated(history)
    phases = detect_phases(history, window=window)
    after = evaluated[evaluated["step"] >= (phases.grokking_start or 0)] if phases.grokking_start is not None else None
    last = evaluated.iloc[-1]
    return {
        "grokked": after is not None,
        "grokking_step": phases.grokking_start,
        "delay": phases.delay,
        "last_step": phases.last_step,
        "share_train_above_099": None if after is None else float((after["train_acc"] >= MEMORISED).mean()),
        "share_test_above_099": None if after is None else float((after["test_acc"] >= GROKKED).mean()),
        "test_variance_after": None if after is None or len(after) < 2 else float(after["test_acc"].var(ddof=1)),
        "final_train_acc": float(last["train_acc"]),
        "final_test_acc": float(last["test_acc"]),
    }


def _evaluated(history: "pd.DataFrame") -> "pd.DataFrame":
    for name in ("step", "train_acc", "test_acc"):
        if name not in history.columns:
            raise UserError(f"history: has no column {name}; give the history_df of an experiment")
    evaluated = history.dropna(subset=["train_acc", "test_acc"])
    if evaluated.empty:
        raise UserError("history: holds no evaluation yet; wait for the first one")
    return evaluated
