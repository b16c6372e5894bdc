"""Claims: supported on planted effects, not on noise, not run without their arms."""

import numpy as np

from least_action.claims import RunSummary, make_claims
from least_action.events import Events

IDS = ["grokking", "delay", "weight_decay", "routing", "routing_fourfold", "curvature", "curvature_per_loss"]


def run(config, time, memorised=8, trace=(100.0, 10.0), last=1000):
    grokked = time if time < last else None
    events = Events(memorised, memorised, grokked, grokked, None if grokked is None else grokked - memorised, last)
    rows = [
        {"epoch": memorised, "weight_hessian_trace": trace[0], "weight_hessian_per_loss": trace[0]},
        {"epoch": last, "weight_hessian_trace": trace[1], "weight_hessian_per_loss": trace[1]},
    ]
    return RunSummary("r", config, events, rows)


def verdicts(runs):
    return {claim["id"]: claim["verdict"] for claim in make_claims(runs)}


def arms(small, dense, no_decay, routed, trace=lambda s: (100.0, 10.0 + s)):
    made = []
    for s, times in enumerate(zip(dense, no_decay, routed, strict=True)):
        made.append(run(small(seed=s), times[0], trace=trace(s)))
        made.append(run(small(seed=s, weight_decay=0.0, log_every=20), times[1], trace=trace(s)))
        made.append(
            run(small(seed=s, model_type="routed_transformer", routing_regularizer=None), times[2], trace=trace(s))
        )
    return made


def test_planted_effects_are_found(small):
    seeds = range(8)
    runs = arms(small, [100 + s for s in seeds], [1000] * 8, [600 + 5 * s for s in seeds])
    assert verdicts(runs) == dict.fromkeys(IDS, "supported")
    opposite = arms(
        small,
        [400 + s for s in seeds],
        [100 + s for s in seeds],
        [100 + 2 * s for s in seeds],
        lambda s: (10.0, 100.0 + s),
    )
    found = verdicts(opposite)
    assert found["weight_decay"] == found["routing"] == found["curvature"] == "refuted"


def test_noise_is_inconclusive(small):
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(60):
        times = random.lognormal(5, 0.4, (3, 6)).clip(20, 900).astype(int)
        traces = random.lognormal(3, 0.5, (6, 2))
        found = verdicts(arms(small, *times.tolist(), lambda s, t=traces: tuple(t[s])))
        wrong += sum(found[name] != "inconclusive" for name in ("weight_decay", "routing", "curvature"))
    # 5 % of 180 intervals miss the truth by construction: 9 expected; 20 is beyond 3 standard deviations.
    assert wrong <= 20


def test_missing_inputs_are_not_run(small):
    claims = make_claims([run(small(), 100)])
    assert {c["id"]: c["verdict"] for c in claims if c["id"] != "grokking"} == dict.fromkeys(IDS[1:], "not run")
    for claim in claims[1:]:
        assert claim["measured"] is None
        assert claim["interval95"] is None
    # One run says nothing firm about a share.
    assert claims[0]["verdict"] == "inconclusive"
    assert {c["verdict"] for c in make_claims([])} == {"not run"}


def test_pairs_need_the_same_split_and_start(small):
    """Arms that differ in more than the thing compared are no pair."""
    runs = [run(small(seed=s), 100) for s in range(4)] + [
        run(small(seed=s, weight_decay=0.0, lr=0.5), 900) for s in range(4)
    ]
    assert verdicts(runs)["weight_decay"] == "not run"


def test_runs_that_never_grok_count_with_their_length_and_are_told(small):
    runs = arms(small, [100] * 4, [1000, 1000, 500, 510], [100, 110, 90, 100])
    claim = next(c for c in make_claims(runs) if c["id"] == "weight_decay")
    assert "2 of 4" in claim["why"]
    assert claim["measured"] < 10
