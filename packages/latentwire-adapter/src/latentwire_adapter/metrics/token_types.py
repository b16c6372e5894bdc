"""Unexplained variance of token types, by whether the fits saw them and by how often they are counted.

A phase 1 run writes, of token types that its fits saw and of those held out, the count, the squared distance from the mean
row (spread) and the squared error of each decoder. Held-out types are rarer than seen ones, since the most frequent types
are never held out: what the adapter remembers shows among types that are counted equally often.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studycore.claims import NotRun
from studycore.statistics import Interval, bootstrap, ratio_of_sums

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
KINDS = ("seen", "held_out")
DECODERS = ("linear", "adapter")
RESAMPLES = 500
"""Of token types, of which there are tens of thousands: their intervals are narrow, and each resample costs as many draws."""
BANDS = {
    "below 1": (0.0, 1.0), "1 to 10": (1.0, 10.0), "10 to 100": (10.0, 100.0), "100 to 1,000": (100.0, 1000.0),
    "1,000 or more": (1000.0, np.inf),
}  # fmt: skip
"""Ranges of a type's count. Prompts are counted whole and `fit_text` at a share: below 1 are types of `fit_text` alone."""


@dataclass(frozen=True)
class Group:
    """Token types of one range of counts, as one decoder rebuilds them."""

    band: str
    kind: str
    decoder: str
    unexplained: Interval


def mean_over_runs(runs: Sequence[Arrays]) -> Arrays:
    """Errors and cosines as means over the adapters of several seeds; counts and spreads are the same in all."""
    return {name: np.mean([run[name].astype(np.float64) for run in runs], axis=0) for name in runs[0]}


def unexplained(arrays: Arrays, kind: str, decoder: str, less: str = "") -> Interval:
    """Squared error over squared distance from the mean, by counts; `less`: minus that of another decoder. Types are drawn."""
    everything = np.ones(len(arrays[f"{kind}_count"]), dtype=bool)
    return _unexplained(arrays, kind, decoder, less, everything)


def by_count(arrays: Arrays) -> list[Group]:
    """Unexplained variance of each decoder in each range of counts that holds two types or more."""
    groups = []
    for band, (low, high) in BANDS.items():
        for kind in KINDS:
            count_U = arrays.get(f"{kind}_count", np.zeros(0))
            inside_U = (count_U >= low) & (count_U < high)
            if inside_U.sum() > 1:
                groups += [Group(band, kind, name, _unexplained(arrays, kind, name, "", inside_U)) for name in DECODERS]
    return groups


def lead_on_trained_types(arrays: Arrays) -> Interval:
    """Adapter minus linear inverse on seen types, minus the same on held-out types, of one range of counts; the mean over
    ranges that hold both, by the spread of their held-out types. Below 0: the adapter leads by more where it was trained.
    NotRun where no range holds both."""
    rows = []
    for k, kind in enumerate(KINDS):
        count_U = arrays[f"{kind}_count"]
        band_U = np.searchsorted([high for _, high in BANDS.values()], count_U, side="right")
        lead_U = arrays[f"{kind}_adapter"] - arrays[f"{kind}_linear"]
        rows.append(np.stack([k * len(BANDS) + band_U, count_U * lead_U, count_U * arrays[f"{kind}_spread"]], axis=1))

    def statistic(drawn: Floats) -> float:
        place = drawn[:, 0].astype(np.int64)
        seen_lead, held_lead = np.bincount(place, drawn[:, 1], 2 * len(BANDS)).reshape(2, -1)
        seen_spread, held_spread = np.bincount(place, drawn[:, 2], 2 * len(BANDS)).reshape(2, -1)
        both = (seen_spread > 0) & (held_spread > 0)
        if not both.any():
            return float("nan")
        weight = held_spread[both] / held_spread[both].sum()
        return float(weight @ (seen_lead[both] / seen_spread[both] - held_lead[both] / held_spread[both]))

    together = np.concatenate(rows)
    if not np.isfinite(statistic(together)):
        raise NotRun("No range of counts holds both types that the fits saw and types held out.")
    return bootstrap(together, statistic, RESAMPLES)


def _unexplained(arrays: Arrays, kind: str, decoder: str, less: str, chosen_U: NDArray[np.bool_]) -> Interval:
    count_U, spread_U = arrays[f"{kind}_count"][chosen_U], arrays[f"{kind}_spread"][chosen_U]
    error_U = arrays[f"{kind}_{decoder}"][chosen_U] - (arrays[f"{kind}_{less}"][chosen_U] if less else 0.0)
    return ratio_of_sums(count_U * error_U, count_U * spread_U, RESAMPLES)
