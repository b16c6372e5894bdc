"""What survives compression, between the negative control and the uncompressed prompt, with intervals over paragraphs.

Questions of one paragraph are not independent, and all arms answer the same ones: paragraphs are drawn together with all
arms' scores (paired, clustered bootstrap).

Shapes: P paragraphs, A arms.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studycore.claims import NotRun
from studycore.statistics import Interval, bootstrap, ratio_of_sums

Floats = NDArray[np.float64]
RESAMPLES = 2000
Questions = Sequence[Mapping[str, Any]]


def by_paragraph(arms: Sequence[Questions], score: str = "f1") -> Floats:
    """Rows [P, 1 + A]: questions of the paragraph, then the sum of each arm's scores (0 to 100). NotRun when the arms
    answered other questions."""
    ids = [row["id"] for row in arms[0]]
    if any([row["id"] for row in arm] != ids for arm in arms):
        raise NotRun("The arms answered other questions and cannot be paired.")
    names = sorted({row["paragraph"] for row in arms[0]})
    place = {name: i for i, name in enumerate(names)}
    totals = np.zeros((len(names), 1 + len(arms)))
    for column, arm in enumerate(arms, 1):
        for row in arm:
            totals[place[row["paragraph"]], column] += 100 * row[score]
    for row in arms[0]:
        totals[place[row["paragraph"]], 0] += 1
    return totals


def mean_f1(arm: Questions, score: str = "f1") -> Interval:
    """Mean score over questions."""
    questions_P, sum_P = by_paragraph([arm], score).T
    return _per_question(sum_P, questions_P)


def difference(treated: Questions, control: Questions) -> Interval:
    """Treated minus control, in F1 points."""
    questions_P, treated_P, control_P = by_paragraph([treated, control]).T
    return _per_question(treated_P - control_P, questions_P)


def retention(treated: Questions, uncompressed: Questions, controls: Sequence[Questions]) -> Interval:
    """(F1 - negative control) / (uncompressed - negative control), the negative control being the better of those given.

    NotRun when the uncompressed prompt is not better than the controls: there is nothing to retain.
    """
    rows_PA = by_paragraph([treated, uncompressed, *controls])

    def statistic(rows: Floats) -> float:
        means = rows[:, 1:].sum(0) / rows[:, 0].sum()
        floor = means[2:].max()
        return float((means[0] - floor) / (means[1] - floor)) if means[1] > floor else float("nan")

    if not np.isfinite(statistic(rows_PA)):
        raise NotRun("The uncompressed prompt scores no better than the negative control: there is nothing to retain.")
    _several(rows_PA)
    interval = bootstrap(rows_PA, statistic, RESAMPLES)
    if not np.isfinite([interval.low, interval.high]).all():
        raise NotRun("In some resamples the uncompressed prompt scores no better than the negative control.")
    return interval


def _several(paragraphs: Sequence[Any] | Floats) -> None:
    if len(paragraphs) < 2:
        raise NotRun(f"Needs 2 or more paragraphs; there are {len(paragraphs)}.")


def _per_question(sum_P: Floats, questions_P: Floats) -> Interval:
    _several(sum_P)
    return ratio_of_sums(sum_P, questions_P, RESAMPLES)


def rank_correlation(arm: Questions, quality: str = "error") -> Interval:
    """Spearman's correlation over questions of the reconstruction's quality (minus its error) with F1; paragraphs drawn.

    0 where all questions, or those of a resample, have the same F1 or the same quality: neither follows the other. NotRun
    where an arm reconstructs nothing.
    """
    from scipy import stats

    chosen = [row for row in arm if quality in row]
    if not chosen:
        raise NotRun(f"No question has {'an' if quality == 'error' else 'a'} {quality}: there is no correlation.")
    names = sorted({row["paragraph"] for row in chosen})
    groups = [np.array([(-row[quality], row["f1"]) for row in chosen if row["paragraph"] == name]) for name in names]

    def statistic(indices: Floats) -> float:
        pairs = np.concatenate([groups[int(i)] for i in indices])
        if len(set(pairs[:, 0])) < 2 or len(set(pairs[:, 1])) < 2:
            return 0.0
        return float(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)

    _several(groups)
    return bootstrap(np.arange(len(groups), dtype=np.float64), statistic, RESAMPLES // 2)


def over_seeds(runs: Sequence[Questions]) -> list[dict[str, Any]]:
    """One list of questions with the scores' means over runs of several seeds. NotRun for other questions."""
    if len({tuple(row["id"] for row in run) for run in runs}) != 1:
        raise NotRun("The seeds answered other questions and cannot be averaged.")
    numbers = ("f1", "em", "error", "answer_error")
    return [
        {**rows[0], **{name: float(np.mean([row[name] for row in rows])) for name in numbers if name in rows[0]}}
        for rows in zip(*runs, strict=True)
    ]
