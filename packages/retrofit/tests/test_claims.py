"""Claims: found when planted, inconclusive on noise, not run without their arms; the bootstrap's coverage."""

import math

import numpy as np
import pytest
from conftest import judged

from retrofit.claims import CLAIMS, claims, perplexity_change
from retrofit.config import RunConfig

METHODS = [
    "standard",
    "gram",
    "gram_scale_free",
    "geometry",
    "geometry_ffn",
    "glt_ffn",
    "glt_fold",
    "glt_perm",
    "norm_matched",
]
DOCUMENTS = 400
WINDOWS = np.random.default_rng(2).gamma(4, 1, (2, 30, 2))
"""What windows of tokens give to the extreme eigenvalues of two layers."""
ALONE = {"author_model", "gram_front", "gram_scale_free_front"}
"""Claims that are not run here: test_verdicts.py judges fronts."""


def run(method, seed, ppl=0.0, cond=0.0, move=1e-5, noise=0.0, kappa=0.0):
    """A row of the table of runs: perplexity and conditioning changed by e^ppl and e^cond; `move` in percent."""
    draw = np.random.default_rng(1)
    tokens = draw.integers(5, 40, DOCUMENTS)
    start = draw.gamma(3, 1, DOCUMENTS) * tokens
    after = start + tokens * (ppl + np.random.default_rng([seed, len(method)]).normal(0, noise, DOCUMENTS))
    first, last = (np.stack([np.arange(DOCUMENTS), x, tokens], axis=1).astype(float) for x in (start, after))
    return {
        "run": f"{method}_s{seed}", "arm": method, "seed": seed, "folder": "", "initial_documents": first,
        "documents": last, "val_loss": after.sum() / tokens.sum(), "initial_ff_gram_original": 4738.0,
        "ff_gram_original": 4738 * math.exp(cond), "up_kappa_median": 50 * math.exp(kappa),
        "largest_transport_move": move, "updates": 1000, "weight": 0.01, "ff_gram_tokens": 65536,
        "windows": WINDOWS * [math.exp(cond), 1],
    }  # fmt: skip


def verdicts(runs):
    return {name: claim["verdict"] for name, claim in judged(runs).items()}


PLANTED = {  # method -> (log change of perplexity, of conditioning)
    "standard": (-0.03, -0.05), "gram": (-0.2, -0.5), "geometry": (-0.25, -0.9), "gram_scale_free": (-0.05, -0.2),
    "geometry_ffn": (-0.06, -0.15), "glt_ffn": (-0.05, 0), "glt_fold": (-0.05, -0.1), "glt_perm": (-0.03, -0.05), "norm_matched": (-0.04, 0),
}  # fmt: skip


def planted(sign=1):
    return [
        run(m, s, sign * PLANTED[m][0], sign * PLANTED[m][1] + 0.001 * s, kappa=sign * PLANTED[m][1] + 0.001 * s,
            move=2e-4 + 1e-6 * s if sign > 0 else 50 + s)
        for m in METHODS
        for s in range(4)
    ]  # fmt: skip


def test_planted_effects_are_found_and_their_opposites_refuted():
    found = verdicts(planted())
    assert {v for k, v in found.items() if k not in ALONE} == {"supported"}
    assert {found[name] for name in ALONE} == {"not run"}
    opposite = verdicts(planted(-1))
    assert {v for k, v in opposite.items() if k not in ALONE | {"glt_perm_null"}} == {"refuted"}


def test_a_null_arm_that_ends_elsewhere_is_refuted():
    runs = [run("standard", s) for s in range(3)] + [run("glt_perm", s, 0.05 + 0.001 * s) for s in range(3)]
    claim = judged(runs)["glt_perm_null"]
    assert claim["verdict"] == "refuted"
    assert claim["measured"] == pytest.approx(np.mean([100 * math.expm1(0.05 + 0.001 * s) for s in range(3)]))


def test_the_expected_results_are_the_original_studys():
    # Its table: 4738 -> 4600, 3200, 2500 and 10.9 -> 10.7, 9.8, 9.2.
    figures = {
        "standard_conditioning": (-3, 4600 / 4738), "gram_conditioning": (-32, 3200 / 4738),
        "geometry_conditioning": (-47, 2500 / 4738), "standard_perplexity": (-2, 10.7 / 10.9),
        "gram_perplexity": (-10, 9.8 / 10.9), "geometry_perplexity": (-16, 9.2 / 10.9),
    }  # fmt: skip
    below = {claim.id: claim.below for claim in CLAIMS}
    for name, (threshold, ratio) in figures.items():
        assert below[name] == threshold == pytest.approx(100 * (ratio - 1), abs=0.7)


def test_the_penalties_are_judged_on_weights_and_beside_shrinking():
    found = judged(planted())
    assert found["gram_kappa"]["measured"] == pytest.approx(100 * (math.exp(-0.45) - 1))
    assert found["gram_scale_free_kappa"]["measured"] == pytest.approx(100 * (math.exp(-0.15) - 1))
    assert found["gram_vs_norm_matched_conditioning"]["measured"] == pytest.approx(100 * (math.exp(-0.5) - 1))
    change = np.mean([-0.9 + 0.001 * s for s in range(4)])
    assert found["geometry_conditioning"]["measured"] == pytest.approx(100 * math.expm1(change))


def test_missing_arms_are_not_run_and_carry_no_number():
    found = judged([])
    assert {c["verdict"] for c in found.values()} == {"not run"}
    assert all(c["measured"] is None and c["interval95"] is None for c in found.values())
    one = judged([run(m, 0, -0.3, -1) for m in METHODS])
    # One seed says nothing of another's order of batches, although its documents have an interval.
    assert {c["verdict"] for c in one.values()} == {"not run"}
    assert "Needs 2 or more finished seeds of geometry; there are 1." in one["geometry_perplexity"]["why"]
    assert "has not been published" in one["author_model"]["why"]
    assert judged(planted())["geometry_perplexity"]["n"] == 4


def test_the_seeds_that_are_left_of_an_arm_do_not_decide():
    """Of four seeds of geometry one failed; what is about other arms is judged as before."""
    runs = [row for row in planted() if row["run"] != "geometry_s3"]
    found, whole = judged(runs, [("geometry", 3)]), judged(planted())
    of_geometry = {name for name in whole if name.startswith("geometry_") and not name.startswith("geometry_ffn")}
    for name in of_geometry - ALONE:
        assert (found[name]["verdict"], found[name]["measured"]) == ("not run", None), name
        assert "1 are missing (failed: geometry_s3)" in found[name]["why"], name
    assert found["gram_perplexity"]["verdict"] == whole["gram_perplexity"]["verdict"] == "supported"


def test_seeds_without_a_positive_conditioning_are_left_out_and_counted():
    runs = planted()
    next(row for row in runs if row["run"] == "gram_s0")["ff_gram_original"] = -2.5e6
    claim = judged(runs)["gram_conditioning"]
    assert claim["n"] == 3
    assert "Left out: 1 of 4 runs without a positive ff_gram_original." in claim["why"]


def test_a_single_run_reports_the_claims_on_its_own_method():
    ids = {m: [claim.id for claim in claims("run", RunConfig(method=m))] for m in ("gram", "glt_fold", "glt_ffn")}
    assert ids["gram"] == ["gram_conditioning", "gram_perplexity", "author_model"]
    assert ids["glt_fold"] == ["author_model", "glt_fold_function"]
    assert ids["glt_ffn"] == ["author_model"]


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
    a, b = (run(m, 0, ppl, noise=0.3)["documents"] for m, ppl in (("gram", -0.1), ("standard", 0)))
    ratio = math.exp((a[:, 1].sum() - b[:, 1].sum()) / a[:, 2].sum())
    found = perplexity_change([(a, b)])
    assert found.estimate == pytest.approx(100 * (ratio - 1))
    assert found.low < found.estimate < found.high


def test_between_seeds_alone_the_interval_is_students():
    """Every document moves by the same amount a token, another in each seed."""
    table = run("standard", 0)["documents"]
    shifts = np.array([-0.02, 0.01, 0.05, 0.03])
    treated = [np.stack([table[:, 0], table[:, 1] + s * table[:, 2], table[:, 2]], axis=1) for s in shifts]
    found = perplexity_change([(one, table) for one in treated])
    middle, half = shifts.mean(), 3.182446 * shifts.std(ddof=1) / 2  # t of 3 degrees of freedom, root of 4 seeds
    assert found.estimate == pytest.approx(100 * math.expm1(middle))
    assert (found.low, found.high) == (
        pytest.approx(100 * math.expm1(middle - half), rel=1e-5), pytest.approx(100 * math.expm1(middle + half), rel=1e-5),
    )  # fmt: skip


def test_within_documents_alone_the_interval_is_the_bootstraps():
    """Seeds that agree: the standard error of a ratio of sums, to what 2,000 resamples know of it."""
    draw = np.random.default_rng(5)
    tokens = np.full(DOCUMENTS, 10.0)
    table = np.stack([np.arange(DOCUMENTS), np.zeros(DOCUMENTS), tokens], axis=1)
    moved = table.copy()
    moved[:, 1] = draw.normal(0, 1, DOCUMENTS)
    found = perplexity_change([(moved, table)] * 3)
    error = moved[:, 1].std() / math.sqrt(DOCUMENTS) / 10
    assert found.high - found.low == pytest.approx(100 * 2 * 1.966 * error, rel=0.06)
    assert found.n == 3
    assert perplexity_change([(moved, table)]).n == DOCUMENTS


def test_documents_that_differ_cannot_be_paired():
    a = run("gram", 0)["documents"]
    with pytest.raises(AssertionError):
        perplexity_change([(a, a[:-1])])
