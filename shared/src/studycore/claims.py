"""Claims: a statement, a threshold that stands in code before the run, and what was measured."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from studycore.statistics import Interval

Verdict = Literal["supported", "refuted", "inconclusive", "not run"]


@dataclass(frozen=True)
class Statement:
    """What is claimed, before anything is measured: the quantity lies above (or below) `threshold`."""

    id: str
    statement: str
    source: str
    """Who says so."""
    predicted: str
    """The figure that the source gives, as text."""
    unit: str
    threshold: float
    direction: Literal["above", "below"]


def judge(statement: Statement, measured: Interval, why: str) -> dict[str, Any]:
    """Supported or refuted when the whole interval lies on one side of the threshold, else inconclusive."""
    above, below = measured.low > statement.threshold, measured.high < statement.threshold
    supported, refuted = (above, below) if statement.direction == "above" else (below, above)
    verdict: Verdict = "supported" if supported else "refuted" if refuted else "inconclusive"
    rule = f"{verdict}: supported if the interval lies {statement.direction} {statement.threshold:g}"
    return _claim(statement, measured.estimate, [measured.low, measured.high], measured.n, verdict, f"{rule}. {why}")


def not_run(statement: Statement, why: str) -> dict[str, Any]:
    """A claim whose inputs are missing carries no number."""
    return _claim(statement, None, None, 0, "not run", why)


def _claim(
    statement: Statement, measured: float | None, interval: list[float] | None, n: int, verdict: Verdict, why: str
) -> dict[str, Any]:
    fields = asdict(statement)
    return {
        **{key: fields[key] for key in ("id", "statement", "source", "predicted", "unit", "threshold", "direction")},
        "measured": measured,
        "interval95": interval,
        "n": n,
        "verdict": verdict,
        "why": why.strip(),
    }
