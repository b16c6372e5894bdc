"""The study's claims; thresholds stand here, before the run. Changes are in percent.

Perplexity: paired bootstrap over validation documents, and the seeds' own variance. Conditioning is one number a run:
Student's t over seeds on its logarithm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studycore.claims import Statement, judge, not_run
from studycore.statistics import Interval, mean_interval

Floats = NDArray[np.float64]
PERCENT = "% change"
SEED = "the seed study's Expected Results"
RESAMPLES = 2000


def _expected(method: str, quantity: str, words: str, predicted: float, figures: str) -> Statement:
    what = "seed_ff_gram" if quantity == "conditioning" else "validation perplexity"
    statement = f"{words} lowers {what} by {-predicted:g} % or more from step 0"
    return Statement(
        f"{method}_{quantity}", statement, SEED, f"{predicted:g} % ({figures})", PERCENT, predicted, "below"
    )


EXPECTED = [
    ("standard", "conditioning", _expected("standard", "conditioning", "Continued training", -3, "4,738 to 4,600")),
    ("gram", "conditioning", _expected("gram", "conditioning", "The Gram penalty", -32, "4,738 to 3,200")),
    ("geometry", "conditioning", _expected("geometry", "conditioning", "Full geometry", -47, "4,738 to 2,500")),
    ("standard", "perplexity", _expected("standard", "perplexity", "Continued training", -2, "10.9 to 10.7")),
    ("gram", "perplexity", _expected("gram", "perplexity", "The Gram penalty", -10, "10.9 to 9.8")),
    ("geometry", "perplexity", _expected("geometry", "perplexity", "Full geometry", -16, "10.9 to 9.2")),
]
AUTHOR = Statement(
    "author_model", "The author's own model, trained with geometry from the start, is at 189 and 6.20", SEED,
    "-96 %", PERCENT, -96.0, "below",
)  # fmt: skip
BETTER = "at the same tokens, batches and start"
VERSUS = [
    Statement("gram_vs_standard", f"The Gram penalty ends at a lower perplexity than continued training, {BETTER}", SEED, "-8 % (9.8 against 10.7)", PERCENT, 0.0, "below"),
    Statement("geometry_vs_standard", f"Full geometry ends at a lower perplexity than continued training, {BETTER}", SEED, "-14 % (9.2 against 10.7)", PERCENT, 0.0, "below"),
    Statement("gram_scale_free_vs_standard", f"The scale-free penalty ends at a lower perplexity than continued training, {BETTER}", "this study", "lower", PERCENT, 0.0, "below"),
    Statement("glt_ffn_vs_standard", f"Normalising the up projections ends at a lower perplexity than continued training, {BETTER}", "this study", "lower", PERCENT, 0.0, "below"),
    Statement("glt_fold_vs_standard", f"The function-preserving transport ends at a lower perplexity than continued training, {BETTER}", "this study", "lower", PERCENT, 0.0, "below"),
    Statement("geometry_vs_norm_matched", "Full geometry ends at a lower perplexity than its weight norms alone bring", "this study", "lower", PERCENT, 0.0, "below"),
]  # fmt: skip
UP_KAPPA = "ends at a lower median weight kappa of the up projections than continued training"
CONDITIONING_VERSUS = [
    ("geometry", "standard", "seed_ff_gram", Statement("geometry_vs_standard_conditioning", "Full geometry ends at a lower seed_ff_gram than continued training", SEED, "-46 % (2,500 against 4,600)", PERCENT, 0.0, "below")),
    ("gram", "norm_matched", "seed_ff_gram", Statement("gram_vs_norm_matched_conditioning", "The Gram penalty ends at a lower seed_ff_gram than shrinking alone (geometry's weight norms)", "this study", "lower", PERCENT, 0.0, "below")),
    ("gram", "standard", "up_kappa_median", Statement("gram_kappa", f"The Gram penalty {UP_KAPPA}", "this study", "lower", PERCENT, 0.0, "below")),
    ("gram_scale_free", "standard", "up_kappa_median", Statement("gram_scale_free_kappa", f"The scale-free penalty {UP_KAPPA}", "this study", "lower", PERCENT, 0.0, "below")),
    ("glt_fold", "standard", "up_kappa_median", Statement("glt_fold_kappa", f"The function-preserving transport {UP_KAPPA}", "this study", "lower", PERCENT, 0.0, "below")),
]  # fmt: skip
"""(treated, control, what is compared, claim)."""
FOLD_FUNCTION = Statement(
    "glt_fold_function", "The function-preserving transport moves perplexity by less than 0.01 %", "this study: it is exact but for rounding",
    "0", "%, size of the move at a transport", 0.01, "below",
)  # fmt: skip
NULL = Statement(
    "glt_perm_null", "Permuting hidden units with their optimizer state ends within 0.1 % of continued training's perplexity",
    "this study: the trajectory is the same but for rounding", "0", "%, size of the difference", 0.1, "below",
)  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    """What claims need of one finished run."""

    method: str
    seed: int
    first: dict[str, Any]
    """Evaluation row at step 0."""
    last: dict[str, Any]
    first_documents: Floats
    """[documents, (index, nll, tokens)]"""
    last_documents: Floats
    moves: Sequence[float]
    """Relative sizes of perplexity's moves at transports."""


def perplexity_change(pairs: Sequence[tuple[Floats, Floats]], resamples: int = RESAMPLES) -> Interval:
    """Percent by which perplexity differs, treated against control, over (treated, control) pairs, one per seed.

    Documents: paired bootstrap, each document with its values in all pairs; with one pair its percentiles are the
    interval. Several pairs: the bootstrap's variance plus the variance of the seeds' mean, and Student's t with the
    degrees of freedom of Satterthwaite (1946). (Drawing 3 seeds with replacement instead misses the truth in a quarter
    of trials, since an interval can't reach beyond the seeds seen.) n is the number of seeds, or of documents when there
    is one pair.
    """
    from scipy import stats

    tokens_D = pairs[0][0][:, 2]
    for treated, control in pairs:
        assert np.array_equal(treated[:, [0, 2]], control[:, [0, 2]]), "evaluations on other documents can't be paired"
        assert np.array_equal(treated[:, 2], tokens_D)
    difference_SD = np.stack([treated[:, 1] - control[:, 1] for treated, control in pairs])
    seeds, documents = difference_SD.shape
    mean_D = difference_SD.mean(0)
    estimate = mean_D.sum() / tokens_D.sum()
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        counts_D = np.bincount(random.integers(0, documents, documents), minlength=documents)
        drawn.append((mean_D @ counts_D) / (tokens_D @ counts_D))
    if seeds == 1:
        low, high = np.quantile(drawn, [0.025, 0.975])
    else:
        of_documents = float(np.var(drawn))
        of_seeds = float(np.var(difference_SD.sum(1) / tokens_D.sum(), ddof=1)) / seeds
        total = of_documents + of_seeds
        freedom = total**2 / (of_documents**2 / (documents - 1) + of_seeds**2 / (seeds - 1)) if total > 0 else 1.0
        half = stats.t.ppf(0.975, freedom) * math.sqrt(total)
        low, high = estimate - half, estimate + half
    percent = [100 * math.expm1(float(x)) for x in (estimate, low, high)]
    return Interval(percent[0], percent[1], percent[2], seeds if seeds > 1 else documents)


def ratio_change(pairs: Sequence[tuple[float, float]]) -> Interval:
    """Percent by which a positive quantity differs, treated against control, one pair per seed (at least 2)."""
    interval = mean_interval([math.log(treated / control) for treated, control in pairs])
    percent = [100 * math.expm1(x) for x in (interval.estimate, interval.low, interval.high)]
    return Interval(percent[0], percent[1], percent[2], interval.n)


def make_claims(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Every claim on the finished runs; "not run" where the arms or seeds it needs are missing."""
    arms: dict[str, dict[int, RunResult]] = {}
    for run in runs:
        arms.setdefault(run.method, {})[run.seed] = run
    claims = []
    for method, quantity, statement in EXPECTED:
        own = list(arms.get(method, {}).values())
        if quantity == "conditioning":
            pairs = [_values(r.last, r.first, "seed_ff_gram") for r in own]
            claims.append(_ratio_claim(statement, pairs, method))
        else:
            claims.append(_perplexity_claim(statement, [(r.last_documents, r.first_documents) for r in own], method))
    claims.append(not_run(AUTHOR, "The author's model has not been published; 189 is of one layer and one batch."))
    for statement in VERSUS:
        treated, control = statement.id.split("_vs_")
        pairs_of = [(a.last_documents, b.last_documents) for a, b in _paired(arms, treated, control)]
        claims.append(_perplexity_claim(statement, pairs_of, f"{treated} and {control}"))
    for treated, control, key, statement in CONDITIONING_VERSUS:
        values = [_values(a.last, b.last, key) for a, b in _paired(arms, treated, control)]
        claims.append(_ratio_claim(statement, values, f"{treated} and {control}"))
    folds = [100 * max(r.moves) for r in arms.get("glt_fold", {}).values() if r.moves]
    claims.append(_size_claim(FOLD_FUNCTION, folds, "largest over a run's transports, mean over seeds", "glt_fold"))
    nulls = [
        abs(perplexity_change([(a.last_documents, b.last_documents)], resamples=1).estimate)
        for a, b in _paired(arms, "glt_perm", "standard")
    ]
    claims.append(_size_claim(NULL, nulls, "mean over seeds", "glt_perm and standard"))
    return claims


def _paired(arms: dict[str, dict[int, RunResult]], one: str, other: str) -> list[tuple[RunResult, RunResult]]:
    treated, control = arms.get(one, {}), arms.get(other, {})
    return [(treated[seed], control[seed]) for seed in sorted(set(treated) & set(control))]


def _values(treated: dict[str, Any], control: dict[str, Any], key: str) -> tuple[float, float] | None:
    """Both values where they are there and positive (a ratio of float32 eigenvalues may be negative)."""
    pair = (float(treated.get(key) or 0), float(control.get(key) or 0))
    return pair if min(pair) > 0 else None


def _missing(what: str, least: int, there: int) -> str:
    return f"Needs {least} or more finished seeds of {what}; there are {there}."


def _ratio_claim(statement: Statement, found: Sequence[tuple[float, float] | None], what: str) -> dict[str, Any]:
    pairs, there = [pair for pair in found if pair], len(found)
    if len(pairs) < 2:
        return not_run(statement, _missing(what, 2, len(pairs)))
    left_out = (
        f" {there - len(pairs)} of {there} seeds have no positive value and are left out." if there > len(pairs) else ""
    )
    return judge(statement, ratio_change(pairs), f"Geometric mean over seeds, Student's t.{left_out}")


def _perplexity_claim(statement: Statement, pairs: Sequence[tuple[Floats, Floats]], what: str) -> dict[str, Any]:
    # Of one seed the documents alone would give an interval, which says nothing of another order of batches.
    if len(pairs) < 2:
        return not_run(statement, _missing(what, 2, len(pairs)))
    over = f"{len(pairs[0][0])} validation documents, plus the variance between seeds"
    return judge(statement, perplexity_change(pairs), f"Paired bootstrap over {over}.")


def _size_claim(statement: Statement, values: Sequence[float], how: str, what: str) -> dict[str, Any]:
    if len(values) < 2:
        return not_run(statement, _missing(what, 2, len(values)))
    return judge(statement, mean_interval(values), f"{how[0].upper()}{how[1:]}, Student's t.")
