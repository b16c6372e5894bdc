"""Claims: found when planted, inconclusive on noise, not run without their arms; the bootstrap's coverage."""

import math

import numpy as np
import pytest

from retrofit.claims import AUTHOR, EXPECTED, RunResult, make_claims, perplexity_change

METHODS = ["standard", "gram", "gram_scale_free", "geometry", "glt_ffn", "glt_fold", "glt_perm", "norm_matched"]
DOCUMENTS = 400


def result(method, seed, ppl=0.0, cond=0.0, moves=(1e-7,), noise=0.0, kappa=0.0):
    """A run whose perplexity and conditioning changed by e^ppl and e^cond."""
    draw = np.random.default_rng(1)
    tokens = draw.integers(5, 40, DOCUMENTS)
    start = draw.gamma(3, 1, DOCUMENTS) * tokens
    after = start + tokens * (ppl + np.random.default_rng([seed, len(method)]).normal(0, noise, DOCUMENTS))
    tables = [np.stack([np.arange(DOCUMENTS), x, tokens], axis=1).astype(float) for x in (start, after)]
    first = {"seed_ff_gram": 4738.0, "up_kappa_median": 50.0}
    last = {"seed_ff_gram": 4738 * math.exp(cond), "up_kappa_median": 50 * math.exp(kappa)}
    return RunResult(method, seed, first, last, *tables, list(moves))


def verdicts(runs):
    return {c["id"]: c["verdict"] for c in make_claims(runs)}


PLANTED = {  # method -> (log change of perplexity, of conditioning)
    "standard": (-0.03, -0.05), "gram": (-0.2, -0.5), "geometry": (-0.25, -0.9), "gram_scale_free": (-0.05, -0.2),
    "glt_ffn": (-0.05, 0), "glt_fold": (-0.05, -0.1), "glt_perm": (-0.03, -0.05), "norm_matched": (-0.04, 0),
}  # fmt: skip


def planted(sign=1):
    return [
        result(m, s, sign * PLANTED[m][0], sign * PLANTED[m][1] + 0.001 * s, kappa=sign * PLANTED[m][1] + 0.001 * s,
               moves=(1e-6, 2e-6 + 1e-8 * s) if sign > 0 else (0.4, 0.5 + 0.01 * s))
        for m in METHODS
        for s in range(4)
    ]  # fmt: skip


def test_planted_effects_are_found_and_their_opposites_refuted():
    found = verdicts(planted())
    assert {v for k, v in found.items() if k != AUTHOR.id} == {"supported"}
    assert found[AUTHOR.id] == "not run"
    opposite = verdicts(planted(-1))
    assert {v for k, v in opposite.items() if k not in (AUTHOR.id, "glt_perm_null")} == {"refuted"}


def test_the_expected_results_are_the_seeds():
    assert {(m, q): s.threshold for m, q, s in EXPECTED} == {
        ("standard", "conditioning"): -3, ("gram", "conditioning"): -32, ("geometry", "conditioning"): -47,
        ("standard", "perplexity"): -2, ("gram", "perplexity"): -10, ("geometry", "perplexity"): -16,
    }  # fmt: skip
    # The seed's table: 4738 -> 4600, 3200, 2500 and 10.9 -> 10.7, 9.8, 9.2.
    for (_, _, s), value in zip(EXPECTED, (4600 / 4738, 3200 / 4738, 2500 / 4738, 10.7 / 10.9, 9.8 / 10.9, 9.2 / 10.9), strict=True):  # fmt: skip
        assert s.threshold == pytest.approx(100 * (value - 1), abs=0.7)


def test_the_penalties_are_judged_on_weights_and_beside_shrinking():
    claims = {c["id"]: c for c in make_claims(planted())}
    assert claims["gram_kappa"]["measured"] == pytest.approx(100 * (math.exp(-0.45) - 1))
    assert claims["gram_scale_free_kappa"]["measured"] == pytest.approx(100 * (math.exp(-0.15) - 1))
    assert claims["gram_vs_norm_matched_conditioning"]["measured"] == pytest.approx(100 * (math.exp(-0.5) - 1))


def test_missing_arms_are_not_run_and_carry_no_number():
    claims = make_claims([])
    assert {c["verdict"] for c in claims} == {"not run"}
    assert all(c["measured"] is None and c["interval95"] is None for c in claims)
    one = {c["id"]: c for c in make_claims([result(m, 0, -0.3, -1) for m in METHODS])}
    # One seed says nothing of another's order of batches, although its documents have an interval.
    assert {c["verdict"] for c in one.values()} == {"not run"}
    assert "Needs 2 or more finished seeds of geometry; there are 1." in one["geometry_perplexity"]["why"]
    assert {c["id"]: c["n"] for c in make_claims(planted())}["geometry_perplexity"] == 4


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("between", "within"), [(0.01, 0.02), (0.01, 0.5), (0.0, 0.5)])
def test_intervals_miss_at_the_stated_rate(seeds, between, within):
    """No effect, noise between seeds and between documents: 5 % of intervals exclude 0 (300 trials: at most 8.5 %)."""
    draw = np.random.default_rng(7)
    tokens = draw.integers(5, 40, 200)
    wrong = 0
    for _ in range(300):
        pairs = []
        for shift in draw.normal(0, between, seeds):
            table = np.stack([np.arange(200), np.zeros(200), tokens], axis=1).astype(float)
            treated = table.copy()
            treated[:, 1] = tokens * (shift + draw.normal(0, within, 200))
            pairs.append((treated, table))
        found = perplexity_change(pairs, resamples=200)
        wrong += found.low > 0 or found.high < 0
    assert wrong <= 25


def test_the_estimate_is_the_ratio_of_exact_perplexities():
    a, b = result("gram", 0, -0.1, noise=0.3), result("standard", 0, noise=0.3)
    tokens = a.last_documents[:, 2].sum()
    ratio = math.exp((a.last_documents[:, 1].sum() - b.last_documents[:, 1].sum()) / tokens)
    found = perplexity_change([(a.last_documents, b.last_documents)])
    assert found.estimate == pytest.approx(100 * (ratio - 1))
    assert found.low < found.estimate < found.high


def test_documents_that_differ_cannot_be_paired():
    a = result("gram", 0).last_documents
    with pytest.raises(AssertionError):
        perplexity_change([(a, a[:-1])])
